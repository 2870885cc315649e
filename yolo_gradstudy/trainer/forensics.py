# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is kept of a training so that the step at which it went wrong can be run once more.

Where the fault is seen in its own step (on a CPU), the weights that made it are still there: kept are the batches of
that step, and for comparison an earlier snapshot of the weights with the batches of a few steps that went well. Where
it is seen later (on an accelerator, with a flush), kept are two snapshots and every batch since the older one. Batches
are kept as the loader made them, on the host and not copied.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_gradstudy.records import ForensicsConfig
from yolo_gradstudy.trainer.hooks import HookCopies, HookWatch

REFERENCES = 3
"""Steps that went well with which the fatal one is compared."""


@dataclass(frozen=True)
class RandomStates:
    """The random generators that a batch's preprocessing and a forward pass may draw from."""

    torch_cpu: Tensor
    torch_cuda: Tensor | None
    python: Any
    numpy: Any

    @classmethod
    def taken(cls, device: torch.device) -> RandomStates:
        """The states as they are."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state())

    def restore(self, device: torch.device) -> None:
        """Put the generators into these states."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda is not None:
            torch.cuda.set_rng_state(self.torch_cuda, device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


@dataclass(frozen=True)
class BatchInputs:
    """A batch on its way into the model: what the loader made, the generators, and the hooks of others."""

    raw: Mapping[str, Any]
    states: RandomStates
    hooks: HookCopies | None


@dataclass
class StepInputs:
    """What a step was made of.

    Attributes:
        step: The optimizer step.
        batches: Its batches.
        groups: Numbers of each parameter group at the step: rates, momenta, weight decay.
        criterion: Numbers of the criterion: YOLO26 shifts weight between its branches from epoch to epoch.
    """

    step: int
    batches: list[BatchInputs] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    criterion: dict[str, float] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Image files of its batches."""
        return [file for batch in self.batches for file in image_files(batch.raw)]


@dataclass
class Snapshot:
    """A training's state after a step.

    Attributes:
        step: The last optimizer step that it has.
        model: Every parameter and buffer.
        optimizer: The optimizer's state; None where a replay makes no steps.
        scaler: Scale and growth of a loss scaler, likewise.
        clipper: A clipping that remembers, likewise.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Tensor] = field(default_factory=dict)
    clipper: Any = None


