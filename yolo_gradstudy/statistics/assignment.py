# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a task-aligned assigner gave a step's predictions to learn from.

The training loss can't tell a dead detector: its targets are scaled by how well the predictions overlap
the objects, and where nothing overlaps, target scores and loss are both zero. So the targets themselves
are recorded. The assigner normalises its scores so that the best prediction of an object gets its own
overlap with it (IoU) as its target score (Feng et al. 2021, TOOD, section 3.2). So a branch's sum over the
number of objects tells how well its best predictions overlap them: a dead branch has 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class AssignmentSums:
    """Sums an assigner's targets over the batches of one optimizer step.

    Its :meth:`hook` goes onto a module whose inputs and outputs are those of
    ``ultralytics.utils.tal.TaskAlignedAssigner``: sixth input the mask of ground-truth boxes, third output
    the target scores, fourth the mask of positives.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def hook(self, branch: str, counts_boxes: bool) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook for the assigner of one branch.

        Args:
            branch: Name that the columns end in.
            counts_boxes: Whether this branch counts the ground-truth boxes; one branch is enough.
        """

        def add(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if not torch.is_grad_enabled():  # a validation's forward pass, not training
                return
            self._add(f"target_scores_{branch}", outputs[2])
            self._add(f"positives_{branch}", outputs[3])
            if counts_boxes:
                self._add("boxes", inputs[5])

        return add

    def _add(self, name: str, values: Tensor) -> None:
        total = values.detach().sum(dtype=torch.float32)
        self._sums[name] = self._sums[name] + total if name in self._sums else total

    def take(self) -> dict[str, Tensor]:
        """The sums since the last call, 0-d float32 each, and begin anew."""
        sums, self._sums = self._sums, {}
        return sums
