# SPDX-License-Identifier: AGPL-3.0-or-later
"""The middle run of each arm."""

from __future__ import annotations

import numpy as np
import pandas as pd

from yolo_gradstudy.tables.frames import arms_and_rates, telling, typed
from yolo_gradstudy.tables.intervals import bootstrap_interval

QUANTITIES = ("grad_norm_median", "clipped_share", "loss_last", "fixed_loss_last", "map50_95", "duration_s")
"""Columns of :func:`results_table` of which there is a median."""

_COLUMNS = {
    "arm": "str", "lr0": "float64", "quantity": "str", "n": "Int64", "n_missing": "Int64", "n_excluded": "Int64",
    "median": "float64", "low": "float64", "high": "float64",
}  # fmt: skip


def medians_table(results: pd.DataFrame) -> pd.DataFrame:
    """The median over the seeds of what a run came to, healthy or not.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm, learning rate and ``quantity``. ``n`` runs have a finite value and ``n_missing`` do not;
        ``n_excluded`` say nothing: failed, interrupted and unknown ones. ``low`` and ``high`` are the percentile
        bootstrap's, missing below two values. Beware of the median of what is left where ``n_missing`` runs are
        those that went wrong, and of the training loss, which a dead detector makes small.
    """
    rows: list[list[object]] = []
    for arm, lr0, runs in arms_and_rates(results):
        told = telling(runs)
        for quantity in QUANTITIES:
            values = told[quantity].to_numpy(dtype="float64")
            values = values[np.isfinite(values)]
            counts = [len(values), len(told) - len(values), len(runs) - len(told)]
            median = float(np.median(values)) if len(values) else np.nan
            rows.append([arm, lr0, quantity, *counts, median, *bootstrap_interval(list(values), "median")])
    return typed(rows, _COLUMNS)
