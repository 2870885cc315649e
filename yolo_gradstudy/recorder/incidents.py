# SPDX-License-Identifier: AGPL-3.0-or-later
"""Steps at which a run left its course, seen among the recorded numbers, and what is kept of each.

Everything here is the host's: a step's numbers as they lie in memory on a CPU, or as they arrive there from an
accelerator with a flush. Nothing waits for a device.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yolo_gradstudy.recorder.rows import SCALAR_SLOTS, Row, scalars_of
from yolo_gradstudy.recorder.writer import scalar_table
from yolo_gradstudy.run_folder import LAYER_QUANTITIES, IncidentsFolder, long_table
from yolo_gradstudy.statistics import SMALL, FlatTensors

WINDOW = 50
"""Steps before that a step is compared with."""

KEPT = 20
"""Last steps that an incident holds in full."""

FEWEST = 3
"""Steps before which nothing but NaN and infinity is an incident: there is nothing to compare with."""

SURE = 10
"""Steps from which the usual loss is known well."""

LAG = 3
"""Newest steps that do not count as usual, where there are twice as many: a slow blow-up must not hide itself."""

LOSS_FACTOR = 10.0
"""Times the largest usual loss. Healthy detection losses stay within a factor of two for hundreds of steps."""

NORM_FACTOR = 100.0
"""Times the largest usual gradient norm. Norms of healthy runs move by one or two orders of magnitude, mostly down."""

TENSOR_FACTOR = 1e3
"""Times what is usual of a single tensor: its gradient norm, its norm, or a BatchNorm's running variance."""

FOLLOW = 10
"""Looks at memory after which each tensor is asked again where its data is: hardly any training replaces it."""

MOST = 8
"""Incidents that a run keeps: a run that is broken has one in every step."""

Kind = Literal["nonfinite", "spike"]


@dataclass(frozen=True)
class Observation:
    """A number that is not as usual.

    Attributes:
        quantity: ``loss``, ``grad_norm``, ``param_norm``, ``running_var``, ``param_max_abs`` (the latter two are the
            largest element), or the name of another recorded scalar.
        name: The parameter or module that it is of; None for a scalar of the whole step.
        value: The number.
        usual: What was the largest usual one; None where nothing was to compare with.
    """

    quantity: str
    name: str | None
    value: float
    usual: float | None


@dataclass(frozen=True)
class Sighting:
    """A step at which a run left its course.

    Attributes:
        number: Of the incident, counted from 1.
        step: The optimizer step.
        kind: ``nonfinite`` or ``spike``.
        seen: What was seen, tensors in model order.
        norms: Gradient norms of the step, by parameter.
    """

    number: int
    step: int
    kind: Kind
    seen: tuple[Observation, ...]
    norms: Mapping[str, float]


class Sizes:
    """Largest elements of BatchNorms' running variances and of small parameters, as one look at memory.

    A fault can hide from loss and gradients. What makes a layer's activations absurd is scaled back by a BatchNorm that
    follows, whose running variance tells; and a spoiled scale or a head's last layer may meet a batch in which nothing
    is learned through it. Large weights are left out: looking at them would cost a pass over the model.

    Args:
        model: The network, on a CPU.
        parameters: Whether parameters are looked at; where their norms are taken in each step, those tell as much.
    """

    def __init__(self, model: nn.Module, parameters: bool = True) -> None:
        variances = {
            name: module.running_var
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(module.running_var, Tensor)
        }
        small = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameters and 0 < parameter.numel() <= SMALL
            if parameter.is_floating_point() and parameter.layout == torch.strided
        }
        self.of = [("running_var", name) for name in variances] + [("param_max_abs", name) for name in small]
        """Quantity and name of each number that :meth:`largest` gives."""
        self.least = np.array([1e-3] * len(variances) + [1e-2] * len(small))
        """What counts as usual at least, for each: a bias begins at 0."""
        self._tensors = FlatTensors([*variances.values(), *small.values()], np.float32)
        self._looks = 0

    def largest(self) -> NDArray[Any]:
        """Largest absolute element of each, NaN where one is NaN; shape ``(len(of),)``."""
        self._looks += 1
        return self._tensors.largest(follow=self._looks % FOLLOW == 1)


