# SPDX-License-Identifier: AGPL-3.0-or-later
"""How runs went, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from yolo_gradstudy.records import Outcome, Run, RunReading
from yolo_gradstudy.tables.arms import arm_order
from yolo_gradstudy.tables.results import clip_coefficients, column, target_scores_per_box

QUANTITIES = ("grad_norm", "loss", "target_scores", "clip_coefficient", "clipped_share", "update_ratio", "amp_scale")
"""What :func:`trajectories_table` has a ``_median``, ``_low`` and ``_high`` of."""

_KINDS: Mapping[str, str] = {
    "arm": "str", "lr0": "float64", **dict.fromkeys(("step", "n", "nonfinite"), "Int64"),
    **dict.fromkeys((f"{name}_{end}" for name in QUANTITIES for end in ("median", "low", "high")), "float64"),
    "skipped": "Int64", "ended": "Int64", "ended_as": "str",
}  # fmt: skip

_WINDOW = 0.1
"""Share of a run's recorded steps over which its share of clipped steps is taken."""

_LEAST_WINDOW = 10


def trajectories_table(readings: Sequence[RunReading], points: int = 400) -> pd.DataFrame:
    """How gradient norm, loss, target scores, clip, updates and AMP scale went, over the seeds of each arm and rate.

    Args:
        readings: The study's runs in plan order.
        points: Most rows of an arm at a learning rate. A longer series is cut into so many bins of
            consecutive steps; a bin has its first step, the largest ``high``, the smallest ``low``, the
            largest ``n`` and ``nonfinite``, the sum of ``skipped`` and of ``ended``, and the median of its medians:
            extremes survive.

    Returns:
        A row an arm, learning rate and step. ``n`` runs recorded the step, of which ``nonfinite`` had a NaN
        or infinite norm; medians, ``low`` (least) and ``high`` (largest) are over the finite values of the
        others. Target scores are those of the branch that inference uses, a ground-truth box.
        ``clip_coefficient`` and ``clipped_share`` are missing where nothing clips; the latter is the share of a run's
        steps at which the clip was at work, over the tenth of its recorded steps (10 at least) around the step.
        ``update_ratio`` is the norm of the update over that of the parameters, at the steps at which both were
        recorded. ``skipped`` runs had their step skipped by the loss scaler. ``ended`` runs that did not stay healthy
        have here the last step that they recorded, ``ended_as`` says what they are: ``2 collapsed, 1 nonfinite``.

    Raises:
        ValueError: ``points`` is below 1.
    """
    if points < 1:
        raise ValueError(f"points={points!r} is too few to draw; the nearest valid is 1.")
    groups: dict[tuple[str, float], list[RunReading]] = {}
    for reading in readings:
        if reading.run is not None and len(reading.run.steps):
            groups.setdefault((reading.spec.arm, reading.spec.lr0), []).append(reading)
    arms = arm_order(reading.spec.arm for reading in readings)
    frames = []
    for arm, lr0 in sorted(groups, key=lambda key: (arms.index(key[0]), key[1])):
        frame = _thinned(_trajectory(groups[arm, lr0]), points)
        frame.insert(0, "arm", arm)
        frame.insert(1, "lr0", lr0)
        frames.append(frame)
    kinds: Any = dict(_KINDS)
    joined = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(_KINDS))
    return joined[list(_KINDS)].astype(kinds)


