# SPDX-License-Identifier: AGPL-3.0-or-later
"""The flow through a detector's numbered layers: of a study's runs, and what claims make of it.

Frames have a row an ``arm``, ``seed`` and ``layer``, as ``results/signal/yolo26n.csv`` has of networks that are not
trained; those of a study also the ``moment``, ``first`` or ``last`` sampled step.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Run, RunSpec
from yolo_gradstudy.report.claims.experiments import ABOVE_0, ABOVE_1, KEPT, Evidence, Experiment, Make, Mean
from yolo_gradstudy.run_folder import RecordedRun
from yolo_gradstudy.tables import MOST_SEEDS

BACKBONE = range(1, 11)
"""The layers of YOLO26n's backbone behind the first; each has one input, and the image has no gradient."""

_QUANTITIES = ("activation_rms", "forward_gain", "backward_gain")
_NUMBERED = re.compile(r"model\.(\d+)$")


def flow_frame(runs: Iterable[tuple[RunSpec, Run | None]]) -> pd.DataFrame | None:
    """The flow of runs at their smallest learning rate, at the first and the last sampled step.

    Args:
        runs: A study's runs in plan order.

    Returns:
        None where no run recorded flow. Of an arm the first 5 seeds are looked at, as by depth.
    """
    kept = list(runs)
    least = min((spec.lr0 for spec, _ in kept), default=math.nan)
    parts = []
    seeds: Counter[str] = Counter()
    for spec, run in kept:
        if run is None or spec.lr0 != least or seeds[spec.arm] == MOST_SEEDS:
            continue
        seeds[spec.arm] += 1
        if not len(run.flow("activation_rms")):
            continue
        flows = {name: run.flow(name) for name in _QUANTITIES}
        steps = flows["activation_rms"].index
        for moment, step in (("first", steps[0]), ("last", steps[-1])):
            part = pd.DataFrame(
                {name: flow.loc[step].astype("float64") for name, flow in flows.items() if step in flow.index}
            )
            numbers = {name: int(found[1]) for name in part.index if (found := _NUMBERED.match(str(name)))}
            part = part.loc[list(numbers)].assign(layer=list(numbers.values()))
            parts.append(part.assign(arm=spec.arm, seed=spec.seed, moment=moment))
        if isinstance(run, RecordedRun):
            run.release()
    return pd.concat(parts, ignore_index=True) if parts else None


def detector_flow(evidence: Evidence) -> tuple[pd.DataFrame, str, str] | None:
    """Numbered layers at the first step, the file in which they lie, and what it is of; of a network or a study."""
    if "yolo26n" in evidence.signal:
        return evidence.signal["yolo26n"], "yolo26n", "YOLO26n, untrained"
    if evidence.flow is not None:
        return evidence.flow[evidence.flow["moment"] == "first"], "gains", f"first step of a training{evidence.suffix}"
    return None


def growth(frame: pd.DataFrame, arm: str) -> dict[int, float]:
    """Decades by which the gradient's norm grows backwards through the backbone, by seed."""
    own = frame[(frame["arm"] == arm) & frame["layer"].isin(BACKBONE)]
    table = own.pivot_table(index="seed", columns="layer", values="backward_gain")
    whole = table.dropna()
    return {int(str(seed)): float(np.log10(row).sum() / 2) for seed, row in whole.iterrows()}


def keeps_values(arm: str, what: str, decides: bool = True) -> Make:
    """That the second moment of what layers put out stays of one size through the backbone."""

    def made(evidence: Evidence) -> list[Experiment]:
        found = detector_flow(evidence)
        if found is None:
            return []
        frame, table, where = found
        layers = (BACKBONE[0] - 1, BACKBONE[-1])
        own = frame[(frame["arm"] == arm) & frame["layer"].isin(layers)]
        ends = own.pivot_table(index="seed", columns="layer", values="activation_rms").dropna()
        if ends.empty or len(ends.columns) < 2:
            return []
        values = (2 * np.log(ends[layers[1]] / ends[layers[0]]) / len(BACKBONE)).tolist()
        return [
            Experiment(
                f"{what}, {len(BACKBONE)} layers of the backbone, {where}",
                "factor of a layer to the second moment of the values",
                Mean(values, geometric=True),
                KEPT,
                "seed",
                table,
                decides=decides,
            )
        ]

    return made


def less_growth(arm: str, than: str, what: str, decides: bool = True) -> Make:
    """That the gradient grows or shrinks less through the backbone with one arm than with another."""

    def made(evidence: Evidence) -> list[Experiment]:
        found = detector_flow(evidence)
        if found is None:
            return []
        frame, table, where = found
        one, other = growth(frame, arm), growth(frame, than)
        seeds = sorted(one.keys() & other.keys())
        if not seeds:
            return []
        note = f"{np.mean([one[s] for s in seeds]):.2f} with, {np.mean([other[s] for s in seeds]):.2f} without"
        return [
            Experiment(
                f"{what}, {len(BACKBONE)} layers of the backbone, {where}",
                "decades of growth or decay saved",
                Mean([abs(other[seed]) - abs(one[seed]) for seed in seeds]),
                ABOVE_0,
                "seed",
                table,
                "signed",
                note.replace("-", "−"),
                decides,
            )
        ]

    return made


def grows_in_training(arm: str, decides: bool = True) -> Make:
    """That values grow more in a training of an arm than in the control's, in the layer where they grew the most."""

    def made(evidence: Evidence) -> list[Experiment]:
        if evidence.flow is None:
            return []
        table = evidence.flow.pivot_table(index=["arm", "seed", "layer"], columns="moment", values="activation_rms")
        if "last" not in table or "first" not in table:
            return []
        largest = (table["last"] / table["first"]).map(math.log).groupby(["arm", "seed"]).max().unstack("arm")
        if not {arm, "control"} <= set(largest.columns):
            return []
        values = (largest[arm] - largest["control"]).replace([np.inf, -np.inf], np.nan).dropna().tolist()
        if not values:
            return []
        return [
            Experiment(
                f"{arm} against control, values in the layer where they grew the most in training{evidence.suffix}",
                "ratio of their growth",
                Mean(values, geometric=True),
                ABOVE_1,
                "seed",
                "gains",
                decides=decides,
            )
        ]

    return made
