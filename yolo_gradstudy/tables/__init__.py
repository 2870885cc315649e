# SPDX-License-Identifier: AGPL-3.0-or-later
"""Results and outcomes as DataFrames: pure functions, which read and write no file.

Missing is missing, never 0. Counts of runs and steps are nullable integers (``Int64``). Norms are
gradient norms before clipping, in the units of the loss over those of a weight, over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from yolo_gradstudy.tables.arms import CONTROL, arm_order
from yolo_gradstudy.tables.layers import layer_table
from yolo_gradstudy.tables.outcomes import UNHEALTHY, outcome_text_table, outcomes_table
from yolo_gradstudy.tables.results import TIME_COLUMNS, results_table, target_scores_per_box
from yolo_gradstudy.tables.text import to_markdown
from yolo_gradstudy.tables.trajectories import trajectories_table

__all__ = [
    "CONTROL",
    "TABLES",
    "TIME_COLUMNS",
    "UNHEALTHY",
    "arm_order",
    "layer_table",
    "outcome_text_table",
    "outcomes_table",
    "results_table",
    "target_scores_per_box",
    "to_markdown",
    "trajectories_table",
]

TABLES: dict[str, Callable[..., pd.DataFrame]] = {
    "results_table": results_table,
    "outcomes_table": outcomes_table,
    "outcome_text_table": outcome_text_table,
    "trajectories_table": trajectories_table,
    "layer_table": layer_table,
}
"""Every table, by its function's name."""
