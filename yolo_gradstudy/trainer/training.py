# SPDX-License-Identifier: AGPL-3.0-or-later
"""One training from beginning to end, as a study's run does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.utils.torch_utils import unwrap_model

from yolo_gradstudy.arguments import OWN_ARGUMENTS, open_model
from yolo_gradstudy.trainer.settings import TrainerSettings
from yolo_gradstudy.trainer.trainer import gradstudy_trainer


@dataclass(frozen=True)
class Trained:
    """What a training left behind.

    Attributes:
        metrics: Final validation metrics by Ultralytics' names.
        weights_finite: Whether every weight and BatchNorm statistic of the trained model, not its EMA, is finite.
        changed: How many modules each ablation changed.
        parameters: Number of parameters.
        steps: Optimizer steps.
        unrecorded: What ended the recording before the training, where something did.
    """

    metrics: Mapping[str, float]
    weights_finite: bool
    changed: Mapping[str, int]
    parameters: int
    steps: int
    unrecorded: Exception | None = None


def train(model: str, arguments: Mapping[str, Any], save_dir: Path, settings: TrainerSettings) -> Trained:
    """Train a model as ``YOLO(model).train`` does, with this package's trainer for the model's task.

    Args:
        model: An Ultralytics model name or path.
        arguments: Ultralytics training arguments, and this package's own (``OWN_ARGUMENTS``).
        save_dir: Where Ultralytics and the recorder write.
        settings: Recording, ablations and clip.
    """
    yolo = open_model(model)
    own = {key: value for key, value in arguments.items() if key in OWN_ARGUMENTS}
    trainer_class = gradstudy_trainer(yolo.task_map[yolo.task]["trainer"]).using(**{**settings.__dict__, **own})
    place = {"project": str(save_dir.parent.resolve()), "name": save_dir.name, "exist_ok": True}
    theirs = {key: value for key, value in arguments.items() if key not in OWN_ARGUMENTS}
    yolo.train(trainer=trainer_class, **{**theirs, **place})
    trainer: Any = yolo.trainer
    trained = unwrap_model(trainer.model)
    metrics = getattr(trainer, "metrics", None) or {}
    return Trained(
        metrics={str(k): float(v) for k, v in metrics.items()},
        weights_finite=all(bool(t.isfinite().all()) for t in trained.state_dict().values() if t.is_floating_point()),
        changed=dict(trainer._changed),
        parameters=sum(p.numel() for p in trained.parameters()),
        steps=trainer._recorder.step if trainer._recorder is not None else 0,
        unrecorded=trainer._recorder.error if trainer._recorder is not None else None,
    )
