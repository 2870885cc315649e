# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' detection trainer, without a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import ModelEMA


class BareTrainer(DetectionTrainer):
    """Ultralytics' trainer, set up for steps without a data set. What is timed, `optimizer_step`, is its own."""

    def get_dataset(self) -> dict[str, Any]:
        """A data set's description, with nothing behind it."""
        return {"nc": 80, "channels": 3, "names": {i: str(i) for i in range(80)}, "train": None, "val": None}

    def _setup_train(self) -> None:
        """What `BaseTrainer._setup_train` makes that a step uses."""
        self.setup_model()
        self.model.to(self.device)
        self.set_model_attributes()
        self.amp = False
        self.scaler = torch.amp.GradScaler("cuda", enabled=False)
        self.optimizer = self.build_optimizer(self.model, self.args.optimizer, self.args.lr0, self.args.momentum)
        self.ema = ModelEMA(self.model)
        self.epoch = 0
        self.loss = torch.tensor(1.0, device=self.device)
        names = ("box_loss", "cls_loss", "dfl_loss")
        self.loss_items = {name: torch.tensor(1.0, device=self.device) for name in names}


def set_up(
    trainer_class: type[Any], model: str, device: str, folder: Path, would_be: torch.device | None = None
) -> Any:
    """A trainer that is ready to step.

    Args:
        trainer_class: A trainer whose `_setup_train` needs no data.
        model: An Ultralytics model name.
        device: An Ultralytics device.
        folder: Where it writes.
        would_be: What the trainer takes its device for.
    """
    overrides = {
        **{"model": model, "data": "none.yaml", "device": device, "pretrained": False, "seed": 0},
        **{"optimizer": "SGD", "lr0": 1e-4, "project": str(folder), "name": "bench"},
    }
    trainer = trainer_class(overrides=overrides)
    trainer.device = would_be or trainer.device
    trainer._setup_train()
    trainer.model.train()
    return trainer


def synthetic_batch(images: int, size: int, boxes: int = 4) -> dict[str, Any]:
    """A batch as a loader makes it, the same each time.

    Args:
        images: How many.
        size: Pixels of a side.
        boxes: Boxes of an image.
    """
    generator = torch.Generator().manual_seed(0)
    centres = 0.3 + 0.4 * torch.rand(images * boxes, 2, generator=generator)
    sides = 0.1 + 0.4 * torch.rand(images * boxes, 2, generator=generator)
    return {
        "img": torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator),
        "cls": torch.randint(0, 80, (images * boxes, 1), generator=generator).float(),
        "bboxes": torch.cat([centres, sides], 1),
        "batch_idx": torch.arange(images).repeat_interleave(boxes).float(),
    }


def train_batch(trainer: Any, batch: dict[str, Any], before_step: Callable[[Tensor], object]) -> None:
    """What `BaseTrainer._do_train` does with a batch that ends a step.

    Args:
        trainer: A trainer that is set up.
        batch: As a loader makes it.
        before_step: Called with the loss between the backward pass and `optimizer_step`.
    """
    trainer.run_callbacks("on_train_batch_start")
    loss, trainer.loss_items = trainer.model(trainer.preprocess_batch(dict(batch)))
    trainer.loss = loss.sum()
    torch.autograd.backward(trainer.scaler.scale(trainer.loss))  # `Tensor.backward` would hide its hooks from a mode
    before_step(trainer.loss)
    trainer.optimizer_step()
    trainer.run_callbacks("on_train_batch_end")
