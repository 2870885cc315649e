# SPDX-License-Identifier: AGPL-3.0-or-later
"""The learning rate at which half of an arm's runs break."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import arm_order
from yolo_gradstudy.tables.frames import significant, telling, typed
from yolo_gradstudy.tables.logistic import find_crossing

_COLUMNS = {
    "arm": "str", **dict.fromkeys(("n", "n_excluded", "n_stuck", "broken"), "Int64"),
    **dict.fromkeys(("lr50", "low", "high", "slope"), "float64"), "reason": "str",
}  # fmt: skip

_DIGITS = 6


def lr50_table(results: pd.DataFrame) -> pd.DataFrame:
    """The learning rate at which half of the runs break, by Firth's (1993) logistic regression on log2 of the rate.

    Args:
        results: :func:`results_table`, of a grid or of a search.

    Returns:
        A row an arm. Of ``n`` runs ``broken`` are nonfinite, exploded or collapsed; ``n_stuck`` and ``n_excluded``
        (failed, interrupted, unknown) runs are left out. ``lr50`` with the 95% interval of the profile penalised
        likelihood (:mod:`yolo_gradstudy.tables.logistic`), an end of which is missing where the data do not bound it;
        ``slope`` in log odds an octave; all to six digits. Runs count as independent, which those of one seed are not
        quite: take the interval for rather too narrow. ``reason`` says why something is missing.
    """
    rows: list[list[object]] = []
    for arm in arm_order(results["arm"]):
        of_arm = results[results["arm"] == arm]
        told = telling(of_arm)
        runs = told[told["outcome"] != str(Outcome.STUCK)]
        broken = [Outcome(outcome).broken for outcome in runs["outcome"]]
        counts = [len(runs), len(of_arm) - len(told), len(told) - len(runs), sum(broken)]
        rows.append([arm, *counts, *_fitted([math.log2(lr0) for lr0 in runs["lr0"]], broken)])
    return typed(rows, _COLUMNS)


def _fitted(octaves: list[float], broken: list[bool]) -> list[object]:
    missing = [math.nan] * 4
    if not broken:
        return [*missing, "no run is broken or healthy"]
    if all(broken) or not any(broken):
        return [*missing, "every run is broken" if broken[0] else "no run is broken"]
    if len(set(octaves)) == 1:
        return [*missing, "there is one learning rate, it takes two"]
    found = find_crossing(octaves, broken)
    if found is None:
        return [*missing, "runs do not break more often at larger rates"]
    # A missing end stays missing. The last digits differ from one kind of CPU to another.
    numbers = significant(np.array([2.0**found.centre, 2.0**found.low, 2.0**found.high, found.slope]), _DIGITS).tolist()
    told = "" if all(map(math.isfinite, numbers)) else "the interval has an open end: too few runs"
    return [*numbers, told]
