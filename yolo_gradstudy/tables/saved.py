# SPDX-License-Identifier: AGPL-3.0-or-later
"""What ending lost runs early has saved."""

from __future__ import annotations

import math

import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import arm_order
from yolo_gradstudy.tables.frames import typed

ALL_ARMS = "all arms"
"""The last row of :func:`saved_table`."""

_COLUMNS = {
    "arm": "str", **dict.fromkeys(("n", "n_excluded", "ended_early", "planned_steps", "trained_steps"), "Int64"),
    "saved_share": "float64",
}  # fmt: skip


def saved_table(results: pd.DataFrame) -> pd.DataFrame:
    """The optimizer steps that were planned, and those that were trained.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm, then ``all arms``. ``n`` runs, of which a guard ended ``ended_early``. A run that was not
        ended has trained what was planned. ``n_excluded`` runs were cut short by an error or a kill, so that what
        was planned is not known, or have no step on record. ``saved_share`` is of the planned steps.
    """
    arms = arm_order(results["arm"])
    rows = [[arm, *_counts(results[results["arm"] == arm])] for arm in arms]
    return typed([*rows, [ALL_ARMS, *_counts(results)]] if arms else [], _COLUMNS)


def _counts(runs: pd.DataFrame) -> list[int | float]:
    ended = runs["planned_steps"].notna() & runs["stopped_at"].notna()
    cut_short = runs["outcome"].isin([str(Outcome.FAILED), str(Outcome.INTERRUPTED)]) | (runs["status"] == "failed")
    known = runs[ended | (~cut_short & (runs["steps"].fillna(0) > 0))]
    trained = known["stopped_at"].fillna(known["steps"])
    planned_steps, trained_steps = int(known["planned_steps"].fillna(known["steps"]).sum()), int(trained.sum())
    share = 1 - trained_steps / planned_steps if planned_steps else math.nan
    return [len(known), len(runs) - len(known), int(ended.sum()), planned_steps, trained_steps, share]
