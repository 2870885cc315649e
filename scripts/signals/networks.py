# SPDX-License-Identifier: AGPL-3.0-or-later
"""Networks whose gains theory knows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from signals.instrument import generator


def mlp(depth: int, width: int, variance: float, seed: int, batchnorm: bool = False) -> nn.Sequential:
    """Blocks of Linear (weight variance σ_w²/fan_in, no bias), perhaps BatchNorm, and ReLU."""
    draws = generator(seed, 0)
    blocks = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        nn.init.normal_(linear.weight, 0.0, math.sqrt(variance / width), generator=draws)
        blocks.append(nn.Sequential(linear, *([nn.BatchNorm1d(width)] if batchnorm else []), nn.ReLU()))
    return nn.Sequential(*blocks)


def projected(model: nn.Module, batch: int, width: int, seed: int) -> Tensor:
    """A loss whose gradient at the output is a random direction: what comes back is the network's doing."""
    draws = generator(seed, 1)
    x = torch.randn(batch, width, generator=draws).requires_grad_()
    readout = torch.randn(batch, width, generator=draws)
    return (model(x) * readout).sum()


class Block(nn.Module):
    """ReLU(norm(Wx)), and perhaps x besides, as YOLO's blocks have it.

    Args:
        width: Units.
        variance: σ_w².
        draws: Draws the weight.
        shortcut: Factor of the branch that is added to the input; None for no shortcut.
        batchnorm: Whether the branch is normalised.
    """

    def __init__(
        self, width: int, variance: float, draws: torch.Generator, shortcut: float | None, batchnorm: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.linear.weight, 0.0, math.sqrt(variance / width), generator=draws)
        self.norm = nn.BatchNorm1d(width) if batchnorm else nn.Identity()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) → (batch, width)."""
        branch = torch.relu(self.norm(self.linear(x)))
        return branch if self.shortcut is None else x + self.shortcut * branch


class RNN(nn.Module):
    """h ← f(ρQh) with an orthogonal Q, in float64; the first state is the only parameter."""

    def __init__(self, radius: float, seed: int, tanh: bool, width: int = 32) -> None:
        super().__init__()
        draws = generator(seed, 2)
        orthogonal, _ = torch.linalg.qr(torch.randn(width, width, generator=draws, dtype=torch.float64))
        self.register_buffer("recurrence", radius * orthogonal)
        self.state = nn.Parameter(torch.randn(width, generator=draws, dtype=torch.float64))
        self.readout = nn.functional.normalize(torch.randn(width, generator=draws, dtype=torch.float64), dim=0)
        self.tanh = tanh

    def forward(self, steps: int) -> Tensor:
        """A projection of the state after some steps; its gradient before the last step has norm 1."""
        state = self.state
        for _ in range(steps):
            state = self.recurrence @ state
            state = torch.tanh(state) if self.tanh else state
        return state @ self.readout
