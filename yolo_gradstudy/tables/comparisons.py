# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether an arm goes wrong more often than the control, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import CONTROL
from yolo_gradstudy.tables.frames import arms_and_rates, typed
from yolo_gradstudy.tables.intervals import paired_difference_interval

_COLUMNS = {
    "arm": "str", "lr0": "float64", **dict.fromkeys(
        ("n", "n_excluded", "both", "only_arm", "only_control", "neither", "discordant", "needs"), "Int64"
    ), "p": "float64", "p_holm": "float64", "family": "Int64",
    "difference": "float64", "difference_low": "float64", "difference_high": "float64",
}  # fmt: skip


def comparisons_table(results: pd.DataFrame) -> pd.DataFrame:
    """Each arm against the control at the same learning rate, paired by seed: which of the two went wrong.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm other than the control and a learning rate. ``n`` pairs: both runs say something;
        ``n_excluded`` counts the arm's other runs. Of the pairs, ``both`` runs were unhealthy, ``only_arm``'s,
        ``only_control``'s or ``neither``. ``p`` is McNemar's exact test (1947): whether the ``discordant``
        pairs lie on one side more often than a fair coin; 1 where there are none, missing without a pair.
        ``needs`` is the number of discordant pairs below which no ``p`` is under 0.05. ``p_holm`` is ``p`` after Holm
        (1979) over all comparisons of this table that have a pair, which are ``family``. ``difference`` is the
        arm's share of unhealthy runs less the control's, in these pairs, with Tango's (1998) score interval.
    """
    controls = _by_seed(results[results["arm"] == CONTROL])
    rows: list[list[object]] = []
    for arm, lr0, runs in arms_and_rates(results):
        if arm == CONTROL:
            continue
        of_arm = {seed: outcome for (_, seed), outcome in _by_seed(runs).items()}
        seeds = [s for s, outcome in of_arm.items() if outcome.tells and controls.get((lr0, s), Outcome.UNKNOWN).tells]
        pairs = [(of_arm[seed].unhealthy, controls[lr0, seed].unhealthy) for seed in seeds]
        n, only_arm, only_control = len(pairs), pairs.count((True, False)), pairs.count((False, True))
        discordant = only_arm + only_control
        p = math.nan if not n else 1.0 if not discordant else float(stats.binomtest(only_arm, discordant).pvalue)
        counts = [pairs.count((True, True)), only_arm, only_control, pairs.count((False, False)), discordant]
        difference = (only_arm - only_control) / n if n else math.nan
        interval = paired_difference_interval(only_arm, only_control, n)
        rows.append([arm, lr0, n, len(runs) - n, *counts, fewest_discordant(), p, p, 0, difference, *interval])
    frame = typed(rows, _COLUMNS)
    frame["p_holm"] = holm(list(frame["p"]))
    frame["family"] = int(frame["p"].notna().sum())
    return frame.astype({"family": "Int64"})


def _by_seed(runs: pd.DataFrame) -> dict[tuple[float, int], Outcome]:
    return {
        (float(lr0), int(seed)): Outcome(outcome)
        for lr0, seed, outcome in zip(runs["lr0"], runs["seed"], runs["outcome"], strict=True)
    }


def fewest_discordant(level: float = 0.05) -> int:
    """Discordant pairs with which McNemar's exact test can fall below a level: all on one side, twice 2⁻ⁿ."""
    return math.floor(1 - math.log2(level)) + 1


def holm(values: Sequence[float]) -> list[float]:
    """P values adjusted for their number after Holm (1979), Scandinavian Journal of Statistics 6, 65–70.

    Args:
        values: P values; a missing one stays missing and does not count.
    """
    p = np.asarray(values, dtype="float64")
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(len(p), math.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return [float(value) for value in adjusted]
