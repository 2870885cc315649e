# SPDX-License-Identifier: AGPL-3.0-or-later
"""Counts what a step reads: values on the host, and elements of gradients. No accelerator is needed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ACCELERATOR = torch.device("xpu", 0)
"""What tensors say their device is while host reads are counted: an accelerator that needs no other kernels."""

READERS = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__),
    *(Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.__complex__),
}
"""Calls that bring values of a tensor to the host; `Tensor.to` does where it names the CPU."""

MAKERS = {torch.tensor, torch.as_tensor, torch.asarray}
"""Calls that read each tensor in a list that they are given."""

VALUE_OPERATORS = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim"),
    *("unique_consecutive", "bincount", "repeat_interleave"),
}
"""Operators whose answer, or its shape, is known only when values are."""


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class HostReads:
    """A context that counts how often the host would wait for an accelerator, on a machine without one.

    In it every tensor says that it is on `ACCELERATOR`, and calls that name that device get the CPU. On the host are
    tensors that were made without naming a device, copies to the CPU, and what comes of such tensors alone. Counted
    once each: a call that reads values (`item`, `tolist`, `numpy`, `cpu`, `to("cpu")`, `float`, `bool`, ...), a tensor
    in a list of which another is made, an operator of `VALUE_OPERATORS`, an index by a mask. A copy with
    `non_blocking=True` does not wait. Hooks of a backward pass are in it too if that is begun by
    `torch.autograd.backward`, as `Tensor.backward` is itself a call that is seen.
    """

    def __init__(self) -> None:
        self.count = 0
        self.covered = 0
        """Depth of calls that are counted already, or have tensors of the host alone."""
        self._stack = ExitStack()

    def __enter__(self) -> HostReads:
        self._stack.enter_context(_Operators(self))
        self._stack.enter_context(_Calls(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class _Calls(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__deepcopy__:  # takes along where a tensor is; its argument is all that was copied so far
            return func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        on_device = [t for t in given if not _is_on_host(t)]
        if func == Tensor.device.__get__:
            return ACCELERATOR if on_device else torch.device("cpu")
        named = _named_device(func, args, kwargs)
        if named == ACCELERATOR:
            args, kwargs = tree_map(_as_cpu, (args, kwargs))
        fetched = bool(on_device) and (func is Tensor.cpu or (func is Tensor.to and named == torch.device("cpu")))
        counted = len(on_device) if func in MAKERS and not isinstance(args[0], Tensor) else 0
        if fetched:
            counted = 0 if kwargs.get("non_blocking") else 1
        elif on_device and func in READERS:
            counted = 1
        of_host = not on_device and bool(given)
        self._reads.count += counted
        self._reads.covered += of_host or bool(counted)
        try:
            result = func(*args, **kwargs)
        finally:
            self._reads.covered -= of_host or bool(counted)
        lands_on_host = fetched or of_host or func in MAKERS or not given
        if named is not None:
            lands_on_host = named != ACCELERATOR
        return tree_map(lambda r: _placed(r, lands_on_host, given), result) if lands_on_host or of_host else result


class _Operators(TorchDispatchMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._reads.count += not self._reads.covered and self._waits(func.overloadpacket.__name__, args, kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _waits(name: str, args: Any, kwargs: Any) -> bool:
        if name in ("index", "index_put", "index_put_"):
            return any(t.dtype in (torch.bool, torch.uint8) and not _is_on_host(t) for t in tensors_in(args[1]))
        return name in VALUE_OPERATORS and not all(_is_on_host(t) for t in tensors_in((args, kwargs)))


def _is_on_host(tensor: Tensor) -> bool:
    return getattr(tensor, "_bench_on_host", False)


def _placed(value: Any, on_host: bool, given: list[Tensor]) -> Any:
    """A result that lies where it should, another tensor than those that lie elsewhere."""
    if not isinstance(value, Tensor):
        return value
    if _is_on_host(value) != on_host and any(value is t for t in given):
        value = value.clone()
    value._bench_on_host = on_host  # type: ignore[attr-defined]
    return value


def _named_device(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    named = [a for a in (*args, kwargs.get("device")) if isinstance(a, torch.device)]
    text = [kwargs.get("device"), *(args[1:2] if func is Tensor.to else ())]
    named += [torch.device(a) for a in text if isinstance(a, str)]
    return named[0] if named else None


def _as_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) and value == ACCELERATOR else value


class GradientReads(TorchDispatchMode):
    """Counts elements of gradients that operators read, also in hooks of the backward pass.

    A gradient is any tensor on the memory of what the backward pass hands to a parameter's hooks or leaves in its
    `grad`, and any copy of one, until :meth:`forget`. Views read nothing.

    Args:
        parameters: Their gradients are watched. Hooks of their own must be added after this is made.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.read = 0
        """Elements read so far."""
        self._storages: dict[int, Any] = {}  # kept alive, so that no other tensor gets their memory
        watched = [parameter for parameter in parameters if parameter.requires_grad]
        self.elements = sum(parameter.numel() for parameter in watched)
        """Elements of all gradients."""
        for parameter in watched:
            parameter.register_hook(self._see)
            parameter.register_post_accumulate_grad_hook(lambda p: self._see(p.grad))

    def _see(self, gradient: Tensor) -> None:
        storage = gradient.untyped_storage()
        self._storages[storage._cdata] = storage

    def forget(self) -> None:
        """A step is over."""
        self._storages.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = 0
        if self._storages and not func.is_view:
            read = sum(t.numel() for t in tensors_in((args, kwargs)) if t.untyped_storage()._cdata in self._storages)
        self.read += read
        result = func(*args, **(kwargs or {}))
        if read and func.overloadpacket.__name__ in ("clone", "_to_copy", "copy_"):
            self._see(result)
        return result
