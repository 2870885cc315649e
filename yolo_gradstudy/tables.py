# SPDX-License-Identifier: AGPL-3.0-or-later
"""Results and outcomes as DataFrames: pure functions, which read and write no file.

Missing is missing, never 0. Counts of runs and steps are nullable integers (``Int64``). Norms are
gradient norms before clipping, in the units of the loss over those of a weight, over the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from yolo_gradstudy.records import Outcome, Run, RunReading

CONTROL = "control"
UNHEALTHY = "unhealthy"
"""The aggregate row of :func:`outcomes_table`: nonfinite, exploded, collapsed or stuck."""

TIME_COLUMNS = ("started", "duration_s")
"""The last columns of :func:`results_table`: what differs when the same run is run again."""

_INTEGERS = ("seed", "onset_step", "steps", "nonfinite_steps", "positives_last", "threads")
_RESULT_COLUMNS = (
    "run_id", "arm", "lr0", "seed", "outcome", "evidence", "onset_step", "onset_layer", "status", "error", "steps",
    "grad_norm_first", "grad_norm_median", "grad_norm_max", "nonfinite_steps", "clipped_share", "loss_last",
    "target_scores_first", "target_scores_last", "positives_last", "map50", "map50_95", "weights_finite",
    "device", "threads", *TIME_COLUMNS,
)  # fmt: skip
_FLOATS = (
    "lr0", "grad_norm_first", "grad_norm_median", "grad_norm_max", "clipped_share", "loss_last",
    "target_scores_first", "target_scores_last", "map50", "map50_95", "duration_s",
)  # fmt: skip
_OUTCOME_COLUMNS = (
    "arm", "lr0", "outcome", "count", "n", "n_excluded", "share", "wilson_low", "wilson_high", "cp_low", "cp_high",
)  # fmt: skip
_TRAJECTORY_COLUMNS = (
    "arm", "lr0", "step", "n", "nonfinite", "grad_norm_median", "grad_norm_low", "grad_norm_high", "loss_median",
    "target_scores_median", "target_scores_low", "target_scores_high",
)  # fmt: skip


def arm_order(arms: Iterable[str]) -> list[str]:
    """The distinct arms in the order in which they come, the control first."""
    distinct = list(dict.fromkeys(arms))
    return sorted(distinct, key=lambda arm: arm != CONTROL)


def results_table(readings: Sequence[RunReading]) -> pd.DataFrame:
    """What each run came to.

    Args:
        readings: The study's runs in plan order.

    Returns:
        A row a run, in the order given: ``run_id``, ``arm``, ``lr0``, ``seed``, the verdict (``outcome``,
        ``evidence``, ``onset_step``, ``onset_layer``), how the process ended (``status``, ``error``,
        ``steps``), and numbers. ``grad_norm_median`` and ``grad_norm_max`` are over the finite norms;
        ``nonfinite_steps`` counts the others. ``clipped_share`` is the share of steps whose clip coefficient
        was below 1, missing where nothing clips. Target scores are those of the branch that inference uses,
        summed and divided by the number of ground-truth boxes of the step; ``first`` is the first step that
        has them. ``map50`` and ``map50_95`` are of the final validation. The last two columns are times:
        ``started`` (ISO 8601) and ``duration_s`` (seconds).
    """
    rows = [_result_row(reading) for reading in readings]
    frame = pd.DataFrame(rows, columns=list(_RESULT_COLUMNS))
    kinds: dict[str, Any] = dict.fromkeys(_RESULT_COLUMNS, "str")
    kinds |= dict.fromkeys(_INTEGERS, "Int64") | dict.fromkeys(_FLOATS, "float64")
    return frame.astype({**kinds, "weights_finite": "boolean"})


def _result_row(reading: RunReading) -> dict[str, Any]:
    spec, run, result, diagnosis = reading.spec, reading.run, reading.result, reading.diagnosis
    row: dict[str, Any] = {
        "run_id": spec.run_id, "arm": spec.arm, "lr0": spec.lr0, "seed": spec.seed,
        "outcome": str(diagnosis.outcome), "evidence": diagnosis.evidence,
        "onset_step": diagnosis.onset_step, "onset_layer": diagnosis.onset_layer,
    }  # fmt: skip
    if result is not None:
        row |= {
            "status": result.status, "error": result.error, "steps": result.steps,
            "map50": _metric(result.metrics, "metrics/mAP50("),
            "map50_95": _metric(result.metrics, "metrics/mAP50-95("),
            "weights_finite": result.weights_finite, "device": result.device, "threads": result.threads,
            "started": result.started, "duration_s": result.duration_s,
        }  # fmt: skip
    if run is not None and len(run.steps):
        row |= _telemetry_row(run)
        row["steps"] = row.get("steps") or int(run.steps.index.max())
    return row


def _telemetry_row(run: Run) -> dict[str, Any]:
    steps = run.steps
    norms = _column(steps, "grad_norm")
    finite = norms[np.isfinite(norms)]
    coefficients = _column(steps, "clip_coefficient").dropna()
    clips = len(coefficients) > 0 and run.meta.get("clip_norm", "unsaid") is not None
    scores = target_scores_per_box(run)
    known = scores.dropna()
    positives = _last(_column(steps, f"positives_{run.meta.get('inference_branch')}"))
    return {
        "grad_norm_first": float(norms.iloc[0]),
        "grad_norm_median": float(finite.median()),
        "grad_norm_max": float(finite.max()) if len(finite) else math.nan,
        "nonfinite_steps": len(norms) - len(finite) if "grad_norm" in steps else None,
        "clipped_share": float((coefficients < 1).mean()) if clips else math.nan,
        "loss_last": _last(_column(steps, "loss")),
        "target_scores_first": float(known.iloc[0]) if len(known) else math.nan,
        "target_scores_last": _last(scores),
        "positives_last": round(positives) if math.isfinite(positives) else None,
    }


def target_scores_per_box(run: Run) -> pd.Series[float]:
    """The target scores that a ground-truth box was given, in the branch that inference uses.

    Args:
        run: A recorded run.

    Returns:
        A number a recorded step, index ``step``; missing where the run has none, or the step had no box.
    """
    scores = _column(run.steps, f"target_scores_{run.meta.get('inference_branch')}")
    boxes = _column(run.steps, "boxes")
    return scores / boxes.where(boxes > 0)


def _column(steps: pd.DataFrame, name: str) -> pd.Series[float]:
    """A column as float64; all missing where it was not recorded."""
    if name in steps:
        return steps[name].astype("float64")
    return pd.Series(math.nan, index=steps.index, dtype="float64")


def _last(values: pd.Series[float]) -> float:
    return float(values.iloc[-1]) if len(values) else math.nan


def _metric(metrics: Any, prefix: str) -> float:
    return next((float(v) for k, v in metrics.items() if k.startswith(prefix) and v is not None), math.nan)


def outcomes_table(results: pd.DataFrame) -> pd.DataFrame:
    """How often each outcome occurred, with intervals.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm, learning rate and outcome: every outcome that occurs anywhere in ``results``, then
        ``unhealthy``, their aggregate. ``n`` counts the runs that say something: failed, interrupted and
        unknown ones are in ``n_excluded`` instead, and rows of those outcomes have a count and no share.
        ``wilson_low`` and ``wilson_high`` bound the share at 95% after Wilson (1927), ``cp_low`` and
        ``cp_high`` after Clopper and Pearson (1934), which is exact and is the one to quote for "never".
    """
    occurring = [outcome for outcome in Outcome if (results["outcome"] == str(outcome)).any()]
    rows = []
    for arm in arm_order(results["arm"]):
        of_arm = results[results["arm"] == arm]
        for lr0 in sorted(of_arm["lr0"].unique()):
            found = [Outcome(name) for name in of_arm.loc[of_arm["lr0"] == lr0, "outcome"]]
            n = sum(_tells(outcome) for outcome in found)
            counts = {str(outcome): (found.count(outcome), _tells(outcome)) for outcome in occurring}
            counts[UNHEALTHY] = (sum(outcome.unhealthy for outcome in found), True)
            for name, (count, tells) in counts.items():
                share = _share(count, n) if tells and n else [math.nan] * 5
                rows.append([arm, lr0, name, count, n, len(found) - n, *share])
    frame = pd.DataFrame(rows, columns=list(_OUTCOME_COLUMNS))
    kinds: dict[str, Any] = dict.fromkeys(_OUTCOME_COLUMNS, "float64")
    return frame.astype(kinds | {"arm": "str", "outcome": "str", "count": "Int64", "n": "Int64", "n_excluded": "Int64"})


def _tells(outcome: Outcome) -> bool:
    """Whether a run of this outcome says anything of stability."""
    return outcome.healthy or outcome.unhealthy


def _share(count: int, n: int) -> list[float]:
    """The share with its Wilson and its exact 95% interval."""
    test = stats.binomtest(count, n)
    wilson, exact = test.proportion_ci(method="wilson"), test.proportion_ci(method="exact")
    share = count / n
    # Rounding may put Wilson's end past a share of 0 or 1 by an ulp.
    low, high = min(max(float(wilson.low), 0.0), share), max(min(float(wilson.high), 1.0), share)
    return [share, low, high, float(exact.low), float(exact.high)]


def outcome_text_table(results: pd.DataFrame) -> pd.DataFrame:
    """The outcomes of each arm at each learning rate in words, for a terminal, a README and the page.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm (column ``arm``, the control first), a column a learning rate (``lr0 0.01``), and text
        such as ``2 collapsed, 1 stable``; ``–`` where the arm has no run at that rate.
    """
    rates = sorted(results["lr0"].unique())
    rows = []
    for arm in arm_order(results["arm"]):
        row = {"arm": arm}
        for lr0 in rates:
            found = list(results.loc[(results["arm"] == arm) & (results["lr0"] == lr0), "outcome"])
            counts = [(found.count(str(outcome)), outcome) for outcome in Outcome]
            row[f"lr0 {lr0:g}"] = ", ".join(f"{count} {outcome}" for count, outcome in counts if count) or "–"
        rows.append(row)
    return pd.DataFrame(rows, columns=["arm", *(f"lr0 {lr0:g}" for lr0 in rates)], dtype="str")


def to_markdown(frame: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table, without its index; missing values are ``–``."""

    def line(cells: Iterable[Any]) -> str:
        texts = ("–" if pd.isna(c) else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells)
        return "| " + " | ".join(" ".join(t.replace("|", "\\|").split()) for t in texts) + " |"

    return "\n".join([line(frame.columns), "|---" * len(frame.columns) + "|", *map(line, frame.values.tolist())]) + "\n"


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

    norms = over_seeds(lambda run: _column(run.steps, "grad_norm")).sort_index()
    recorded = over_seeds(lambda run: pd.Series(1.0, index=run.steps.index)).sort_index().notna()
    losses = over_seeds(lambda run: _column(run.steps, "loss")).sort_index()
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


