# SPDX-License-Identifier: AGPL-3.0-or-later
"""How far an optimizer step moved the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from yolo_gradstudy.statistics.norms import exact_norms, tensor_norms


class ParameterCopy:
    """Parameters as they were before a step, in memory that is allocated once.

    Args:
        parameters: The tensors to follow; all of one device and dtype for speed, though it isn't needed.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)  # not their data, which `.data =` may replace
        self._before = [torch.empty_like(p.detach()) for p in self._parameters]

    @torch.no_grad()
    def take(self) -> None:
        """Copy the parameters as they are now."""
        torch._foreach_copy_(self._before, self._parameters)

    @torch.no_grad()
    def distances(self) -> Tensor:
        """Norm of each parameter's change since :meth:`take`, which spoils the copy.

        Returns:
            Shape ``(number of parameters,)``, as :func:`exact_norms`.
        """
        torch._foreach_sub_(self._before, self._parameters)
        return exact_norms(self._before, tensor_norms(self._before))


def update_ratios(distances: Tensor, norms: Tensor) -> Tensor:
    """Update-to-weight ratio of each parameter.

    Args:
        distances: Shape ``(n,)``, ‖θ_after − θ_before‖.
        norms: Shape ``(n,)``, ‖θ_before‖.

    Returns:
        Shape ``(n,)``; infinite where a parameter was zero and moved, NaN where it was zero and stayed.
    """
    return distances / norms
