# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long runs stay healthy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import CONTROL
from yolo_gradstudy.tables.frames import arms_and_rates, telling, typed
from yolo_gradstudy.tables.intervals import LEVEL, MISSING, NORMAL, RESAMPLES, SEED, Interval
from yolo_gradstudy.tables.times import Times, curve_of, median_step, times_of

_COLUMNS = {
    "arm": "str", "lr0": "float64", "n": "Int64", "n_excluded": "Int64", "unhealthy": "Int64", "tau": "Int64",
    **dict.fromkeys((
        "mean_steps", "se", "low", "high", "difference", "difference_se", "difference_low", "difference_high",
        "median_steps", "median_low", "median_high",
    ), "float64"),
}  # fmt: skip


def survival_table(results: pd.DataFrame) -> pd.DataFrame:
    """The steps that runs stay healthy, on average up to a common horizon, and at the median.

    The restricted mean needs no proportional hazards and no run that goes wrong: it is the area under the Kaplan–Meier
    curve up to ``tau`` (Irwin 1949, Journal of Hygiene 47, 188–189; Royston and Parmar 2013, BMC Medical Research
    Methodology 13, 152). ``tau`` is the smallest horizon of all runs, so that every row can be compared
    with every other. A run's horizon is what it was meant to train: its planned steps where a guard ended it, else its
    last step; a run that an error or a kill cut short has none.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm and learning rate. ``n`` runs are followed, censored ones among them, of which ``unhealthy``
        went wrong; ``n_excluded`` are unknown runs and those without a step. ``mean_steps`` with ``se`` is missing
        where no run is followed up to ``tau``; its variance is Irwin's times n/(n − 1), which is that of an ordinary
        mean where nothing is censored before ``tau``. ``low`` and ``high`` are normal, within 0 and ``tau``, and
        missing where no spread was seen, as where no run went wrong. ``difference`` is the mean less the control's;
        its ``difference_se`` is that of independent samples, which is rather too large for seeds that are paired, and
        too small where one of the two arms showed no spread. ``median_steps`` is the first step by which half of the
        runs went wrong, missing where fewer did; its interval is the percentile bootstrap's over runs, an end of
        which is missing where too few resamples have a median.
    """
    tau = _horizon(results)
    found = {}
    for arm, lr0, runs in arms_and_rates(results):
        times = times_of(runs)
        found[arm, lr0] = (len(runs), times, *_restricted_mean(times, tau))
    rows: list[list[object]] = []
    for (arm, lr0), (total, times, mean, se) in found.items():
        n = len(times.causes)
        difference = [math.nan] * 4
        if arm != CONTROL and (CONTROL, lr0) in found:
            *_, control_mean, control_se = found[CONTROL, lr0]
            gap, spread = mean - control_mean, math.hypot(se, control_se)
            difference = [gap, spread, *_normal(gap, spread, -tau, tau)]
        middle = median_step(times)
        median = [middle, *_median_interval(times)] if math.isfinite(middle) else [math.nan] * 3
        counts = [n, total - n, int(times.events.sum()), None if math.isnan(tau) else int(tau)]
        rows.append([arm, lr0, *counts, mean, se, *_normal(mean, se, 0.0, tau), *difference, *median])
    return typed(rows, _COLUMNS)


def _horizon(results: pd.DataFrame) -> float:
    runs = telling(results)
    whole = (runs["status"] == "finished") | runs["outcome"].isin([str(o) for o in Outcome if o.healthy])
    return float(runs["planned_steps"].fillna(runs["steps"].where(whole)).astype("float64").min())


def _normal(value: float, se: float, least: float, most: float) -> Interval:
    return (max(value - NORMAL * se, least), min(value + NORMAL * se, most)) if se > 0 else MISSING


def _restricted_mean(times: Times, tau: float) -> Interval:
    """The mean of min(step, tau) and its standard error."""
    n, curve = len(times.causes), curve_of(times)
    if not n or math.isnan(tau) or (curve.steps[-1] < tau and curve.after[-1] > 0):
        return MISSING
    variance = 0.0
    for step, at_risk, events in zip(curve.steps, curve.at_risk, curve.events, strict=True):
        if step < tau and at_risk > events > 0:
            variance += curve.area(step, tau) ** 2 * events / (at_risk * (at_risk - events))
    return curve.area(0.0, tau), math.sqrt(variance * n / (n - 1)) if n > 1 else math.nan


def _median_interval(times: Times) -> Interval:
    """The percentile bootstrap interval of the median step; an infinite end is missing."""
    n = len(times.causes)
    if n < 2:
        return MISSING
    picks = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
    medians = np.sort(_medians(times.steps[picks], times.events[picks]))
    tail = int((1 - LEVEL) / 2 * RESAMPLES)
    low, high = float(medians[tail]), float(medians[RESAMPLES - 1 - tail])
    return low if math.isfinite(low) else math.nan, high if math.isfinite(high) else math.nan


def _medians(steps: np.ndarray, events: np.ndarray) -> np.ndarray:
    """:func:`median_step` of many samples at once, a row a sample."""
    # Sorted with events before censorings at the same step, factors of one run each give the same product.
    order = np.lexsort((~events, steps), axis=1)
    steps, events = np.take_along_axis(steps, order, 1), np.take_along_axis(events, order, 1)
    at_risk = np.arange(steps.shape[1], 0, -1)
    below = np.cumprod(1 - events / at_risk, axis=1) <= 0.5 + 1e-12
    first = below.argmax(axis=1)
    return np.where(below.any(axis=1), np.take_along_axis(steps, first[:, None], 1)[:, 0], math.inf)