def _bins(rows: int, points: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The bin of each of ``rows`` consecutive rows: at most ``points`` bins, as even as can be."""
    return np.arange(rows, dtype=np.int64) * min(points, rows) // max(rows, 1)


def _thinned(frame: pd.DataFrame, points: int) -> pd.DataFrame:
    if len(frame) <= points:
        return frame
    how = {"step": "first", "n": "max", "nonfinite": "max"}
    by_suffix = {"median": "median", "low": "min", "high": "max"}
    how |= {name: by_suffix[name.rsplit("_", 1)[1]] for name in frame.columns if name not in how}
    return frame.groupby(_bins(len(frame), points)).agg(how).reset_index(drop=True)


def layer_table(run: Run, quantity: str = "grad_norm", points: int = 100) -> pd.DataFrame:
    """A quantity of every parameter tensor at every step, for a heatmap.

    Args:
        run: A recorded run.
        quantity: ``grad_norm``, ``param_norm`` or ``update_ratio``.
        points: Most rows; a longer run is cut into so many bins of consecutive steps, of which a row has
            the first step and the largest value.

    Returns:
        ``step``, then a column a parameter tensor in the order of the model; no rows where the run has
        none of the quantity. Infinite where the value was NaN or infinite; missing where the tensor had no
        gradient, as the box convolutions of a head without positives. Tensors that never had one are left
        out. A NaN is told from a missing value by the step's global norm, which a NaN makes NaN.

    Raises:
        ValueError: ``points`` is below 1, or there is no such quantity.
    """
    if points < 1:
        raise ValueError(f"points={points!r} is too few to draw; the nearest valid is 1.")
    layers = run.layers(quantity)
    layers = layers[~layers.index.duplicated(keep="last")]
    norms = _column(run.steps, "grad_norm")
    norms = norms[~norms.index.duplicated(keep="last")].reindex(layers.index)
    values = layers.to_numpy(dtype="float64")
    broken = np.isinf(values) | (np.isnan(values) & ~np.isfinite(norms.to_numpy())[:, None])
    values = np.where(broken, math.inf, values)
    starts = np.unique(_bins(len(values), points), return_index=True)[1]
    if len(starts):
        values = np.fmax.reduceat(values, starts, axis=0)
    present = ~np.isnan(values).all(axis=0)
    frame = pd.DataFrame(values[:, present], columns=layers.columns[present])
    frame.insert(0, "step", pd.Series(layers.index.to_numpy()[starts], dtype="Int64"))
    return frame


TABLES: dict[str, Callable[..., pd.DataFrame]] = {
    "results_table": results_table,
    "outcomes_table": outcomes_table,
    "outcome_text_table": outcome_text_table,
    "trajectories_table": trajectories_table,
    "layer_table": layer_table,
}
"""Every table, by its function's name."""
