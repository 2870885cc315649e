# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hooks that others put onto a model, copied with their state, so that a replay runs them as the step did.

A hook may count its calls, in an attribute or a closure: run once more, it would act otherwise, and act on the
training. So a copy of it is taken at the beginning of each step, and a replay runs a copy of that. What can't be copied
(a hook whose state is global, a large tensor, a file) is not run in a replay, and the incident says so.
"""

from __future__ import annotations

import builtins
import copy
import dis
import random
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where a module keeps its hooks."""

OWN = "yolo_gradstudy.statistics"
"""Hooks of this package that measure; a replay does without."""

_MOST_NODES = 2000
_MOST_ELEMENTS = 4096
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, Enum, types.ModuleType, types.BuiltinFunctionType)
_SAME = (*_PLAIN, range, np.generic, torch.dtype, torch.device, torch.Size, nn.Module, nn.Parameter)


class NotCopied(Exception):
    """A hook has state that can't be copied."""


@dataclass
class HookCopies:
    """The foreign hooks of a model at one moment.

    Attributes:
        hooks: By module's name and kind, the copies by hook id.
        left_out: A clause on each hook that could not be copied.
    """

    hooks: dict[tuple[str, str], dict[int, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


class HookWatch:
    """Copies the hooks of a model's modules, where there are any.

    Args:
        model: The model; its modules are walked once.
    """

    def __init__(self, model: nn.Module) -> None:
        self._dicts = [(n, kind, getattr(m, kind)) for n, m in model.named_modules() for kind in KINDS]
        self._filled = [hooks for _, _, hooks in self._dicts]
        self._refused: dict[int, str] = {}

    def copies(self) -> HookCopies | None:
        """Copies of the foreign hooks; None where there is none, which is the common case."""
        if not any(self._filled):
            return None
        found, memo = HookCopies(), _Memo()
        for name, kind, hooks in self._dicts:
            for number, hook in hooks.items():
                if is_own(hook):
                    continue
                if number not in self._refused:
                    try:
                        found.hooks.setdefault((name, kind), {})[number] = copy_with_state(hook, memo)
                        continue
                    except NotCopied as error:
                        self._refused[number] = f"a hook of {name or 'the model'}: {error}"
                found.left_out.append(self._refused[number])
        return found if found.hooks or found.left_out else None


def is_own(hook: Any) -> bool:
    """Whether a hook is one that this package measures with."""
    inner = hook.func if isinstance(hook, partial) else hook
    return str(getattr(inner, "__module__", "")).startswith(OWN)


def strip_hooks(model: nn.Module) -> None:
    """Take every hook off a copy of a model."""
    for module in model.modules():
        for kind in KINDS:
            getattr(module, kind).clear()


def put_hooks(model: nn.Module, found: HookCopies, originals: Mapping[str, nn.Module]) -> None:
    """Put copies of hooks onto a copy of a model; the copies stay as they are, for another replay.

    Args:
        model: The copy.
        found: What :meth:`HookWatch.copies` returned.
        originals: The original's modules by name: a hook that holds one gets the copy's.
    """
    own = dict(model.named_modules())
    memo = _Memo()
    for name, module in originals.items():
        memo.known[id(module)] = own[name]
        for key, parameter in module._parameters.items():
            if parameter is not None:
                memo.known[id(parameter)] = own[name]._parameters[key]
    for (name, kind), hooks in found.hooks.items():
        getattr(own[name], kind).update({number: copy_with_state(hook, memo) for number, hook in hooks.items()})


@dataclass
class _Memo:
    """What was copied already, by id; the originals are kept, since an id may be given again."""

    known: dict[int, Any] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

    def keep(self, value: Any, made: Any) -> Any:
        self.known[id(value)] = made
        self.kept.append(value)
        if len(self.kept) > _MOST_NODES:
            raise NotCopied("it holds too much")
        return made


def copy_with_state(value: Any, memo: _Memo | None = None) -> Any:
    """A copy of a callable with what it counts or remembers; modules and parameters stay those of the original.

    Raises:
        NotCopied: It has state that can't be copied, or that is global.
    """
    memo = memo or _Memo()
    if id(value) in memo.known:
        return memo.known[id(value)]
    if isinstance(value, _SAME):
        return value
    for kinds, make in _COPIERS:
        if isinstance(value, kinds):
            return make(value, memo)
    state = getattr(value, "__dict__", None)
    if state is None or type(value).__module__ == builtins.__name__ or hasattr(type(value), "__slots__"):
        raise NotCopied(f"it holds a {type(value).__name__}")
    call = getattr(type(value), "__call__", None)  # noqa: B004, it is read, not asked for
    if isinstance(call, types.FunctionType) and (name := _global_state(call)) is not None:
        raise NotCopied(f"its state is global ({name})")
    made = memo.keep(value, object.__new__(type(value)))
    for key, inner in state.items():
        made.__dict__[key] = copy_with_state(inner, memo)
    return made


def _copy_tensor(value: Tensor, memo: _Memo) -> Tensor:
    if value.numel() > _MOST_ELEMENTS or value.grad_fn is not None:
        raise NotCopied("it holds a large tensor, or one of a graph")
    return memo.keep(value, value.detach().clone().requires_grad_(value.requires_grad))  # type: ignore[no-any-return]


def _copy_function(value: types.FunctionType, memo: _Memo) -> types.FunctionType:
    if (name := _global_state(value)) is not None:
        raise NotCopied(f"its state is global ({name})")
    if value.__closure__ is None and not value.__defaults__ and not value.__kwdefaults__:
        return value
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells or None)
    memo.keep(value, made)
    for cell, original in zip(cells, value.__closure__ or (), strict=True):
        try:
            contents = original.cell_contents
        except ValueError:  # not yet assigned
            continue
        cell.cell_contents = copy_with_state(contents, memo)
    made.__defaults__ = copy_with_state(value.__defaults__, memo)
    made.__kwdefaults__ = copy_with_state(value.__kwdefaults__, memo)
    return made


def _global_state(value: types.FunctionType, known: frozenset[str] = frozenset()) -> str | None:
    """The name of a global variable that a function changes or could change; None where there is none.

    Functions of the same module that it calls are looked into.
    """
    stored, loaded = _globals_of(value.__code__)
    for name in stored:
        return name
    for name in loaded:
        found = value.__globals__.get(name)
        if isinstance(found, types.FunctionType) and found.__globals__ is value.__globals__ and name not in known:
            if (inner := _global_state(found, known | {name})) is not None:
                return inner
        elif not isinstance(found, (*_SAME, types.FunctionType, tuple, frozenset)) and not callable(found):
            return name
    return None


@cache
def _globals_of(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the global variables that a code sets, and of those that it reads."""
    codes, stored, loaded = [code], [], []
    for inner in codes:
        codes += [constant for constant in inner.co_consts if isinstance(constant, types.CodeType)]
        for instruction in dis.get_instructions(inner):
            if instruction.opname == "STORE_GLOBAL":
                stored.append(str(instruction.argval))
            elif instruction.opname == "LOAD_GLOBAL":
                loaded.append(str(instruction.argval))
    return tuple(stored), tuple(loaded)


def _copy_sequence(value: Any, memo: _Memo) -> Any:
    if isinstance(value, tuple):
        items = [copy_with_state(item, memo) for item in value]
        made = type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return memo.keep(value, made)
    if type(value) not in (list, set, frozenset, deque):
        raise NotCopied(f"it holds a {type(value).__name__}")
    if isinstance(value, frozenset):
        return memo.keep(value, frozenset(copy_with_state(item, memo) for item in value))
    made = memo.keep(value, deque(maxlen=value.maxlen) if isinstance(value, deque) else type(value)())
    items = [copy_with_state(item, memo) for item in value]
    made.update(items) if isinstance(made, set) else made.extend(items)
    return made


def _copy_mapping(value: dict[Any, Any], memo: _Memo) -> dict[Any, Any]:
    made: dict[Any, Any] = memo.keep(value, copy.copy(value))  # a Counter, an OrderedDict, a defaultdict
    made.clear()
    for key, inner in value.items():
        made[copy_with_state(key, memo)] = copy_with_state(inner, memo)
    return made


_COPIERS: tuple[tuple[Any, Callable[[Any, _Memo], Any]], ...] = (
    (Tensor, _copy_tensor),
    (types.FunctionType, _copy_function),
    (types.MethodType, lambda v, m: types.MethodType(copy_with_state(v.__func__, m), copy_with_state(v.__self__, m))),
    (
        partial,
        lambda v, m: partial(
            copy_with_state(v.func, m), *copy_with_state(v.args, m), **copy_with_state(dict(v.keywords), m)
        ),
    ),
    ((list, tuple, set, frozenset, deque), _copy_sequence),
    (dict, _copy_mapping),
    ((random.Random, np.random.Generator, np.random.RandomState), lambda v, m: m.keep(v, copy.deepcopy(v))),
    (torch.Generator, lambda v, m: m.keep(v, v.clone_state())),
)