class Incidents:
    """Looks at each recorded step, and keeps the last ones for the case that it must tell of them.

    Args:
        folder: Where incidents are written.
        parameters: Names of the parameter tensors.
        sizes: What else can be looked at in the step itself.
        norms_each_step: Whether each step has the norm of every parameter.
    """

    def __init__(
        self,
        folder: IncidentsFolder,
        parameters: Sequence[str],
        sizes: Sizes | None = None,
        norms_each_step: bool = False,
    ) -> None:
        self._folder = folder
        self._parameters = list(parameters)
        self._sizes = sizes
        self._norms_each_step = norms_each_step
        self._of: list[tuple[str, str]] = [*(sizes.of if sizes is not None else ())]
        least = [*(sizes.least if sizes is not None else ())]
        if norms_each_step:
            self._of += [("param_norm", name) for name in self._parameters]
            least += [1e-2] * len(self._parameters)
        self._least = np.array(least)
        self._count = max(folder.numbers(), default=0)
        self._first = self._count
        self._kept: deque[tuple[Row, NDArray[Any]]] = deque(maxlen=KEPT)
        self._slots: Mapping[str, int] = {}
        self._norms = np.full((WINDOW, len(self._parameters)), np.nan)
        self._totals: dict[str, deque[float]] = {}
        self._steps = 0
        self._largest = self._bounds = np.full(len(self._of), np.nan)
        known = np.full(len(self._of), np.nan)
        if sizes is not None:
            known[: len(sizes.of)] = sizes.largest()
        self._measure(known)
        self._parameter_norms: deque[tuple[int, NDArray[Any]]] = deque(maxlen=2)
        self.well = True
        """Whether nothing was seen in the last step that was looked at."""
        self._broken = False
        self._quiet_until = 0

    # Looking -----------------------------------------------------------------------------------------

    def look(self, row: Row, slots: Mapping[str, int], line: NDArray[Any]) -> Sighting | None:
        """Look at a step.

        Args:
            row: What was recorded of it.
            slots: Column of each scalar.
            line: The step's numbers, as :class:`DeviceRows` lays them out.

        Returns:
            What was seen, where it begins an incident: a run that is broken has one in every step, of which the first
            counts.
        """
        scalars = scalars_of(row, slots, line)
        norms = self._vector("grad_norm", row, line)
        largest = self._look_at_sizes(row, line)
        if scalars.get("skipped", 0.0) > 0:  # an overflow that the scaler looked for
            self._measure(largest)
            return None
        out = self._out_of_bounds(largest)
        present = row.vectors.get("grad_norm", ())
        seen = self._nonfinite(scalars, norms, largest, out, present)
        kind: Kind = "nonfinite"
        if not seen:
            kind, seen = "spike", self._spiked(scalars, norms, largest, out)
        self.well = not seen
        broken, self._broken = self._broken, bool(seen) and kind == "nonfinite"
        self._remember(scalars, norms)
        self._measure(largest)
        if not seen or self._count - self._first >= MOST:
            return None
        if broken if kind == "nonfinite" else row.step < self._quiet_until:
            return None
        self._quiet_until = row.step + KEPT
        self._count += 1
        known = {self._parameters[i]: float(norms[i]) for i in np.flatnonzero(self._mask(present))}
        return Sighting(self._count, row.step, kind, tuple(seen), known)

    def _look_at_sizes(self, row: Row, line: NDArray[Any]) -> NDArray[Any] | None:
        """What ``_of`` names, as it is now; None where nothing is looked at in the step itself."""
        if not self._of:
            return None
        sizes = np.zeros(0) if self._sizes is None else self._sizes.largest()
        if not self._norms_each_step:
            return sizes
        return np.concatenate((sizes, self._vector("param_norm", row, line)))

    def _measure(self, largest: NDArray[Any] | None) -> None:
        """Take what ``_of`` names for usual, and what of the next step will be too much."""
        if largest is not None:
            self._largest = largest
            self._bounds = TENSOR_FACTOR * np.maximum(largest, self._least)

    def _out_of_bounds(self, largest: NDArray[Any] | None) -> list[int]:
        """Places of ``_of`` that are not finite, above their bound, or have no bound yet."""
        if largest is None or (inside := largest <= self._bounds).all():
            return []
        return [int(i) for i in np.flatnonzero(~inside)]

    def _nonfinite(
        self,
        scalars: Mapping[str, float],
        norms: NDArray[Any],
        largest: NDArray[Any] | None,
        out: Sequence[int],
        present: Sequence[int] | None,
    ) -> list[Observation]:
        seen = [Observation(n, None, v, self._usual(n)) for n, v in scalars.items() if not math.isfinite(v)]
        if not math.isfinite(scalars.get("grad_norm", 0.0)):  # else each of those that it sums is finite
            for j in np.flatnonzero(~np.isfinite(norms) & self._mask(present)):
                seen.append(Observation("grad_norm", self._parameters[j], float(norms[j]), self._usual_norm(int(j))))
        for i in out:
            if largest is not None and not math.isfinite(largest[i]) and math.isfinite(self._largest[i]):
                seen.append(Observation(*self._of[i], float(largest[i]), float(self._largest[i])))
        return seen

    def _spiked(
        self, scalars: Mapping[str, float], norms: NDArray[Any], largest: NDArray[Any] | None, out: Sequence[int]
    ) -> list[Observation]:
        seen = []
        images = scalars.get("images") or 1.0
        loss_factor = LOSS_FACTOR if self._steps >= SURE else LOSS_FACTOR**2  # one may be of a batch without objects
        usual_total = self._usual("grad_norm")
        for name, factor, usual in (
            ("loss", loss_factor, self._usual("loss")),
            ("grad_norm", NORM_FACTOR, usual_total),
        ):
            if name in scalars and usual and scalars[name] / images > factor * usual:
                seen.append(Observation(name, None, scalars[name], usual * images))
        if usual_total and self._steps >= FEWEST and scalars.get("grad_norm", 0.0) / images > usual_total:
            usual_norms = self._usual_norms()
            with np.errstate(invalid="ignore"):  # an absent one is NaN, and above nothing
                over = (norms / images > TENSOR_FACTOR * usual_norms) & (norms / images > usual_total)
            for j in np.flatnonzero(over):
                usual = float(usual_norms[j]) * images
                seen.append(Observation("grad_norm", self._parameters[j], float(norms[j]), usual))
        for i in out:
            if largest is not None and largest[i] > self._bounds[i]:
                seen.append(Observation(*self._of[i], float(largest[i]), float(self._largest[i])))
        return seen

    def _vector(self, quantity: str, row: Row, line: NDArray[Any]) -> NDArray[Any]:
        """A number a parameter, NaN where it has none."""
        count = len(self._parameters)
        start = SCALAR_SLOTS + LAYER_QUANTITIES.index(quantity) * count
        values, present = line[start : start + count], row.vectors.get(quantity, ())
        if present is None:
            return values
        return np.where(self._mask(present), values, np.nan)

    def _mask(self, present: Sequence[int] | None) -> NDArray[np.bool_]:
        """Which parameters have a number."""
        mask = np.full(len(self._parameters), present is None)
        mask[[] if present is None else list(present)] = True
        return mask

    def _remember(self, scalars: Mapping[str, float], norms: NDArray[Any]) -> None:
        images = scalars.get("images") or 1.0
        for name in ("loss", "grad_norm"):
            if math.isfinite(scalars.get(name, math.nan)):
                self._totals.setdefault(name, deque(maxlen=WINDOW)).append(scalars[name] / images)
        if math.isfinite(scalars.get("grad_norm", 0.0)):
            np.divide(norms, images, out=self._norms[self._steps % WINDOW])
            self._steps += 1

    def _usual(self, name: str) -> float | None:
        """Largest usual value of a scalar for each image; None where too few steps are known."""
        known = self._totals.get(name, ())
        if len(known) < FEWEST:
            return None
        return max(islice(known, len(known) - LAG) if len(known) >= 2 * LAG else known)

    def _usual_norms(self) -> NDArray[Any]:
        """Largest usual gradient norm of each parameter for each image."""
        steps = np.arange(max(0, self._steps - WINDOW), self._steps)
        usual: NDArray[Any] = np.fmax.reduce(self._norms[(steps[:-LAG] if len(steps) >= 2 * LAG else steps) % WINDOW])
        return usual

    def _usual_norm(self, parameter: int) -> float | None:
        return float(self._usual_norms()[parameter]) if self._steps >= FEWEST else None

    # Keeping -----------------------------------------------------------------------------------------

    def keep(self, row: Row, slots: Mapping[str, int], line: NDArray[Any]) -> None:
        """Keep a step, as it is after the optimizer's step, for an incident to come."""
        self._kept.append((row, line.copy()))
        self._slots = slots
        if row.vectors.get("param_norm", ()) is None and math.isfinite(line[slots["param_norm"]]):
            self._parameter_norms.append((row.step, self._vector("param_norm", row, self._kept[-1][1])))

    def write(self, sighting: Sighting) -> None:
        """Write an incident, with the steps that are kept; the last of them is the incident's."""
        row, line = next((r, v) for r, v in reversed(self._kept) if r.step == sighting.step)
        norms = self._vector("param_norm", row, line) if row.vectors.get("param_norm", ()) is None else None
        before = next((n for step, n in reversed(self._parameter_norms) if step < row.step), None)
        order = recorded_order(sighting, self._parameters, norms, before)
        scalars = scalars_of(row, self._slots, line)
        rates = {name: value for name, value in scalars.items() if name.startswith(("lr_", "momentum_"))}
        epoch = scalars.get("epoch")  # a fraction, NaN or infinite where a loop says so
        others = {name: value for name, value in scalars.items() if name not in rates and name != "epoch"}
        incident = {
            "incident": sighting.number,
            "step": sighting.step,
            "kind": sighting.kind,
            "epoch": int(epoch) if epoch is not None and epoch.is_integer() else epoch,
            "seen": [asdict(observation) for observation in sighting.seen],
            "rates": rates,
            "scalars": others,
            "order": [asdict(observation) for observation in order],
            "cause": recorded_cause(sighting, order),
        }
        self._folder.write(sighting.number, incident, self._tables())

    def amend(self, sighting: Sighting, facts: Mapping[str, Any]) -> None:
        """Add facts to an incident that is written."""
        self._folder.amend(sighting.number, facts)

    def _tables(self) -> dict[str, pa.Table]:
        rows = [row for row, _ in self._kept]
        values = np.stack([line for _, line in self._kept])
        tables = {"steps": scalar_table(rows, self._slots, values)}
        for quantity in LAYER_QUANTITIES:
            chosen = [n for n, row in enumerate(rows) if quantity in row.vectors]
            if chosen:
                block = np.stack([self._vector(quantity, rows[n], values[n]) for n in chosen])
                present = np.stack([self._mask(rows[n].vectors[quantity]) for n in chosen])
                steps = np.array([rows[n].step for n in chosen], dtype=np.int64)
                tables[quantity] = long_table(quantity, steps, self._parameters, block, ~present)
        return tables


