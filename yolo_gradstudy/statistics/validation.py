# SPDX-License-Identifier: AGPL-3.0-or-later
"""A detection loss whose assignment is fixed by the ground truth, so that a dead detector cannot make it small.

The training loss assigns objects to predictions by how well these do, and divides by the sum of the target scores that
come of it: where a head dies, targets and loss vanish together. Here each object has one cell, whatever is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from yolo_gradstudy.statistics.norms import widest_dtype

_LARGEST_LOGIT = math.log((1 - 1e-7) / 1e-7)


def cells_of(boxes: Tensor, sizes: Sequence[tuple[int, int]], strides: Sequence[float]) -> Tensor:
    """The one cell of each box: that which its centre lies in, on the level that suits its size.

    Level l > 0 takes boxes whose side, the root of the area, is at least four of its strides (64 px at stride 16,
    128 px at stride 32), as the size ranges of Tian et al. 2019, "FCOS", arXiv:1904.01355, §3.2; the first level
    takes the rest.

    Args:
        boxes: Shape (n, 4), x1 y1 x2 y2 in pixels.
        sizes: Rows and columns of each level's grid.
        strides: Pixels of a cell, a number a level, rising.

    Returns:
        Shape (n,), int64: index into the levels' cells, row by row, one level after another.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    level = sum((side >= 4 * stride).long() for stride in strides[1:]) + torch.zeros_like(side, dtype=torch.long)
    rows = torch.tensor([rows for rows, _ in sizes], device=boxes.device)[level]
    columns = torch.tensor([columns for _, columns in sizes], device=boxes.device)[level]
    stride = torch.tensor(list(strides), device=boxes.device, dtype=boxes.dtype)[level]
    starts = torch.tensor([0, *(r * c for r, c in sizes)], device=boxes.device).cumsum(0)[level]
    column = (centre[:, 0] / stride).long().clamp(min=0).minimum(columns - 1)
    row = (centre[:, 1] / stride).long().clamp(min=0).minimum(rows - 1)
    return starts + row * columns + column


@dataclass
class FixedAssignmentSums:
    """The loss of one branch over a validation set, as sums that batches add to.

    With n objects, the loss is the sum of
    ``class``, binary cross-entropy over classes: of an object's cell its class is wanted and no other; of the cells
    outside all objects no class is; cells within an object that are not its own do not count. Divided by n.
    ``box``, mean of 1 − IoU between each object and the box that its cell predicts.

    ``chance`` is the class loss of the best detector that does not look at the image: a fixed probability a class,
    n_c / (n_c + m_c) with n_c wanted and m_c unwanted cells. A detector that has learned something is below it.
    Probabilities are taken within 1e-7 of 0 and 1, so that no single cell outweighs all others.
    """

    objects: int = 0
    class_sum: Tensor | float = 0.0
    box_sum: Tensor | float = 0.0
    wanted: Tensor | float = 0.0
    counted: Tensor | float = 0.0

    @torch.no_grad()
    def add(
        self,
        scores: Tensor,
        boxes: Tensor,
        cell_centres: Tensor,
        image: Tensor,
        classes: Tensor,
        truth: Tensor,
        cells: Tensor,
    ) -> None:
        """Add a batch.

        Args:
            scores: Class logits, shape (images, cells, classes).
            boxes: Predicted boxes, shape (images, cells, 4), x1 y1 x2 y2 in pixels.
            cell_centres: Shape (cells, 2), x y in pixels.
            image: Which image each object is in, shape (n,), int64.
            classes: Shape (n,), int64.
            truth: Shape (n, 4), as ``boxes``.
            cells: :func:`cells_of` of ``truth``.
        """
        scores, boxes, truth = scores.float(), boxes.float(), truth.float()
        wanted = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        wanted[image, cells, classes] = True
        low, high = truth[:, None, :2], truth[:, None, 2:]
        within = ((cell_centres >= low) & (cell_centres <= high)).all(2).float()
        counted = torch.zeros(scores.shape[:2], device=scores.device).index_add_(0, image, within) == 0
        counted[image, cells] = True
        wide = widest_dtype(scores.device)
        scores = scores.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
        loss = softplus(torch.where(wanted, -scores, scores)) * counted.unsqueeze(2)
        self.class_sum = self.class_sum + loss.sum(dtype=wide)
        self.box_sum = self.box_sum + (1 - _overlaps(boxes[image, cells], truth)).sum(dtype=wide)
        self.wanted = self.wanted + wanted.sum((0, 1)).to(wide)
        self.counted = self.counted + counted.sum().to(wide)
        self.objects += len(truth)

    def values(self) -> dict[str, float]:
        """``class``, ``box``, their sum ``loss``, and ``chance``; empty where there was no object."""
        if not self.objects:
            return {}
        found = {"class": float(self.class_sum) / self.objects, "box": float(self.box_sum) / self.objects}
        return {**found, "loss": found["class"] + found["box"], "chance": self._chance()}

    def _chance(self) -> float:
        share = torch.as_tensor(self.wanted, dtype=torch.float64, device="cpu") / float(self.counted)
        entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) * float(self.counted)
        return float(entropy.sum()) / self.objects


def _overlaps(one: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes pair by pair, shape (n,); NaN where a predicted number is."""
    size = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0)
    shared = size.prod(1)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(1) for b in (one, other)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)
