# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reduce a study's folder to what its report draws, small enough to commit.

    python scripts/reduce_results.py --heatmaps control,no_clip runs/stabilisation results/stabilisation-cpu
    python scripts/reduce_results.py --heatmaps none runs/accuracy results/accuracy-shapes-cpu

What stays is itself a study's folder, of which `gradstudy report` makes the same tables and figures, but for some
heatmaps: specs, results, every run's step scalars and validations, and gradient norms by layer of runs of the first
seed of the arms that are named, at the learning rates of the other figures by layer or where they left their course. Of
other runs that left their course the steps around it stay, of the layers that left first; and of the runs that figures
by depth look at a few steps of all layers and of the flow through modules. The meta.json of such a run says
`partial_layers`; the page draws its lines and no layers.
Checkpoints, logs, tracebacks, parameter shapes, names of modules and the other layer quantities are left out.

What is kept by layer or module is rounded to 11 binary digits, an error of at most 0.05%: half the bytes. Where the
verdict then names another step or layer, a run's norms stay as they are, all of them.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from yolo_gradstudy.diagnoses import StudyJudge
from yolo_gradstudy.plan.sentences import nearest
from yolo_gradstudy.readings import chosen_rates, control_of
from yolo_gradstudy.records import Run, RunSpec
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import RunFolder, StudyFolder, write_json
from yolo_gradstudy.tables import MOST_SEEDS, Depths, depths_of

AROUND = (64, 16)
"""Recorded steps before and after the onset that stay: what a layer's band reaches back to, and some to see it by."""

LEADING = 16
"""Layers that left their course first, of which these steps stay: each is judged by itself."""

_LEFT_OUT = ("parameters", "flow_modules")
"""Of what a run says of itself: what no table or figure reads, and most of its bytes."""

MANTISSA_BITS = 10
"""Bits of a float32's mantissa that stay; it has 23, and a first one that is not stored."""


@dataclass(frozen=True)
class Around:
    """Gradient norms by layer that stay.

    Attributes:
        steps: Of these steps.
        layers: Of these parameter tensors; of all where none is named.
    """

    steps: Sequence[int] = ()
    layers: Sequence[str] = ()


Kept = Around | Literal["all"]


def reduce_study(source: StudyFolder, target: StudyFolder, heatmaps: Sequence[str] | None = None) -> None:
    """Copy what a report needs.

    Args:
        source: The study.
        target: Where its copy goes.
        heatmaps: Arms of whose first seed layers are kept for heatmaps; of all where None.

    Raises:
        ValueError: The source is no study or has a damaged part, an arm is none of its arms, or the target is a folder
            that is not empty.
    """
    plan = source.read_plan()
    arms = dict.fromkeys(spec.arm for spec in plan)
    for arm in heatmaps or ():
        if arm not in arms:
            raise ValueError(f"--heatmaps: {source.path} has no arm {arm!r}; {nearest(arm, list(arms))}.")
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
        shown = heatmaps is None or spec.arm in heatmaps
        for kept in choices(run, onset, shown and spec.seed == first_seed, spec.lr0 in drawn):
            shutil.rmtree(copy.path, ignore_errors=True)
            reduce_run(folder, copy, kept, depths)
            if onset is None or onset_of(judge, copy.load(), control) == onset:
                break
        else:
            shutil.rmtree(copy.path)
            reduce_run(folder, copy, "all", depths, rounded=False)
    write_report(target.path)


def choices(run: Run | None, onset: Onset | None, first_seed: bool, drawn: bool) -> list[Kept]:
    """What may be kept of a run's layers, the least first: the first that leaves its verdict as it is, is."""
    if first_seed and (onset is not None or drawn):
        return ["all"]
    if run is None or onset is None:
        return [Around()]
    at = int(run.steps.index.get_indexer([onset.step])[0])
    steps = run.steps.index[max(at - AROUND[0], 0) : at + AROUND[1] + 1].tolist()
    # Where the total is NaN, a layer that is not there is taken for one that is NaN too: then all have to stay.
    return [Around(steps, onset.layers), Around(steps)]


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


