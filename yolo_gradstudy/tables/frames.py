# SPDX-License-Identifier: AGPL-3.0-or-later
"""How tables are put together: typed columns, and groups of runs in the order in which tables have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import arm_order


def typed(rows: Sequence[Sequence[Any]], kinds: Mapping[str, str]) -> pd.DataFrame:
    """Rows as a DataFrame whose columns have the names and the dtypes of ``kinds``, also where there is no row."""
    types: Any = dict(kinds)
    return pd.DataFrame([list(row) for row in rows], columns=list(kinds)).astype(types)


def arms_and_rates(results: pd.DataFrame) -> Iterator[tuple[str, float, pd.DataFrame]]:
    """Arm, learning rate and their runs: the control first, the rates rising."""
    for arm in arm_order(results["arm"]):
        of_arm = results[results["arm"] == arm]
        for lr0 in sorted(of_arm["lr0"].unique()):
            yield arm, float(lr0), of_arm[of_arm["lr0"] == lr0]


def telling(results: pd.DataFrame) -> pd.DataFrame:
    """The runs that say something: without those that failed, were interrupted, or are unknown."""
    return results[results["outcome"].isin([str(outcome) for outcome in Outcome if outcome.tells])]
