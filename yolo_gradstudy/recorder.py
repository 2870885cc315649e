# SPDX-License-Identifier: AGPL-3.0-or-later
"""When statistics are taken and how they reach the disk. Plain PyTorch: works in any training loop.

A step's numbers go into a buffer on the device. When it is full, one copy goes to the host and a writer
thread stores it, so a step neither waits for the device nor for the disk. Nothing is drawn from a random
generator, and no tensor of the training is changed.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from yolo_gradstudy.records import RecordConfig
from yolo_gradstudy.run_folder import TELEMETRY, TelemetryFolder
from yolo_gradstudy.statistics import (
    ParameterCopy,
    clip_coefficient,
    largest_absolute,
    nonfinite_count,
    tensor_norms,
    total_norm,
    update_ratios,
)

_VECTORS = ("grad_norm", "param_norm", "update_ratio")
_WRAPPERS = ("module.", "_orig_mod.")
_SCALAR_SLOTS = 64


def parameter_name(name: str) -> str:
    """A parameter's name without what DistributedDataParallel and ``torch.compile`` put before it."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


@dataclass
class _Row:
    """One recorded step: what the host knows, and which slots of the device's row hold a value."""

    step: int
    host: dict[str, float] = field(default_factory=dict)
    scalars: set[str] = field(default_factory=set)
    vectors: dict[str, tuple[int, ...] | None] = field(default_factory=dict)  # None: every parameter


