# SPDX-License-Identifier: AGPL-3.0-or-later
"""Initialisations crossed with activations: what each layer does to values and to gradients (claims 5 and 8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from signals.instrument import SEEDS, decades, generator, mean_log, measure
from yolo_gradstudy import apply_ablation

WIDTH, DEPTH, BATCH = 256, 20, 64

_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(201)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True)
class Activation:
    """An activation, for a network and for theory.

    Attributes:
        module: Makes the layer.
        value: The function, of float64 arrays.
        slope: Its derivative.
    """

    module: Callable[[], nn.Module]
    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(z / 2))


ACTIVATIONS = {
    "ReLU": Activation(nn.ReLU, lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    "SiLU": Activation(nn.SiLU, lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) * (1 + z * (1 - _sigmoid(z)))),
    "tanh": Activation(nn.Tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": Activation(nn.Sigmoid, _sigmoid, lambda z: _sigmoid(z) * (1 - _sigmoid(z))),
    "identity": Activation(nn.Identity, lambda z: z, np.ones_like),
}

INITIALISATIONS: dict[str, tuple[str, float]] = {
    "PyTorch default": ("", 1 / 3),
    "Xavier": ("replace_init_by_xavier", 1.0),
    "He": ("replace_init_by_he", 2.0),
    "orthogonal": ("replace_init_by_orthogonal", 1.0),
    "LSUV": ("replace_init_by_lsuv", math.nan),
    "Xavier × 3": ("replace_init_by_xavier", 9.0),
}
"""The package's ablation that draws it, and σ_w², the variance of a weight times fan_in; LSUV's is set by the data."""


def measure_initialisations() -> dict[str, pd.DataFrame]:
    """Networks of one width, 20 layers of Linear and activation without bias, on inputs of unit variance.

    Returns:
        ``variance``: the factor of each layer to the second moment of what the linear layers put out, the first to
        the last, and to its variance over the batch, which is what tells one input from another; with the mean-field
        value (Poole et al. 2016). ``activations``: the gain of each layer backwards, the power of ten over all of
        them, the share of units that are dead, and the mean-field gain (Schoenholz et al. 2017).
    """
    forward, backward = [], []
    for name, (ablation, variance) in INITIALISATIONS.items():
        for kind, activation in ACTIVATIONS.items():
            theory = _mean_field(activation, variance)
            for seed in SEEDS:
                x = torch.randn(BATCH, WIDTH, generator=generator(seed, 5)).requires_grad_()
                model = _network(activation, ablation, 3.0 if "×" in name else 1.0, seed, x)
                linears, blocks = ([f"{i}{end}" for i in range(DEPTH)] for end in (".0", ""))
                readout = torch.randn(BATCH, WIDTH, generator=generator(seed, 6))
                found = measure(model, lambda m=model, x=x, r=readout: (m(x) * r).sum(), [*linears, *blocks])
                rms = found.flow.loc[linears, "activation_rms"].to_numpy()
                moment = 2 * math.log(rms[-1] / rms[0]) / (DEPTH - 1)
                spread = _over_batch(model, x)
                told = math.log(spread[-1] / spread[0]) / (DEPTH - 1) if spread[-1] > 0 else -math.inf
                forward.append([name, kind, seed, math.exp(moment), math.exp(told), theory[0]])
                gains = found.flow.loc[blocks, "backward_gain"]
                dead = float(found.flow.loc[blocks, "dead_share"].mean())
                log = mean_log(gains)
                backward.append([name, kind, seed, math.exp(log), decades(DEPTH * log), dead, theory[1]])
    keys = ["initialisation", "activation", "seed"]
    return {
        "variance": pd.DataFrame(forward, columns=[*keys, "moment_ratio", "batch_variance_ratio", "moment_theory"]),
        "activations": pd.DataFrame(backward, columns=[*keys, "gain", "decades", "dead_share", "gain_theory"]),
    }


def _network(activation: Activation, ablation: str, gain: float, seed: int, x: Tensor) -> nn.Sequential:
    draws = generator(seed, 4)
    blocks = []
    for _ in range(DEPTH):
        linear = nn.Linear(WIDTH, WIDTH, bias=False)
        bound = 1 / math.sqrt(WIDTH)  # what reset_parameters draws, from a generator of our own
        nn.init.uniform_(linear.weight, -bound, bound, generator=draws)
        blocks.append(nn.Sequential(linear, activation.module()))
    model = nn.Sequential(*blocks)
    if ablation:
        apply_ablation(model, ablation, seed, images=x.detach() if "lsuv" in ablation else None)
    if gain != 1:
        apply_ablation(model, f"scale_init({gain:g})", seed)
    return model


@torch.no_grad()
def _over_batch(model: nn.Sequential, x: Tensor) -> list[float]:
    """The variance over the batch of what each linear layer puts out, mean over units."""
    found = []
    for block in model:
        z = block[0](x)
        found.append(float(z.double().var(0, correction=0).mean()))
        x = block[1](z)
    return found


def _mean_field(activation: Activation, variance: float) -> tuple[float, float]:
    """Factors of a layer to the second moment of its output and, backwards, of the gradient; of infinite width.

    The moment goes as q ← σ_w² E[φ(√q z)²], the gradient as σ_w² E[φ'(√q z)²]; the mean of their logarithms.
    """
    if math.isnan(variance):
        return math.nan, math.nan
    moments, gains = [variance], []  # the first linear layer sees inputs of unit variance
    for _ in range(DEPTH):
        z = math.sqrt(moments[-1]) * _POINTS
        gains.append(variance * float(_WEIGHTS @ activation.slope(z) ** 2))
        moments.append(variance * float(_WEIGHTS @ activation.value(z) ** 2))
    ratio = math.exp(math.log(moments[DEPTH - 1] / moments[0]) / (DEPTH - 1))
    return ratio, math.exp(float(np.log(gains).mean()))
