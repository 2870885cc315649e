# SPDX-License-Identifier: AGPL-3.0-or-later
"""One backward pass through a network, measured by the recorder as a training's first step is."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from yolo_gradstudy import GradRecorder, RecordConfig, load_run

SEEDS = range(5)
"""Each draws weights and data; intervals are over these."""


@dataclass(frozen=True)
class Measured:
    """What the recorder says of one step.

    Attributes:
        flow: Modules × flow quantities, in model order.
        norms: The gradient's norm of each parameter tensor.
        total: The global norm.
    """

    flow: pd.DataFrame
    norms: pd.Series
    total: float


_FLOWS = ("activation_rms", "output_grad_rms", "forward_gain", "backward_gain", "dead_share")


def measure(model: nn.Module, loss_of: Callable[[], Tensor], modules: Sequence[str] | None = ()) -> Measured:
    """Run a loss forwards and backwards once, and read back what the recorder wrote.

    Args:
        model: The network; its gradients are those of the loss afterwards.
        loss_of: Computes the loss.
        modules: Name patterns of the modules whose flow is measured; all leaves where empty, and none
            where None.
    """
    flow_every = 0 if modules is None else 1
    rest = {"extremes_every": 0, "parameter_every": 0, "update_every": 0}
    config = RecordConfig(flow_every=flow_every, flow_modules=tuple(modules or ()), **rest)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.zero_grad()
    with tempfile.TemporaryDirectory(prefix="gradstudy-signal-") as folder:
        with GradRecorder(model, optimizer, folder, config) as recorder:
            loss = loss_of()
            loss.backward()
            recorder.observe(loss=loss.detach())
            optimizer.step()
            recorder.stepped()
        run = load_run(folder)
        flows = {name: run.flow(name).loc[1].astype("float64") for name in (_FLOWS if flow_every else ())}
        return Measured(
            pd.DataFrame(flows), run.layers("grad_norm").loc[1].astype("float64"), float(run.steps["grad_norm"].iloc[0])
        )


def generator(*numbers: int) -> torch.Generator:
    """A generator of its own for each use, so that no network depends on those before it."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def mean_log(gains: pd.Series) -> float:
    """The mean natural logarithm of gains: what one layer adds."""
    return float(np.log(gains.to_numpy(dtype="float64")).mean())


def decades(log_squared: float) -> float:
    """The power of ten of a norm, of the natural logarithm of its square."""
    return log_squared / 2 / math.log(10)


def slope(values: Sequence[float]) -> float:
    """What one layer adds to a logarithm, by least squares; positive where it grows from the output to the input."""
    return -float(np.polyfit(np.arange(len(values)), np.asarray(values, dtype="float64"), 1)[0])
