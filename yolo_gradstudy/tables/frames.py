# SPDX-License-Identifier: AGPL-3.0-or-later
"""How tables are put together: typed columns, and groups of runs in the order in which tables have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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


_EXACT = 22
"""Powers of ten up to this one are exact in float64."""


def significant(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Values to some significant digits, each the float64 that a CSV file shows with no more digits than that."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        places = digits - 1 - np.floor(np.log10(np.abs(values)))
        # An integer times or over an exact power of ten is rounded once, to the float64 next to the decimal.
        power = 10.0 ** np.clip(np.abs(places), 0, _EXACT)
        rounded = np.where(places >= 0, np.rint(values * power) / power, np.rint(values / power) * power)
    far = np.isfinite(places) & (np.abs(places) > _EXACT)
    rounded[far] = [float(f"{value:.{digits}g}") for value in values[far].tolist()]
    return np.where(np.isfinite(places), rounded, values)
