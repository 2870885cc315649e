# SPDX-License-Identifier: AGPL-3.0-or-later
"""Numbers of many small tensors on a CPU, where a kernel for each would cost more than what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

SMALL = 4096
"""Most elements of a tensor that is cheaper to copy beside others than to visit with a kernel of its own."""

_NUMPY = (torch.float16, torch.float32, torch.float64)


class FlatTensors:
    """Tensors on a CPU that are copied side by side into one array, each time that a number of each is asked for.

    Args:
        tensors: Floating tensors with at least one element each. They are followed where ``.data =`` replaces what is
            in them.
        dtype: Of the array.
    """

    def __init__(self, tensors: Sequence[Tensor], dtype: DTypeLike) -> None:
        self._tensors = list(tensors)
        self._lasting = False
        self._dtype = dtype
        self._pointers: list[int] = []
        self._views: list[NDArray[Any]] = []
        self._starts: NDArray[Any] = np.zeros(0, dtype=np.intp)
        self._array: NDArray[Any] = np.zeros(0, dtype=dtype)

    def gather(self, follow: bool = True) -> NDArray[Any]:
        """All elements as they are now, in an array that the next call fills again; shape ``(number of elements,)``.

        Args:
            follow: Whether to ask each tensor where its data is now; that takes as long as copying them.
        """
        pointers = [t.data_ptr() for t in self._tensors] if follow else self._pointers
        if pointers != self._pointers or not self._lasting:
            flat = [t.detach().reshape(-1) for t in self._tensors]
            self._views = [(t if t.dtype in _NUMPY else t.float()).numpy() for t in flat]
            sizes = [view.size for view in self._views]
            self._starts = np.cumsum([0, *sizes])[:-1]
            self._array = np.empty(sum(sizes), dtype=self._dtype)
            self._pointers = pointers
            self._lasting = all(t.dtype in _NUMPY and t.is_contiguous() for t in self._tensors)  # others are copied
        if self._views:
            np.concatenate(self._views, out=self._array, casting="same_kind")
        return self._array

    def largest(self, follow: bool = True) -> NDArray[Any]:
        """Largest absolute element of each, NaN where one is NaN; shape ``(number of tensors,)``.

        Args:
            follow: As of :meth:`gather`.
        """
        if not self._tensors:
            return np.zeros(0, dtype=self._dtype)
        array = self.gather(follow)
        return np.maximum.reduceat(np.abs(array, out=array), self._starts)

    def norms(self, origin: NDArray[Any] | None = None) -> NDArray[Any]:
        """Euclidean norm of each; shape ``(number of tensors,)``.

        Args:
            origin: What :meth:`gather` gave, copied, from which they are measured; zero where None.
        """
        if not self._tensors:
            return np.zeros(0, dtype=self._dtype)
        array = self.gather()
        if origin is not None:
            with np.errstate(invalid="ignore"):  # of what was infinite and is
                np.subtract(array, origin, out=array)
        return np.sqrt(np.add.reduceat(np.square(array, out=array), self._starts))
