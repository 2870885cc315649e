# SPDX-License-Identifier: AGPL-3.0-or-later
"""The recorder: what is taken at which step."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yolo_gradstudy.recorder.incidents import Incidents, Sighting, Sizes
from yolo_gradstudy.recorder.rows import DeviceRows, FlowRow, Part, Row, scalars_of
from yolo_gradstudy.recorder.writer import TelemetryWriter
from yolo_gradstudy.records import RecordConfig
from yolo_gradstudy.run_folder import INCIDENTS, TELEMETRY, IncidentsFolder, TelemetryFolder
from yolo_gradstudy.statistics import (
    FlowProbe,
    ParameterNorms,
    clip_coefficient,
    exact_norms,
    exact_total,
    followed_modules,
    is_whole,
    largest_absolute,
    nonfinite_count,
    tensor_norms,
    total_norm,
    update_ratios,
)

_OWN_NAME = re.compile(
    "step|wall_time_s|grad_(norm|norm_clipped|norm_per_image|max_abs|nonfinite)|clip_coefficient|param_norm|update_norm|"
    r"(lr|momentum)_pg\d+"
)
"""Scalars that the recorder fills itself, or derives when they are read."""

_RATE_TENSORS = 16
"""Parameter groups of which rates that are tensors are recorded: they share the device's row with all other scalars."""


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside what DistributedDataParallel and ``torch.compile`` put around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def parameter_name(name: str) -> str:
    """A parameter's or module's name without what ``torch.compile`` puts into it where a part is compiled."""
    return name.replace("_orig_mod.", "")


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` compiled the model or a part of it, by ``model.compile()`` too."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def looks_at_once(device: torch.device) -> bool:
    """Whether a step is looked at in the step itself: on a CPU that waits for nothing, elsewhere it would."""
    return device.type == "cpu"


class GradRecorder:
    """Records gradients, parameters, updates and flow of every optimizer step.

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
        watch_ahead: Whether the hooks that measure flow go onto the model as soon as the step before a
            sampled one is done. A caller that copies or saves the model between steps says False, and calls
            :meth:`watch` before the forward pass: hooks can't be saved.
        listener: Called with the number and the scalars of each recorded step: on a CPU when the step is done, on an
            accelerator with a flush, by another thread.

    Raises:
        ValueError: The model has no floating-point parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        out_dir: str | Path,
        config: RecordConfig | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
        watch_ahead: bool = True,
        listener: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self.config = config or RecordConfig()
        self._optimizer = optimizer
        compiled = is_compiled(model)
        model = bare_model(model)
        named = [(n, p) for n, p in model.named_parameters() if p.is_floating_point()]
        if not named:
            raise ValueError(f"{type(model).__name__} has no floating-point parameters to record.")
        self._names = [parameter_name(n) for n, _ in named]
        self._parameters = [p for _, p in named]
        self._device = self._parameters[0].device
        self._one_device = len({p.device for p in self._parameters}) == 1
        self._mixed = len({p.dtype for p in self._parameters}) > 1
        self._all = list(range(len(named)))
        self._parameter_norms = ParameterNorms(self._parameters)
        self._telemetry = TelemetryFolder(Path(out_dir) / TELEMETRY)
        self.step = self._telemetry.last_number()
        """Optimizer steps observed, counted from 1; goes on over a resumed run."""
        self._recorded = 0
        self._free_names: set[str] = set()
        self._present: list[int] = []
        self._sparse = False
        self._started = time.monotonic()
        self._norms_before: Tensor | None = None
        self._last_norms: Tensor | None = None
        self._open_row: Row | None = None
        self._facts: dict[str, Any] = {}
        self._late: deque[Sighting] = deque()
        self._rows = DeviceRows(self.config.flush_every, len(named), self._device)
        self._flow: FlowProbe | None = None
        if self.config.flow_every and not compiled:
            self._flow = FlowProbe(followed_modules(model, self.config.flow_modules), self._device)
        self._modules = [] if self._flow is None else [parameter_name(n) for n in self._flow.names]
        self._watch_ahead = watch_ahead
        self._listener = listener
        self._closed = False
        self.sighting: Sighting | None = None
        """What the step that was just observed shows of a run that left its course; always None on an accelerator."""
        self._at_once = looks_at_once(self._device)
        each_step = self._at_once and self.config.every == 1 and self.config.parameter_every == 1
        sizes = Sizes(model, parameters=not each_step) if self._at_once else None
        self._incidents = Incidents(IncidentsFolder(Path(out_dir) / INCIDENTS), self._names, sizes, each_step)
        self._write_meta(meta or {})
        look = None if self._at_once else self._look_later
        self._writer = TelemetryWriter(self._telemetry, self._names, self._modules, look)
        self.mark("resumed" if self.step else "started")
        if self.config.flow_every and compiled:
            self.mark("flow_off", reason="hooks would change what torch.compile compiled")
        if watch_ahead:
            self.watch()

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
                "flow_modules": self._modules,
            }
        )

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Read rates from another optimizer of the same parameters, where training replaced its own."""
        self._optimizer = optimizer

    def mark(self, event: str, **facts: Any) -> None:
        """Write an event into the telemetry.

        Args:
            event: What happened, as ``resumed``.
            **facts: Plain JSON data on it.
        """
        try:
            self._telemetry.add_event({"event": event, "step": self.step, "unix_time_s": time.time(), **facts})
        except OSError as error:  # a full disk ends the recording, not the training
            self._writer.fail(error, self.step + 1)

    def validated(self, epoch: int, **values: float) -> None:
        """Write what a validation gave into the telemetry.

        Args:
            epoch: The epoch after which it was, counted from 0; -1 before the first step.
            **values: Numbers by name.
        """
        try:
            self._telemetry.add_validation({"epoch": epoch, "step": self.step, **values})
        except OSError as error:
            self._writer.fail(error, self.step + 1)

    def watch(self) -> None:
        """Put the hooks that measure flow onto the model if the step to come is a sampled one."""
        if self._flow is None or self._flow.watching or self._closed:
            return
        if self.step % self.config.flow_every == 0:
            self._flow.watch()

    def forget(self) -> None:
        """Drop what was measured of a step that will not come, since its batch failed."""
        if self._flow is not None:
            self._flow.unwatch()

    @torch.no_grad()
    def observe(
        self,
        *,
        loss: Tensor | float | None = None,
        images: int | None = None,
        epoch: int | None = None,
        clip_norm: float | None = None,
        amp_scale: Tensor | float = 1.0,
        skipped: Tensor | float = 0.0,
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
            amp_scale: Factor by which an AMP scaler multiplied the loss. The gradients are unscaled already.
            skipped: 1 where the scaler will skip the step, since a gradient overflowed.
            **values: Further scalars to store, numbers or 0-d tensors. Tensors stay on their device.

        Returns:
            0-d tensor on the device: the global gradient norm that ``torch.nn.utils.clip_grad_norm_``
            would return. Zero where no parameter has a gradient.

        Raises:
            ValueError: A scalar has the name of one that the recorder fills itself, or there are more than 64
                different ones.
        """
        if not values.keys() <= self._free_names:
            self._check_names(values)
        self._finish_row()
        self.sighting = None
        self.step += 1
        gradients = [g for p in self._parameters if (g := p.grad) is not None]
        present = self._all
        if len(gradients) < len(present):
            present = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        norms = tensor_norms(gradients, one_device=self._one_device).to(self._device)
        total = total_norm(norms)
        flow = self._flow.take(amp_scale) if self._flow is not None and self._flow.watching else None
        if self._closed:
            return total
        if flow is not None:  # also in a step whose other numbers are not recorded
            self._rows.put_flow(FlowRow(self.step, *flow))
        if self.step % self.config.every:
            return total

        row = self._open_row = self._rows.begin(self.step)
        self._recorded += 1
        scalars: dict[str, Tensor] = {"grad_norm": total}
        if gradients:
            if present != self._present:  # looking at each gradient in each step would cost as much as a statistic
                self._present, self._sparse = present, any(g.is_sparse for g in gradients)
            if self._sparse:  # what an embedding did not look up is zero, and counts in no statistic
                gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
            whole = is_whole(gradients if self._mixed else gradients[:1])
            exact = exact_norms(gradients, norms, whole)
            scalars["grad_norm"] = exact_total(total, exact, whole)
            scalars["grad_nonfinite"] = nonfinite_count(gradients, norms)
            if self._due(self.config.extremes_every):
                scalars["grad_max_abs"] = largest_absolute(gradients)
            self._rows.put_vector(row, "grad_norm", exact, present)
            self._last_norms = exact
        scalars["grad_norm_clipped"] = scalars["grad_norm"]
        if clip_norm is not None:
            scalars["clip_coefficient"] = clip_coefficient(total, clip_norm)
            scalars["grad_norm_clipped"] = scalars["grad_norm"] * scalars["clip_coefficient"]
        takes_update = self._due(self.config.update_every)
        if takes_update or self._due(self.config.parameter_every):
            parameter_norms = self._take_parameter_norms(row, scalars)
            if takes_update:
                self._parameter_norms.keep()
                self._norms_before = parameter_norms

        known = {"loss": loss, "images": images, "epoch": epoch, "amp_scale": amp_scale, "skipped": skipped, **values}
        row.host["wall_time_s"] = time.monotonic() - self._started
        for name, value in {**self._rates(), **known}.items():
            if isinstance(value, Tensor):
                scalars[name] = value
            elif value is not None:
                row.host[name] = float(value)
        self._rows.put_scalars(row, scalars)
        if self._at_once:
            self._look(row, gradients)
        return total

    def _take_parameter_norms(self, row: Row, scalars: dict[str, Tensor]) -> Tensor:
        norms = self._parameter_norms.take()
        scalars["param_norm"] = total_norm(norms)
        self._rows.put_vector(row, "param_norm", norms, None)
        return norms

    def _look(self, row: Row, gradients: Sequence[Tensor]) -> None:
        """Look at the step on a CPU; of one that left its course, everything is taken."""
        line, slots = self._rows.line(row)
        self.sighting = self._incidents.look(row, slots, line)
        if self.sighting is None:
            return
        scalars: dict[str, Tensor] = {}
        if "param_norm" not in row.vectors:
            self._take_parameter_norms(row, scalars)
        if gradients and "grad_max_abs" not in row.scalars:
            scalars["grad_max_abs"] = largest_absolute(gradients)
        if scalars:
            self._rows.put_scalars(row, scalars)

    def _look_later(self, part: Part, values: NDArray[Any]) -> None:
        """Look at steps that have come from an accelerator; called in the writer's thread."""
        for row, line in zip(part.rows, values, strict=True):
            sighting = self._incidents.look(row, part.slots, line)
            self._incidents.keep(row, part.slots, line)
            if self._listener is not None:
                self._listener(row.step, scalars_of(row, part.slots, line))
            if sighting is not None:
                self._incidents.write(sighting)
                self._late.append(sighting)

    def flush(self) -> None:
        """Have the listener told of every step that is done; on an accelerator this waits for the device."""
        self._finish_row()
        if not self._at_once:
            self._flush()
            self._writer.wait()

    def layer_norms(self) -> list[float]:
        """Gradient norms of the parameter tensors that had one in the last recorded step, read from the device."""
        norms: list[float] = [] if self._last_norms is None else self._last_norms.tolist()
        return norms

    @property
    def error(self) -> Exception | None:
        """What ended the recording, while training went on; None where nothing did."""
        return self._writer.error

    @property
    def at_once(self) -> bool:
        """Whether a step that left its course is seen in the step itself, not with a flush."""
        return self._at_once

    @property
    def went_well(self) -> bool:
        """Whether nothing was seen in the last step that was looked at."""
        return self._incidents.well

    def amend(self, sighting: Sighting, facts: Mapping[str, Any]) -> None:
        """Add facts to an incident, in place of those that it has under the same names.

        Args:
            sighting: Of the incident.
            facts: Plain JSON data.
        """
        if sighting is self.sighting:
            self._facts.update(facts)
        else:
            self._incidents.amend(sighting, facts)

    def late_sightings(self) -> list[Sighting]:
        """What was seen, since the last call, of steps that came from an accelerator; their incidents are written."""
        found = []
        while self._late:
            found.append(self._late.popleft())
        return found

    @torch.no_grad()
    def clipped(self, norm: Tensor) -> None:
        """Take what a clipping of the caller's own left, where no ``clip_norm`` was given to :meth:`observe`.

        Args:
            norm: 0-d tensor, global norm of the gradients as the optimizer will see them.
        """
        if self._open_row is None or self._closed:
            return
        before = self._rows.scalar(self._open_row, "grad_norm")
        coefficient = torch.where(before > 0, norm / before, 1.0)
        self._rows.put_scalars(self._open_row, {"grad_norm_clipped": norm, "clip_coefficient": coefficient})

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if _OWN_NAME.fullmatch(name):
                raise ValueError(
                    f"observe() got {name!r}, which the recorder fills itself; give it another name, as 'my_{name}'."
                )
        self._free_names.update(names)

    def _rates(self) -> dict[str, Any]:
        """Learning rate and momentum of each parameter group: numbers, or tensors as capturable optimizers have them.

        What an optimizer leaves open (Adafactor's own rate is None) is left out.
        """
        rates: dict[str, Any] = {}
        for i, group in enumerate(self._optimizer.param_groups):
            betas = group.get("betas")
            momentum = betas[0] if betas else group.get("momentum")
            for name, rate in ((f"lr_pg{i}", group.get("lr")), (f"momentum_pg{i}", momentum)):
                if i < _RATE_TENSORS or not isinstance(rate, Tensor):
                    rates[name] = rate
        return rates

    @torch.no_grad()
    def stepped(self) -> None:
        """Take what the optimizer's step changed; call it after ``optimizer.step()``."""
        if self._open_row is not None and self._norms_before is not None:
            distances = self._parameter_norms.distances()
            self._rows.put_scalars(self._open_row, {"update_norm": total_norm(distances)})
            self._rows.put_vector(self._open_row, "update_ratio", update_ratios(distances, self._norms_before), None)
        self._finish_row()
        if self._watch_ahead:
            self.watch()

    def close(self, finished: bool = True) -> None:
        """Store what is left, in one file a quantity, and end the writer thread; may be called twice.

        Args:
            finished: Whether training came to its end; False where an error cuts it short.
        """
        if self._closed:
            return
        self._closed = True
        self.forget()
        self._finish_row()
        self._flush()
        self._writer.close()
        self.mark("finished" if finished else "stopped")
        self._writer.merge()

    def __enter__(self) -> GradRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(finished=error is None)

    def _due(self, every: int) -> bool:
        return every > 0 and (self._recorded - 1) % every == 0

    def _finish_row(self) -> None:
        if self._open_row is not None and self._at_once:
            line, slots = self._rows.line(self._open_row)
            self._incidents.keep(self._open_row, slots, line)
            if self._listener is not None:
                self._listener(self._open_row.step, scalars_of(self._open_row, slots, line))
            if self.sighting is not None:
                self._write_incident(self.sighting)
        self._open_row = None
        self._norms_before = None
        if self._rows.full:
            self._flush()

    def _write_incident(self, sighting: Sighting) -> None:
        try:
            self._incidents.write(sighting)
            if self._facts:
                self._incidents.amend(sighting, self._facts)
        except Exception as error:  # whatever it is, training goes on
            self._writer.fail(error, self.step + 1)
        self._facts, self.sighting = {}, None

    def _flush(self) -> None:
        if (part := self._rows.take()) is not None:
            self._writer.put(part)
