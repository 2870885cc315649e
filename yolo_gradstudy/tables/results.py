# SPDX-License-Identifier: AGPL-3.0-or-later
"""What each run came to, a row a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Run, RunReading

TIME_COLUMNS = ("started", "duration_s")
"""The last columns of :func:`results_table`: what differs when the same run is run again."""

_INTEGERS = (
    "seed", "onset_step", "steps", "nonfinite_steps", "positives_last", "fixed_step_first", "stopped_at",
    "planned_steps", "attempts", "threads",
)  # fmt: skip
_RESULT_COLUMNS = (
    "run_id", "arm", "lr0", "seed", "outcome", "evidence", "onset_step", "onset_layer", "status", "error", "steps",
    "grad_norm_first", "grad_norm_median", "grad_norm_max", "nonfinite_steps", "clipped_share", "loss_last",
    "target_scores_first", "target_scores_last", "positives_last", "map50", "map50_95", "fixed_loss_first",
    "fixed_loss_last", "fixed_loss_chance", "fixed_step_first", "stopped_at", "planned_steps", "saved_share",
    "attempts", "weights_finite", "device", "threads", *TIME_COLUMNS,
)  # fmt: skip
_FLOATS = (
    "lr0", "grad_norm_first", "grad_norm_median", "grad_norm_max", "clipped_share", "loss_last",
    "target_scores_first", "target_scores_last", "map50", "map50_95", "fixed_loss_first",
    "fixed_loss_last", "fixed_loss_chance", "saved_share", "duration_s",
)  # fmt: skip


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
        has them. ``map50`` and ``map50_95`` are of the last epoch's validation, of the EMA in full precision; where
        no epochs are kept, of the one that Ultralytics ends with, of its best checkpoint as it is saved: in half
        precision, which very large weights do not survive.

        ``fixed_loss_first`` and ``fixed_loss_last`` are the first and the last validation loss with a fixed
        assignment of the branch that inference uses (``statistics.validation``), both of the EMA;
        ``fixed_step_first`` is the optimizer step of the first, 0 for the untrained model.
        ``fixed_loss_chance`` is what a detector reaches that has learned nothing: the class loss of one that
        does not look at the image, plus 1, the largest box loss there is.

        ``stopped_at``, ``planned_steps`` and ``saved_share`` (of the planned batches) tell of a run that its
        guard ended early, and are missing for every other. ``attempts`` counts the processes that the result
        took. The last two columns are times: ``started`` (ISO 8601) and ``duration_s`` (seconds).
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
            "map50": _metric(result.metrics, run, "metrics/mAP50("),
            "map50_95": _metric(result.metrics, run, "metrics/mAP50-95("),
            "weights_finite": result.weights_finite, "device": result.device, "threads": result.threads,
            "attempts": result.attempts,
            "started": result.started, "duration_s": result.duration_s,
        }  # fmt: skip
    if run is not None and len(run.steps):
        row |= _telemetry_row(run)
        row["steps"] = row.get("steps") or int(run.steps.index.max())
    return row if run is None else row | _validation_row(run) | _ending_row(run)


def _telemetry_row(run: Run) -> dict[str, Any]:
    steps = run.steps
    norms = column(steps, "grad_norm")
    finite = norms[np.isfinite(norms)]
    coefficients = clip_coefficients(run).dropna()
    scores = target_scores_per_box(run)
    known = scores.dropna()
    positives = _last(column(steps, f"positives_{run.meta.get('inference_branch')}"))
    return {
        "grad_norm_first": float(norms.iloc[0]),
        "grad_norm_median": float(finite.median()),
        "grad_norm_max": float(finite.max()) if len(finite) else math.nan,
        "nonfinite_steps": len(norms) - len(finite) if "grad_norm" in steps else None,
        "clipped_share": float((coefficients < 1).mean()) if len(coefficients) else math.nan,
        "loss_last": _last(column(steps, "loss")),
        "target_scores_first": float(known.iloc[0]) if len(known) else math.nan,
        "target_scores_last": _last(scores),
        "positives_last": round(positives) if math.isfinite(positives) else None,
    }


def _validation_row(run: Run) -> dict[str, Any]:
    branch, validations = run.meta.get("inference_branch"), run.validations
    losses = column(validations, f"fixed_loss_{branch}")
    if not len(losses):
        return {}
    steps = column(validations, "step")
    chance = _last(column(validations, f"fixed_chance_{branch}").dropna())
    return {
        "fixed_loss_first": float(losses.iloc[0]),
        "fixed_loss_last": float(losses.iloc[-1]),
        "fixed_loss_chance": chance + 1,
        "fixed_step_first": None if math.isnan(steps.iloc[0]) else int(steps.iloc[0]),
    }


def _ending_row(run: Run) -> dict[str, Any]:
    """What a guard that ended the run said; nothing where it was resumed after, and went on."""
    told: dict[str, Any] = {}
    for event in run.events:
        if event.get("event") == "ended_early":
            told = {
                "stopped_at": event.get("step"),
                "planned_steps": event.get("planned_steps"),
                "saved_share": event.get("saved_share"),
            }
        elif event.get("event") == "resumed":
            told = {}
    return told


def target_scores_per_box(run: Run) -> pd.Series[float]:
    """The target scores that a ground-truth box was given, in the branch that inference uses.

    Args:
        run: A recorded run.

    Returns:
        A number a recorded step, index ``step``; missing where the run has none, or the step had no box.
    """
    scores = column(run.steps, f"target_scores_{run.meta.get('inference_branch')}")
    boxes = column(run.steps, "boxes")
    return scores / boxes.where(boxes > 0)


def clip_coefficients(run: Run) -> pd.Series[float]:
    """The factor of every gradient, a number a recorded step; missing in a run that does not clip."""
    coefficients = column(run.steps, "clip_coefficient")
    return coefficients if run.meta.get("clip_norm", "unsaid") is not None else coefficients * math.nan


def column(steps: pd.DataFrame, name: str) -> pd.Series[float]:
    """A column as float64; all missing where it was not recorded."""
    if name in steps:
        return steps[name].astype("float64")
    return pd.Series(math.nan, index=steps.index, dtype="float64")


def _last(values: pd.Series[float]) -> float:
    return float(values.iloc[-1]) if len(values) else math.nan


def _metric(metrics: Mapping[str, float | None], run: Run | None, prefix: str) -> float:
    name, final = next(((k, v) for k, v in metrics.items() if k.startswith(prefix) and v is not None), ("", None))
    if final is None:
        return math.nan
    last = math.nan if run is None else _last(column(run.epochs, name))
    return last if math.isfinite(last) else float(final)
