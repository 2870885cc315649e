# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gradients, activations and gains by their depth in the network, at a few moments of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from yolo_gradstudy.records import Run, RunReading
from yolo_gradstudy.tables.frames import significant, typed
from yolo_gradstudy.tables.results import column
from yolo_gradstudy.tables.trajectories import spread

MOST_SEEDS = 5
"""Seeds of an arm at a learning rate whose vectors are looked at: reading one costs as much as judging a run."""

MOMENTS = ("first", "quarter", "half", "last")
"""Of the steps that a run has recorded."""

FLOWS = ("forward_gain", "backward_gain", "activation_rms")
"""What :func:`gains_table` tells of modules."""

_DIGITS = 4
"""Significant digits, more than a line shows: a table has thousands of rows."""

_KEYS = {
    "arm": "str", "lr0": "float64", "moment": "str", "step_low": "Int64", "step_high": "Int64", "place": "Int64",
}  # fmt: skip
_ENDS = ("median", "low", "high")
_DEPTH_COLUMNS = {
    **_KEYS, "tensor": "str", "n": "Int64", "nonfinite": "Int64",
    **dict.fromkeys((f"grad_norm_{end}" for end in _ENDS), "float64"),
}  # fmt: skip
_GAIN_COLUMNS = {
    **_KEYS, "module": "str", "n": "Int64",
    **dict.fromkeys((f"{flow}_{end}" for flow in FLOWS for end in _ENDS), "float64"),
}  # fmt: skip


@dataclass(frozen=True)
class Depths:
    """What the tables of this file need of a run's vectors, small enough to be kept where these are forgotten.

    Attributes:
        norm_steps: The step of each of ``MOMENTS``.
        norms: Moments × weight tensors; infinite where the gradient was not finite, missing where there was none.
        flow_steps: The sampled step of each of ``MOMENTS``; empty where no flow was recorded.
        flows: Moments × modules, by quantity.
    """

    norm_steps: NDArray[np.int64]
    norms: pd.DataFrame
    flow_steps: NDArray[np.int64]
    flows: Mapping[str, pd.DataFrame]


def depths_of(run: Run) -> Depths:
    """What a run's vectors say by depth, at its own first, last and two steps between.

    Args:
        run: A recorded run.
    """
    steps = _moments(run.steps.index)
    recorded = run.layers("grad_norm")
    layers = _at(recorded, steps)
    layers = layers[[name for name, wanted in _are_weights(list(layers.columns), run.meta).items() if wanted]]
    # A NaN is told from a tensor without a gradient by the step's global norm, which a NaN makes NaN.
    totals = _at(column(run.steps, "grad_norm").to_frame(), steps).to_numpy()[:, 0]
    poisoned = np.isin(steps, recorded.index) & ~np.isfinite(totals)
    values = layers.to_numpy(dtype="float64")
    broken = np.isinf(values) | (np.isnan(values) & poisoned[:, None])
    norms = pd.DataFrame(np.where(broken, math.inf, values), columns=layers.columns)
    # Each module whose flow was sampled has an activation: without one there is nothing else to look for.
    sampled = _moments(run.flow("activation_rms").index)
    flows = {name: _at(run.flow(name), sampled) for name in FLOWS} if len(sampled) else {}
    return Depths(steps, norms, sampled, flows)


def _at(frame: pd.DataFrame, steps: NDArray[np.int64]) -> pd.DataFrame:
    """The rows of some steps, missing where there is none; of a step that stands twice, the last."""
    unique = frame if frame.index.is_unique else frame[~frame.index.duplicated(keep="last")]
    rows = unique.index.get_indexer(pd.Index(steps))
    values = unique.to_numpy()[rows].astype("float64") if len(unique) else np.empty((len(steps), len(unique.columns)))
    return pd.DataFrame(np.where(rows[:, None] < 0, np.nan, values), columns=frame.columns)


