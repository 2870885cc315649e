# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether an arm goes wrong more often than the control, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from yolo_gradstudy.tables.arms import CONTROL, arm_order
from yolo_gradstudy.tables.frames import arms_and_rates, typed
from yolo_gradstudy.tables.paired import PairedDifference, paired_outcomes

_COLUMNS = {
    "arm": "str", "lr0": "float64", **dict.fromkeys(
        ("n", "n_excluded", "both", "only_arm", "only_control", "neither", "discordant", "needs"), "Int64"
    ), "p": "float64", "p_holm": "float64", "family": "Int64",
    "difference": "float64", "difference_low": "float64", "difference_high": "float64",
}  # fmt: skip


_OVER_RATES = {
    "arm": "str", **dict.fromkeys(
        ("rates", "seeds", "n", "n_excluded", "both", "only_arm", "only_control", "neither", "discordant"), "Int64"
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
        arm's share of unhealthy runs less the control's, in these pairs, with Tango's (1998) score interval, which
        reaches to 0 where ``p`` is not below 0.05.
    """
    rows: list[list[object]] = []
    pairs_of = {arm: paired_outcomes(results, arm, CONTROL) for arm in arm_order(results["arm"]) if arm != CONTROL}
    for arm, lr0, runs in arms_and_rates(results):
        if arm == CONTROL:
            continue
        pairs = pairs_of[arm][pairs_of[arm]["lr0"] == lr0]
        n, counts = len(pairs), _counts(pairs)
        p, *difference = _told(pairs)
        rows.append([arm, lr0, n, len(runs) - n, *counts, fewest_discordant(), p, p, 0, *difference])
    return _adjusted(typed(rows, _COLUMNS))


def over_rates_table(results: pd.DataFrame) -> pd.DataFrame:
    """Each arm against the control over all learning rates together, paired by seed and learning rate.

    A difference may be too small at each rate and yet be there at several. Pairs of one seed are not independent,
    which :class:`~yolo_gradstudy.tables.paired.PairedDifference` takes into account.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm other than the control that has runs at more than one learning rate. ``rates``, ``seeds`` and ``n``
        count what its pairs, of which both runs say something, come from; ``n_excluded`` its other runs. The counts of
        pairs and the adjustment of ``p`` are as in :func:`comparisons_table`. ``p``, ``difference_low`` and
        ``difference_high`` are those of :class:`~yolo_gradstudy.tables.paired.PairedDifference`, missing where all of
        several pairs come from one seed.
    """
    rows: list[list[object]] = []
    for arm in arm_order(results["arm"]):
        runs = results[results["arm"] == arm]
        if arm == CONTROL or runs["lr0"].nunique() < 2:
            continue
        pairs = paired_outcomes(results, arm, CONTROL)
        counted = [pairs["lr0"].nunique(), pairs["seed"].nunique(), len(pairs), len(runs) - len(pairs)]
        p, *difference = _told(pairs)
        rows.append([arm, *counted, *_counts(pairs), p, p, 0, *difference])
    return _adjusted(typed(rows, _OVER_RATES))


def _told(pairs: pd.DataFrame) -> list[float]:
    """P, difference and its interval; missing without a pair."""
    if not len(pairs):
        return [math.nan] * 4
    found = PairedDifference.of(pairs)
    return [found.p, found.point, *found.interval()]


def _counts(pairs: pd.DataFrame) -> list[int]:
    """Pairs of which both are unhealthy, only the arm's run, only the control's, neither, and one alone."""
    arm, control = pairs["first"], pairs["second"]
    found = [int(which.sum()) for which in (arm & control, arm & ~control, ~arm & control, ~arm & ~control)]
    return [*found, found[1] + found[2]]


def _adjusted(frame: pd.DataFrame) -> pd.DataFrame:
    """With ``p_holm`` over the rows that have a ``p``, which are ``family``."""
    frame["p_holm"] = holm(list(frame["p"]))
    frame["family"] = int(frame["p"].notna().sum())
    return frame.astype({"family": "Int64"})


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
