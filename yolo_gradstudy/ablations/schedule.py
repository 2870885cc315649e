# SPDX-License-Identifier: AGPL-3.0-or-later
"""What Ultralytics changes over the course of a training, switched off."""

from __future__ import annotations

from yolo_gradstudy.ablations.spec import AblationSpec

NO_WARMUP = AblationSpec(
    name="no_warmup",
    family="schedule",
    summary="Starts at the full learning rate, momentum and accumulation, for weights and biases alike.",
    source="Goyal et al. 2017, arXiv:1706.02677; ultralytics.engine.trainer.BaseTrainer._do_train",
    arguments={"warmup_epochs": 0.0},
    target="warm-up",
)