def outlying(value: float, usual: float | None, least: float = 0.0) -> bool:
    """Whether a norm is NaN, infinite, or far above what is usual.

    Args:
        value: The norm.
        usual: What is usual; None where that is not known.
        least: What counts as usual at least: a bias begins at 0.
    """
    if not math.isfinite(value):
        return True
    return usual is not None and math.isfinite(usual) and value > TENSOR_FACTOR * max(usual, least) > 0


def recorded_order(
    sighting: Sighting, parameters: Sequence[str], norms: NDArray[Any] | None, before: NDArray[Any] | None
) -> list[Observation]:
    """What is not as usual, in the order in which a training step computes it, as far as is recorded.

    Args:
        sighting: What was seen.
        parameters: Names of the parameter tensors, in model order.
        norms: Their norms at that step, shape ``(len(parameters),)``; None where not taken.
        before: Their last norms that were as usual.

    Returns:
        Weights and BatchNorms in model order, then scalars, then gradients from the last parameter to the first.
    """
    weights = []
    for i, name in enumerate(parameters if norms is not None else ()):
        assert norms is not None
        usual = None if before is None else float(before[i])
        if outlying(float(norms[i]), usual, least=1e-2):
            weights.append(Observation("param_norm", name, float(norms[i]), usual))
    variances = [o for o in sighting.seen if o.quantity == "running_var"]
    scalars = [o for o in sighting.seen if o.name is None]
    gradients = [o for o in sighting.seen if o.quantity == "grad_norm" and o.name is not None]
    return [*weights, *variances, *scalars, *reversed(gradients)]


