# SPDX-License-Identifier: AGPL-3.0-or-later
"""Firth's logistic regression and LR50."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special

from tables.cases import frame_of
from yolo_gradstudy.tables import lr50_table
from yolo_gradstudy.tables.logistic import PenalisedLikelihood, find_crossing


def line(x, y):
    """Intercept and slope on the scale of ``x``."""
    fitted = PenalisedLikelihood(x, y)
    intercept, slope = fitted.fit()
    return intercept - slope * fitted.centre / fitted.scale, slope / fitted.scale


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_two_values_are_haldanes_half(n, m, data):
    """A saturated model under Jeffreys' prior adds one half to every cell (Firth 1993)."""
    k, j = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    x, y = [0.0] * n + [1.0] * m, [True] * k + [False] * (n - k) + [True] * j + [False] * (m - j)
    low, high = math.log((k + 0.5) / (n - k + 0.5)), math.log((j + 0.5) / (m - j + 0.5))
    assert line(x, y) == pytest.approx((low, high - low), abs=1e-9)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=3, max_size=20))
def test_the_fit_solves_firths_modified_score_equations(pairs):
    x, y = np.array([float(a) for a, _ in pairs]), np.array([float(b) for _, b in pairs])
    assume(len(set(x)) > 1)
    intercept, slope = line(list(x), list(y > 0))
    design = np.stack([np.ones(len(x)), x], axis=1)
    p = special.expit(design @ [intercept, slope])
    weights = p * (1 - p)
    inverse = np.linalg.inv(design.T @ (weights[:, None] * design))
    leverage = weights * np.einsum("ij,jk,ik->i", design, inverse, design)
    score = design.T @ (y - p + leverage * (0.5 - p))
    assert inverse @ score == pytest.approx([0.0, 0.0], abs=1e-9)


@given(st.integers(1, 6), st.floats(0.1, 3), st.floats(-8, 3))
@settings(max_examples=20)
def test_separated_and_symmetric_data_cross_in_the_middle(repeats, step, middle):
    offsets = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5] * repeats
    found = find_crossing([middle + step * o for o in offsets], [o > 0 for o in offsets])
    assert found is not None
    assert found.centre == pytest.approx(middle, abs=1e-5 * step)
    assert 0 < found.slope < math.inf
    if not math.isnan(found.low):
        assert middle - found.low == pytest.approx(found.high - middle, rel=1e-3)


def test_the_ends_are_where_the_likelihood_ratio_test_begins_to_refuse():
    x = [0.0, 1.0, 2.0, 3.0, 4.0] * 6
    y = [a + 0.1 * i > 2.2 + (i % 3) for i, a in enumerate(x)]
    found = find_crossing(x, y)
    likelihood = PenalisedLikelihood(x, y)
    best = -likelihood.loss(*likelihood.fit())
    slopes = np.linspace(-20, 20, 2001)
    for end in (found.low, found.high):
        centre = (end - likelihood.centre) / likelihood.scale
        profile = max(-likelihood.loss(-s * centre, s) for s in slopes)
        assert 2 * (best - profile) == pytest.approx(3.841, abs=0.01)


def test_many_runs_recover_the_truth():
    generator = np.random.default_rng(1)
    x = np.repeat(np.arange(-6.0, 3.0), 400)
    y = generator.random(len(x)) < special.expit(1.2 * (x + 1.4))
    found = find_crossing(list(x), list(y))
    assert found.centre == pytest.approx(-1.4, abs=0.1)
    assert found.slope == pytest.approx(1.2, rel=0.06)
    assert found.low < -1.4 < found.high


def test_the_interval_covers():
    """Of 200 studies with 10 seeds and 6 rates, binomial spread 1.5%: 95% less three of them at least."""
    generator = np.random.default_rng(2)
    x = np.tile(np.arange(-5.0, 1.0), 10)
    covered, told = 0, 0
    for _ in range(200):
        found = find_crossing(list(x), list(generator.random(len(x)) < special.expit(1.5 * (x + 2.2))))
        if found is not None and not math.isnan(found.low + found.high):
            told += 1
            covered += found.low <= -2.2 <= found.high
    assert told > 195
    assert 0.90 <= covered / told <= 0.99


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        (["stable"] * 3, "no run is broken"),
        (["collapsed"] * 3, "every run is broken"),
        (["stuck", "failed", "unknown"], "no run is broken or healthy"),
        (["collapsed", "stable", "stable"], "runs do not break more often at larger rates"),
        (["stable", "collapsed", "collapsed"], "the interval has an open end: too few runs"),
    ],
)
def test_what_is_missing_has_a_reason(outcomes, reason):
    row = lr50_table(frame_of([("control", lr0, 0, o) for lr0, o in zip((0.1, 0.2, 0.4), outcomes, strict=True)])).iloc[
        0
    ]
    assert row["reason"] == reason
    assert math.isnan(row["lr50"]) == ("open end" not in reason)
    assert math.isnan(row["low"])


def test_one_rate_is_too_few():
    frame = lr50_table(frame_of([("control", 0.1, 0, "stable"), ("control", 0.1, 1, "collapsed")]))
    assert frame["reason"].tolist() == ["there is one learning rate, it takes two"]


def test_a_stuck_run_is_neither_broken_nor_healthy():
    runs = [
        ("control", lr0, s, "collapsed" if lr0 > 0.2 else "stable") for lr0 in (0.1, 0.2, 0.4, 0.8) for s in range(3)
    ]
    more = [*runs, ("control", 0.05, 0, "stuck"), ("control", 0.8, 9, "failed")]
    one, two = (lr50_table(frame_of(found)).iloc[0] for found in (runs, more))
    assert two[["lr50", "low", "high", "slope"]].tolist() == pytest.approx(
        one[["lr50", "low", "high", "slope"]].tolist()
    )
    assert two[["n", "n_stuck", "n_excluded", "broken"]].tolist() == [12, 1, 1, 6]
