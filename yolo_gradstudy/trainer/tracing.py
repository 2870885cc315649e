# SPDX-License-Identifier: AGPL-3.0-or-later
"""What passes through every module of a network in one forward and backward pass, in the order in which it happens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Passed = Literal["input", "output", "output_grad", "input_grad"]


@dataclass(frozen=True)
class Event:
    """Something that passed through a module.

    Attributes:
        module: Its name.
        parent: Name of the module that called it; empty for the model itself.
        passed: What.
        call: Which call of the module it was, counted from 0; the heads of one module may be called several times.
        rms: Root mean square, unscaled; NaN or infinite where an element is. Of several tensors the largest.
    """

    module: str
    parent: str
    passed: Passed
    call: int
    rms: float

    @property
    def key(self) -> tuple[str, Passed, int]:
        """What is compared with the same of another pass."""
        return (self.module, self.passed, self.call)


class Trace:
    """Follows every module of a model while it is entered. For a copy of a model: its hooks cost time.

    Each input of a module is handed on as a view of itself, so that the gradient that the module itself gives back is
    seen, not the sum over all that use the tensor. A module that stands in several places goes by the name that it has
    within the module that called it.

    Args:
        model: The model.
        scale: Factor by which the loss is multiplied before the backward pass.
    """

    def __init__(self, model: nn.Module, scale: float = 1.0) -> None:
        self.events: list[Event] = []
        self._model = model
        self._scale = scale
        self._handles: list[RemovableHandle] = []
        self._names = {module: name for name, module in model.named_modules() if name}
        places = Counter(id(m) for n, m in model.named_modules(remove_duplicate=False) if n)
        self._shared = {module for module in self._names if places[id(module)] > 1}
        self._stack: list[str] = []
        self._calls: Counter[str] = Counter()

    def __enter__(self) -> Trace:
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._before))
            self._handles.append(module.register_forward_hook(self._after))  # last, so it sees what others changed
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        parent = self._stack[-1] if self._stack else ""
        name = self._names[module]
        if module in self._shared:
            holder = self._model.get_submodule(parent)
            within = next((n for n, m in holder.named_children() if m is module), name.rpartition(".")[2])
            name = f"{parent}.{within}"
        self._stack.append(name)
        tensors = _tensors(inputs)
        self._add(name, parent, "input", self._calls[name], *tensors)
        if not torch.is_grad_enabled():
            return None
        passed: tuple[Any, ...] = _mapped(inputs, partial(self._view, name, parent))
        return passed

    def _view(self, name: str, parent: str, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        view = tensor.view_as(tensor)
        self._follow(view, name, parent, "input_grad")
        return view

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name = self._stack.pop()
        parent = self._stack[-1] if self._stack else ""
        tensors = _tensors(output)
        self._add(name, parent, "output", self._calls[name], *tensors)
        for tensor in tensors:
            if tensor.requires_grad:
                self._follow(tensor, name, parent, "output_grad")
        self._calls[name] += 1

    def _follow(self, tensor: Tensor, name: str, parent: str, passed: Passed) -> None:
        call = self._calls[name]

        def measure(gradient: Tensor) -> None:
            self._add(name, parent, passed, call, gradient)

        tensor.register_hook(measure)  # type: ignore[no-untyped-call]

    def _add(self, name: str, parent: str, passed: Passed, call: int, *tensors: Tensor) -> None:
        if tensors:
            sizes = [root_mean_square(t) for t in tensors]
            largest = next((s for s in sizes if math.isnan(s)), max(sizes))
            scale = self._scale if passed in ("output_grad", "input_grad") else 1.0
            self.events.append(Event(name, parent, passed, call, largest / scale))


def root_mean_square(tensor: Tensor) -> float:
    """Root mean square; NaN or infinite where an element is, and only there."""
    norm = torch.linalg.vector_norm(tensor.detach(), 2.0, dtype=torch.float64)
    return float(norm) / math.sqrt(max(tensor.numel(), 1))


def _tensors(value: Any) -> list[Tensor]:
    """The floating tensors in a module's input or output, through any nesting."""
    found: list[Tensor] = []
    _mapped(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, function) for item in value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    return value
