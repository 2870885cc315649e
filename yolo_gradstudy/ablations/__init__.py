# SPDX-License-Identifier: AGPL-3.0-or-later
"""Stabilisers removed, replaced or set: a file for each family, and ``ABLATIONS``, the table of them."""

from yolo_gradstudy.ablations.application import apply_ablation, apply_ablations
from yolo_gradstudy.ablations.connections import kept_residuals
from yolo_gradstudy.ablations.description import AblationRow, describe_ablations
from yolo_gradstudy.ablations.spec import AblationSpec
from yolo_gradstudy.ablations.table import (
    ABLATIONS,
    check_ablations,
    combined_arguments,
    combined_trainer_options,
)

__all__ = [
    "ABLATIONS",
    "AblationRow",
    "AblationSpec",
    "apply_ablation",
    "apply_ablations",
    "check_ablations",
    "combined_arguments",
    "combined_trainer_options",
    "describe_ablations",
    "kept_residuals",
]
