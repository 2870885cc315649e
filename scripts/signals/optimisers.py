# SPDX-License-Identifier: AGPL-3.0-or-later
"""What optimizers make of gradients of other scales, in float64 (claim 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from ultralytics.optim import MuSGD

from signals.instrument import SEEDS, generator

Make = Callable[[Iterable[Any], float], torch.optim.Optimizer]
"""Parameters or groups of them, and the rate of those that name none."""

OPTIMISERS: dict[str, Make] = {
    "SGD": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "SGD, momentum 0.9": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "MuSGD": lambda p, lr: MuSGD(p, lr=lr, momentum=0.9, nesterov=True, use_muon=True),
    "RMSprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr),
    "Adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "AdamW": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0),
}

EXPONENTS = range(-60, 61, 10)
"""The loss is multiplied by 2 to these."""


def measure_loss_scale() -> dict[str, pd.DataFrame]:
    """The first update of a weight, 16 × 16 and zero, where the loss is multiplied by a power of two.

    Returns:
        ``loss_scale``: ``log2_update`` is log2 of the update's norm over that of the loss as it is.
    """
    rows = []
    for name, make in OPTIMISERS.items():
        for seed in SEEDS:
            gradient = torch.randn(16, 16, generator=generator(seed, 8), dtype=torch.float64)
            norms = {k: _update(make, gradient * 2.0**k) for k in EXPONENTS}
            rows += [[name, k, seed, math.log2(norm / norms[0])] for k, norm in norms.items()]
    return {"loss_scale": pd.DataFrame(rows, columns=["optimizer", "exponent", "seed", "log2_update"])}


def _update(make: Make, gradient: Tensor) -> float:
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient
    make([parameter], 1e-3).step()
    return float(parameter.detach().norm())


DIMENSIONS, STEPS = 8, 300
SPREADS = (0, 2, 4, 6)
RATES = tuple(10.0 ** (k / 3) for k in range(-21, 4))
"""Of the largest curvature, which is 1: SGD is stable below a rate of 2."""


def measure_quadratics() -> dict[str, pd.DataFrame]:
    """Quadratics whose curvatures spread over decades, along the axes and along directions at random.

    Returns:
        ``quadratics``: the decades by which the loss has fallen after 300 steps at the best of 25 rates, no more than
        12, that rate, and how many decades of rates bring it down at least tenfold.
    """
    rows = []
    for name in ("SGD", "SGD, momentum 0.9", "RMSprop", "Adam"):
        for turned in (False, True):
            for spread in SPREADS:
                falls = _falls(name, spread, turned)
                for seed, of_seed in zip(SEEDS, falls, strict=True):
                    best = int(np.argmax(of_seed))
                    wide = int((of_seed >= 1).sum()) / 3
                    directions = "turned" if turned else "along the axes"
                    rows.append([name, directions, spread, seed, of_seed[best], RATES[best], wide])
    columns = ["optimizer", "directions", "spread", "seed", "decades_fallen", "best_rate", "decades_of_rates"]
    return {"quadratics": pd.DataFrame(rows, columns=columns)}


_MOST = 12.0


def _falls(name: str, spread: int, turned: bool) -> NDArray[np.float64]:
    """Decades by which the loss fell, 0 where it grew; seeds × rates.

    Every rate has a parameter, a row of it a seed's problem: these optimizers treat each number by itself.
    """
    curvature = torch.logspace(-spread, 0, DIMENSIONS, dtype=torch.float64)
    starts, matrices = [], []
    for seed in SEEDS:
        basis = torch.eye(DIMENSIONS, dtype=torch.float64)
        if turned:
            square = torch.randn(DIMENSIONS, DIMENSIONS, generator=generator(seed, 9), dtype=torch.float64)
            basis = torch.linalg.qr(square)[0]
        draw = torch.randn(DIMENSIONS, generator=generator(seed, 10), dtype=torch.float64)
        starts.append(basis @ (curvature.rsqrt() * draw))  # no direction holds so little of the loss that it can wait
        matrices.append(basis @ torch.diag(curvature) @ basis.T)
    start, matrix = torch.stack(starts), torch.stack(matrices)
    # The steps of these have the size of the rate, not of the gradient: it is told in the parameters' own size.
    size = math.sqrt(float(curvature.reciprocal().mean())) if name in ("RMSprop", "Adam") else 1.0
    parameters = [nn.Parameter(start.clone()) for _ in RATES]
    optimizer = OPTIMISERS[name](
        [{"params": [p], "lr": rate * size} for p, rate in zip(parameters, RATES, strict=True)], 1.0
    )
    for _ in range(STEPS):
        for parameter in parameters:
            parameter.grad = (matrix @ parameter.detach().unsqueeze(-1)).squeeze(-1)
        optimizer.step()
    ratios = torch.stack([_losses(matrix, p.detach()) for p in parameters], 1) / _losses(matrix, start).unsqueeze(1)
    fell = (-ratios.clamp(min=1e-300).log10()).clamp(0.0, _MOST)
    return fell.where(ratios.isfinite(), torch.zeros(())).numpy()


def _losses(matrix: Tensor, at: Tensor) -> Tensor:
    return torch.einsum("si,sij,sj->s", at, matrix, at)
