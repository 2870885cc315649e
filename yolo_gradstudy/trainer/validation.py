# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fixed-assignment loss of a validation pass, taken from what Ultralytics' validator hands to its criterion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.tal import make_anchors

from yolo_gradstudy.statistics import FixedAssignmentSums, cells_of
from yolo_gradstudy.trainer.assigners import assigner_modules

TASKS = ("detect", "segment", "pose")
"""Tasks whose boxes stand upright."""


class WatchedCriterion:
    """A detection criterion that is asked in a validation, and a sum of each branch's fixed-assignment loss beside it.

    The validator calls it with the predictions and the batch, so that nothing has to be computed twice.

    Args:
        criterion: The model's own.
    """

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion
        self.sums: dict[str, FixedAssignmentSums] = {}

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> Any:
        """The criterion's answer."""
        self.see(preds, batch)
        return self._criterion(preds, batch)

    def see(self, preds: Any, batch: Mapping[str, Tensor]) -> None:
        """Add a batch to the sums, as the validator has it: a model in evaluation, images from 0 to 1."""
        raw = preds[1] if isinstance(preds, tuple) else preds
        if isinstance(raw, Mapping):
            branches = {"one2many": raw} if "boxes" in raw else {b: p for b, p in raw.items() if isinstance(p, Mapping)}
            for branch, output in branches.items():
                if {"boxes", "scores", "feats"} <= output.keys():
                    self._add(branch, output, batch)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_criterion":
            raise AttributeError(name)
        return getattr(self._criterion, name)

    @torch.no_grad()
    def _add(self, branch: str, output: Mapping[str, Any], batch: Mapping[str, Tensor]) -> None:
        part: Any = getattr(self._criterion, branch, self._criterion)
        anchors, strides = make_anchors(output["feats"], part.stride, 0.5)
        boxes = part.bbox_decode(anchors, output["boxes"].permute(0, 2, 1).contiguous()) * strides
        sizes = [(int(f.shape[2]), int(f.shape[3])) for f in output["feats"]]
        device = boxes.device
        height, width = (size * float(part.stride[0]) for size in sizes[0])
        truth = xywh2xyxy(batch["bboxes"].to(device)) * torch.tensor([width, height, width, height], device=device)
        self.sums.setdefault(branch, FixedAssignmentSums()).add(
            output["scores"].permute(0, 2, 1),
            boxes,
            anchors * strides,
            batch["batch_idx"].to(device).long(),
            batch["cls"].to(device).view(-1).long(),
            truth,
            cells_of(truth, sizes, [float(s) for s in part.stride]),
        )

    def values(self) -> dict[str, float]:
        """``fixed_loss_<branch>`` and its parts, ``fixed_class_``, ``fixed_box_`` and ``fixed_chance_<branch>``."""
        return {
            f"fixed_{what}_{branch}": value
            for branch, sums in self.sums.items()
            for what, value in sums.values().items()
        }


@torch.no_grad()
def fixed_losses(model: nn.Module, task: str, loader: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The loss of a fixed assignment on a validation set, without Ultralytics' validator.

    Args:
        model: In evaluation, in fp32.
        task: Ultralytics' name of the task.
        loader: The validation batches, as Ultralytics loads them.

    Returns:
        :meth:`WatchedCriterion.values`; empty where the model's loss is not a detector's.
    """
    device = next(model.parameters()).device
    with watched_criterion(model, task) as watched:
        if watched is None:
            return {}
        for batch in loader:
            there = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
            there["img"] = there["img"].float() / 255
            watched.see(model(there["img"]), there)
        return watched.values()


@contextmanager
def watched_criterion(model: nn.Module, task: str) -> Iterator[WatchedCriterion | None]:
    """The model with a criterion that is watched, while the block lasts; None where its loss is not a detector's.

    Args:
        model: What is validated, not the one that is trained.
        task: Ultralytics' name of the task.
    """
    owner: Any = model
    own = getattr(model, "criterion", None)
    criterion = own if own is not None or task not in TASKS else owner.init_criterion()
    if task not in TASKS or not assigner_modules(criterion):
        yield None
        return
    watched = WatchedCriterion(criterion)
    owner.criterion = watched
    try:
        yield watched
    finally:
        owner.criterion = own
