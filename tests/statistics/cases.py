# SPDX-License-Identifier: AGPL-3.0-or-later
"""A case for each public name of `yolo_gradstudy.statistics`: how it is called, and what it must give.

This folder is no package: as one it would stand for Python's own `statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolo_gradstudy import statistics


@dataclass(frozen=True)
class Case:
    """One measured quantity.

    Attributes:
        measure: Calls it with gradients; gives numbers.
        expected: The same numbers from plain Python floats, a list for each gradient.
        on_device: Whether what it gives is a tensor on the device.
    """

    measure: Callable[[list[Tensor]], Any]
    expected: Callable[[list[list[float]]], Any]
    on_device: bool = True


def norm(values: list[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values))


def norms(gradients: list[list[float]]) -> list[float]:
    return [norm(values) for values in gradients]


def everything(gradients: list[list[float]]) -> list[float]:
    return [v for values in gradients for v in values]


def flow(tensors: list[Tensor]) -> Tensor:
    """Activation RMS and gradient RMS of an identity that passes the first tensor, under a squared loss."""
    module = nn.Identity()
    probe = statistics.FlowProbe({"only": module}, tensors[0].device)
    probe.watch()
    x = tensors[0].clone().requires_grad_()
    module(x).square().sum().backward()
    values, _ = probe.take()
    return values[:2, 0]


def assignments(tensors: list[Tensor]) -> list[Tensor]:
    """Two batches of an assigner that gives the first tensor as target scores."""
    sums = statistics.AssignmentSums()
    hook = sums.hook("one2many", counts_boxes=True)
    for _ in range(2):
        hook(nn.Identity(), [None] * 5 + [tensors[0] > 0], (None, None, tensors[0], tensors[0] > 1))
    taken = sums.take()
    assert sums.take() == {}
    return [taken["target_scores_one2many"], taken["positives_one2many"], taken["boxes"]]


def expected_assignments(gradients: list[list[float]]) -> list[float]:
    first = gradients[0]
    return [2 * sum(first), 2 * sum(v > 1 for v in first), 2 * sum(v > 0 for v in first)]


def copied(tensors: list[Tensor]) -> Tensor:
    """Distances after each tensor was doubled."""
    parameters = [t.clone() for t in tensors]
    followed = statistics.ParameterNorms(parameters)
    followed.keep()
    for parameter in parameters:
        parameter.mul_(2)
    return followed.distances()


def fixed_assignment(tensors: list[Tensor]) -> list[float]:
    """The first tensor as class logits of cells in a row; one object covers the first cell."""
    scores = tensors[0].reshape(1, -1, 1)
    cells = scores.shape[1]
    centres = torch.stack((torch.arange(cells) * 10.0 + 5, torch.full((cells,), 5.0)), 1)
    truth, none = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.zeros(1, dtype=torch.long)
    sums = statistics.FixedAssignmentSums()
    sums.add(scores, truth.expand(1, cells, 4), centres, none, none, truth, none)
    return [sums.values()["class"], sums.values()["box"]]


def expected_fixed_assignment(gradients: list[list[float]]) -> list[float]:
    first, *others = (min(max(v, -16.118), 16.118) for v in gradients[0])
    return [math.log1p(math.exp(-first)) + sum(math.log1p(math.exp(v)) for v in others), 0.0]


CASES = {
    "AssignmentSums": Case(assignments, expected_assignments),
    "FixedAssignmentSums": Case(fixed_assignment, expected_fixed_assignment, on_device=False),
    "FlatTensors": Case(
        lambda t: [
            *statistics.FlatTensors([u.cpu() for u in t], "float64").norms().tolist(),
            *statistics.FlatTensors([u.cpu() for u in t], "float32").largest().tolist(),
        ],
        lambda g: [*norms(g), *(max(abs(v) for v in values) for values in g)],
        on_device=False,
    ),
    "FlowProbe": Case(flow, lambda g: [norm(g[0]) / math.sqrt(len(g[0])), 2 * norm(g[0]) / math.sqrt(len(g[0]))]),
    "ParameterNorms": Case(
        lambda t: torch.cat((statistics.ParameterNorms(t).take(), copied(t))), lambda g: [*norms(g), *norms(g)]
    ),
    "SMALL": Case(lambda t: [statistics.SMALL], lambda g: [4096], on_device=False),
    "cells_of": Case(
        lambda t: statistics.cells_of(
            torch.tensor([[10.0 * i, 0.0, 10.0 * i + 8, 8.0] for i in range(len(t))]), [(1, len(t))], [10.0]
        ).tolist(),
        lambda g: list(range(len(g))),
        on_device=False,
    ),
    "clip_coefficient": Case(
        lambda t: statistics.clip_coefficient(torch.linalg.vector_norm(t[0].double()), 2.0),
        lambda g: min(1.0, 2.0 / (norm(g[0]) + 1e-6)),
    ),
    "exact_norms": Case(lambda t: statistics.exact_norms(t, statistics.tensor_norms(t)), norms),
    "exact_total": Case(
        lambda t: statistics.exact_total(
            statistics.total_norm(statistics.tensor_norms(t)),
            statistics.exact_norms(t, statistics.tensor_norms(t)),
            statistics.is_whole(t),
        ),
        lambda g: norm(everything(g)),
    ),
    "followed_modules": Case(
        lambda t: [len(statistics.followed_modules(nn.Sequential(*[nn.Identity() for _ in t])))],
        lambda g: [len(g)],
        on_device=False,
    ),
    "is_sure": Case(
        lambda t: statistics.is_sure(torch.stack([u.double().norm() for u in t])).double(),
        lambda g: [float(norm(v) >= 1e-15) for v in g],
    ),
    "is_whole": Case(lambda t: [statistics.is_whole(t)], lambda g: [True], on_device=False),
    "largest_absolute": Case(statistics.largest_absolute, lambda g: max(abs(v) for v in everything(g))),
    "nonfinite_count": Case(lambda t: statistics.nonfinite_count(t, statistics.tensor_norms(t)), lambda g: 0),
    "tensor_norms": Case(lambda t: statistics.tensor_norms(t), norms),
    "total_norm": Case(
        lambda t: statistics.total_norm(statistics.tensor_norms(t)), lambda g: math.hypot(*everything(g))
    ),
    "update_ratios": Case(
        lambda t: statistics.update_ratios(statistics.tensor_norms([3 * u for u in t]), statistics.tensor_norms(t)),
        lambda g: [3.0 if norm(values) else math.nan for values in g],
    ),
    "widest_dtype": Case(
        lambda t: [torch.finfo(statistics.widest_dtype(t[0].device)).bits], lambda g: [64], on_device=False
    ),
}
