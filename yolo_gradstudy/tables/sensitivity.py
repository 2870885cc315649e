# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a wrong learning rate costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import CONTROL, arm_order
from yolo_gradstudy.tables.frames import typed
from yolo_gradstudy.tables.intervals import MISSING, bootstrap_interval, mean

_COLUMNS = {
    "arm": "str", **dict.fromkeys(("rates", "n", "n_excluded", "n_unlearned"), "Int64"),
    **dict.fromkeys(("best_loss", "sensitivity", "low", "high"), "float64"), "n_pairs": "Int64",
    **dict.fromkeys(("difference", "difference_low", "difference_high"), "float64"), "reason": "str",
}  # fmt: skip
_NEEDED = ("seed", "lr0", "outcome", "fixed_loss_first", "fixed_loss_last", "fixed_loss_chance", "fixed_step_first")
_CURVE_COLUMNS = {
    "arm": "str", "lr0": "float64", **dict.fromkeys(("n", "n_excluded", "n_capped"), "Int64"),
    **dict.fromkeys(("loss_median", "loss_low", "loss_high", "initial_loss"), "float64"),
}  # fmt: skip


def sensitivity_table(results: pd.DataFrame) -> pd.DataFrame:
    """Learning-rate sensitivity: how much worse than its best an arm ends on average over the learning rates.

    Of an arm and seed, the mean over the rates of min(loss, initial loss) less the least of these (Wortsman et al.
    2023, arXiv:2309.14322, §2.2), on the validation loss with a fixed assignment, ``fixed_loss_last``. The rates are
    those that every arm has, and should be even on a log scale. The initial loss is that of the untrained model where
    it was validated (``fixed_step_first`` is 0), and otherwise ``fixed_loss_chance``, which depends on the data alone.

    A dead detector cannot make the fixed loss small: without looking at the image no class loss is below chance but by
    guessing from the place in it. Two ways to a small loss are left to a run that went wrong: validation is of the EMA,
    which remembers weights from before, and the box loss may be good where the classes are dead. So a
    non-finite, exploded or collapsed run counts as the initial loss whatever its own, and so does a loss that
    is not finite.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm. ``rates`` in the grid; ``n`` seeds with a value, in nats an object. ``n_excluded`` seeds lack a
        run, a verdict or a loss at a rate; ``n_unlearned`` are below the initial loss at no rate, so that they
        have no best and would otherwise seem insensitive: where there are such, the others flatter the arm.
        ``best_loss`` is the mean of the seeds' least losses. ``difference`` is the mean over ``n_pairs`` seeds of
        the arm's value less the control's. Intervals are the percentile bootstrap's over seeds. ``reason`` says why
        there is no value.
    """
    rates = _common_rates(results)
    values: dict[str, dict[int, float]] = {}
    rows: list[list[object]] = []
    for arm in arm_order(results["arm"]):
        seeds, told = _losses_by_seed(results[results["arm"] == arm], rates)
        best = {seed: min(found) for seed, (found, initial) in told.items() if min(found) < initial}
        values[arm] = {seed: float(np.mean(told[seed][0])) - least for seed, least in best.items()}
        own = list(values[arm].values())
        paired = [] if arm == CONTROL else sorted(values[arm].keys() & values.get(CONTROL, {}).keys())
        gaps = [values[arm][seed] - values[CONTROL][seed] for seed in paired]
        counts = [len(rates), len(own), seeds - len(told), len(told) - len(own)]
        means = [mean(list(best.values())), mean(own), *bootstrap_interval(own, "mean")]
        compared = [len(gaps), mean(gaps), *(bootstrap_interval(gaps, "mean") if gaps else MISSING)]
        rows.append([arm, *counts, *means, *compared, _reason(len(rates), own, len(told))])
    return typed(rows, _COLUMNS)


def sensitivity_curves_table(results: pd.DataFrame) -> pd.DataFrame:
    """The loss that an arm ends with at each learning rate, as :func:`sensitivity_table` counts it.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm and each learning rate that all arms have, of which there are two at least. ``loss_median``,
        ``loss_low`` (least) and ``loss_high`` (largest) are of min(loss, initial loss) over the ``n`` seeds that have a
        verdict and a loss at every rate, in nats an object; ``n_excluded`` seeds have not. ``n_capped`` of them count
        as the initial loss there, of which ``initial_loss`` is the median.
    """
    rates = _common_rates(results)
    rows: list[list[object]] = []
    for arm in arm_order(results["arm"]) if len(rates) > 1 else []:
        seeds, told = _losses_by_seed(results[results["arm"] == arm], rates)
        initial = [initial for _, initial in told.values()]
        for i, rate in enumerate(rates):
            losses = [found[i] for found, _ in told.values()]
            capped = sum(loss >= most for loss, most in zip(losses, initial, strict=True))
            numbers = [float(of(losses)) if losses else math.nan for of in (np.median, np.min, np.max)]
            middle = float(np.median(initial)) if initial else math.nan
            rows.append([arm, rate, len(told), seeds - len(told), capped, *numbers, middle])
    return typed(rows, _CURVE_COLUMNS)


def _common_rates(results: pd.DataFrame) -> list[float]:
    """The learning rates that every arm has."""
    grids: list[set[float]] = [set(results.loc[results["arm"] == arm, "lr0"]) for arm in arm_order(results["arm"])]
    return sorted(set.intersection(*grids)) if grids else []


def _losses_by_seed(of_arm: pd.DataFrame, rates: list[float]) -> tuple[int, dict[int, tuple[list[float], float]]]:
    """How many seeds an arm has, and :func:`_capped_losses` of those that have them; of none with a single rate."""
    runs: dict[int, list[dict[str, Any]]] = {}
    for run in of_arm[list(_NEEDED)].to_dict("records"):
        runs.setdefault(int(run["seed"]), []).append({str(name): value for name, value in run.items()})
    losses = {seed: _capped_losses(found, rates) for seed, found in runs.items()} if len(rates) > 1 else {}
    return len(runs), {seed: found for seed, found in losses.items() if found is not None}


def _reason(rates: int, values: list[float], told: int) -> str:
    if values:
        return ""
    if rates < 2:
        return f"every arm has {rates} learning rates in common, it takes two"
    return "no seed has learned at any rate" if told else "no seed has a verdict and a loss at every rate"


def _capped_losses(runs: list[dict[str, Any]], rates: list[float]) -> tuple[list[float], float] | None:
    """The losses of one seed at each rate, none above the initial loss, and that; None where one is not known."""
    initial = next((value for value in map(_initial, runs) if math.isfinite(value)), math.nan)
    by_rate = {run["lr0"]: run for run in runs}
    found = []
    for rate in rates:
        run = by_rate.get(rate)
        if math.isnan(initial) or run is None or not Outcome(run["outcome"]).tells:
            return None
        loss = float(run["fixed_loss_last"])
        if Outcome(run["outcome"]).broken:
            loss = initial
        elif math.isnan(loss) and pd.isna(run["fixed_step_first"]):  # not validated
            return None
        found.append(min(loss, initial) if math.isfinite(loss) else initial)
    return found, initial


def _initial(run: Mapping[str, Any]) -> float:
    untrained = not pd.isna(run["fixed_step_first"]) and run["fixed_step_first"] == 0
    return float(run["fixed_loss_first"] if untrained else run["fixed_loss_chance"])
