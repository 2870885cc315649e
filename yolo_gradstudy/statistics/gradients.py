# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scalars of a step's gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from yolo_gradstudy.statistics.norms import tensor_norms


def total_norm(norms: Tensor) -> Tensor:
    """Global norm: the root of the sum of squares of the tensors' norms.

    Args:
        norms: Shape ``(n,)``, the norms of the single tensors.

    Returns:
        0-d, the very number that ``torch.nn.utils.clip_grad_norm_`` returns.
    """
    norm: Tensor = torch.linalg.vector_norm(norms, 2.0)
    return norm


def clip_coefficient(norm: Tensor, clip_norm: float) -> Tensor:
    """Factor by which ``torch.nn.utils.clip_grads_with_norm_`` multiplies every gradient.

    Args:
        norm: 0-d global norm.
        clip_norm: Largest norm that passes unclipped.

    Returns:
        0-d, ``min(1, clip_norm / (norm + 1e-6))``; NaN where the norm is NaN.
    """
    return torch.clamp(clip_norm / (norm + 1e-6), max=1.0)


def largest_absolute(gradients: Sequence[Tensor]) -> Tensor:
    """Largest absolute element of all tensors.

    Args:
        gradients: Tensors of any shape.

    Returns:
        0-d; NaN where an element is NaN.
    """
    return tensor_norms(gradients, float("inf")).max()


def nonfinite_count(gradients: Sequence[Tensor], norms: Tensor) -> Tensor:
    """Number of elements that are NaN or infinite.

    Args:
        gradients: Tensors of any shape, all on one device.
        norms: Shape ``(len(gradients),)``. A finite norm has no such element behind it, which saves the
            count on a CPU, where looking costs nothing. On an accelerator looking would wait for the
            device, so there the elements are always counted.

    Returns:
        0-d float32 (a count up to 2**24 is exact).
    """
    device = norms.device
    if device.type == "cpu":
        suspects = [g for g, ok in zip(gradients, norms.isfinite().tolist(), strict=True) if not ok]
        if not suspects:
            return torch.zeros((), device=device)
        return sum((g.isfinite().logical_not().sum() for g in suspects), torch.zeros((), dtype=torch.int64)).float()
    return torch.cat([g.reshape(-1) for g in gradients]).isfinite().logical_not().sum().float()
