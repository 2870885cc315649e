# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is measured of a step or a validation: tensors in, tensors out; of a step no value is read back to the host.

A file for each family of measured quantities. Nothing here knows a model's kind, a file or a trainer.
"""

from yolo_gradstudy.statistics.assignment import AssignmentSums
from yolo_gradstudy.statistics.flat import SMALL, FlatTensors
from yolo_gradstudy.statistics.flow import FlowProbe, followed_modules
from yolo_gradstudy.statistics.gradients import (
    clip_coefficient,
    exact_total,
    largest_absolute,
    nonfinite_count,
    total_norm,
)
from yolo_gradstudy.statistics.norms import exact_norms, is_sure, is_whole, tensor_norms, widest_dtype
from yolo_gradstudy.statistics.parameters import ParameterNorms, update_ratios
from yolo_gradstudy.statistics.validation import FixedAssignmentSums, cells_of

__all__ = [
    "AssignmentSums",
    "FixedAssignmentSums",
    "FlatTensors",
    "FlowProbe",
    "ParameterNorms",
    "SMALL",
    "cells_of",
    "clip_coefficient",
    "exact_norms",
    "exact_total",
    "followed_modules",
    "is_sure",
    "is_whole",
    "largest_absolute",
    "nonfinite_count",
    "tensor_norms",
    "total_norm",
    "update_ratios",
    "widest_dtype",
]
