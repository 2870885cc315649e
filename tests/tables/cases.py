# SPDX-License-Identifier: AGPL-3.0-or-later
"""One row a table: a call of it on a small study, and the columns it promises first."""

from __future__ import annotations

import numpy as np
import pandas as pd
from synthetic import FakeRun, make_reading, make_result, make_spec, scalars

from yolo_gradstudy.tables import (
    accuracy_table,
    comparisons_table,
    effects_table,
    gains_table,
    gradient_depth_table,
    incidence_table,
    layer_table,
    limit_ratios_table,
    limits_table,
    lr50_table,
    medians_table,
    outcome_text_table,
    outcomes_table,
    over_rates_table,
    results_table,
    saved_table,
    sensitivity_curves_table,
    sensitivity_table,
    survival_table,
    trajectories_table,
)


def fake_run(kind="stable", seed=0, steps=20, **changes):
    index = pd.RangeIndex(1, steps + 1, name="step")
    frame = pd.DataFrame({**scalars(kind, seed, steps), **changes}, index=index).astype("float32")
    layers = pd.DataFrame({"model.0.weight": frame["grad_norm"] * 0.6, "model.1.weight": frame["grad_norm"] * 0.8})
    return FakeRun(frame, layers)


def readings():
    """Control and no_clip at two learning rates with two seeds; one run failed, one left nothing."""
    spec = make_spec("no_clip", 0.1, 1)
    return [
        make_reading(run=fake_run(), result=make_result(make_spec())),
        make_reading(seed=1, run=fake_run(seed=1), result=make_result(make_spec(seed=1))),
        make_reading(lr0=0.1, run=fake_run("collapsed", steps=50), outcome="collapsed"),
        make_reading(lr0=0.1, seed=1, outcome="interrupted"),
        make_reading("no_clip", 0.01, 0, run=fake_run(), result=make_result(make_spec("no_clip"))),
        make_reading("no_clip", 0.01, 1, "failed", result=make_result(spec, status="failed", error="E.", steps=0)),
        make_reading("no_clip", 0.1, 0, "nonfinite", run=fake_run("nonfinite")),
        make_reading("no_clip", 0.1, 1, "nonfinite", run=fake_run("nonfinite", 1)),
    ]


MODULES = ("model.0", "model.0.conv", "model.1", "model.2")


def mixed_precision_run(seed=0, steps=20):
    """A run with updates every fifth step, an AMP scale that is halved where a step was skipped, and flow."""
    t = np.arange(steps)
    scalars = {
        "param_norm": np.where(t % 5, np.nan, 80.0),
        "update_norm": np.where(t % 5, np.nan, 0.08 * (1 + seed)),
        "skipped": (t == 4 + seed).astype(float),
        "amp_scale": np.where(t <= 4 + seed, 2.0**16, 2.0**15),
    }
    run = fake_run("stable", seed, steps, **scalars)
    index = pd.Index([1, 11], name="step")
    gains = pd.DataFrame([[0.5, 0.25, 2.0, 1.0]] * 2, index=index, columns=list(MODULES)) * (1 + seed)
    backward = gains.assign(**{"model.0": np.nan, "model.0.conv": np.nan})
    run._flows = {"activation_rms": gains * 3, "forward_gain": gains, "backward_gain": backward}
    return run


def mixed_precision():
    """Two seeds of the control."""
    return [make_reading(seed=seed, run=mixed_precision_run(seed)) for seed in (0, 1)]


DESIGN = {"control": {"clip": None}, "no_clip": {"clip": "off"}}


def frame_of(runs, **columns):
    """A results table of (arm, lr0, seed, outcome), healthy at 60 steps; columns are values or a value a run."""
    frame = results_table([make_reading(*run, result=make_result(make_spec(*run[:3]))) for run in runs])
    return frame.assign(**columns).astype({name: frame[name].dtype for name in columns})


def search():
    """Control and no_clip over four rates with two seeds; no_clip breaks two rates earlier."""
    return frame_of(
        [
            (arm, lr0, seed, "collapsed" if lr0 > limit else "stable")
            for arm, limit in (("control", 0.4), ("no_clip", 0.1))
            for lr0 in (0.1, 0.2, 0.4, 0.8)
            for seed in (0, 1)
        ],
        fixed_loss_last=7.0,
        fixed_loss_chance=9.0,
        fixed_step_first=8,
        map50_95=0.5,
    )


CASES = {
    "results_table": (lambda: results_table(readings()), ["run_id", "arm", "lr0", "seed", "outcome"], 8),
    "outcomes_table": (lambda: outcomes_table(results_table(readings())), ["arm", "lr0", "outcome", "count", "n"], 24),
    "outcome_text_table": (lambda: outcome_text_table(results_table(readings())), ["arm", "lr0 0.01", "lr0 0.1"], 2),
    "trajectories_table": (lambda: trajectories_table(readings()), ["arm", "lr0", "step", "n", "nonfinite"], 110),
    "layer_table": (lambda: layer_table(fake_run()), ["step", "model.0.weight", "model.1.weight"], 20),
    "gradient_depth_table": (lambda: gradient_depth_table(readings()), ["arm", "lr0", "moment", "step_low"], 32),
    "gains_table": (lambda: gains_table(mixed_precision()), ["arm", "lr0", "moment", "step_low"], 16),
    "comparisons_table": (lambda: comparisons_table(search()), ["arm", "lr0", "n", "n_excluded"], 4),
    "over_rates_table": (lambda: over_rates_table(search()), ["arm", "rates", "seeds", "n", "n_excluded"], 1),
    "incidence_table": (lambda: incidence_table(search()), ["arm", "lr0", "cause", "step", "n", "n_excluded"], 32),
    "survival_table": (lambda: survival_table(search()), ["arm", "lr0", "n", "n_excluded"], 8),
    "medians_table": (lambda: medians_table(search()), ["arm", "lr0", "quantity", "n"], 48),
    "accuracy_table": (lambda: accuracy_table(search()), ["arm", "lr0", "n", "n_excluded", "n_broken"], 8),
    "sensitivity_table": (lambda: sensitivity_table(search()), ["arm", "rates", "n", "n_excluded"], 2),
    "sensitivity_curves_table": (lambda: sensitivity_curves_table(search()), ["arm", "lr0", "n", "n_excluded"], 8),
    "saved_table": (lambda: saved_table(search()), ["arm", "n", "n_excluded"], 3),
    "limits_table": (lambda: limits_table(search(), 2), ["arm", "seed", "largest_stable", "first_broken", "bound"], 4),
    "limit_ratios_table": (lambda: limit_ratios_table(limits_table(search(), 2)), ["arm", "limit_median"], 2),
    "lr50_table": (lambda: lr50_table(search()), ["arm", "n", "n_excluded"], 2),
    "effects_table": (lambda: effects_table(limits_table(search(), 2), DESIGN), ["effect", "order", "n"], 1),
}
"""Function's name → its call, its first columns, its number of rows."""
