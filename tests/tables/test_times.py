# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cumulative incidence and survival, against closed forms and SciPy."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tables.cases import frame_of
from yolo_gradstudy.tables import incidence_table, survival_table
from yolo_gradstudy.tables.times import median_step, times_of

HORIZON = 20
runs_of = st.lists(st.tuples(st.integers(1, HORIZON - 1), st.booleans()), min_size=2, max_size=14)


def followed(runs, arm="control", horizon=HORIZON):
    """Runs (step, cause): interrupted at the step where the cause is empty, trained up to the horizon otherwise."""
    names = [cause or ("stable" if step >= horizon else "interrupted") for step, cause in runs]
    frame = frame_of([(arm, 0.1, seed, name) for seed, name in enumerate(names)])
    onset = [step if cause else None for step, cause in runs]
    steps = [horizon if cause else step for step, cause in runs]
    return frame.assign(onset_step=pd.array(onset, dtype="Int64"), steps=pd.array(steps, dtype="Int64"))


def survival_function(runs):
    uncensored = [step for step, cause in runs if cause]
    right = [step for step, cause in runs if not cause]
    return stats.ecdf(stats.CensoredData(uncensored=uncensored, right=right)).sf


def of_cause(frame, cause):
    return frame[frame["cause"] == cause].set_index("step")


@settings(max_examples=40)
@given(runs_of)
def test_one_cause_is_kaplan_and_meier_with_greenwoods_error(pairs):
    runs = [(step, "collapsed" if bad else "") for step, bad in pairs]
    frame = of_cause(incidence_table(followed(runs)), "unhealthy")
    for step in frame.index[1:]:
        told = frame.loc[step]
        at_risk = sum(s >= step for s, _ in runs)
        assert told["at_risk"] == at_risk
        assert told["events"] == sum(s == step and bool(c) for s, c in runs)
        if any(c for _, c in runs):
            assert 1 - told["incidence"] == pytest.approx(float(survival_function(runs).evaluate(int(step))), abs=1e-12)
        greenwood = 0.0
        for s in sorted({s for s, c in runs if c and s <= step}):
            n, d = sum(t >= s for t, _ in runs), sum(t == s and bool(c) for t, c in runs)
            greenwood += d / (n * (n - d)) if n > d else 0.0
        expected = (1 - told["incidence"]) * math.sqrt(greenwood)
        assert told["se"] == pytest.approx(expected, abs=1e-7)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["collapsed", "exploded"])), min_size=1, max_size=12))
def test_without_censoring_incidence_is_a_binomial_share(runs):
    frame = incidence_table(followed(runs))
    for cause in {c for _, c in runs}:
        told = of_cause(frame, cause)
        for step in told.index[1:]:
            share = sum(s <= step and c == cause for s, c in runs) / len(runs)
            assert told.loc[step, "incidence"] == pytest.approx(share)
            assert told.loc[step, "se"] == pytest.approx(math.sqrt(share * (1 - share) / len(runs)), abs=1e-9)


def test_the_interval_is_normal_on_the_scale_of_log_minus_log():
    told = of_cause(
        incidence_table(followed([(3, "collapsed"), (5, ""), (7, "collapsed"), (20, ""), (20, "")])), "collapsed"
    )
    row = told.loc[7]
    centre = math.log(-math.log(row["incidence"]))
    ends = [math.log(-math.log(row[name])) for name in ("low", "high")]
    half = 1.959963984540054 * row["se"] / (row["incidence"] * abs(math.log(row["incidence"])))
    assert ends == pytest.approx([centre + half, centre - half])
    assert told.loc[0, ["low", "high"]].isna().all()


def test_a_stuck_run_is_known_at_its_end_only_and_an_onset_that_is_missing_is_the_end():
    frame = frame_of([("control", 0.1, s, o) for s, o in enumerate(("stuck", "exploded", "exploded", "unknown"))])
    frame = frame.assign(steps=pd.array([20] * 4, "Int64"), onset_step=pd.array([4, None, 6, 3], "Int64"))
    times = times_of(frame)
    assert list(zip(times.steps, times.causes, strict=True)) == [(20, "stuck"), (20, "exploded"), (6, "exploded")]
    assert set(incidence_table(frame)["n_excluded"]) == {1}


def test_events_come_before_censorings_at_the_same_step():
    frame = of_cause(incidence_table(followed([(5, "collapsed"), (5, ""), (9, "collapsed")])), "collapsed")
    assert frame["at_risk"].tolist() == [3, 3, 1]
    assert frame["incidence"].tolist() == pytest.approx([0.0, 1 / 3, 1.0])


