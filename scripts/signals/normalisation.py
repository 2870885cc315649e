# SPDX-License-Identifier: AGPL-3.0-or-later
"""Batch normalisation: the size of values and gradients by depth, and how smooth the loss is (claim 4)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from signals.detectors import ARMS, build_detector, detector_loss, drawn_batch
from signals.instrument import SEEDS, generator, mean_log, measure
from signals.networks import mlp, projected

WIDTH, BATCH = 256, 256
VARIANCES = (0.5, 2.0, 8.0)
DEPTH = 20
EDGE = 3
"""Blocks at either end that are not stationary yet."""


def measure_batchnorm() -> dict[str, pd.DataFrame]:
    """ReLU networks of 20 layers with and without batch normalisation, at three weight variances.

    Returns:
        ``batchnorm``: factors of a layer: of its values' second moment forwards, and of the gradient's backwards, of
        all but 3 layers at either end; and the gain backwards that theory has, σ_w²/2, with normalisation π/(π−1)
        whatever the weights (Yang et al. 2019, large batches).
    """
    rows = []
    for batchnorm in (False, True):
        for variance in VARIANCES:
            for seed in SEEDS:
                model = mlp(DEPTH, WIDTH, variance, seed, batchnorm)
                names = [str(i) for i in range(DEPTH)]
                found = measure(model, lambda m=model, s=seed: projected(m, BATCH, WIDTH, s), names)
                middle = found.flow.iloc[EDGE : DEPTH - EDGE]
                rms = middle["activation_rms"].to_numpy()
                forward = (rms[-1] / rms[0]) ** (2 / (len(rms) - 1))
                theory = math.pi / (math.pi - 1) if batchnorm else variance / 2
                rows.append([batchnorm, variance, seed, forward, math.exp(mean_log(middle["backward_gain"])), theory])
    columns = ["batchnorm", "sigma_w2", "seed", "forward_factor", "backward_gain", "gain_theory"]
    return {"batchnorm": pd.DataFrame(rows, columns=columns)}


STRIDES = (0.001, 0.003, 0.01, 0.03)
"""Steps along the gradient, as parts of the norm of all weights."""

TRAINED = 60
RATE = 0.02


def measure_landscapes() -> dict[str, pd.DataFrame]:
    """How loss and gradient change along the gradient, after Santurkar et al. (2018).

    Of a ReLU network of 10 layers that learns 10 classes by SGD, at its start and after 60 steps, and of YOLO26n as it
    is built; with and without batch normalisation.

    Returns:
        ``landscape``: of each stride, as a part of the weights' norm: ``loss_ratio`` to that at the start,
        ``gradient_change`` ‖g(x+d) − g(x)‖ / ‖g(x)‖, and ``beta`` ‖g(x+d) − g(x)‖ / ‖d‖, the effective smoothness;
        ``grad_norm`` is ‖g(x)‖.
    """
    rows = []
    for seed in SEEDS:
        for init, variance in (("He", 2.0), ("PyTorch default", 1 / 3)):
            for batchnorm in (False, True):
                model, loss_of = _classifier(batchnorm, variance, seed)
                rows += [["MLP", init, batchnorm, 0, seed, *row] for row in _along(model, loss_of)]
                _train(model, loss_of)
                rows += [["MLP", init, batchnorm, TRAINED, seed, *row] for row in _along(model, loss_of)]
        for arm in ("control", "no_batchnorm", "no_batchnorm_he"):
            model, batch = build_detector(ARMS[arm], seed), drawn_batch(seed)
            init = "He" if arm.endswith("he") else "PyTorch default"
            found = _along(model, lambda m=model, b=batch: detector_loss(m, b))
            rows += [["YOLO26n", init, arm == "control", 0, seed, *row] for row in found]
    columns = [
        "network",
        "initialisation",
        "batchnorm",
        "steps",
        "seed",
        "stride",
        "loss_ratio",
        "gradient_change",
        "beta",
    ]
    return {"landscape": pd.DataFrame(rows, columns=[*columns, "grad_norm"])}


def _classifier(batchnorm: bool, variance: float, seed: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A network and its loss on one batch of ten blurred classes."""
    draws = generator(seed, 12)
    centres = torch.randn(10, 64, generator=draws)
    labels = torch.arange(BATCH) % 10
    x = centres[labels] + torch.randn(BATCH, 64, generator=draws)
    head = nn.Linear(64, 10, bias=False)
    nn.init.normal_(head.weight, 0.0, 1 / math.sqrt(64), generator=draws)
    model = nn.Sequential(mlp(10, 64, variance, seed, batchnorm), head)
    return model, lambda: nn.functional.cross_entropy(model(x), labels)


def _train(model: nn.Module, loss_of: Callable[[], Tensor]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    for _ in range(TRAINED):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()


def _along(model: nn.Module, loss_of: Callable[[], Tensor]) -> list[list[float]]:
    """Rows of ``landscape`` from the stride on; the weights are left as they were."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    loss, gradient = _gradient(parameters, loss_of)
    size = float(torch.cat([p.reshape(-1).double() for p in before]).norm())
    norm = float(gradient.norm())
    rows = []
    for stride in STRIDES:
        with torch.no_grad():
            for parameter, start, part in zip(
                parameters, before, gradient.split([p.numel() for p in before]), strict=True
            ):
                parameter.copy_(start - (stride * size / norm) * part.view_as(start).to(start.dtype))
        other, moved = _gradient(parameters, loss_of)
        change = float((moved - gradient).norm())
        rows.append([stride, other / loss, change / norm, change / (stride * size), norm])
    with torch.no_grad():
        for parameter, start in zip(parameters, before, strict=True):
            parameter.copy_(start)
    return rows


def _gradient(parameters: list[nn.Parameter], loss_of: Callable[[], Tensor]) -> tuple[float, Tensor]:
    loss = loss_of()
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return float(loss.detach()), torch.cat([g.reshape(-1).double() for g in parts])
