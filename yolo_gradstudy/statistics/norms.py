# SPDX-License-Identifier: AGPL-3.0-or-later
"""Euclidean norms of many tensors in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FOREACH_DEVICES = frozenset({"cpu", "cuda", "xpu", "mtia"})


def tensor_norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """Norm of each tensor, by the kernels that ``torch.nn.utils.clip_grad_norm_`` uses.

    Args:
        tensors: Tensors of any shapes, devices and floating dtypes.
        order: 2 for Euclidean, ``inf`` for the largest absolute value.

    Returns:
        Shape ``(len(tensors),)``, on the first tensor's device, in the tensors' dtype (the widest, where
        they differ). Nothing is read back to the host.
    """
    if not tensors:
        return torch.zeros(0)
    device = tensors[0].device
    if all(t.device == device and t.dtype == tensors[0].dtype for t in tensors):
        if device.type in _FOREACH_DEVICES:
            return torch.stack(torch._foreach_norm(list(tensors), order))
        return torch.stack([torch.linalg.vector_norm(t, order) for t in tensors])
    norms = [torch.linalg.vector_norm(t, order).to(device) for t in tensors]
    widest = max((n.dtype for n in norms), key=lambda dtype: torch.finfo(dtype).bits)
    return torch.stack([n.to(widest) for n in norms])
