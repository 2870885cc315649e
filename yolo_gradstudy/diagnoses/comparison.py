# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two runs side by side: where they part, and in what they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from yolo_gradstudy.diagnoses.evidence import training_arguments
from yolo_gradstudy.diagnoses.thresholds import THRESHOLDS, Thresholds
from yolo_gradstudy.records import Run, RunSpec

_PLACES = ("name", "project", "save_dir", "exist_ok", "resume", "mode", "plots", "verbose", "workers")
"""Arguments that do not change what is trained."""

_FACTS = (
    "model", "clip_norm", "clip", "optimizer", "batch", "nbs", "seed", "amp", "precision", "task", "device", "torch",
    "ultralytics", "inference_branch",
)  # fmt: skip
"""What telemetry tells of a run that its arguments may not."""


@dataclass(frozen=True)
class Parting:
    """A step at which two runs differ.

    Attributes:
        step: The first such step.
        quantity: ``loss`` or ``grad_norm``, whichever differs; the loss where both do.
        values: Of the first and of the second run.
    """

    step: int
    quantity: str
    values: tuple[float, float]


@dataclass(frozen=True)
class SideBySide:
    """Two runs beside each other.

    Attributes:
        runs: Their names.
        common_steps: How many steps both have recorded.
        parted: Where they differ by more than rounding; None where they never do.
        far_apart: Where they differ by a factor; None where they never do.
        layers_step: The first step at which gradient norms of layers differ by more than rounding.
        layers: Parameter tensors that differ there, those that differ most first.
        arguments: Of each argument in which they differ, the value in either; None where it is not on record.
        ablations: The ablations of either.
    """

    runs: tuple[str, str]
    common_steps: int
    parted: Parting | None
    far_apart: Parting | None
    layers_step: int | None
    layers: tuple[str, ...]
    arguments: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    ablations: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``; numbers that are not finite are told as text, which JSON has no word for."""
        data: dict[str, Any] = _plain(asdict(self))
        return data


def compare_runs(one: Run, other: Run, limits: Thresholds = THRESHOLDS) -> SideBySide:
    """Put two runs side by side.

    Args:
        one: A run.
        other: Another, of the same model where layers are to be compared.
        limits: ``parting`` and ``parted_factor``.
    """
    common = one.steps.index.intersection(other.steps.index)
    step, layers = _part_in_layers(one, other, limits)
    return SideBySide(
        (one.name, other.name),
        len(common),
        _part(one, other, limits.parting),
        _part(one, other, 1 - 1 / limits.parted_factor),
        step,
        layers,
        differing_arguments(one, other),
        (tuple(one.meta.get("ablations", ())), tuple(other.meta.get("ablations", ()))),
    )


def relative_difference(one: pd.DataFrame, other: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    """|a − b| / max(|a|, |b|), from 0 to 2: infinite where only one is finite, 0 where neither is or both are 0."""
    a, b = one.to_numpy(dtype="float64"), other.to_numpy(dtype="float64")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = np.abs(a - b) / np.maximum(np.abs(a), np.abs(b))
    finite = np.isfinite(a).astype(int) + np.isfinite(b).astype(int)
    found: np.ndarray[Any, np.dtype[np.float64]] = np.select(
        [finite == 1, finite == 0], [np.inf, 0.0], np.where((a == 0) & (b == 0), 0.0, difference)
    )
    return found


def _part(one: Run, other: Run, least: float) -> Parting | None:
    """The first common step at which loss or gradient norm differ by more than a share of the larger."""
    columns = [c for c in ("loss", "grad_norm") if c in one.steps and c in other.steps]
    common = one.steps.index.intersection(other.steps.index)
    if not columns or not len(common):
        return None
    a, b = one.steps.loc[common, columns], other.steps.loc[common, columns]
    over = relative_difference(a, b) > least
    if not over.any():
        return None
    row = int(np.argmax(over.any(axis=1)))
    name = columns[int(np.argmax(over[row]))]
    return Parting(int(common[row]), name, (float(a[name].iloc[row]), float(b[name].iloc[row])))


def _part_in_layers(one: Run, other: Run, limits: Thresholds) -> tuple[int | None, tuple[str, ...]]:
    a, b = one.layers("grad_norm"), other.layers("grad_norm")
    names = [c for c in a if c in b]
    common = a.index.intersection(b.index)
    if not names or not len(common):
        return None, ()
    difference = relative_difference(a.loc[common, names], b.loc[common, names])
    over = difference > limits.parting
    if not over.any():
        return None, ()
    row = int(np.argmax(over.any(axis=1)))
    order = sorted(np.flatnonzero(over[row]), key=lambda i: (-difference[row, i], -i))
    return int(common[row]), tuple(str(names[i]) for i in order)


def differing_arguments(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """The arguments and facts in which two runs differ, by name."""
    (a, whole_a), (b, whole_b) = _facts(one), _facts(other)
    # Where only one has all arguments on record, what the other leaves out is not known to differ.
    names = a.keys() & b.keys() if whole_a != whole_b else a.keys() | b.keys()
    return {n: (a.get(n), b.get(n)) for n in sorted(names - set(_PLACES)) if not _same(a.get(n), b.get(n))}


def _facts(run: Run) -> tuple[dict[str, Any], bool]:
    told = {name: run.meta[name] for name in _FACTS if name in run.meta}
    spec = {} if run.spec is None else {"model": run.spec.model, "data": run.spec.data}
    return {**told, **training_arguments(run), **spec}, bool(run.arguments)


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) or (isinstance(one, float) and isinstance(other, float) and math.isclose(one, other))


def nearest_first(spec: RunSpec, others: Sequence[RunSpec]) -> list[RunSpec]:
    """The other runs of a study, those first that differ least: seed, then ablations, arguments, rate."""

    def distance(other: RunSpec) -> tuple[bool, int, int, float]:
        arguments = spec.arguments.keys() | other.arguments.keys()
        return (
            other.seed != spec.seed,
            len(set(spec.ablations) ^ set(other.ablations)),
            sum(spec.arguments.get(k) != other.arguments.get(k) for k in arguments) + (spec.model != other.model),
            abs(math.log(other.lr0 / spec.lr0)) if spec.lr0 > 0 and other.lr0 > 0 else math.inf,
        )

    return sorted((o for o in others if o.run_id != spec.run_id), key=distance)


def differences_of_specs(spec: RunSpec, other: RunSpec) -> dict[str, tuple[Any, Any]]:
    """What another run of a study did differently: argument → value here, value there."""
    a = {**spec.arguments, "lr0": spec.lr0, "seed": spec.seed, "model": spec.model, "data": spec.data}
    b = {**other.arguments, "lr0": other.lr0, "seed": other.seed, "model": other.model, "data": other.data}
    found = {n: (a.get(n), b.get(n)) for n in sorted(a.keys() | b.keys()) if not _same(a.get(n), b.get(n))}
    if set(spec.ablations) != set(other.ablations):
        found["ablations"] = (list(spec.ablations), list(other.ablations))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