def _trajectory(readings: Sequence[RunReading]) -> pd.DataFrame:
    runs = [reading.run for reading in readings if reading.run is not None]
    steps = pd.Index(np.unique(np.concatenate([run.steps.index.to_numpy() for run in runs])), name="step")
    rows = [steps.get_indexer(run.steps.index) for run in runs]

    def over_seeds(series: Callable[[Run], pd.Series[float]]) -> NDArray[np.float64]:
        found = np.full((len(runs), len(steps)), np.nan)
        for i, run in enumerate(runs):
            found[i, rows[i]] = series(run).to_numpy()  # of a step that stands twice, the last counts
        return found

    norms = over_seeds(lambda run: column(run.steps, "grad_norm"))
    recorded = np.zeros(norms.shape, dtype=bool)
    for i, at in enumerate(rows):
        recorded[i, at] = True
    frame: dict[str, Any] = {
        "step": steps.to_numpy(),
        "n": recorded.sum(axis=0),
        "nonfinite": (recorded & ~np.isfinite(norms)).sum(axis=0),
    }
    for name in QUANTITIES:
        values = norms if name == "grad_norm" else over_seeds(_SERIES[name])
        for end, numbers in zip(("median", "low", "high"), spread(values), strict=True):
            frame[f"{name}_{end}"] = numbers
    frame["skipped"] = (over_seeds(lambda run: column(run.steps, "skipped")) == 1).sum(axis=0)
    frame["ended"], frame["ended_as"] = 0, ""
    made = pd.DataFrame(frame)
    ends: dict[int, Counter[str]] = {}
    for reading, at in zip(readings, rows, strict=True):
        outcome = reading.diagnosis.outcome
        if not outcome.healthy and outcome is not Outcome.UNKNOWN:
            ends.setdefault(int(at.max()), Counter())[str(outcome)] += 1
    for last, outcomes in ends.items():
        made.loc[last, "ended"] = outcomes.total()
        made.loc[last, "ended_as"] = _named(outcomes)
    return made


def spread(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Median, least and largest of the finite values of each column; missing where it has none."""
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=0)  # missing ones come last
    n = np.isfinite(ordered).sum(axis=0)
    columns = np.arange(ordered.shape[1])
    low, high = ordered[(n - 1).clip(0) // 2, columns], ordered[n // 2, columns]
    return low + (high - low) / 2, ordered[0], ordered[(n - 1).clip(0), columns]


def _clipped_share(run: Run) -> pd.Series[float]:
    """The share of steps at which the clip was at work, around each step."""
    coefficients = clip_coefficients(run)
    clipped = (coefficients < 1).astype("float64").where(coefficients.notna())
    window = max(_LEAST_WINDOW, round(_WINDOW * len(clipped)))
    return clipped.rolling(window, center=True, min_periods=1).mean()


_SERIES: Mapping[str, Callable[[Run], pd.Series[float]]] = {
    "loss": lambda run: column(run.steps, "loss"),
    "target_scores": target_scores_per_box,
    "clip_coefficient": clip_coefficients,
    "clipped_share": _clipped_share,
    "update_ratio": lambda run: column(run.steps, "update_norm") / column(run.steps, "param_norm"),
    "amp_scale": lambda run: column(run.steps, "amp_scale"),
}


def _named(outcomes: Counter[str]) -> str:
    """As ``2 collapsed, 1 nonfinite``, in the order of outcomes."""
    return ", ".join(f"{outcomes[str(outcome)]} {outcome}" for outcome in Outcome if outcomes[str(outcome)])


def bins(rows: int, points: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The bin of each of ``rows`` consecutive rows: at most ``points`` bins, as even as can be."""
    return np.arange(rows, dtype=np.int64) * min(points, rows) // max(rows, 1)


def _thinned(frame: pd.DataFrame, points: int) -> pd.DataFrame:
    if len(frame) <= points:
        return frame
    places = bins(len(frame), points)
    starts = np.searchsorted(places, np.arange(points))
    sizes = np.diff(starts, append=len(frame))
    padded = np.full((sizes.max(), points), -1)  # the rows of each bin, a column a bin
    padded[np.arange(len(frame)) - starts[places], places] = np.arange(len(frame))
    thinned: dict[str, Any] = {}
    for name in frame.columns:
        values, end = frame[name].to_numpy(), name.rsplit("_", 1)[-1]
        if end in ("median", "low", "high"):
            middle, low, high = spread(np.where(padded < 0, np.nan, values[padded]))
            thinned[name] = {"median": middle, "low": low, "high": high}[end]
        elif name == "ended_as":
            thinned[name] = [_joined(values[i : i + size].tolist()) for i, size in zip(starts, sizes, strict=True)]
        else:
            how = {"step": np.minimum, "skipped": np.add, "ended": np.add}.get(name, np.maximum)
            thinned[name] = how.reduceat(values, starts)
    return pd.DataFrame(thinned)


def _joined(texts: Sequence[str]) -> str:
    """The counts of several rows together."""
    if not any(texts):
        return ""
    counts: Counter[str] = Counter()
    for count, outcome in (part.split(" ") for text in texts if text for part in text.split(", ")):
        counts[outcome] += int(count)
    return _named(counts)
