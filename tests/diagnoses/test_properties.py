# SPDX-License-Identifier: AGPL-3.0-or-later
"""What must hold of any verdict, whatever the run."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.diagnoses.cases import (
    CASES,
    EXPLANATION_CASES,
    FINISHED,
    LADDER,
    NAMES,
    PARAMETER_META,
    make_run,
    plain_run,
    validations,
    vector,
    with_,
)
from yolo_gradstudy.diagnoses import EXPLANATIONS, compare_runs, diagnose, diagnose_run
from yolo_gradstudy.records import Outcome

RULE_RUNS = {name: case.matches[0] for name, case in CASES.items() if case.matches[0] is not None}
RUNS = RULE_RUNS | {name: case.matches for name, case in EXPLANATION_CASES.items()}
each_run = pytest.mark.parametrize("name", RUNS)
slow = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)


def copy_of(run, **changes):
    """A copy that may be changed."""
    values = {k: (v.copy() if isinstance(v, (pd.DataFrame, dict, list)) else v) for k, v in vars(run).items()}
    return with_(make_run(), **{**values, **changes})


def verdict_of(run):
    verdict = diagnose_run(run, FINISHED)
    return verdict.outcome, verdict.onset_step, verdict.onset_layers, [(f.rule, f.state) for f in verdict.findings]


@each_run
def test_the_order_of_rows_and_columns_on_record_says_nothing(name):
    """Telemetry is sorted when it is read; columns come in any order."""
    run = copy_of(RUNS[name])
    other = copy_of(run, steps=run.steps[list(run.steps)[::-1]])
    assert verdict_of(other) == verdict_of(run)
    assert verdict_of(run) == verdict_of(run)  # and asking changes nothing


@each_run
@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_the_scale_of_the_loss_says_nothing(name, factor):
    """A loss in other units is the same training; what a spike is, is told by the run itself."""
    run = copy_of(RUNS[name])
    losses = [c for c in run.steps if c == "loss" or c.endswith("_loss")]
    scaled = run.steps.copy()
    scaled[losses] *= factor
    assert verdict_of(copy_of(run, steps=scaled)) == verdict_of(run)


@each_run
def test_the_scale_of_gradients_says_nothing(name):
    run = copy_of(RUNS[name])
    scaled = run.steps.copy()
    scaled["grad_norm"] *= 256.0
    other = copy_of(run, steps=scaled, norms=run.norms * 256.0)
    assert verdict_of(other)[:3] == verdict_of(run)[:3]


@slow
@given(st.integers(1, 200), st.integers(0, 1000), st.floats(0.0, 0.2))
def test_healthy_steps_at_the_end_make_no_stable_run_unhealthy(more, seed, noise):
    random = np.random.default_rng(seed)
    long = make_run(60 + more)
    for column, size in (("loss", noise / 10), ("grad_norm", noise), ("target_scores_one2many", noise / 3)):
        long.steps[column] *= np.exp(random.normal(0, size, len(long.steps)))
    short = copy_of(long, steps=long.steps.iloc[:60], norms=long.norms.iloc[:60])
    assert diagnose(short).outcome is Outcome.STABLE
    assert diagnose(long).outcome in (Outcome.STABLE, Outcome.RECOVERED)


odd = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e300, 1e-300])


@st.composite
def odd_runs(draw):
    """A run in which anything that is recorded may be anything at any step, or missing."""
    steps = draw(st.integers(0, 40))
    names = [
        "loss", "grad_norm", "grad_nonfinite", "skipped", "amp_scale", "lr_pg0", "boxes", "images", "epoch", "box_loss",
        "target_scores_one2many", "clip_coefficient", "cls_loss", "update_norm", "param_norm",
    ]  # fmt: skip
    run = make_run(steps, **{n: np.ones(steps) for n in names})
    for name in draw(st.lists(st.sampled_from(names), max_size=5)):
        if name in run.steps and draw(st.booleans()):
            run.steps = run.steps.drop(columns=name)
        elif steps and name in run.steps:
            first = draw(st.integers(0, steps - 1))
            run.steps.iloc[first : first + draw(st.integers(1, 40)), list(run.steps).index(name)] = draw(odd)
    for quantity, columns in (("update_ratio", NAMES), ("param_norm", NAMES), ("output_grad_rms", LADDER),
                              ("dead_share", LADDER)):  # fmt: skip
        values = np.ones((draw(st.integers(0, 4)), len(columns)))
        values[:, draw(st.integers(0, len(columns) - 1))] = draw(odd)
        run.vectors[quantity] = vector(values, 10, columns)
    run.norms = vector(np.full((steps, len(NAMES)), draw(odd)), names=NAMES)
    run.meta |= draw(st.sampled_from([{}, {"parameters": PARAMETER_META, "batch": 16, "clip_norm": None}]))
    if draw(st.booleans()):
        run.validations = validations(draw(st.lists(odd | st.just(9.0), min_size=1, max_size=25)))
    run.arguments = draw(st.sampled_from([{}, {"lr0": 0.1, "optimizer": "auto"}, {"lr0": None, "warmup_epochs": "3"}]))
    return run


@slow
@given(odd_runs(), st.none() | odd_runs())
def test_nothing_on_record_crashes_a_verdict(run, control):
    verdict = diagnose(run, control)
    words = json.dumps(verdict.to_dict(), allow_nan=False)
    assert json.loads(words)["outcome"] == verdict.outcome
    assert all(f.evidence for f in verdict.findings)
    assert sum(f.explains for f in verdict.findings) == len(EXPLANATIONS)
    if verdict.outcome.healthy:  # by rules that looked
        states = {f.rule: f.state for f in verdict.findings if not f.explains}
        assert states["is_collapsed"] == "not matched"
        assert states["is_nonfinite"] == "not matched"
    json.dumps(compare_runs(run, control or run).to_dict(), allow_nan=False)


@slow
@given(st.lists(odd | st.floats(0, 1), min_size=1, max_size=12), st.lists(odd, min_size=1, max_size=12))
def test_nothing_in_results_csv_crashes_a_verdict(scores, losses):
    size = min(len(scores), len(losses))
    verdict = diagnose(plain_run(scores=scores[:size], losses=losses[:size]))
    json.dumps(verdict.to_dict(), allow_nan=False)
