# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where it began: bands against arithmetic, the step, the layers in their order, and what it costs."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.diagnoses.cases import DEAD, FINISHED, PARAMETERS, STEPS, from_step, make_run, spike, vector, with_
from yolo_gradstudy.diagnoses import THRESHOLDS, Evidence, diagnose, diagnose_run
from yolo_gradstudy.diagnoses.bands import deviations, log_size
from yolo_gradstudy.diagnoses.onset import find_onset, find_onset_layers
from yolo_gradstudy.records import Outcome


def by_hand(logs, least, limits):
    """The band of each value, one by one, as the docstring says it."""
    found = []
    for i, value in enumerate(logs):
        last = i - limits.band_lag if i >= 2 * limits.band_lag else i
        past = logs[max(0, last - limits.band_window) : last]
        past = past[np.isfinite(past)]
        if np.isposinf(value):
            found.append(np.inf)
        elif len(past) < limits.band_fewest or np.isnan(value):
            found.append(np.nan)
        else:
            spread = 1.4826 * np.median(np.abs(past - np.median(past)))
            found.append((value - np.median(past)) / min(max(spread, least), limits.band_most))
    return np.array(found)


numbers = st.one_of(st.floats(-6, 6), st.just(np.inf), st.just(np.nan))


@given(arrays("float64", st.tuples(st.integers(1, 130), st.integers(1, 3)), elements=numbers), st.integers(0, 40))
def test_bands_are_what_their_formula_says(logs, first):
    found = deviations(logs, 0.15, THRESHOLDS)
    expected = np.stack([by_hand(column, 0.15, THRESHOLDS) for column in logs.T], axis=1)
    np.testing.assert_allclose(found, expected)
    some = deviations(logs, 0.15, THRESHOLDS, slice(first, first + 7))
    np.testing.assert_array_equal(some, found[first : first + 7])


def test_a_new_level_is_usual_after_half_a_window_and_the_lag():
    logs = np.where(np.arange(300) >= 150, 1.3, 0.0)[:, None]
    out = deviations(logs, 0.15, THRESHOLDS)[:, 0] > 7
    assert np.flatnonzero(out).tolist() == list(range(150, 150 + 25 + 3))


def test_a_band_begins_after_five_steps():
    logs = np.where(np.arange(12) >= 4, 2.0, 0.0)[:, None]
    found = deviations(logs, 0.15, THRESHOLDS)[:, 0]
    assert np.isnan(found[:5]).all()
    assert found[5] == pytest.approx(2.0 / 0.15)


def test_a_band_that_a_blow_up_widens_is_believed_to_a_limit():
    logs = np.array([0.0, 3.0] * 20 + [0.0, 6.0])[:, None]  # 38 of them make the band, half of each
    assert deviations(logs, 0.15, THRESHOLDS)[-1, 0] == pytest.approx((6.0 - 1.5) / 0.4)


def test_sizes_without_a_logarithm():
    assert log_size([np.nan, np.inf, -np.inf, 100.0]).tolist() == [np.inf, np.inf, np.inf, 2.0]
    assert log_size([0.0])[0] == -40
    assert np.isnan(log_size([-1.0])[0])  # a loss may be negative, and is then not judged by size


@given(st.integers(12, STEPS), st.integers(0, 20))
def test_a_band_looks_at_the_past_only(until, noise):
    """Cut off after any step, a run has the same bands up to it: an onset does not move when a run goes on."""
    norm = 30 * np.exp(np.random.default_rng(noise).normal(0, 0.5, STEPS))
    whole = Evidence(make_run(grad_norm=norm)).norm_deviations
    cut = make_run(grad_norm=norm)
    cut.steps = cut.steps.iloc[:until]
    np.testing.assert_array_equal(whole.iloc[:until], Evidence(cut).norm_deviations)


@pytest.mark.parametrize(("size", "left"), [(11.5 * 30, True), (10.0 * 30, False)])
def test_seven_deviations_of_a_quiet_run_are_a_factor_of_eleven(size, left):
    run = make_run(grad_norm=spike(40, size, 30.0))
    assert find_onset(Evidence(run)) == (40 if left else None)
    assert diagnose(run).outcome is (Outcome.RECOVERED if left else Outcome.STABLE)


@pytest.mark.parametrize(("size", "outcome"), [(2.3, Outcome.RECOVERED), (2.1, Outcome.STABLE)])
def test_a_loss_has_a_narrower_band(size, outcome):
    verdict = diagnose(make_run(loss=spike(40, 150 * size, 150.0)))
    assert verdict.outcome is outcome
    assert verdict.onset_step == (40 if outcome is Outcome.RECOVERED else None)


def test_accumulation_does_not_leave_a_band():
    """Four times the images have four times the norm, and sixteen times sixteen."""
    images = from_step(30, 256.0, 16.0)
    run = make_run(images=images, grad_norm=2.0 * images, loss=10.0 * images)
    assert diagnose(run).outcome is Outcome.STABLE
    assert diagnose(make_run(grad_norm=2.0 * images, loss=150 + 0 * images)).outcome is Outcome.RECOVERED


