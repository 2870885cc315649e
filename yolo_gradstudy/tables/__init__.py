# SPDX-License-Identifier: AGPL-3.0-or-later
"""Results and outcomes as DataFrames: pure functions, which read and write no file.

Missing is missing, never 0. Counts of runs and steps are nullable integers (``Int64``). Norms are
gradient norms before clipping, in the units of the loss over those of a weight, over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from yolo_gradstudy.tables.accuracy import accuracies_by_seed, accuracy_table, differences
from yolo_gradstudy.tables.arms import CONTROL, arm_order
from yolo_gradstudy.tables.comparisons import comparisons_table, over_rates_table
from yolo_gradstudy.tables.depth import MOMENTS, MOST_SEEDS, Depths, depths_of, gains_table, gradient_depth_table
from yolo_gradstudy.tables.effects import effects_table
from yolo_gradstudy.tables.frames import significant
from yolo_gradstudy.tables.incidence import incidence_table
from yolo_gradstudy.tables.layers import layer_table
from yolo_gradstudy.tables.limits import describe_limits, limit_ratios_table, limits_table
from yolo_gradstudy.tables.lr50 import lr50_table
from yolo_gradstudy.tables.medians import medians_table
from yolo_gradstudy.tables.outcomes import UNHEALTHY, outcome_text_table, outcomes_table
from yolo_gradstudy.tables.paired import PairedDifference, paired_outcomes
from yolo_gradstudy.tables.results import TIME_COLUMNS, results_table, target_scores_per_box
from yolo_gradstudy.tables.saved import saved_table
from yolo_gradstudy.tables.sensitivity import sensitivity_curves_table, sensitivity_table
from yolo_gradstudy.tables.survival import survival_table
from yolo_gradstudy.tables.text import to_markdown
from yolo_gradstudy.tables.trajectories import trajectories_table

__all__ = [
    "CONTROL",
    "MOMENTS",
    "MOST_SEEDS",
    "TABLES",
    "TIME_COLUMNS",
    "UNHEALTHY",
    "Depths",
    "PairedDifference",
    "accuracies_by_seed",
    "accuracy_table",
    "arm_order",
    "comparisons_table",
    "depths_of",
    "describe_limits",
    "differences",
    "effects_table",
    "gains_table",
    "gradient_depth_table",
    "incidence_table",
    "layer_table",
    "limit_ratios_table",
    "limits_table",
    "lr50_table",
    "medians_table",
    "outcome_text_table",
    "outcomes_table",
    "over_rates_table",
    "paired_outcomes",
    "results_table",
    "saved_table",
    "sensitivity_curves_table",
    "sensitivity_table",
    "significant",
    "survival_table",
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
    "gradient_depth_table": gradient_depth_table,
    "gains_table": gains_table,
    "comparisons_table": comparisons_table,
    "over_rates_table": over_rates_table,
    "incidence_table": incidence_table,
    "survival_table": survival_table,
    "medians_table": medians_table,
    "accuracy_table": accuracy_table,
    "sensitivity_table": sensitivity_table,
    "sensitivity_curves_table": sensitivity_curves_table,
    "saved_table": saved_table,
    "limits_table": limits_table,
    "limit_ratios_table": limit_ratios_table,
    "lr50_table": lr50_table,
    "effects_table": effects_table,
}
"""Every table, by its function's name."""
