# SPDX-License-Identifier: AGPL-3.0-or-later
"""How often each outcome occurred."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from scipy import stats

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import arm_order
from yolo_gradstudy.tables.frames import arms_and_rates
from yolo_gradstudy.tables.intervals import wilson_interval

UNHEALTHY = "unhealthy"
"""The aggregate row of :func:`outcomes_table`: nonfinite, exploded, collapsed or stuck."""

_OUTCOME_COLUMNS = (
    "arm", "lr0", "outcome", "count", "n", "n_excluded", "share", "wilson_low", "wilson_high", "cp_low", "cp_high",
)  # fmt: skip


def outcomes_table(results: pd.DataFrame) -> pd.DataFrame:
    """How often each outcome occurred, with intervals.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm, learning rate and outcome: every outcome that occurs anywhere in ``results``, then
        ``unhealthy``, their aggregate. ``n`` counts the runs that say something: failed, interrupted and
        unknown ones are in ``n_excluded`` instead, and rows of those outcomes have a count and no share.
        ``wilson_low`` and ``wilson_high`` bound the share at 95% after Wilson (1927), ``cp_low`` and
        ``cp_high`` after Clopper and Pearson (1934), which is exact and is the one to quote for "never".
    """
    occurring = [outcome for outcome in Outcome if (results["outcome"] == str(outcome)).any()]
    rows = []
    for arm, lr0, runs in arms_and_rates(results):
        found = [Outcome(name) for name in runs["outcome"]]
        n = sum(outcome.tells for outcome in found)
        counts = {str(outcome): (found.count(outcome), outcome.tells) for outcome in occurring}
        counts[UNHEALTHY] = (sum(outcome.unhealthy for outcome in found), True)
        for name, (count, told) in counts.items():
            share = _share(count, n) if told and n else [math.nan] * 5
            rows.append([arm, lr0, name, count, n, len(found) - n, *share])
    frame = pd.DataFrame(rows, columns=list(_OUTCOME_COLUMNS))
    kinds: dict[str, Any] = dict.fromkeys(_OUTCOME_COLUMNS, "float64")
    return frame.astype(kinds | {"arm": "str", "outcome": "str", "count": "Int64", "n": "Int64", "n_excluded": "Int64"})


def _share(count: int, n: int) -> list[float]:
    """The share with its Wilson and its exact 95% interval."""
    exact = stats.binomtest(count, n).proportion_ci(method="exact")
    return [count / n, *wilson_interval(count, n), float(exact.low), float(exact.high)]


def outcome_text_table(results: pd.DataFrame) -> pd.DataFrame:
    """The outcomes of each arm at each learning rate in words, for a terminal, a README and the page.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm (column ``arm``, the control first), a column a learning rate (``lr0 0.01``), and text
        such as ``2 collapsed, 1 stable``; ``–`` where the arm has no run at that rate.
    """
    rates = sorted(results["lr0"].unique())
    rows = []
    for arm in arm_order(results["arm"]):
        row = {"arm": arm}
        for lr0 in rates:
            found = list(results.loc[(results["arm"] == arm) & (results["lr0"] == lr0), "outcome"])
            counts = [(found.count(str(outcome)), outcome) for outcome in Outcome]
            row[f"lr0 {lr0:g}"] = ", ".join(f"{count} {outcome}" for count, outcome in counts if count) or "–"
        rows.append(row)
    return pd.DataFrame(rows, columns=["arm", *(f"lr0 {lr0:g}" for lr0 in rates)], dtype="str")
