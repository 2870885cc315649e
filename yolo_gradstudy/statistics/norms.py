# SPDX-License-Identifier: AGPL-3.0-or-later
"""Euclidean norms of many tensors in one pass, and the same where float32 would overflow or underflow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_FOREACH_DEVICES = frozenset({"cpu", "cuda", "xpu", "mtia"})
_FULL = (torch.float32, torch.float64)
LEAST_SURE = 1e-15
"""Below this a float32 norm may lack squares below 1e-38; above, it lacks 1e-7 at most, up to 1e8 elements."""


def tensor_norms(tensors: Sequence[Tensor], dtype: torch.dtype | None = None, one_device: bool | None = None) -> Tensor:
    """Euclidean norm of each tensor, by the kernels that ``torch.nn.utils.clip_grad_norm_`` uses.

    Args:
        tensors: Tensors of any shapes, devices and floating dtypes.
        dtype: In which the squares are summed; the tensors' own where None.
        one_device: Whether all are on one device, where the caller knows it: asking each costs as much as a statistic.

    Returns:
        Shape ``(len(tensors),)``, on the first tensor's device, in ``dtype`` or the tensors' dtype (that
        which torch promotes them to, where they differ). Nothing is read back to the host.
    """
    if not tensors:
        return torch.zeros(0)
    device = tensors[0].device
    if one_device is None:
        one_device = len({t.device for t in tensors}) == 1
    if one_device and device.type in _FOREACH_DEVICES:
        return torch.stack(torch._foreach_norm(list(tensors), 2.0, dtype=dtype))
    return torch.stack([torch.linalg.vector_norm(t, 2.0, dtype=dtype).to(device) for t in tensors])


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_whole(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor is of half precision."""
    return all(t.dtype in _FULL for t in tensors)


def all_finite(norms: Tensor) -> bool:
    """Whether all of some numbers on a CPU are finite: of a few hundred, Python's sum is done before a kernel is there.

    Args:
        norms: Shape ``(n,)``, not negative, each small beside the largest float64.
    """
    return math.isfinite(sum(_known(norms)))


def _known(norms: Tensor) -> list[float]:
    """Numbers on a CPU as Python's, which is done with a few hundred before a kernel is in the cache."""
    numbers = norms.detach()
    found: list[float] = (numbers if numbers.dtype in _FULL else numbers.float()).numpy().tolist()
    return found


def is_sure(norms: Tensor, least: float = LEAST_SURE) -> Tensor:
    """Where a norm summed in float32 is right to 1e-7 or so: it neither overflowed nor came near to underflowing."""
    return norms.isfinite() & (norms >= least)


def exact_norms(
    tensors: Sequence[Tensor], norms: Tensor, whole: bool | None = None, least: float = LEAST_SURE
) -> Tensor:
    """The norms to record: finite where every element is, zero only where all are, not of half precision.

    The square of a float32 above 1.8e19 overflows, so a norm can be infinite though the tensor is finite;
    below 1e-23 it is zero, so a vanishing gradient would look like none. Such norms, and all of
    half-precision tensors, are summed again in float64.

    Args:
        tensors: The tensors.
        norms: :func:`tensor_norms` of them. On a CPU they are looked at, which costs nothing there, and a
            second pass is made only where it is needed; elsewhere looking would wait for the device, so
            the second pass is always made.
        whole: :func:`is_whole` of the tensors, where the caller knows it.
        least: Norm from which float32 is believed. With 0 a norm below 1e-23 may be recorded as 0: enough for
            parameters, of which many biases are 0 to begin with and would all be summed again.

    Returns:
        Shape ``(len(tensors),)``, float64 (float32 on a device that has none); ``norms`` themselves where a CPU
        sees that each is right.
    """
    wide = widest_dtype(norms.device)
    whole = is_whole(tensors) if whole is None else whole
    if norms.device.type == "cpu":
        known = _known(norms)
        again = [
            i
            for i, norm in enumerate(known)
            if not least <= norm < math.inf or not (whole or tensors[i].dtype in _FULL)
        ]
        if not again:
            return norms
        for i, norm in zip(again, tensor_norms([tensors[i] for i in again], wide).tolist(), strict=True):
            known[i] = norm
        return torch.from_numpy(np.array(known)).to(wide)
    return unseen_norms(tensors, norms, whole, least)


def unseen_norms(tensors: Sequence[Tensor], norms: Tensor, whole: bool, least: float) -> Tensor:
    """What :func:`exact_norms` gives where the host must not look: all are summed again, and the device chooses."""
    wide = widest_dtype(norms.device)
    exact = tensor_norms(tensors, wide)
    return torch.where(is_sure(norms, least), norms.to(wide), exact) if whole else exact
