# SPDX-License-Identifier: AGPL-3.0-or-later
"""The thread that turns recorded steps into Parquet parts."""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from yolo_gradstudy.recorder.rows import SCALAR_SLOTS, Part, Row
from yolo_gradstudy.run_folder import FLOW_QUANTITIES, LAYER_QUANTITIES, TelemetryFolder, long_table

_WHOLE = ("epoch", "images")


class TelemetryWriter:
    """Writes parts in the background.

    A failure to write (a full disk) ends the recording with a warning, never the training.

    Args:
        telemetry: Where.
        parameters: Names of the parameter tensors.
        modules: Names of the modules whose flow is recorded.
        look: Is shown each part's numbers when they are on the host; called in the writer's thread.
    """

    def __init__(
        self,
        telemetry: TelemetryFolder,
        parameters: Sequence[str],
        modules: Sequence[str],
        look: Callable[[Part, NDArray[Any]], None] | None = None,
    ) -> None:
        self._telemetry = telemetry
        self._look = look
        self._parameters = list(parameters)
        self._modules = list(modules)
        self._queue: queue.Queue[Part | None] = queue.Queue(maxsize=4)
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="gradstudy-writer", daemon=True)
        self._thread.start()

    def put(self, part: Part) -> None:
        """Hand over a part; waits only where four are waiting already."""
        self._queue.put(part)

    def wait(self) -> None:
        """Wait until all that was handed over is written."""
        self._queue.join()

    def close(self) -> None:
        """Write what is left and end."""
        self._queue.put(None)
        self._thread.join()

    def merge(self) -> None:
        """Make one part of many, when all is written; where the disk refuses, they stay as they are."""
        if self.error is None:
            with contextlib.suppress(Exception):  # whatever it is, training goes on, and nothing is lost
                self._telemetry.merge_parts()

    def _work(self) -> None:
        while (part := self._queue.get()) is not None:
            try:
                if self.error is None:
                    self._write(part)
            except Exception as error:  # whatever it is, training goes on
                self.fail(error, part.first_step)
            finally:
                self._queue.task_done()

    def fail(self, error: Exception, step: int) -> None:
        """End the recording with a warning, the first time that it is asked.

        Args:
            error: What went wrong.
            step: The first step that is not recorded.
        """
        if self.error is not None:
            return
        self.error = error
        # A filter may make an error of the warning: the queue must be emptied all the same, or training waits.
        with contextlib.suppress(RuntimeWarning):
            warnings.warn(
                f"{self._telemetry.path} can't be written, steps from {step} on are not recorded: {error}",
                RuntimeWarning,
                stacklevel=1,
            )

    def _write(self, part: Part) -> None:
        if part.copied is not None:
            part.copied.synchronize()
        values = part.values.numpy()
        if self._look is not None:
            self._look(part, values)
        # Scalars last: a reader that sees a step's scalars then finds its vectors too.
        for i, quantity in enumerate(FLOW_QUANTITIES):
            if part.flow:
                block = np.stack([f.values.numpy()[i] for f in part.flow])
                missing = ~np.array([f.measured[i] for f in part.flow], dtype=bool)
                self._write_vectors(quantity, [f.step for f in part.flow], self._modules, block, missing)
        for i, quantity in enumerate(LAYER_QUANTITIES):
            chosen = [n for n, row in enumerate(part.rows) if quantity in row.vectors]
            start = SCALAR_SLOTS + i * len(self._parameters)
            block = values[chosen, start : start + len(self._parameters)]
            missing = np.zeros(block.shape, dtype=bool)
            for line, n in enumerate(chosen):
                present = part.rows[n].vectors[quantity]
                if present is not None:
                    missing[line] = True
                    missing[line, list(present)] = False
            self._write_vectors(quantity, [part.rows[n].step for n in chosen], self._parameters, block, missing)
        if part.rows:
            self._telemetry.write_part("steps", scalar_table(part.rows, part.slots, values))

    def _write_vectors(
        self, quantity: str, steps: list[int], names: list[str], block: NDArray[Any], missing: NDArray[np.bool_]
    ) -> None:
        kept = [i for i in range(len(names)) if not missing[:, i].all()]
        if kept:
            block, missing = block[:, kept], missing[:, kept]
            values = block.astype(_float_type(block, missing))
            named = [names[i] for i in kept]
            table = long_table(quantity, np.array(steps, dtype=np.int64), named, values, missing)
            self._telemetry.write_part(quantity, table)


def _float_type(values: NDArray[Any], missing: NDArray[np.bool_]) -> type[np.floating[Any]]:
    """float32, or float64 where a finite value needs it."""
    sizes = np.abs(np.where(missing | ~np.isfinite(values), 0.0, values))
    float32 = np.finfo(np.float32)
    return np.float64 if ((sizes > float32.max) | ((sizes > 0.0) & (sizes < float32.tiny))).any() else np.float32


def _is_int32(value: float) -> bool:
    """Whether a number is whole and of its size: an epoch may be a fraction, or not known."""
    return abs(value) < 2**31 and value == int(value)  # NaN and infinity are not below


def _floats(values: NDArray[Any], missing: NDArray[np.bool_]) -> pa.Array:
    """A column of floats with nulls."""
    return pa.array(values.astype(_float_type(values, missing)), mask=missing)


def scalar_table(rows: Sequence[Row], slots: Mapping[str, int], values: NDArray[Any]) -> pa.Table:
    """A row a step and a column a scalar.

    Args:
        rows: The steps.
        slots: Column of each scalar in ``values``.
        values: Shape (steps, slots).
    """
    columns: dict[str, pa.Array] = {"step": pa.array([row.step for row in rows], pa.int64())}
    for name in dict.fromkeys(name for row in rows for name in row.host):
        cells = [row.host.get(name) for row in rows]
        if name in _WHOLE and all(c is None or _is_int32(c) for c in cells):
            columns[name] = pa.array([None if c is None else int(c) for c in cells], pa.int32())
        else:
            missing = np.array([c is None for c in cells])
            numbers = np.array([0.0 if c is None else c for c in cells])
            columns[name] = pa.array(numbers) if name == "wall_time_s" else _floats(numbers, missing)
    for name, slot in slots.items():
        missing = np.array([name not in row.scalars for row in rows])
        column = values[:, slot]
        if name in columns:  # a number in some steps, a tensor in others
            column = np.where(missing, columns[name].to_numpy(zero_copy_only=False), column)
            missing = np.array([name not in row.scalars and name not in row.host for row in rows])
        columns[name] = _floats(column, missing)
    return pa.table(columns)