@pytest.mark.parametrize(("left", "onset"), [(22, 22), (16, 16), (10, 25)])
def test_a_departure_counts_that_leads_to_the_trouble(left, onset):
    """It is the onset of a death ten steps later at most: before that the run was calm again."""
    run = make_run(grad_norm=spike(left, 1e6, 30.0), target_scores_one2many=DEAD)
    verdict = diagnose(run)
    assert (verdict.outcome, verdict.onset_step) == (Outcome.COLLAPSED, onset)


def test_departures_are_followed_back_one_to_the_next():
    norm = np.full(STEPS, 30.0)
    norm[[8, 16, 23]] = 1e6  # steps 9, 17 and 24
    assert diagnose(make_run(grad_norm=norm, target_scores_one2many=DEAD)).onset_step == 9


def test_a_gradient_that_vanishes_is_a_departure_too():
    run = make_run(grad_norm=from_step(22, 1e-4, 30.0), target_scores_one2many=DEAD)
    assert diagnose(run).onset_step == 22


def layered(**columns):
    """A run that dies in step 25, with 8 layers at 1."""
    names = [f"model.{i}.weight" for i in range(8)]
    return with_(make_run(target_scores_one2many=DEAD, **columns), norms=vector(np.ones((STEPS, 8)), names=names))


def test_layers_stand_in_the_order_in_which_they_left():
    norm = np.full(STEPS, 30.0)
    norm[22:25] = 1e6
    run = layered(grad_norm=norm)
    for name, step in (("model.5.weight", 21), ("model.1.weight", 23), ("model.7.weight", 24)):
        run.norms.loc[step:, name] = 1e5
    run.norms.loc[18:19, "model.0.weight"] = 1e5  # left, and came back
    run.norms.loc[23:, "model.3.weight"] = 1e7  # in the same step as model.1, and further
    run.norms.loc[30:, "model.2.weight"] = 1e7  # after the trouble
    verdict = diagnose(run)
    assert verdict.onset_step == 23
    assert verdict.onset_layers == ("model.5.weight", "model.3.weight", "model.1.weight", "model.7.weight")
    assert verdict.onset_layer == "model.5.weight"


def test_layers_are_looked_at_ten_steps_before_the_onset():
    run = layered(grad_norm=spike(25, 1e6, 30.0))
    run.norms.loc[16:, "model.5.weight"] = 1e5
    run.norms.loc[20:, "model.1.weight"] = 1e7
    assert diagnose(run).onset_layers == ("model.5.weight", "model.1.weight")


def test_layers_that_are_not_finite_stand_as_the_backward_pass_reached_them():
    run = layered(grad_norm=from_step(25, np.nan, 30.0), grad_nonfinite=from_step(25, 3.0, 0.0))
    run.norms.loc[25:, ["model.1.weight", "model.4.weight", "model.2.weight"]] = np.nan
    assert diagnose(run).onset_layers == ("model.4.weight", "model.2.weight", "model.1.weight")


def test_a_missing_gradient_is_no_departure():
    """NaN stands for what was not recorded too; where the norm of all is finite, it is that."""
    run = layered()
    run.norms.loc[20:, "model.4.weight"] = np.nan
    assert "model.4.weight" not in diagnose(run).onset_layers


def test_runs_without_layers_have_an_onset_and_no_layer():
    run = with_(make_run(target_scores_one2many=DEAD), norms=make_run().norms.iloc[:0, :0])
    verdict = diagnose_run(run, FINISHED)
    assert (verdict.onset_step, verdict.onset_layer, verdict.onset_layers) == (25, None, ())
    assert diagnose(make_run()).onset_layers == ()


def test_a_run_that_goes_on_has_an_onset():
    run = make_run(ended=None, target_scores_one2many=DEAD)
    verdict = diagnose(run)
    assert (verdict.outcome, verdict.so_far, verdict.onset_step) == (Outcome.INTERRUPTED, Outcome.COLLAPSED, 25)
    assert diagnose(make_run(ended=None)).so_far is Outcome.STABLE
    assert diagnose(make_run(5, ended=None)).so_far is None
    assert diagnose(make_run()).so_far is None


def test_thousand_steps_of_366_layers_cost_less_than_a_second():
    random = np.random.default_rng(0)
    names = [f"model.{i}.weight" for i in range(366)]
    norms = np.exp(random.normal(0, 0.3, (1000, 366)))
    norms[700:] *= 1e6
    run = make_run(1000, grad_norm=np.sqrt((norms**2).sum(axis=1)))
    run.norms = vector(norms, names=names)
    times = []
    for _ in range(3):
        evidence = Evidence(run, trouble=720)
        start = time.process_time()
        onset = find_onset(evidence)
        layers = find_onset_layers(evidence, onset)
        times.append(time.process_time() - start)
    assert onset == 701
    assert len(layers) == 366
    assert min(times) < 1.0


@pytest.mark.parametrize("names", [PARAMETERS])
def test_layers_recorded_less_often_than_steps(names):
    run = make_run(target_scores_one2many=DEAD)
    run.norms = vector(np.ones((6, 3)), every=10, names=names)
    assert diagnose(run).onset_layers == ()
