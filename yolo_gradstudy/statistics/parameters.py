# SPDX-License-Identifier: AGPL-3.0-or-later
"""How large the parameters are, and how far an optimizer step moved them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_gradstudy.statistics.flat import SMALL, FlatTensors
from yolo_gradstudy.statistics.norms import LEAST_SURE, exact_norms, is_whole, tensor_norms, widest_dtype


class ParameterNorms:
    """Euclidean norm of each parameter, and of its change, again and again.

    On a CPU small parameters are summed in float64 out of one array, which halves the time that YOLO26n's take.

    Args:
        parameters: The tensors, of any floating dtype, on one device for speed.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        # Not their data, which `.data =` may replace.
        self._device = parameters[0].device
        self._one_device = len({p.device for p in parameters}) == 1
        flat = [
            self._one_device and self._device.type == "cpu" and 0 < p.numel() <= SMALL and p.layout == torch.strided
            for p in parameters
        ]
        self._is_flat = np.array(flat)
        self._small = FlatTensors([p for p, is_flat in zip(parameters, flat, strict=True) if is_flat], np.float64)
        self._large = [p for p, is_flat in zip(parameters, flat, strict=True) if not is_flat]
        self._small_before: NDArray[Any] = np.zeros(0)
        self._large_before: list[Tensor] = []

    @torch.no_grad()
    def take(self) -> Tensor:
        """The norms as they are now.

        Returns:
            Shape ``(number of parameters,)``, float64 (float32 on a device that has none), on the device, as
            :func:`exact_norms`; nothing is read back to the host.
        """
        return self._together(self._large, self._small.norms())

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the parameters as they are now, into memory that is allocated once."""
        if not self._large_before:
            self._large_before = [torch.empty_like(p.detach()) for p in self._large]
        if self._large:
            torch._foreach_copy_(self._large_before, self._large)
        self._small_before = self._small.gather().copy()

    @torch.no_grad()
    def distances(self) -> Tensor:
        """Norm of each parameter's change since :meth:`keep`, which spoils the copy.

        Returns:
            As :meth:`take`.
        """
        if self._large:
            torch._foreach_sub_(self._large_before, self._large)
        return self._together(self._large_before, self._small.norms(self._small_before), least=LEAST_SURE)

    def _together(self, large: Sequence[Tensor], small: NDArray[Any], least: float = 0.0) -> Tensor:
        found = tensor_norms(large, one_device=self._one_device)
        found = exact_norms(large, found, is_whole(large), least).to(self._device, widest_dtype(self._device))
        if not len(small):
            return found
        norms = np.empty(len(self._is_flat))
        norms[self._is_flat] = small
        norms[~self._is_flat] = found.numpy()
        return torch.from_numpy(norms)


def update_ratios(distances: Tensor, norms: Tensor) -> Tensor:
    """Update-to-weight ratio of each parameter.

    Args:
        distances: Shape ``(n,)``, ‖θ_after − θ_before‖.
        norms: Shape ``(n,)``, ‖θ_before‖.

    Returns:
        Shape ``(n,)``; infinite where a parameter was zero and moved, NaN where it was zero and stayed.
    """
    return distances / norms
