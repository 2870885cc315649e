# SPDX-License-Identifier: AGPL-3.0-or-later
"""A plain PyTorch loop with the recorder in it, as a person would write it, and a few small networks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from yolo_gradstudy import GradRecorder, RecordConfig, load_run

EVERYTHING = RecordConfig(extremes_every=1, parameter_every=1, update_every=1, flow_every=1)
"""Every option on, in every step."""


def everything(**changes) -> RecordConfig:
    return replace(EVERYTHING, **changes)


def convnet(dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    """A small CNN: 8 parameter tensors, BatchNorm, an activation in place."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.SiLU(inplace=True),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 5),
    )


def images(count: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def sgd(model: nn.Module, lr: float = 0.01, momentum: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def record_gradients(folder, gradients, config: RecordConfig | None = None, **observed):
    """Let the recorder observe one step of parameters that have the given gradients (None for none).

    Returns:
        What ``observe`` returned, and the run as read from disk. Parameters are named "0", "1" and so on.
    """
    model = nn.ParameterList()
    for gradient in gradients:
        like = torch.zeros(1) if gradient is None else gradient
        parameter = nn.Parameter(torch.ones_like(like))
        parameter.grad = gradient
        model.append(parameter)
    with GradRecorder(model, sgd(model), folder, config) as recorder:
        total = recorder.observe(**observed)
        recorder.stepped()
    return total, load_run(folder)


def record_step(folder, model, loss_of, config: RecordConfig | None = None, lr: float = 0.01):
    """Record one step of a model; ``loss_of(model)`` gives its loss.

    Returns:
        What ``observe`` returned, and the run as read from disk. The gradients stay on the model.
    """
    optimizer = sgd(model, lr)
    with GradRecorder(model, optimizer, folder, config) as recorder:
        loss = loss_of(model)
        loss.backward()
        total = recorder.observe(loss=loss)
        optimizer.step()
        recorder.stepped()
    return total, load_run(folder)


def summed_norm(tensors) -> float:
    """The Euclidean norm of tensors together, in float64: an oracle of its own."""
    return float(torch.cat([t.detach().double().reshape(-1) for t in tensors]).norm())
