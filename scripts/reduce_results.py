# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reduce a study's folder to what its report draws, small enough to commit.

    python scripts/reduce_results.py runs/coco128-cpu results/coco128-cpu

What stays is itself a study's folder, of which `gradstudy report` makes the same tables and figures: specs,
results, every run's step scalars and validations, and gradient norms by layer of the runs whose heatmap is drawn
(the first seed) and of those that left their course, whose layers the verdict names. Of the other runs that figures by
depth look at, a few steps of these and of the flow through modules stay: the page draws their lines and no layers.
Checkpoints, logs, tracebacks, parameter shapes and the other layer quantities are left out.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from yolo_gradstudy.diagnoses import diagnose_run
from yolo_gradstudy.readings import chosen_rates, control_of
from yolo_gradstudy.records import RunSpec
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import RunFolder, StudyFolder, write_json
from yolo_gradstudy.tables import MOST_SEEDS, Depths, depths_of


def reduce_study(source: StudyFolder, target: StudyFolder) -> None:
    """Copy what a report needs.

    Raises:
        ValueError: The source is no study or has a damaged part, or the target is a folder that is not empty.
    """
    plan = source.read_plan()
    if target.path.is_dir() and any(target.path.iterdir()):
        raise ValueError(f"{target.path} is not empty; delete it first.")
    target.path.mkdir(parents=True, exist_ok=True)
    shutil.copy(source.study_path, target.study_path)
    shutil.copy(source.plan_path, target.plan_path)
    first_seed = plan[0].seed
    by_depth = seen_by_depth(source, plan)
    for spec in plan:
        keep_layers = spec.seed == first_seed or left_its_course(source.run(spec.run_id))
        reduce_run(source.run(spec.run_id), target.run(spec.run_id), keep_layers, by_depth.get(spec.run_id))
    write_report(target.path)


def seen_by_depth(source: StudyFolder, plan: Sequence[RunSpec]) -> dict[str, Depths]:
    """The runs that figures by depth look at, and where: the first seeds of an arm at some learning rates."""
    rates = chosen_rates(spec.lr0 for spec in plan)
    found: dict[str, Depths] = {}
    seeds: Counter[tuple[str, float]] = Counter()
    for spec in plan:
        run = source.run(spec.run_id).load() if spec.lr0 in rates else None
        if run is not None and len(run.steps) and seeds[spec.arm, spec.lr0] < MOST_SEEDS:
            seeds[spec.arm, spec.lr0] += 1
            found[spec.run_id] = depths_of(run)
    return found


def left_its_course(folder: RunFolder) -> bool:
    """Whether a run's verdict names the step at which it went wrong, and so layers."""
    run = folder.load()
    return run is not None and diagnose_run(run, run.result, control_of(run)).onset_step is not None


def reduce_run(source: RunFolder, target: RunFolder, keep_layers: bool, depths: Depths | None = None) -> None:
    """Copy a run's spec, result and reduced telemetry, where there are such.

    Args:
        source: The run.
        target: Where its copy goes.
        keep_layers: Whether all gradient norms by layer stay.
        depths: What figures by depth see of it; where None they do not look at it.
    """
    if source.spec_path.is_file():
        write_json(target.spec_path, source.read_spec().to_dict())
    if (result := source.read_result()) is not None:
        target.write_result(replace(result, traceback=None))
    if not source.telemetry.exists():
        return
    meta = source.telemetry.read_meta()
    target.telemetry.write_meta({key: value for key, value in meta.items() if key != "parameters"})
    for event in source.telemetry.read_events():
        target.telemetry.add_event(event)
    for epoch, values in source.telemetry.read_validations().iterrows():
        target.telemetry.add_validation({"epoch": int(str(epoch)), **values.to_dict()})
    if (source.path / "results.csv").is_file():
        shutil.copy(source.path / "results.csv", target.path / "results.csv")
    for quantity in ("steps", *(("grad_norm",) if keep_layers else ())):
        for part in source.telemetry.parts(quantity):
            # Read and written, not copied: a part of an earlier version gets the checksums of this one.
            target.telemetry.write_part(quantity, source.telemetry.read_part(part))
    if depths is None:
        return
    for quantity in (*(() if keep_layers else ("grad_norm",)), *depths.flows):
        seen = pa.array((depths.norm_steps if quantity == "grad_norm" else depths.flow_steps).tolist(), pa.int64())
        for part in source.telemetry.parts(quantity):
            table = source.telemetry.read_part(part)
            table = table.filter(pc.is_in(table["step"], value_set=seen))
            if table.num_rows:
                target.telemetry.write_part(quantity, table)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="a study's folder")
    parser.add_argument("target", type=Path, help="a folder that is empty or does not exist")
    words = parser.parse_args()
    try:
        reduce_study(StudyFolder(words.source), StudyFolder(words.target))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
