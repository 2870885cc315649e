# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gradient clipping removed or set."""

from __future__ import annotations

from yolo_gradstudy.ablations.spec import AblationSpec

NO_CLIP = AblationSpec(
    name="no_clip",
    family="clipping",
    summary="Takes every step with the gradient as it is, where Ultralytics clips its global norm at 10.",
    source="Pascanu et al. 2013, arXiv:1211.5063; ultralytics.engine.trainer.BaseTrainer.optimizer_step",
    trainer={"clip_norm": None},
    target="gradient clipping",
)
