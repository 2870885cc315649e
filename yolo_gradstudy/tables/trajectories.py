# SPDX-License-Identifier: AGPL-3.0-or-later
"""How runs went, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Run, RunReading
from yolo_gradstudy.tables.arms import arm_order
from yolo_gradstudy.tables.results import column, target_scores_per_box

_TRAJECTORY_COLUMNS = (
    "arm", "lr0", "step", "n", "nonfinite", "grad_norm_median", "grad_norm_low", "grad_norm_high", "loss_median",
    "target_scores_median", "target_scores_low", "target_scores_high",
)  # fmt: skip


def trajectories_table(readings: Sequence[RunReading], points: int = 400) -> pd.DataFrame:
    """How gradient norm, loss and target scores went, over the seeds of each arm and learning rate.

    Args:
        readings: The study's runs in plan order.
        points: Most rows of an arm at a learning rate. A longer series is cut into so many bins of
            consecutive steps; a bin has its first step, the largest ``high``, the smallest ``low``, the
            largest ``n`` and ``nonfinite``, and the median of its medians: extremes survive.

    Returns:
        A row an arm, learning rate and step. ``n`` runs recorded the step, of which ``nonfinite`` had a NaN
        or infinite norm; medians, ``low`` (least) and ``high`` (largest) are over the finite values of the
        others. Target scores are those of the branch that inference uses, a ground-truth box.

    Raises:
        ValueError: ``points`` is below 1.
    """
    if points < 1:
        raise ValueError(f"points={points!r} is too few to draw; the nearest valid is 1.")
    groups: dict[tuple[str, float], list[Run]] = {}
    for reading in readings:
        if reading.run is not None and len(reading.run.steps):
            groups.setdefault((reading.spec.arm, reading.spec.lr0), []).append(reading.run)
    arms = arm_order(reading.spec.arm for reading in readings)
    frames = []
    for arm, lr0 in sorted(groups, key=lambda key: (arms.index(key[0]), key[1])):
        frame = _thinned(_trajectory(groups[arm, lr0]), points)
        frame.insert(0, "arm", arm)
        frame.insert(1, "lr0", lr0)
        frames.append(frame)
    kinds: dict[str, Any] = dict.fromkeys(_TRAJECTORY_COLUMNS, "float64")
    kinds |= {"arm": "str", "step": "Int64", "n": "Int64", "nonfinite": "Int64"}
    joined = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(_TRAJECTORY_COLUMNS))
    return joined[list(_TRAJECTORY_COLUMNS)].astype(kinds)


def _trajectory(runs: Sequence[Run]) -> pd.DataFrame:
    def over_seeds(series: Callable[[Run], pd.Series[float]]) -> pd.DataFrame:
        values = [series(run) for run in runs]
        return pd.concat([v[~v.index.duplicated(keep="last")] for v in values], axis=1, keys=range(len(runs)))

    norms = over_seeds(lambda run: column(run.steps, "grad_norm")).sort_index()
    recorded = over_seeds(lambda run: pd.Series(1.0, index=run.steps.index)).sort_index().notna()
    losses = over_seeds(lambda run: column(run.steps, "loss")).sort_index()
    scores = over_seeds(target_scores_per_box).sort_index()
    finite, losses, scores = (frame.where(np.isfinite(frame)) for frame in (norms, losses, scores))
    return pd.DataFrame(
        {
            "step": norms.index.to_numpy(),
            "n": recorded.sum(axis=1).to_numpy(),
            "nonfinite": (recorded & finite.isna()).sum(axis=1).to_numpy(),
            "grad_norm_median": finite.median(axis=1).to_numpy(),
            "grad_norm_low": finite.min(axis=1).to_numpy(),
            "grad_norm_high": finite.max(axis=1).to_numpy(),
            "loss_median": losses.median(axis=1).to_numpy(),
            "target_scores_median": scores.median(axis=1).to_numpy(),
            "target_scores_low": scores.min(axis=1).to_numpy(),
            "target_scores_high": scores.max(axis=1).to_numpy(),
        }
    )


def bins(rows: int, points: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The bin of each of ``rows`` consecutive rows: at most ``points`` bins, as even as can be."""
    return np.arange(rows, dtype=np.int64) * min(points, rows) // max(rows, 1)


def _thinned(frame: pd.DataFrame, points: int) -> pd.DataFrame:
    if len(frame) <= points:
        return frame
    how = {"step": "first", "n": "max", "nonfinite": "max"}
    by_suffix = {"median": "median", "low": "min", "high": "max"}
    how |= {name: by_suffix[name.rsplit("_", 1)[1]] for name in frame.columns if name not in how}
    return frame.groupby(bins(len(frame), points)).agg(how).reset_index(drop=True)
