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

_WINDOW = 0.05
"""Share of a run's recorded steps over which its share of clipped steps is taken."""

_LEAST_WINDOW = 5


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
        steps at which the clip was at work, over the twentieth of its recorded steps (5 at least) around the step.
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
    lasts = [run.steps[~run.steps.index.duplicated(keep="last")] for run in runs]
    steps = pd.Index(np.unique(np.concatenate([frame.index.to_numpy() for frame in lasts])), name="step")
    rows = [steps.get_indexer(frame.index) for frame in lasts]

    def over_seeds(series: Callable[[Run], pd.Series[float]]) -> NDArray[np.float64]:
        found = np.full((len(runs), len(steps)), np.nan)
        for i, run in enumerate(runs):
            values = series(run)
            found[i, rows[i]] = values[~values.index.duplicated(keep="last")].to_numpy()
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
    for reading, last in zip(readings, lasts, strict=True):
        if not reading.diagnosis.outcome.healthy and reading.diagnosis.outcome is not Outcome.UNKNOWN:
            ends.setdefault(steps.get_loc(last.index.max()), Counter())[str(reading.diagnosis.outcome)] += 1
    for at, outcomes in ends.items():
        made.loc[at, "ended"] = outcomes.total()
        made.loc[at, "ended_as"] = _named(outcomes)
    return made


def spread(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Median, least and largest of the finite values of each column; missing where it has none."""
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=0)  # missing ones come last
    n = np.isfinite(ordered).sum(axis=0)
    columns = np.arange(ordered.shape[1])
    low, high = ordered[(n - 1).clip(0) // 2, columns], ordered[n // 2, columns]
    middle = np.where(n % 2 == 1, low, low + (high - low) / 2)
    return middle, ordered[0], ordered[(n - 1).clip(0), columns]


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
    how = {"step": "first", "n": "max", "nonfinite": "max", "skipped": "sum", "ended": "sum"}
    by_suffix = {"median": "median", "low": "min", "high": "max"}
    how |= {name: by_suffix[name.rsplit("_", 1)[1]] for name in frame.columns if name not in (*how, "ended_as")}
    places = bins(len(frame), points)
    thinned = frame.groupby(places).agg(how).reset_index(drop=True)
    texts = frame["ended_as"].groupby(places).agg(lambda told: _joined(list(told)))
    return thinned.assign(ended_as=texts.to_numpy())[list(frame.columns)]


def _joined(texts: Sequence[str]) -> str:
    """The counts of several rows together."""
    counts: Counter[str] = Counter()
    for count, outcome in (part.split(" ") for text in texts if text for part in text.split(", ")):
        counts[outcome] += int(count)
    return _named(counts)