class GradRecorder:
    """Records gradients, parameters and updates of every optimizer step.

    Example::

        recorder = GradRecorder(model, optimizer, "runs/mine")
        for batch in loader:
            loss = compute(model, batch)
            loss.backward()
            total_norm = recorder.observe(loss=loss)
            optimizer.step()
            recorder.stepped()
            optimizer.zero_grad()
        recorder.close()

    Args:
        model: The module whose parameters are followed.
        optimizer: Read for learning rates and momenta.
        out_dir: The run's folder; telemetry goes to ``out_dir/telemetry``. Where there is some already,
            steps go on from its last.
        config: What is recorded and how often.
        meta: Facts on the run to keep beside the telemetry; plain JSON data.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        out_dir: str | Path,
        config: RecordConfig | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config or RecordConfig()
        self._optimizer = optimizer
        named = [(parameter_name(n), p) for n, p in model.named_parameters() if p.is_floating_point()]
        self._names = [n for n, _ in named]
        self._parameters = [p for _, p in named]
        if not named:
            raise ValueError(f"{type(model).__name__} has no floating-point parameters to record.")
        self._device = self._parameters[0].device
        self._telemetry = TelemetryFolder(Path(out_dir) / TELEMETRY)
        self.step = self._telemetry.last_step()
        self._recorded = 0
        self._started = time.monotonic()
        self._copy: ParameterCopy | None = None
        self._copied_norms: Tensor | None = None
        self._slots: dict[str, int] = {}
        self._rows: list[_Row] = []
        self._open_row: _Row | None = None
        self._width = _SCALAR_SLOTS + len(_VECTORS) * len(named)
        self._buffer = torch.zeros(self.config.flush_every, self._width, device=self._device)
        self._patterns: dict[tuple[int, ...], Tensor] = {}
        self._writer = _Writer(self._telemetry, self._names)
        self._closed = False
        self._write_meta(meta or {})
        self.mark("resumed" if self.step else "started")

    def _write_meta(self, meta: Mapping[str, Any]) -> None:
        groups = {id(p): g for g, group in enumerate(self._optimizer.param_groups) for p in group["params"]}
        self._telemetry.write_meta(
            {
                **meta,
                "torch": str(torch.__version__),
                "record": asdict(self.config),
                "device": self._device.type,
                "optimizer": type(self._optimizer).__name__,
                "groups": [g.get("param_group", str(i)) for i, g in enumerate(self._optimizer.param_groups)],
                "parameters": [
                    {"name": n, "shape": list(p.shape), "group": groups.get(id(p))}
                    for n, p in zip(self._names, self._parameters, strict=True)
                ],
            }
        )

    def mark(self, event: str, **facts: Any) -> None:
        """Write an event into the telemetry.

        Args:
            event: What happened, as ``resumed``.
            **facts: Plain JSON data on it.
        """
        self._telemetry.add_event({"event": event, "step": self.step, "unix_time_s": time.time(), **facts})

    @torch.no_grad()
    def observe(
        self,
        *,
        loss: Tensor | float | None = None,
        images: int | None = None,
        epoch: int | None = None,
        clip_norm: float | None = None,
        **values: Tensor | float,
    ) -> Tensor:
        """Take a step's statistics; call it after the backward pass, before clipping and stepping.

        Args:
            loss: The step's loss.
            images: Samples whose losses the step sums.
            epoch: The epoch, counted from 0.
            clip_norm: The global norm at which the caller will clip, where it will. Nothing is clipped here:
                ``torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, total_norm)`` does, with no
                second pass over the gradients.
            **values: Further scalars to store, numbers or 0-d tensors. Tensors stay on their device.

        Returns:
            0-d tensor on the device: the global gradient norm that ``torch.nn.utils.clip_grad_norm_``
            would return. Zero where no parameter has a gradient.

        Raises:
            ValueError: More than 64 different scalars.
        """
        self._finish_row()
        self.step += 1
        present = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        gradients = [g for p in self._parameters if (g := p.grad) is not None]
        norms = tensor_norms(gradients)
        total = total_norm(norms) if gradients else torch.zeros((), device=self._device)
        if self._closed or self.step % self.config.every:
            return total

        row = self._open_row = _Row(self.step)
        self._rows.append(row)
        self._recorded += 1
        scalars: dict[str, Tensor] = {"grad_norm": total}
        if gradients:
            scalars["grad_max_abs"] = largest_absolute(gradients)
            scalars["grad_nonfinite"] = nonfinite_count(gradients, norms)
            self._store_vector(row, "grad_norm", norms, present)
        if clip_norm is not None:
            scalars["clip_coefficient"] = clip_coefficient(total, clip_norm)
            scalars["grad_norm_clipped"] = total * scalars["clip_coefficient"]
        else:
            scalars["grad_norm_clipped"] = total
        takes_update = self._due(self.config.update_every)
        if takes_update or self._due(self.config.parameter_every):
            parameter_norms = tensor_norms(self._parameters)
            scalars["param_norm"] = total_norm(parameter_norms)
            self._store_vector(row, "param_norm", parameter_norms, None)
            if takes_update:
                self._copy = self._copy or ParameterCopy(self._parameters)
                self._copy.take()
                self._copied_norms = parameter_norms

        row.host["wall_time_s"] = time.monotonic() - self._started
        if images is not None:
            row.host["images"] = images
        if epoch is not None:
            row.host["epoch"] = epoch
        for i, group in enumerate(self._optimizer.param_groups):
            row.host[f"lr_pg{i}"] = float(group["lr"])
            momentum = group["betas"][0] if "betas" in group else group.get("momentum")
            if momentum is not None:
                row.host[f"momentum_pg{i}"] = float(momentum)
        for name, value in {**({} if loss is None else {"loss": loss}), **values}.items():
            if isinstance(value, Tensor):
                scalars[name] = value.detach()
            else:
                row.host[name] = float(value)
        self._store_scalars(row, scalars)
        return total

    @torch.no_grad()
    def stepped(self) -> None:
        """Take what the optimizer's step changed; call it after ``optimizer.step()``."""
        row = self._open_row
        if row is not None and self._copied_norms is not None and self._copy is not None:
            distances = self._copy.distances()
            self._store_scalars(row, {"update_norm": total_norm(distances)})
            self._store_vector(row, "update_ratio", update_ratios(distances, self._copied_norms), None)
        self._finish_row()

    def close(self, finished: bool = True) -> None:
        """Store what is left and end the writer thread; may be called twice.

        Args:
            finished: Whether training came to its end; False where an error cuts it short.
        """
        if self._closed:
            return
        self._finish_row()
        self._flush()
        self._closed = True
        self._writer.close()
        self.mark("finished" if finished else "stopped")

    def __enter__(self) -> GradRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(finished=error is None)

    def _due(self, every: int) -> bool:
        return every > 0 and (self._recorded - 1) % every == 0

    def _finish_row(self) -> None:
        self._open_row = None
        self._copied_norms = None
        if len(self._rows) == self.config.flush_every:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        filled = self._buffer[: len(rows)]
        event: torch.cuda.Event | None = None
        if self._device.type == "cuda":
            host = torch.empty(filled.shape, dtype=filled.dtype, pin_memory=True)
            host.copy_(filled, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        else:
            host = filled.to("cpu", copy=True)
        self._writer.put(_Part(rows, dict(self._slots), host, event))

    def _store_scalars(self, row: _Row, scalars: Mapping[str, Tensor]) -> None:
        for name in scalars:
            if name not in self._slots:
                if len(self._slots) == _SCALAR_SLOTS:
                    raise ValueError(f"observe() got scalar {name!r}, one more than the {_SCALAR_SLOTS} it can store.")
                self._slots[name] = len(self._slots)
            row.scalars.add(name)
        values = torch.stack(
            [v.to(self._device, torch.float32, non_blocking=True).reshape(()) for v in scalars.values()]
        )
        slots = [self._slots[name] for name in scalars]
        line = self._buffer[len(self._rows) - 1]
        if slots == list(range(slots[0], slots[0] + len(slots))):
            line[slots[0] : slots[0] + len(slots)] = values
        else:
            line.index_copy_(0, self._index(tuple(slots)), values)

    def _store_vector(self, row: _Row, quantity: str, values: Tensor, present: list[int] | None) -> None:
        start = _SCALAR_SLOTS + _VECTORS.index(quantity) * len(self._names)
        line = self._buffer[len(self._rows) - 1, start : start + len(self._names)]
        if present is None or len(present) == len(self._names):
            line.copy_(values)
            row.vectors[quantity] = None
        else:
            line.index_copy_(0, self._index(tuple(present)), values.to(torch.float32))
            row.vectors[quantity] = tuple(present)

    def _index(self, positions: tuple[int, ...]) -> Tensor:
        if positions not in self._patterns:  # which parameters have a gradient hardly ever changes
            self._patterns[positions] = torch.tensor(positions, device=self._device)
        return self._patterns[positions]


@dataclass
class _Part:
    """Recorded steps on their way to the disk."""

    rows: list[_Row]
    slots: dict[str, int]
    values: Tensor
    copied: torch.cuda.Event | None


class _Writer:
    """A thread that turns parts into Parquet files.

    A failure to write (a full disk) ends the recording with a warning, never the training.
    """

    def __init__(self, telemetry: TelemetryFolder, names: list[str]) -> None:
        self._telemetry = telemetry
        self._names = names
        self._queue: queue.Queue[_Part | None] = queue.Queue(maxsize=4)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="gradstudy-writer", daemon=True)
        self._thread.start()

    def put(self, part: _Part) -> None:
        """Hand over a part; waits only where four are waiting already."""
        self._queue.put(part)

    def close(self) -> None:
        """Write what is left and end."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (part := self._queue.get()) is not None:
            if self._error is not None:
                continue
            try:
                self._write(part)
            except Exception as error:  # whatever it is, training goes on
                self._error = error
                warnings.warn(
                    f"{self._telemetry.path} can't be written, steps from {part.rows[0].step} on are not recorded: "
                    f"{error}",
                    RuntimeWarning,
                    stacklevel=1,
                )

    def _write(self, part: _Part) -> None:
        if part.copied is not None:
            part.copied.synchronize()
        values = part.values.numpy()
        # Vectors first: a reader that sees a step's scalars then finds its vectors too.
        for v, quantity in enumerate(_VECTORS):
            chosen = [i for i, row in enumerate(part.rows) if quantity in row.vectors]
            if not chosen:
                continue
            start = _SCALAR_SLOTS + v * len(self._names)
            block = values[chosen, start : start + len(self._names)]
            missing = np.zeros(block.shape, dtype=bool)
            for line, i in enumerate(chosen):
                present = part.rows[i].vectors[quantity]
                if present is not None:
                    missing[line] = True
                    missing[line, list(present)] = False
            steps = [part.rows[i].step for i in chosen]
            self._telemetry.write_part(quantity, _table(steps, self._names, block, missing))
        self._telemetry.write_part("steps", self._scalar_table(part, values))

    def _scalar_table(self, part: _Part, values: np.ndarray[Any, Any]) -> pa.Table:
        host = list(dict.fromkeys(name for row in part.rows for name in row.host))
        columns: dict[str, pa.Array] = {"step": pa.array([row.step for row in part.rows], pa.int64())}
        for name in host:
            whole = name in ("epoch", "images")
            kind = pa.int32() if whole else pa.float64() if name == "wall_time_s" else pa.float32()
            cells = [row.host.get(name) for row in part.rows]
            columns[name] = pa.array([int(c) if whole and c is not None else c for c in cells], kind)
        for name, slot in part.slots.items():
            missing = np.array([name not in row.scalars for row in part.rows])
            if name in columns:  # a number in some steps, a tensor in others
                merged = np.where(missing, columns[name].to_numpy(zero_copy_only=False), values[:, slot])
                columns[name] = pa.array(merged, pa.float32(), mask=np.isnan(merged) & missing)
            else:
                columns[name] = pa.array(values[:, slot], pa.float32(), mask=missing)
        return pa.table(columns)


def _table(steps: list[int], names: list[str], block: np.ndarray[Any, Any], missing: np.ndarray[Any, Any]) -> pa.Table:
    columns: dict[str, pa.Array] = {"step": pa.array(steps, pa.int64())}
    for i, name in enumerate(names):
        if not missing[:, i].all():
            columns[name] = pa.array(block[:, i], pa.float32(), mask=missing[:, i])
    return pa.table(columns)
