# SPDX-License-Identifier: AGPL-3.0-or-later
"""Stabilisers removed, replaced or set: a file for each family, and ``ABLATIONS``, the table of them."""

from yolo_gradstudy.ablations.application import apply_ablation, apply_ablations, calibrate_ablations
from yolo_gradstudy.ablations.clipping import AdaptiveClip, Clip, Clipper, PercentileClip, ValueClip, ZScoreClip
from yolo_gradstudy.ablations.connections import kept_residuals
from yolo_gradstudy.ablations.description import AblationRow, SetRow, describe_ablations, describe_sets
from yolo_gradstudy.ablations.normalisation import batchnorms
from yolo_gradstudy.ablations.spec import AblationSpec, Builtin
from yolo_gradstudy.ablations.table import (
    ABLATIONS,
    check_ablations,
    combined_arguments,
    combined_trainer_options,
    find_ablation,
    parts_of,
    switched_off,
)

__all__ = [
    "ABLATIONS",
    "AblationRow",
    "AblationSpec",
    "AdaptiveClip",
    "Builtin",
    "Clip",
    "Clipper",
    "PercentileClip",
    "SetRow",
    "ValueClip",
    "ZScoreClip",
    "apply_ablation",
    "apply_ablations",
    "batchnorms",
    "calibrate_ablations",
    "check_ablations",
    "combined_arguments",
    "combined_trainer_options",
    "describe_ablations",
    "describe_sets",
    "find_ablation",
    "kept_residuals",
    "parts_of",
    "switched_off",
]