class BlackBox:
    """Keeps what a replay needs, within a budget.

    Args:
        trainer: A set-up trainer of this package, on one process.
        config: How often, and how much memory at most.
        at_once: Whether a fault is seen in its own step.
        lag: Most steps after which it is seen otherwise.
    """

    def __init__(self, trainer: Any, config: ForensicsConfig, at_once: bool, lag: int) -> None:
        self._trainer = trainer
        self._config = config
        self._at_once = at_once
        self._lag = lag
        self._hooks = HookWatch(trainer.model)
        self._numbers = [
            {key for key, value in group.items() if isinstance(value, (int, float, tuple, bool))}
            for group in trainer.optimizer.param_groups
        ]
        self._open: StepInputs | None = None
        self._known_fit = False
        self.snapshots: deque[Snapshot] = deque(maxlen=1 if at_once else 2)
        self.steps: deque[StepInputs] = deque()
        self.replaying = False
        """Whether a replay runs, in which nothing is kept."""
        self.off: str | None = None
        """Why nothing is kept, where that is so."""

    # Keeping -----------------------------------------------------------------------------------------

    def begin_batch(self, raw: Mapping[str, Any], step: int) -> None:
        """A batch is on its way into a step; nothing of it is changed yet.

        Args:
            raw: As the loader made it.
            step: The optimizer step that it goes into.
        """
        if self.off is not None or self.replaying:
            return
        if self._open is None or self._open.step != step:
            self._open = StepInputs(step)
        states = RandomStates.taken(self._trainer.device)
        self._open.batches.append(BatchInputs(dict(raw), states, self._hooks.copies()))
        if not self._known_fit:
            self._known_fit = True
            self._check_budget(raw)

    def begin_training(self) -> None:
        """The first batch is on its way: what is seen later is replayed from here on."""
        if not self._at_once and not self.snapshots and self._open is not None:
            self.snapshot(self._open.step - 1)

    def begin_step(self, optimizer: torch.optim.Optimizer, criterion: Any) -> None:
        """The batches of a step are through, and its rates are set."""
        if self._open is None:
            return
        self._open.groups = [
            {key: group[key] for key in keys if key in group}
            for group, keys in zip(optimizer.param_groups, self._numbers, strict=False)
        ]
        self._open.criterion = numbers_of(criterion)

    def end_batch(self, step: int, went_well: bool) -> None:
        """A batch is done, and nobody else has acted since.

        Args:
            step: The last optimizer step that is done.
            went_well: Whether nothing was seen in it, as far as can be told already.
        """
        if self.off is not None or self._open is None or self._open.step != step:
            return
        done, self._open = self._open, None
        if not went_well:
            return
        self.steps.append(done)
        due = not self.snapshots or done.step - self.snapshots[-1].step >= self._config.every
        if due:
            self.snapshot(done.step)
        first = self.snapshots[0].step
        while len(self.steps) > REFERENCES and (self._at_once or self.steps[0].step <= first - REFERENCES):
            self.steps.popleft()

    def snapshot(self, step: int) -> None:
        """Keep the weights as they are after a step, and what else a replay needs to go on from there."""
        trainer = self._trainer
        tensors = {name: tensor.detach() for name, tensor in trainer.model.state_dict().items()}
        if len(self.snapshots) == self.snapshots.maxlen:
            snapshot = self.snapshots.popleft()
            snapshot.step = step
            torch._foreach_copy_(list(snapshot.model.values()), list(tensors.values()))
        else:
            snapshot = Snapshot(step, {name: tensor.clone() for name, tensor in tensors.items()})
        if not self._at_once:
            snapshot.optimizer = cloned(trainer.optimizer.state_dict())
            snapshot.scaler = scaler_tensors(trainer.scaler)
            snapshot.clipper = copied_clipper(trainer, trainer._clipper)
        self.snapshots.append(snapshot)

    def restart(self) -> None:
        """Forget what does not lead to the next step: training began anew, or went back to a checkpoint."""
        self._open = None
        if not self._at_once:
            self.snapshots.clear()
            self.steps.clear()

    def turn_off(self, reason: str) -> None:
        """Keep nothing any more."""
        self.off, self._open = reason, None
        self.snapshots.clear()
        self.steps.clear()

    @property
    def open_step(self) -> StepInputs | None:
        """The step that is not done yet."""
        return self._open

    # Memory ------------------------------------------------------------------------------------------

    def needed_bytes(self, raw: Mapping[str, Any]) -> int:
        """Memory that snapshots, batches and a replay take together, with batches like this one."""
        trainer = self._trainer
        weights = sum(_bytes(t) for t in trainer.model.state_dict().values())
        batch = sum(_bytes(v) for v in raw.values() if isinstance(v, Tensor)) * max(
            1, int(getattr(trainer, "accumulate", 1))
        )
        if self._at_once:  # a snapshot, the copy that is replayed and its gradients
            return 3 * weights + (REFERENCES + 1) * batch
        state = 2 * weights  # at most, of Adam
        steps = max(2 * self._config.every, self._config.every + self._lag) + REFERENCES
        return 2 * (weights + state) + 2 * weights + state + steps * batch

    def _check_budget(self, raw: Mapping[str, Any]) -> None:
        needed = self.needed_bytes(raw)
        if needed > self._config.budget_bytes:
            self.turn_off(f"it would take {_told(needed)}, the budget is {_told(self._config.budget_bytes)}")


def numbers_of(criterion: Any) -> dict[str, float]:
    """The plain numbers among an object's attributes."""
    return {k: v for k, v in getattr(criterion, "__dict__", {}).items() if type(v) in (int, float)}


def scaler_tensors(scaler: Any) -> dict[str, Tensor]:
    """What a loss scaler remembers, on its device."""
    found = {name: getattr(scaler, name, None) for name in ("_scale", "_growth_tracker")}
    return {name: tensor.clone() for name, tensor in found.items() if isinstance(tensor, Tensor)}


def image_files(batch: Mapping[str, Any]) -> list[str]:
    """The image files of a batch; empty where the loader names none."""
    files = batch.get("im_file", ())
    return [str(file) for file in files] if isinstance(files, (list, tuple)) else []


def copied_clipper(trainer: Any, clipper: Any) -> Any:
    """A clipping with what it remembers, that clips the very parameters of the trainer's model."""
    return copy.deepcopy(clipper, {id(parameter): parameter for parameter in trainer.model.parameters()})


def cloned(value: Any, device: str | None = None) -> Any:
    """Plain data with a copy of each tensor in it.

    Args:
        value: Numbers, text and tensors, in dictionaries and lists.
        device: Where the copies are; where the tensors are where None.
    """
    if isinstance(value, Tensor):
        return value.detach().to(device or value.device, copy=True)
    if isinstance(value, dict):
        return {key: cloned(inner, device) for key, inner in value.items()}
    return [cloned(inner, device) for inner in value] if isinstance(value, list) else value


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _told(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def parameters_by_name(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Parameters that are floating, in model order: those that the recorder follows."""
    return ((name, p) for name, p in model.named_parameters() if p.is_floating_point())