def recorded_cause(sighting: Sighting, order: Sequence[Observation]) -> dict[str, Any]:
    """Where it began, as far as the recorded numbers tell; without a replay that is a guess for activations.

    Returns:
        ``module``, ``parameter``, ``what`` (``weight``, ``output``, ``gradient`` or ``unknown``), ``found_by``,
        ``certainty`` (``certain``, ``likely`` or ``unknown``) and ``evidence``, a sentence.
    """
    first = next((o for o in order if o.name is not None), None)
    what, certainty, module, parameter = "unknown", "unknown", None, None
    evidence = "only numbers of the whole step are out of range"
    if first is not None and first.quantity == "param_norm":
        parameter, what, certainty = first.name, "weight", "certain"
        evidence = f"the norm of {first.name} is {first.value:.3g}" + _usually(first)
    elif first is not None and first.quantity == "running_var":
        module, what, certainty = first.name, "output", "likely"
        evidence = f"{first.name} is the first BatchNorm whose running variance left its range, {first.value:.3g}"
        evidence += _usually(first) + "; it, or what comes before it, put out what is out of range"
    elif first is not None and all(o.name is not None or o.quantity.startswith(("grad_", "clip_")) for o in order):
        parameter, what, certainty = first.name, "gradient", "likely"
        evidence = f"the gradient of {first.name}, which the backward pass reached first, has norm {first.value:.3g}"
        evidence += _usually(first) + "; the loss is as usual"
    if parameter is not None:
        module = parameter.rpartition(".")[0]
    return {
        **{"module": module, "parameter": parameter, "what": what},
        **{"found_by": "recorded", "certainty": certainty, "evidence": evidence},
    }


def _usually(observation: Observation) -> str:
    return "" if observation.usual is None else f" where {observation.usual:.3g} is usual"
