# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reduce a study's folder to what its report draws, small enough to commit.

    python scripts/reduce_results.py runs/stabilisation results/stabilisation-cpu
    python scripts/reduce_results.py --heatmaps none runs/accuracy results/accuracy-shapes-cpu

What stays is itself a study's folder, of which `gradstudy report` makes the same tables and figures, but for some
heatmaps: specs, results, every run's step scalars and validations, and gradient norms by layer of runs of the first
seed, at the learning rates of the other figures by layer or where they left their course. Of other runs that left their
course the steps around it stay, from which the verdict names the layer that left first; and of the runs that figures by
depth look at a few steps of these and of the flow through modules. The page draws their lines and no layers.
Checkpoints, logs, tracebacks, parameter shapes and the other layer quantities are left out.

What is kept by layer or module is rounded to 11 binary digits, an error of at most 0.05%: half the bytes. Where the
verdict then names another step or layer, a run's norms stay as they are, all of them.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from yolo_gradstudy.diagnoses import StudyJudge
from yolo_gradstudy.readings import chosen_rates, control_of
from yolo_gradstudy.records import Run, RunSpec
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import RunFolder, StudyFolder, write_json
from yolo_gradstudy.tables import MOST_SEEDS, Depths, depths_of

AROUND = (64, 16)
"""Recorded steps before and after the onset that stay: what a layer's band reaches back to, and some to see it by."""

MANTISSA_BITS = 10
"""Bits of a float32's mantissa that stay; it has 23, and a first one that is not stored."""

NO_STEPS: Sequence[int] = ()

Onset = tuple[int, str | None] | None
"""The step at which a run left its course, and the layer that did first; None where it did not."""


def reduce_study(source: StudyFolder, target: StudyFolder, heatmaps: bool = True) -> None:
    """Copy what a report needs.

    Args:
        source: The study.
        target: Where its copy goes.
        heatmaps: Whether layers are kept for the heatmaps of the first seed.

    Raises:
        ValueError: The source is no study or has a damaged part, or the target is a folder that is not empty.
    """
    plan = source.read_plan()
    if target.path.is_dir() and any(target.path.iterdir()):
        raise ValueError(f"{target.path} is not empty; delete it first.")
    target.path.mkdir(parents=True, exist_ok=True)
    shutil.copy(source.study_path, target.study_path)
    shutil.copy(source.plan_path, target.plan_path)
    drawn, first_seed = chosen_rates(spec.lr0 for spec in plan), plan[0].seed
    by_depth, judge = seen_by_depth(source, plan), StudyJudge()
    for spec in plan:
        folder, copy, depths = source.run(spec.run_id), target.run(spec.run_id), by_depth.get(spec.run_id)
        run = folder.load()
        control = control_of(run, plan) if run is not None else None
        onset = onset_of(judge, run, control)
        layers: Sequence[int] | None = NO_STEPS
        if heatmaps and spec.seed == first_seed and (onset or spec.lr0 in drawn):
            layers = None
        elif onset and run is not None:
            at = int(run.steps.index.get_indexer([onset[0]])[0])
            layers = run.steps.index[max(at - AROUND[0], 0) : at + AROUND[1] + 1].tolist()
        reduce_run(folder, copy, layers, depths)
        if onset and onset_of(judge, copy.load(), control) != onset:
            shutil.rmtree(copy.path)
            reduce_run(folder, copy, None, depths, rounded=False)
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


def onset_of(judge: StudyJudge, run: Run | None, control: Run | None) -> Onset:
    """Where a run left its course, as its study's tables have it."""
    if run is None:
        return None
    verdict = judge(run, run.result, control)
    return (verdict.onset_step, verdict.onset_layer) if verdict.onset_step is not None else None


def reduce_run(
    source: RunFolder,
    target: RunFolder,
    layers: Sequence[int] | None,
    depths: Depths | None = None,
    *,
    rounded: bool = True,
) -> None:
    """Copy a run's spec, result and reduced telemetry, where there are such.

    Args:
        source: The run.
        target: Where its copy goes.
        layers: Steps of which all gradient norms by layer stay; those of all steps where None.
        depths: What figures by depth see of it besides; where None they do not look at it.
        rounded: Whether what is kept by layer or module is rounded.
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
    kept: dict[str, Sequence[int] | None] = {"steps": None, "grad_norm": layers}
    if depths is not None:
        if layers is not None:
            kept["grad_norm"] = [*layers, *depths.norm_steps]
        kept |= dict.fromkeys(depths.flows, depths.flow_steps.tolist())
    for quantity, steps in kept.items():
        for part in source.telemetry.parts(quantity) if steps is None or len(steps) else ():
            # Read and written, not copied: a part of an earlier version gets the checksums of this one.
            table = source.telemetry.read_part(part)
            if steps is not None:
                table = table.filter(pc.is_in(table["step"], value_set=pa.array(steps, pa.int64())))
            if quantity != "steps" and rounded:
                table = round_vector(quantity, table)
            if table.num_rows:
                target.telemetry.write_part(quantity, table)


def round_vector(quantity: str, table: pa.Table) -> pa.Table:
    """A part of a vector with its values rounded to the nearest with ``MANTISSA_BITS``, in their type.

    What is not finite or subnormal, and a part whose values are not float32, stay as they are.

    Args:
        quantity: The column's name; it has no nulls.
        table: As it is stored, a row a value.
    """
    place = table.column_names.index(quantity)
    if table.schema.field(place).type != pa.float32():
        return table
    assert table[quantity].null_count == 0
    values = table[quantity].to_numpy()
    dropped = 23 - MANTISSA_BITS
    half, mask = np.uint32(1 << (dropped - 1)), np.uint32(0xFFFFFFFF >> dropped << dropped)
    rounded = ((values.view(np.uint32) + half) & mask).view(np.float32)
    usable = np.isfinite(values) & np.isfinite(rounded) & (np.abs(values) >= np.finfo(np.float32).tiny)
    return table.set_column(place, quantity, pa.array(np.where(usable, rounded, values), pa.float32()))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--heatmaps", choices=("first-seed", "none"), default="first-seed", help="runs whose layers are all kept"
    )
    parser.add_argument("source", type=Path, help="a study's folder")
    parser.add_argument("target", type=Path, help="a folder that is empty or does not exist")
    words = parser.parse_args()
    try:
        reduce_study(StudyFolder(words.source), StudyFolder(words.target), words.heatmaps != "none")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