@settings(max_examples=40)
@given(runs_of)
def test_the_restricted_mean_is_the_area_under_scipys_curve(pairs):
    runs = [(step, "collapsed" if bad else "") for step, bad in pairs] + [(HORIZON, "")]
    row = survival_table(followed(runs)).iloc[0]
    assert row["tau"] == HORIZON
    if not any(c for _, c in runs):
        assert row["mean_steps"] == HORIZON
        return
    curve = survival_function(runs)
    at = np.arange(HORIZON)
    values = curve.evaluate(at.astype(float))
    assert row["mean_steps"] == pytest.approx(values.sum())
    # Irwin's variance, from the same curve.
    variance = 0.0
    for s in sorted({s for s, c in runs if c}):
        n, d = sum(t >= s for t, _ in runs), sum(t == s and bool(c) for t, c in runs)
        variance += values[s:].sum() ** 2 * d / (n * (n - d))
    assert row["se"] == pytest.approx(math.sqrt(variance * len(runs) / (len(runs) - 1)), abs=1e-9)


@given(st.lists(st.integers(1, HORIZON), min_size=2, max_size=12))
def test_without_censoring_the_restricted_mean_is_an_ordinary_one(steps):
    row = survival_table(followed([(s, "exploded" if s < HORIZON else "") for s in steps])).iloc[0]
    assert row["mean_steps"] == pytest.approx(np.mean(steps))
    assert row["se"] == pytest.approx(np.std(steps, ddof=1) / math.sqrt(len(steps)), abs=1e-9)
    assert math.isnan(row["low"]) or 0 <= row["low"] <= row["mean_steps"] <= row["high"] <= HORIZON


def test_differences_are_to_the_control_at_the_same_rate():
    control = followed([(20, ""), (20, ""), (10, "collapsed")])
    arm = followed([(5, "collapsed"), (10, "collapsed"), (20, "")], "no_clip")
    other = arm.assign(lr0=0.2)
    frame = survival_table(pd.concat([control, arm, other], ignore_index=True)).set_index(["arm", "lr0"])
    row, own = frame.loc[("no_clip", 0.1)], frame.loc[("control", 0.1)]
    assert row["difference"] == pytest.approx((5 + 10 + 20) / 3 - 50 / 3)
    assert row["difference_se"] == pytest.approx(math.hypot(row["se"], own["se"]))
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert frame.loc[("no_clip", 0.2), "difference":"difference_high"].isna().all()
    assert frame.loc[("control", 0.1), "difference":"difference_high"].isna().all()


def test_the_horizon_is_what_was_planned():
    frame = followed([(20, ""), (4, "collapsed"), (2, "nonfinite")])
    frame["steps"] = pd.array([20, 5, 2], "Int64")  # the second a guard ended, the third an error
    frame["planned_steps"] = pd.array([None, 18, None], "Int64")
    frame["status"] = ["finished", "finished", "failed"]
    assert survival_table(frame)["tau"].tolist() == [18]


def test_a_mean_that_nobody_is_followed_for_is_missing():
    frame = pd.concat([followed([(8, ""), (9, "")]), followed([(20, "")], "no_clip")], ignore_index=True)
    row = survival_table(frame).set_index("arm").loc["control"]
    assert row["tau"] == 20
    assert pd.isna(row["mean_steps"])


def test_the_median_is_missing_where_fewer_than_half_went_wrong():
    row = survival_table(followed([(5, "collapsed"), (20, ""), (20, "")])).iloc[0]
    assert row[["median_steps", "median_low", "median_high"]].isna().all()


def test_the_median_and_its_interval():
    runs = [(s, "collapsed") for s in (2, 4, 6, 8, 10, 12, 14, 16, 18)]
    row = survival_table(followed(runs)).iloc[0]
    assert row["median_steps"] == 10
    # Of 9 resampled values the median is the k-th or less where 5 of them are: a binomial tail.
    tail = [stats.binom.sf(4, 9, k / 9) for k in range(1, 10)]
    assert row["median_low"] == 2 * (next(k for k, p in enumerate(tail) if p >= 0.025) + 1)
    assert row["median_high"] == 2 * (next(k for k, p in enumerate(tail) if p >= 0.975) + 1)


@given(runs_of)
def test_the_median_step_is_where_scipys_curve_reaches_one_half(pairs):
    runs = [(step, "collapsed" if bad else "") for step, bad in pairs]
    found = median_step(times_of(followed(runs)))
    if not any(c for _, c in runs):
        assert found == math.inf
        return
    curve = survival_function(runs)
    below = [s for s, p in zip(curve.quantiles, curve.probabilities, strict=True) if p <= 0.5 + 1e-12]
    assert found == (min(below) if below else math.inf)
