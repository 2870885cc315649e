# SPDX-License-Identifier: AGPL-3.0-or-later
"""How well the detector detects at the end, and whether an arm differs from the control in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import CONTROL
from yolo_gradstudy.tables.frames import arms_and_rates, telling, typed
from yolo_gradstudy.tables.intervals import MISSING, Interval, student_interval

LEARNED = 0.1
"""Mean mAP50-95 of the control, at its best rate, from which on mAP is an endpoint of a study."""

_COLUMNS = {
    "arm": "str", "lr0": "float64", **dict.fromkeys(("n", "n_excluded", "n_broken"), "Int64"),
    **dict.fromkeys(("map50_95", "low", "high"), "float64"), "n_pairs": "Int64",
    **dict.fromkeys(("difference", "difference_low", "difference_high"), "float64"), "reason": "str",
}  # fmt: skip


def accuracy_table(results: pd.DataFrame) -> pd.DataFrame:
    """mAP50-95 at the end of training, and its difference from the control's at the same learning rate.

    A non-finite, exploded or collapsed run counts as 0 whatever its validation says: that is of the EMA, which
    remembers weights from before.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm and learning rate. ``map50_95`` is the mean over ``n`` runs that say something, ``n_broken`` of
        which count as 0; ``n_excluded`` counts the others. Where a run that did not break was not validated, nothing
        is said of its arm at that rate: those that broke would stand for all. ``low`` and ``high`` are Student's
        95% interval, within 0 and 1. ``difference`` is the mean over ``n_pairs`` seeds of the arm's value less the
        control's, with Student's interval. An interval is missing where all values are equal, as of runs that all
        broke. Where the control stays below a mean of 0.1 at every learning rate it has not learned to detect, and
        mAP tells arms apart by chance: differences are missing, and ``reason`` says so.
    """
    told = telling(results)
    groups = [
        (arm, lr0, len(runs), _accuracies(told[(told["arm"] == arm) & (told["lr0"] == lr0)]))
        for arm, lr0, runs in arms_and_rates(results)
    ]
    controls = {lr0: found for arm, lr0, _, found in groups if arm == CONTROL}
    reason = _reason(list(controls.values()))
    rows: list[list[object]] = []
    for arm, lr0, count, found in groups:
        values = [accuracy for accuracy, _ in found.values()]
        low, high = np.clip(_interval(values), 0.0, 1.0)
        paired = [] if reason or arm == CONTROL else sorted(found.keys() & controls.get(lr0, {}).keys())
        gaps = [found[seed][0] - controls[lr0][seed][0] for seed in paired]
        counts = [len(values), count - len(values), sum(broke for _, broke in found.values())]
        compared = [len(gaps), _mean(gaps), *_interval(gaps)]
        rows.append([arm, lr0, *counts, _mean(values), low, high, *compared, reason])
    return typed(rows, _COLUMNS)


def _accuracies(runs: pd.DataFrame) -> dict[int, tuple[float, bool]]:
    """By seed, the mAP50-95 that counts, and whether the run broke; of none where one that should have it lacks it."""
    found: dict[int, tuple[float, bool]] = {}
    for seed, outcome, accuracy in zip(runs["seed"], runs["outcome"], runs["map50_95"], strict=True):
        broken = Outcome(outcome).broken
        if not broken and not math.isfinite(accuracy):
            return {}
        found[int(seed)] = (0.0 if broken else float(accuracy), broken)
    return found


def _reason(controls: Sequence[dict[int, tuple[float, bool]]]) -> str:
    """Why mAP is no endpoint; empty where it is one."""
    if not controls:
        return "there is no control"
    means = [_mean([accuracy for accuracy, _ in found.values()]) for found in controls if found]
    if not means:
        return "the control was not validated"
    if max(means) < LEARNED:
        best = f"the mean mAP50-95 of the control is {max(means):.2g} at best, below {LEARNED:g}"
        return f"{best}: it has not learned to detect"
    return ""


def _interval(values: Sequence[float]) -> Interval:
    """Student's, which would have no width where values do not vary."""
    return student_interval(values) if len(set(values)) > 1 else MISSING


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
