# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gradients by depth and through time, against the factor that each layer multiplies by (claims 1, 6 and 9)."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
from torch import nn

from signals.instrument import SEEDS, decades, generator, mean_log, measure, slope
from signals.networks import RNN, Block, mlp, projected

WIDTH, BATCH = 256, 16
VARIANCES = (1.0, 1.8, 2.0, 2.2, 4.0)
DEPTHS = (5, 10, 20, 50)
RADII = (0.9, 1.0, 1.1)
TANH_RADII = (0.9, 1.0, 1.1, 3.0)
TIMES = (10, 50, 100)


def measure_depth() -> dict[str, pd.DataFrame]:
    """Plain ReLU networks at weight variances below, at and above 2/fan_in, and recurrent ones through time.

    Returns:
        ``depth``: ``factor`` is what theory multiplies the gradient's norm by in each layer, √(σ_w²/2) (He et al. 2015)
        or ρ; ``decades`` the power of ten between the gradient at the input and at the output, measured, and
        ``decades_theory`` as the factor has it. ``told_apart``: what one layer adds towards the input to the logarithm
        of the gradient of activations, of the activations, and of the weights' gradients.
    """
    rows, slopes = [], []
    for place, (variance, depth) in enumerate(product(VARIANCES, DEPTHS)):
        for seed in SEEDS:
            own = 100 * (place + 1) + seed  # no two networks share draws: they are counted as independent
            model = mlp(depth, WIDTH, variance, own)
            names = [str(i) for i in range(depth)]
            found = measure(model, lambda m=model, s=own: projected(m, BATCH, WIDTH, s), names)
            growth = decades(depth * mean_log(found.flow["backward_gain"]))
            factor = math.sqrt(variance / 2)
            rows.append(["ReLU MLP", variance, depth, seed, factor, growth, depth * math.log10(factor)])
            told = (found.flow["output_grad_rms"], found.flow["activation_rms"], found.norms)
            slopes.append([variance, depth, seed, *(slope(np.log(values)) for values in told)])
    for tanh, radii in ((False, RADII), (True, TANH_RADII)):
        for radius in radii:
            for steps in TIMES:
                for seed in SEEDS:
                    model = RNN(radius, seed, tanh)
                    growth = math.log10(measure(model, lambda m=model, t=steps: m(t), None).total)
                    theory = steps * math.log10(radius)
                    name = "tanh RNN" if tanh else "linear RNN"
                    rows.append([name, radius, steps, seed, radius, growth, theory])
    columns = ["network", "parameter", "depth", "seed", "factor", "decades", "decades_theory"]
    kinds = ["sigma_w2", "depth", "seed", "activation_gradients", "activations", "weight_gradients"]
    return {"depth": pd.DataFrame(rows, columns=columns), "told_apart": pd.DataFrame(slopes, columns=kinds)}


RESIDUAL_VARIANCES = (1.0, 2.0)


def measure_residuals() -> dict[str, pd.DataFrame]:
    """The same blocks with and without shortcuts, with and without normalisation, at growing depth.

    Returns:
        ``residuals``: ``decades`` the power of ten between the gradient's norm at the input and at the output, and
        ``decades_theory``: a product of σ_w²/2 without shortcuts, of 1 + a²σ_w²/2 with them (a the branch's factor);
        for normalised plain blocks of π/(π−1), for normalised residual ones none that holds at this size.
    """
    rows = []
    for kind, shortcut, batchnorm in (
        ("plain", False, False),
        ("residual", True, False),
        ("residual, branch over √depth", True, False),
        ("plain, BatchNorm", False, True),
        ("residual, BatchNorm", True, True),
    ):
        for variance in (2.0,) if batchnorm else RESIDUAL_VARIANCES:
            for depth in DEPTHS:
                scale = 1 / math.sqrt(depth) if "√" in kind else 1.0
                for seed in SEEDS:
                    draws = generator(seed, 3)
                    factor = scale if shortcut else None
                    blocks = [Block(WIDTH, variance, draws, factor, batchnorm) for _ in range(depth)]
                    model = nn.Sequential(*blocks)
                    batch = 256 if batchnorm else BATCH
                    names = [str(i) for i in range(depth)]
                    found = measure(model, lambda m=model, b=batch, s=seed: projected(m, b, WIDTH, s), names)
                    growth = decades(depth * mean_log(found.flow["backward_gain"]))
                    gain = _theory(variance, scale if shortcut else None, batchnorm)
                    rows.append([kind, variance, depth, seed, growth, decades(depth * math.log(gain))])
    columns = ["blocks", "sigma_w2", "depth", "seed", "decades", "decades_theory"]
    return {"residuals": pd.DataFrame(rows, columns=columns)}


def _theory(variance: float, shortcut: float | None, batchnorm: bool) -> float:
    """The squared gain of a block; NaN where none is known."""
    if batchnorm:
        return math.pi / (math.pi - 1) if shortcut is None else math.nan
    return variance / 2 if shortcut is None else 1 + shortcut**2 * variance / 2