def _moments(index: pd.Index[Any]) -> NDArray[np.int64]:
    """The first step, that of a quarter and of half of the way, and the last."""
    steps = np.unique(index.to_numpy(dtype="int64"))
    return steps[[0, (len(steps) - 1) // 4, (len(steps) - 1) // 2, -1]] if len(steps) else steps


def _are_weights(names: Sequence[str], meta: Mapping[str, Any]) -> dict[str, bool]:
    """Which parameters are matrices or kernels: by their shapes where these are known, else by their names."""
    shapes = {p["name"]: p["shape"] for p in meta.get("parameters") or () if "shape" in p}
    return {name: len(shapes[name]) > 1 if name in shapes else _is_named_weight(name) for name in names}


def _is_named_weight(name: str) -> bool:
    *modules, parameter = name.split(".")
    module = modules[-1].lower() if modules else ""
    return parameter == "weight" and module != "bn" and "norm" not in module


def gradient_depth_table(readings: Sequence[RunReading], depths: Mapping[str, Depths] | None = None) -> pd.DataFrame:
    """The gradient norm of every weight tensor in the order of the network, at a few moments.

    Args:
        readings: Runs in plan order.
        depths: :func:`depths_of` by run id, of runs that have forgotten their vectors; looked up where None.

    Returns:
        A row an arm, learning rate, moment and weight tensor, ``place`` counting these from the input. Of an arm at a
        rate the first 5 seeds are looked at. Moments are each run's own: the ``first`` step that it recorded, a
        ``quarter`` and ``half`` of the way, and the ``last``; these lay between ``step_low`` and ``step_high``.
        Median, ``low`` (least) and ``high`` (largest) are over the ``n`` seeds whose tensor had a finite gradient,
        ``nonfinite`` had NaN or infinity; to 4 digits.
    """
    parts = []
    for (arm, lr0), found in _by_group(readings, depths):
        chosen = [one for one in found if len(one.norms.columns)]
        names, values = _stacked([one.norms for one in chosen])
        for i, moment in enumerate(MOMENTS if chosen else ()):
            at = [int(one.norm_steps[i]) for one in chosen]
            numbers = significant(np.stack(spread(values[:, i])), _DIGITS)
            part: dict[str, Any] = {
                "arm": arm, "lr0": lr0, "moment": moment, "step_low": min(at), "step_high": max(at),
                "place": np.arange(len(names)), "tensor": names, "n": np.isfinite(values[:, i]).sum(axis=0),
                "nonfinite": np.isinf(values[:, i]).sum(axis=0),
                **{f"grad_norm_{end}": numbers[j] for j, end in enumerate(_ENDS)},
            }  # fmt: skip
            parts.append(part)
    kinds: Any = _DEPTH_COLUMNS
    columns = {name: _joined([part[name] for part in parts], [len(part["tensor"]) for part in parts]) for name in kinds}
    return pd.DataFrame(columns).astype(kinds)


def gains_table(readings: Sequence[RunReading], depths: Mapping[str, Depths] | None = None) -> pd.DataFrame:
    """What modules do to the size of activations and gradients, in the order of the network, at a few moments.

    Args:
        readings: Runs in plan order.
        depths: :func:`depths_of` by run id, of runs that have forgotten their vectors; looked up where None.

    Returns:
        A row an arm, learning rate, moment and module; none where no flow was recorded. Seeds, moments and ``place``
        are as :func:`gradient_depth_table` has them, moments among the sampled steps. Median, ``low`` and ``high`` of
        ``forward_gain``, ``backward_gain`` (both squared: 1 keeps the size) and ``activation_rms`` are over the finite
        values of ``n`` seeds, to 4 digits.
    """
    rows: list[list[object]] = []
    for (arm, lr0), found in _by_group(readings, depths):
        chosen = [one for one in found if len(one.flow_steps)]
        flows = {flow: _stacked([one.flows[flow] for one in chosen]) for flow in FLOWS}
        names = list(dict.fromkeys(name for flow in reversed(FLOWS) for name in flows[flow][0]))
        for i, moment in enumerate(MOMENTS if chosen else ()):
            at = [int(one.flow_steps[i]) for one in chosen]
            told: dict[str, list[float]] = {name: [] for name in names}
            for own, values in flows.values():
                places = {name: place for place, name in enumerate(own)}
                numbers = significant(np.stack(spread(values[:, i])), _DIGITS) if own else np.empty((3, 0))
                for name, all_ in told.items():
                    all_ += list(numbers[:, places[name]]) if name in places else [math.nan] * 3
            keys: list[object] = [arm, lr0, moment, min(at), max(at)]
            rows += [[*keys, place, name, len(chosen), *told[name]] for place, name in enumerate(names)]
    return typed(rows, _GAIN_COLUMNS)


def _by_group(
    readings: Sequence[RunReading], depths: Mapping[str, Depths] | None
) -> list[tuple[tuple[str, float], list[Depths]]]:
    """What the first seeds of each arm and learning rate say."""
    groups: dict[tuple[str, float], list[RunReading]] = {}
    for reading in readings:
        if reading.run is not None and len(reading.run.steps):
            groups.setdefault((reading.spec.arm, reading.spec.lr0), []).append(reading)
    found = {}
    for key, group in groups.items():
        seen = [(reading.spec.run_id, reading.run) for reading in group[:MOST_SEEDS]]
        if depths is None:
            found[key] = [depths_of(run) for _, run in seen if run is not None]
        else:
            found[key] = [depths[run_id] for run_id, _ in seen if run_id in depths]
    return list(found.items())


def _joined(values: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    """One column of many: a value stands for all rows of its part, an array has one for each."""
    pairs = zip(values, counts, strict=True)
    return [v for value, n in pairs for v in (value if isinstance(value, list | np.ndarray) else [value] * n)]


def _stacked(frames: Sequence[pd.DataFrame]) -> tuple[list[str], NDArray[np.float64]]:
    """The columns, and runs × moments × columns; missing where a run lacks one."""
    names = list(dict.fromkeys(str(name) for frame in frames for name in frame.columns))
    values = [frame.reindex(columns=names).to_numpy(dtype="float64") for frame in frames]
    return names, np.stack(values) if values else np.empty((0, 0, 0))
