# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scalars of a step's gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from yolo_gradstudy.statistics.flat import SMALL
from yolo_gradstudy.statistics.norms import LEAST_SURE, all_finite, is_sure, widest_dtype


def total_norm(norms: Tensor) -> Tensor:
    """Global norm: the root of the sum of squares of the tensors' norms.

    Args:
        norms: Shape ``(n,)``, the norms of the single tensors.

    Returns:
        0-d; of :func:`tensor_norms`, the very number that ``torch.nn.utils.clip_grad_norm_`` returns.
    """
    norm: Tensor = torch.linalg.vector_norm(norms, 2.0)
    return norm


def exact_total(total: Tensor, exact: Tensor, whole: bool) -> Tensor:
    """The global norm to record: what clipping saw, unless its precision failed it.

    Args:
        total: 0-d, :func:`total_norm` of :func:`tensor_norms`.
        exact: Shape ``(n,)``, :func:`exact_norms`.
        whole: Whether no tensor is of half precision.

    Returns:
        0-d, ``total`` or that of ``exact`` where ``total`` overflowed, came near to
        underflowing, or was computed in half precision.
    """
    if not whole:
        return total_norm(exact)
    if total.device.type == "cpu":  # looking costs less there than computing both
        sure = LEAST_SURE <= total.numpy() < math.inf
        return total if sure else total_norm(exact.to(widest_dtype(exact.device)))
    return torch.where(is_sure(total), total.to(exact.dtype), total_norm(exact))


def clip_coefficient(norm: Tensor, clip_norm: float) -> Tensor:
    """Factor by which ``torch.nn.utils.clip_grads_with_norm_`` multiplies every gradient.

    Args:
        norm: 0-d global norm.
        clip_norm: Largest norm that passes unclipped.

    Returns:
        0-d, ``min(1, clip_norm / (norm + 1e-6))``; 0 where the norm overflowed, NaN where it is NaN.
    """
    return torch.clamp(clip_norm / (norm + 1e-6), max=1.0)


def largest_absolute(gradients: Sequence[Tensor]) -> Tensor:
    """Largest absolute element of all tensors.

    Args:
        gradients: Tensors of any shape.

    Returns:
        0-d, float64 (float32 on a device that has none); NaN where an element is NaN, 0 where there is none.
    """
    device = gradients[0].device
    wide = widest_dtype(device)
    gradients = [g for g in gradients if g.numel()]
    if not gradients:
        return torch.zeros((), device=device, dtype=wide)
    if device.type == "cuda":  # one launch for many tensors; on a CPU this kernel is slow
        ends = list(torch._foreach_norm(list(gradients), float("inf")))
    else:
        if device.type == "cpu" and len({g.dtype for g in gradients}) == 1:  # a copy costs less than a visit
            small = [g.reshape(-1) for g in gradients if g.numel() <= SMALL]
            gradients = [*([torch.cat(small)] if small else []), *(g for g in gradients if g.numel() > SMALL)]
        ends = [end for g in gradients for end in torch.aminmax(g)]
    return torch.stack([e.to(device, wide) for e in ends]).abs().amax()


def nonfinite_count(gradients: Sequence[Tensor], norms: Tensor) -> Tensor:
    """Number of elements that are NaN or infinite.

    Args:
        gradients: Tensors of any shape, at least one.
        norms: Shape ``(len(gradients),)``. A finite norm has no such element behind it, which saves the
            count on a CPU, where looking costs nothing. On an accelerator looking would wait for the
            device, so there the elements are always counted.

    Returns:
        0-d float32 on the norms' device (a count up to 2**24 is exact).
    """
    device = norms.device
    if device.type == "cpu":
        if all_finite(norms):
            return torch.zeros(())
        finite = norms.isfinite().tolist()
        gradients = [g for g, ok in zip(gradients, finite, strict=True) if not ok]
        if not gradients:
            return torch.zeros(())
    kinds = dict.fromkeys((g.device, g.dtype) for g in gradients)
    counts = [
        torch.cat([g.reshape(-1) for g in gradients if (g.device, g.dtype) == kind]).isfinite().logical_not().sum()
        for kind in kinds
    ]
    return torch.stack([c.to(device) for c in counts]).sum().float()
