# SPDX-License-Identifier: AGPL-3.0-or-later
"""How well the detector detects at the end, and whether an arm differs from the control in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import CONTROL
from yolo_gradstudy.tables.frames import arms_and_rates, telling, typed
from yolo_gradstudy.tables.intervals import MISSING, Interval, mean, student_interval

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
    accuracies = accuracies_by_seed(results)
    controls = {lr0: found for (arm, lr0), found in accuracies.items() if arm == CONTROL}
    reason = _reason(list(controls.values()))
    rows: list[list[object]] = []
    for arm, lr0, runs in arms_and_rates(results):
        found = accuracies[arm, lr0]
        values = list(found.values())
        low, high = np.clip(_interval(values), 0.0, 1.0)
        gaps = [] if reason or arm == CONTROL else differences(found, controls.get(lr0, {}))
        broken = sum(Outcome(outcome).broken for outcome in runs.loc[runs["seed"].isin(found), "outcome"])
        counts = [len(values), len(runs) - len(values), broken]
        compared = [len(gaps), mean(gaps), *_interval(gaps)]
        rows.append([arm, lr0, *counts, mean(values), low, high, *compared, reason])
    return typed(rows, _COLUMNS)


def accuracies_by_seed(results: pd.DataFrame) -> dict[tuple[str, float], dict[int, float]]:
    """By arm and learning rate and then by seed, the mAP50-95 that counts in :func:`accuracy_table`.

    Args:
        results: :func:`results_table`.
    """
    return {(arm, lr0): _accuracies(telling(runs)) for arm, lr0, runs in arms_and_rates(results)}


def differences(values: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """One less the other, of each seed that both have."""
    return [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]


def _accuracies(runs: pd.DataFrame) -> dict[int, float]:
    """By seed, the mAP50-95 that counts; of none where a run that should have one lacks it."""
    found: dict[int, float] = {}
    for seed, outcome, accuracy in zip(runs["seed"], runs["outcome"], runs["map50_95"], strict=True):
        broken = Outcome(outcome).broken
        if not broken and not math.isfinite(accuracy):
            return {}
        found[int(seed)] = 0.0 if broken else float(accuracy)
    return found


def _reason(controls: Sequence[Mapping[int, float]]) -> str:
    """Why mAP is no endpoint; empty where it is one."""
    if not controls:
        return "there is no control"
    means = [mean(list(found.values())) for found in controls if found]
    if not means:
        return "the control was not validated"
    if max(means) < LEARNED:
        best = f"the mean mAP50-95 of the control is {max(means):.2g} at best, below {LEARNED:g}"
        return f"{best}: it has not learned to detect"
    return ""


def _interval(values: Sequence[float]) -> Interval:
    """Student's, which would have no width where values do not vary."""
    return student_interval(values) if len(set(values)) > 1 else MISSING
