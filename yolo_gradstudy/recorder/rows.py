# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recorded steps as they wait on the device, in memory that is allocated once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_gradstudy.run_folder import LAYER_QUANTITIES
from yolo_gradstudy.statistics import widest_dtype

SCALAR_SLOTS = 64
_INDICES_KEPT = 64


@dataclass
class Row:
    """One recorded step: what the host knows, and which places of the device's row hold a value.

    Attributes:
        step: The optimizer step.
        host: Scalars that the host knows.
        scalars: Names of the scalars that are on the device.
        vectors: Which parameters each vector has a value of; None for all.
    """

    step: int
    host: dict[str, float] = field(default_factory=dict)
    scalars: set[str] = field(default_factory=set)
    vectors: dict[str, tuple[int, ...] | None] = field(default_factory=dict)


def scalars_of(row: Row, slots: Mapping[str, int], line: NDArray[Any]) -> dict[str, float]:
    """All scalars of a step.

    Args:
        row: What was recorded of it.
        slots: Column of each scalar.
        line: The step's numbers, as :class:`DeviceRows` lays them out.
    """
    values = line[:SCALAR_SLOTS].tolist()
    return {**row.host, **{name: values[slots[name]] for name in row.scalars}}


@dataclass
class FlowRow:
    """The flow through the modules in one step.

    Attributes:
        step: The optimizer step.
        values: Shape (flow quantities, modules).
        measured: Of the same shape, which of the values were measured.
    """

    step: int
    values: Tensor
    measured: list[list[bool]]


@dataclass
class Part:
    """Recorded steps on their way to the disk.

    Attributes:
        rows: The steps.
        slots: Column of each scalar in ``values``; vectors begin at ``SCALAR_SLOTS``.
        values: Shape (steps, slots), on the host once ``copied`` has happened.
        flow: Flow rows, likewise.
        copied: Event on the accelerator after which the host's tensors hold their values; None where they do.
    """

    rows: list[Row]
    slots: dict[str, int]
    values: Tensor
    flow: list[FlowRow]
    copied: torch.cuda.Event | None

    @property
    def first_step(self) -> int:
        """The first step that the part tells of."""
        return min([row.step for row in self.rows[:1]] + [flow.step for flow in self.flow[:1]])


class DeviceRows:
    """A buffer of rows on the device.

    Args:
        capacity: Rows until it is full.
        parameters: Number of parameter tensors.
        device: Where the statistics are.
    """

    def __init__(self, capacity: int, parameters: int, device: torch.device) -> None:
        self._capacity = capacity
        self._parameters = parameters
        self._device = device
        # float64, since a norm of finite float32 gradients can be larger than any float32.
        self._dtype = widest_dtype(device)
        width = SCALAR_SLOTS + len(LAYER_QUANTITIES) * parameters
        self._buffer = torch.zeros(capacity, width, device=device, dtype=self._dtype)
        self._slots: dict[str, int] = {}
        self._rows: list[Row] = []
        self._flow: list[FlowRow] = []
        self._indices: dict[tuple[int, ...], Tensor] = {}

    @property
    def full(self) -> bool:
        """Whether there is no room for another row, or as many flow rows wait."""
        return max(len(self._rows), len(self._flow)) == self._capacity

    def begin(self, step: int) -> Row:
        """A new row, which the calls that follow fill."""
        assert len(self._rows) < self._capacity
        self._rows.append(Row(step))
        return self._rows[-1]

    def put_scalars(self, row: Row, scalars: Mapping[str, Tensor]) -> None:
        """Store 0-d tensors.

        Raises:
            ValueError: More than ``SCALAR_SLOTS`` different names.
        """
        for name in scalars:
            if name not in self._slots:
                if len(self._slots) == SCALAR_SLOTS:
                    raise ValueError(f"observe() got {name!r}, one more than the {SCALAR_SLOTS} scalars it can store.")
                self._slots[name] = len(self._slots)
        row.scalars.update(scalars)
        here = [v if v.device == self._device else v.to(self._device, non_blocking=True) for v in scalars.values()]
        values = torch.stack([v if v.ndim == 0 else v.reshape(()) for v in here])
        self._put(0, [self._slots[name] for name in scalars], values)

    def line(self, row: Row) -> tuple[NDArray[Any], dict[str, int]]:
        """The newest row's numbers as they lie on a CPU, not copied, and the column of each scalar."""
        assert row is self._rows[-1]
        return self._buffer[len(self._rows) - 1].numpy(), self._slots

    def scalar(self, row: Row, name: str) -> Tensor:
        """A scalar of the newest row, 0-d on the device."""
        assert row is self._rows[-1]
        return self._buffer[len(self._rows) - 1, self._slots[name]]

    def put_vector(self, row: Row, quantity: str, values: Tensor, present: Sequence[int] | None) -> None:
        """Store a number a parameter.

        Args:
            row: The row.
            quantity: One of ``LAYER_QUANTITIES``.
            values: Shape ``(len(present),)``.
            present: Which parameters the values are of; None for all.
        """
        start = SCALAR_SLOTS + LAYER_QUANTITIES.index(quantity) * self._parameters
        if present is None or len(present) == self._parameters:
            row.vectors[quantity] = None
            self._buffer[len(self._rows) - 1, start : start + self._parameters].copy_(values)
        else:
            row.vectors[quantity] = tuple(present)
            self._put(start, present, values)

    def put_flow(self, flow: FlowRow) -> None:
        """Store the flow of a step."""
        self._flow.append(flow)

    def _put(self, start: int, positions: Sequence[int], values: Tensor) -> None:
        line = self._buffer[len(self._rows) - 1]
        first = start + positions[0]
        if positions[-1] - positions[0] == len(positions) - 1 and list(positions) == sorted(positions):
            line[first : first + len(positions)].copy_(values)
        else:
            line[start:].index_copy_(0, self._index(tuple(positions)), values.to(self._dtype))

    def _index(self, positions: tuple[int, ...]) -> Tensor:
        if positions not in self._indices:  # what a step has hardly ever changes
            if len(self._indices) == _INDICES_KEPT:
                self._indices.clear()
            self._indices[positions] = torch.tensor(positions).to(self._device, non_blocking=True)
        return self._indices[positions]

    def take(self) -> Part | None:
        """Everything stored, on its way to the host, and begin anew; None where there is nothing."""
        if not self._rows and not self._flow:
            return None
        values, copied = self._buffer[: len(self._rows)], None
        flow = [FlowRow(f.step, self._to_host(f.values), f.measured) for f in self._flow]
        values = self._to_host(values)
        if self._device.type == "cuda":
            # The buffer is written again only after this copy: both are in the same stream.
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(torch.cuda.current_stream(self._device))
        part = Part(self._rows, dict(self._slots), values, flow, copied)
        self._rows, self._flow = [], []
        return part

    def _to_host(self, values: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return values.to("cpu", copy=True)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)
