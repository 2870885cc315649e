# SPDX-License-Identifier: AGPL-3.0-or-later
"""One row a table: a call of it on a small study, and the columns it promises first."""

from __future__ import annotations

import pandas as pd
from synthetic import FakeRun, make_reading, make_result, make_spec, scalars

from yolo_gradstudy.tables import (
    layer_table,
    outcome_text_table,
    outcomes_table,
    results_table,
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


CASES = {
    "results_table": (lambda: results_table(readings()), ["run_id", "arm", "lr0", "seed", "outcome"], 8),
    "outcomes_table": (lambda: outcomes_table(results_table(readings())), ["arm", "lr0", "outcome", "count", "n"], 24),
    "outcome_text_table": (lambda: outcome_text_table(results_table(readings())), ["arm", "lr0 0.01", "lr0 0.1"], 2),
    "trajectories_table": (lambda: trajectories_table(readings()), ["arm", "lr0", "step", "n", "nonfinite"], 110),
    "layer_table": (lambda: layer_table(fake_run()), ["step", "model.0.weight", "model.1.weight"], 20),
}
"""Function's name → its call, its first columns, its number of rows."""
