# SPDX-License-Identifier: AGPL-3.0-or-later
"""How activations and gradients flow through the modules of a network, by hooks for one step.

The weight gradients of a deep ReLU network stay of one size whatever the initialisation, so they can't
show an explosion along depth; the gradients of activations can (He et al. 2015, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from yolo_gradstudy.statistics.norms import widest_dtype

QUANTITIES = ("activation_rms", "output_grad_rms", "forward_gain", "backward_gain", "dead_share")
"""What :meth:`FlowProbe.take` returns, in its order."""

DEAD_BELOW = 1e-6
"""A channel whose outputs are all below this in size passes nothing on: SiLU never reaches 0 exactly."""

_ALONG_A_LINE = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.InstanceNorm1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.LPPool1d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveAvgPool1d,
)
_OF_SECOND_AXIS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def followed_modules(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The modules whose flow is measured: every leaf, and every numbered layer of an Ultralytics model.

    A module that stands in several places (Ultralytics' ``Conv`` blocks share one activation) can't tell
    its calls apart; the modules that hold it are followed in its stead.

    Args:
        model: The network.
        patterns: Shell-style patterns; where given, the modules whose name matches one, leaf or not.

    Returns:
        Modules by name, in model order.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    names_of: dict[int, int] = {}
    for module in named.values():
        names_of[id(module)] = names_of.get(id(module), 0) + 1
    shared = {name for name, module in named.items() if names_of[id(module)] > 1}
    if patterns:
        wanted = {n for n in named if n and any(fnmatchcase(n, pattern) for pattern in patterns)}
    else:
        wanted = {n for n, m in named.items() if n and not any(True for _ in m.children())}
        wanted |= {n.rpartition(".")[0] for n in wanted & shared}
        wanted |= {n for n in named if n.startswith("model.") and n.count(".") == 1 and n[6:].isdigit()}
    return {n: m for n, m in named.items() if n in wanted - shared - {""}}


def channel_axis(module: nn.Module, axes: int) -> int:
    """Which axis of a module's output counts its channels.

    Three axes can be (batch, channels, length) or (batch, tokens, channels). What the module is decides, where that
    tells; an activation or dropout passes on either, and is taken for that of a transformer.

    Args:
        module: The module.
        axes: How many axes its output has, at least two.
    """
    if isinstance(module, _OF_SECOND_AXIS):
        return 1
    if isinstance(module, _ALONG_A_LINE):
        return -2
    return 1 if axes > 3 else -1


class FlowProbe:
    """Measures the flow through modules while it watches.

    Each sum is over everything that went through a module since the last :meth:`take`: all its calls and
    all batches that an optimizer step accumulates. The gradient with respect to a module's input is that
    of the whole loss, also by ways around the module.

    Args:
        modules: Modules by name.
        device: Where sums are kept.
    """

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self.names = list(modules)
        self._modules = list(modules.values())
        self._device = device
        self._wide = widest_dtype(device)
        self._handles: list[RemovableHandle] = []
        self._sums: dict[tuple[int, str], Tensor] = {}
        self._counts: dict[tuple[int, str], int] = {}
        self._several: set[int] = set()
        self._called: set[int] = set()
        self._leaves: dict[tuple[int, str, int], Tensor] = {}
        self._watches = 0

    @property
    def watching(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    def watch(self) -> None:
        """Put hooks onto the modules."""
        self._watches += 1
        for i, module in enumerate(self._modules):
            self._handles.append(module.register_forward_pre_hook(self._input_hook(i), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._output_hook(i)))

    def unwatch(self) -> None:
        """Take the hooks off, and forget what was measured."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sums.clear()
        self._counts.clear()
        self._several.clear()
        self._called.clear()
        self._leaves.clear()

    def _input_hook(self, i: int) -> Callable[[nn.Module, Any, Any], None]:
        def measure(module: nn.Module, inputs: Any, named: Any) -> None:
            if not self._counts_call(i):
                return
            tensors = [*_tensors(inputs), *_tensors(named)]
            if len(tensors) != 1:
                self._several.add(i)
                return
            self._measure(i, "input", tensors[0])

        return measure

    def _output_hook(self, i: int) -> Callable[[nn.Module, Any, Any], None]:
        def measure(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self._counts_call(i) or not isinstance(output, Tensor) or not output.is_floating_point():
                return
            self._measure(i, "output", output)
            channels = output.detach().abs()
            if channels.ndim > 1:
                channels = channels.movedim(channel_axis(module, channels.ndim), 0).flatten(1).amax(1)
            dead = (channels < DEAD_BELOW).to(self._wide).mean()
            self._add(i, "dead", dead, 1)

        return measure

    def _counts_call(self, i: int) -> bool:
        """Whether the forward pass that runs is one of training, and not measured already."""
        if not torch.is_grad_enabled():  # a validation's, or a reentrant checkpoint's first
            return False
        if torch._C._current_graph_task_id() == -1:
            self._called.add(i)
            return True
        return i not in self._called  # within a backward pass: a checkpoint computes again

    def _measure(self, i: int, what: str, tensor: Tensor) -> None:
        self._add(i, what, self._square(tensor), tensor.numel())
        if not tensor.requires_grad:
            return
        if tensor.is_leaf:
            # It outlives its batch (a learned query): one hook sees the gradient of each that is accumulated.
            if (i, what, id(tensor)) in self._leaves:
                return
            self._leaves[i, what, id(tensor)] = tensor
        # Before the module computes, since one that works in place would leave no tensor of its input.
        add = partial(self._add_gradient, self._watches, i, f"{what}_grad")
        self._handles.append(tensor.register_hook(add))  # type: ignore[no-untyped-call]

    def _add_gradient(self, watch: int, i: int, what: str, gradient: Tensor) -> None:
        # A graph that is kept runs its hooks at each backward pass, also after the step that was measured.
        if self.watching and watch == self._watches:
            self._add(i, what, self._square(gradient), gradient.numel())

    def _square(self, tensor: Tensor) -> Tensor:
        """Sum of squares, which does not overflow where float32 would."""
        norm: Tensor = torch.linalg.vector_norm(tensor.detach(), 2.0, dtype=self._wide)
        return norm.square()

    def _add(self, i: int, what: str, value: Tensor, count: int) -> None:
        key = (i, what)
        value = value.to(self._device)
        self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._counts[key] = self._counts.get(key, 0) + count

    @torch.no_grad()
    def take(self, loss_scale: Tensor | float = 1.0) -> tuple[Tensor, list[list[bool]]]:
        """What was measured; hooks come off.

        Args:
            loss_scale: Factor by which an AMP scaler multiplied the loss before the backward pass.

        Returns:
            Values of shape ``(len(QUANTITIES), len(names))``, float64 (float32 on a device that has none),
            and of the same shape which of them were measured. A gain is missing where a module has several
            inputs or its input has no gradient.
        """
        nothing = torch.zeros((), dtype=self._wide, device=self._device)
        columns, measured = [], []
        for i in range(len(self.names)):
            output, input_ = self._mean(i, "output"), self._mean(i, "input")
            output_grad, input_grad = self._sums.get((i, "output_grad")), self._sums.get((i, "input_grad"))
            single = i not in self._several
            output_grad_mean = self._mean(i, "output_grad")
            values = (
                None if output is None else output.sqrt(),
                None if output_grad_mean is None else output_grad_mean.sqrt() / loss_scale,
                None if output is None or input_ is None or not single else output / input_,
                None if output_grad is None or input_grad is None or not single else input_grad / output_grad,
                self._mean(i, "dead"),
            )
            columns.append(torch.stack([nothing if v is None else v.to(self._wide) for v in values]))
            measured.append([v is not None for v in values])
        self.unwatch()
        taken = [list(row) for row in zip(*measured, strict=True)] or [[] for _ in QUANTITIES]
        return (torch.stack(columns, 1) if columns else nothing.new_zeros(len(QUANTITIES), 0)), taken

    def _mean(self, i: int, what: str) -> Tensor | None:
        total = self._sums.get((i, what))
        return None if total is None else total / self._counts[(i, what)]


def _tensors(inputs: Any) -> list[Tensor]:
    """The floating tensors among a module's inputs, also inside lists, tuples and dictionaries."""
    if isinstance(inputs, Tensor):
        return [inputs] if inputs.is_floating_point() else []
    if isinstance(inputs, (list, tuple)):
        return [t for item in inputs for t in _tensors(item)]
    if isinstance(inputs, dict):
        return _tensors(list(inputs.values()))
    return []