@dataclass(frozen=True)
class Onset:
    """Where a run left its course.

    Attributes:
        step: The step.
        layers: The layers that left first, in that order; two runs whose first is the same left alike.
    """

    step: int
    layers: Sequence[str] = field(compare=False)
    first: str | None = None


def onset_of(judge: StudyJudge, run: Run | None, control: Run | None) -> Onset | None:
    """Where a run left its course, as its study's tables have it; None where it did not."""
    if run is None:
        return None
    verdict = judge(run, run.result, control)
    if verdict.onset_step is None:
        return None
    return Onset(verdict.onset_step, verdict.onset_layers[:LEADING], verdict.onset_layer)


def reduce_run(
    source: RunFolder,
    target: RunFolder,
    layers: Kept,
    depths: Depths | None = None,
    *,
    rounded: bool = True,
) -> None:
    """Copy a run's spec, result and reduced telemetry, where there are such.

    Args:
        source: The run.
        target: Where its copy goes.
        layers: Gradient norms by layer that stay.
        depths: What figures by depth see of it besides; where None they do not look at it.
        rounded: Whether what is kept by layer or module is rounded.
    """
    if source.spec_path.is_file():
        write_json(target.spec_path, source.read_spec().to_dict())
    if (result := source.read_result()) is not None:
        target.write_result(replace(result, traceback=None))
    if not source.telemetry.exists():
        return
    meta = {key: value for key, value in source.telemetry.read_meta().items() if key not in _LEFT_OUT}
    if layers != "all":
        meta["partial_layers"] = True  # a source that was reduced before may say so already
    target.telemetry.write_meta(meta)
    for event in source.telemetry.read_events():
        target.telemetry.add_event(event)
    for epoch, values in source.telemetry.read_validations().iterrows():
        target.telemetry.add_validation({"epoch": int(str(epoch)), **values.to_dict()})
    if (source.path / "results.csv").is_file():
        shutil.copy(source.path / "results.csv", target.path / "results.csv")
    of_layers = [] if layers == "all" else [layers]
    kept: dict[str, list[Around]] = {"steps": [], "grad_norm": of_layers}
    if depths is not None:
        of_layers += [Around(depths.norm_steps.tolist())] if of_layers else []
        kept |= {quantity: [Around(depths.flow_steps.tolist())] for quantity in depths.flows}
    for quantity, some in kept.items():
        for part in source.telemetry.parts(quantity) if not some or any(len(one.steps) for one in some) else ():
            # Read and written, not copied: a part of an earlier version gets the checksums of this one.
            table = source.telemetry.read_part(part)
            if some:
                table = table.filter(reduce(pc.or_, [is_kept(table, one) for one in some]))
            if quantity != "steps" and rounded:
                table = round_vector(quantity, table)
            if table.num_rows:
                target.telemetry.write_part(quantity, table)


def is_kept(table: pa.Table, some: Around) -> pa.ChunkedArray:
    """Which rows of a vector's part stay; of all layers where none is named."""
    kept = pc.is_in(table["step"], value_set=pa.array(some.steps, pa.int64()))
    if some.layers:
        kept = pc.and_(kept, pc.is_in(table["name"].cast(pa.string()), value_set=pa.array(some.layers)))
    return kept


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
        "--heatmaps", default="all", help="arms of whose first seed all layers are kept: all, none, or A,B"
    )
    parser.add_argument("source", type=Path, help="a study's folder")
    parser.add_argument("target", type=Path, help="a folder that is empty or does not exist")
    words = parser.parse_args()
    heatmaps = None if words.heatmaps == "all" else [] if words.heatmaps == "none" else words.heatmaps.split(",")
    try:
        reduce_study(StudyFolder(words.source), StudyFolder(words.target), heatmaps)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
