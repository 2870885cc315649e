# SPDX-License-Identifier: AGPL-3.0-or-later
"""One row an ablation: what it must change. The suite in test_ablations.py runs over every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from ultralytics.nn.modules.conv import Concat


@dataclass(frozen=True)
class AblationCase:
    """What an ablation is expected to do.

    Attributes:
        changed: For each model YAML, how many modules it changes; empty for an ablation of training only.
        grows: For each of these models, by how much the parameter count moves.
        redraws: Whether it gives the modules that it names new weights.
        inert: Builds a model in which it finds nothing to change.
        arguments: Training arguments that it sets.
        trainer: Options of GradStudyTrainer.using that it sets.
    """

    changed: Mapping[str, int] = field(default_factory=dict)
    grows: Mapping[str, int] = field(default_factory=dict)
    redraws: bool = False
    inert: Callable[[], nn.Module] = Concat
    arguments: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)


CASES: dict[str, AblationCase] = {
    "no_batchnorm": AblationCase(
        changed={"yolo26n.yaml": 114, "yolo11n.yaml": 81, "yolov8n.yaml": 57, "yolo12n.yaml": 113},
        grows={"yolo26n.yaml": -9784, "yolo11n.yaml": -7832, "yolov8n.yaml": -5296, "yolo12n.yaml": -11464},
        inert=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()),
    ),
    "no_residuals": AblationCase(
        changed={"yolo26n.yaml": 16, "yolo11n.yaml": 12, "yolov8n.yaml": 6, "yolo12n.yaml": 18},
        inert=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()),
    ),
    "replace_init_by_xavier": AblationCase(
        changed={"yolo26n.yaml": 126, "yolo11n.yaml": 87, "yolov8n.yaml": 63, "yolo12n.yaml": 119},
        redraws=True,
        inert=lambda: nn.Sequential(nn.BatchNorm2d(3), nn.SiLU()),
    ),
    "replace_init_by_he": AblationCase(
        changed={"yolo26n.yaml": 126, "yolo11n.yaml": 87, "yolov8n.yaml": 63, "yolo12n.yaml": 119},
        redraws=True,
        inert=lambda: nn.Sequential(nn.BatchNorm2d(3), nn.SiLU()),
    ),
    "no_clip": AblationCase(trainer={"clip_norm": None}),
    "no_warmup": AblationCase(arguments={"warmup_epochs": 0.0}),
}
