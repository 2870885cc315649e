# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verdicts on a training that goes on, and the signs that come before trouble."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_gradstudy.diagnoses import THRESHOLDS, EarlyWarning, LiveVerdict, diagnose
from yolo_gradstudy.diagnoses.bands import deviations
from yolo_gradstudy.diagnoses.early import DETECTORS, IN_USE, AboveBand, Band, ChangePoint, Level, Rise, log10, signals
from yolo_gradstudy.diagnoses.live import CERTAIN_AFTER, CHECK_EVERY, KEPT_AT_END, KEPT_AT_START, LiveRun
from yolo_gradstudy.records import Outcome

META = {"inference_branch": "one2many", "branches": ["one2many"]}


def row(step, **changed):
    """A healthy step, with a little noise that is the same whenever it is asked for."""
    noise = 1 + 0.05 * math.sin(12.9898 * step)
    healthy = {"loss": 100.0 * noise, "grad_norm": 20.0 * noise, "grad_nonfinite": 0.0, "images": 16.0}
    healthy |= {"boxes": 50.0, "target_scores_one2many": 25.0 * noise}
    return healthy | changed


def feed(rows, live=None):
    """The first certainty, and the step at which it came."""
    live = live or LiveVerdict(META)
    return next((c for step, scalars in rows if (c := live.see(step, scalars)) is not None), None)


DEAD = {"loss": 0.0, "grad_norm": 0.0, "target_scores_one2many": 0.0}


@pytest.mark.parametrize(
    ("outcome", "broken"),
    [
        (Outcome.COLLAPSED, DEAD),
        (Outcome.NONFINITE, {"loss": math.nan, "grad_nonfinite": 5.0}),
        (Outcome.EXPLODED, {"loss": 1e5, "grad_norm": 1e7}),
    ],
)
@pytest.mark.parametrize("at", [20, 73, 700])
def test_what_is_broken_for_good_is_certain_after_some_steps(outcome, broken, at):
    rows = ((s, row(s, **(broken if s >= at else {}))) for s in range(1, at + 200))
    found = feed(rows)
    assert found.outcome is outcome
    assert found.onset == at
    assert at + CERTAIN_AFTER <= found.step <= at + CERTAIN_AFTER + 3 * CHECK_EVERY


@given(
    first=st.integers(15, 80),
    lasts=st.integers(1, 15),
    size=st.floats(20, 1e8),
)
@settings(max_examples=15, deadline=None)
def test_a_spike_that_passes_is_never_certain(first, lasts, size):
    spike = range(first, first + lasts)
    rows = (
        (s, row(s, **({"loss": 100.0 * size, "grad_norm": 20.0 * size} if s in spike else {}))) for s in range(1, 200)
    )
    assert feed(rows) is None


def test_a_healthy_run_is_never_certain_and_little_is_kept():
    live = LiveVerdict(META)
    assert feed(((s, row(s)) for s in range(1, 1200)), live) is None
    assert len(live._rows) <= KEPT_AT_START + 2 * KEPT_AT_END


def test_after_going_back_the_old_trouble_does_not_count():
    live = LiveVerdict(META)
    found = feed(((s, row(s, **(DEAD if s >= 50 else {}))) for s in range(1, 200)), live)
    live.forget_after(found.onset - 1)
    assert feed(((s, row(s)) for s in range(found.step + 1, found.step + 200)), live) is None
    again = feed(((s, row(s, **DEAD)) for s in range(found.step + 200, found.step + 400)), live)
    assert again.outcome is Outcome.COLLAPSED


def test_nothing_is_certain_of_a_network_without_assigner_that_is_well():
    plain = ({"loss": 1.0 + 0.1 * math.sin(s), "grad_norm": 1.0} for s in range(300))
    assert feed(enumerate(plain, start=1), LiveVerdict({})) is None


def test_a_single_step_is_no_witness_twice():
    """A spike of one step every 25 steps: each look sees another one or none."""
    rows = ((s, row(s, **({"loss": 3000.0} if s % 25 == 0 and s > 100 else {}))) for s in range(1, 600))
    assert feed(rows) is None


def test_a_spike_of_long_ago_is_not_where_the_trouble_began():
    early = {"loss": 1e5, "grad_norm": 1e7}
    rows = ((s, row(s, **(early if s in (20, 21) or s >= 500 else {}))) for s in range(1, 700))
    assert feed(rows).onset == 500


def test_what_is_certain_of_a_long_run_is_what_it_is_called_then():
    """Nine in ten of its steps were alive; the last thirty are what it was ended for."""
    steps = {s: row(s, **(DEAD if s >= 3000 else {})) for s in range(1, 3200)}
    found = feed(iter(steps.items()))
    frame = pd.DataFrame.from_dict({s: r for s, r in steps.items() if s <= found.step}, orient="index")
    run = LiveRun(META, frame.rename_axis("step"), events=[{"event": "started"}, {"event": "ended_early"}, CLOSED])
    assert diagnose(run).outcome is found.outcome is Outcome.COLLAPSED
    went_on = LiveRun(META, run.steps, events=[{"event": "ended_early"}, {"event": "resumed"}, CLOSED])
    assert diagnose(went_on).outcome is not Outcome.COLLAPSED


CLOSED = {"event": "finished"}


# Signs -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-3, 3), min_size=8, max_size=120))
@settings(max_examples=50, deadline=None)
def test_a_band_step_by_step_is_the_band_of_the_rules(values):
    logs = np.array(values)[:, None]
    whole = deviations(logs, 0.1, THRESHOLDS)[:, 0]
    band = Band(0.1)
    single = [band.above(float(v)) for v in values]
    assert [math.nan if s is None else s for s in single] == pytest.approx(whole.tolist(), nan_ok=True, abs=1e-9)


def test_what_is_not_finite_is_beyond_any_band():
    detector = AboveBand(lambda s: s.get("loss"), 0.1)
    assert [detector.see({"loss": v}) for v in (1.0, math.nan, math.inf)] == [None, math.inf, math.inf]
    assert detector.see({}) is None
    assert log10(0.0) == -40


def test_levels_and_rises_in_closed_form():
    level, rise, fall = Level(lambda s: s["x"]), Rise(lambda s: s["x"], smooth=1), Rise(lambda s: s["x"], -1, smooth=1)
    found = [(level.see({"x": x}), rise.see({"x": x}), fall.see({"x": x})) for x in (100.0, 1000.0, 1.0, 10.0)]
    assert np.array(found) == pytest.approx(np.array([[2, 0, 0], [3, 1, 0], [0, 0, 3], [1, 1, 2]]))
    smooth = Level(lambda s: s["x"], smooth=3)
    assert [smooth.see({"x": x}) for x in (1.0, 10.0, 1e6)] == pytest.approx([0, 0.5, 1])


def test_the_cumulative_sum_grows_by_what_exceeds_the_slack():
    sums = ChangePoint(lambda s: s["x"], least=0.1, slack=1.0)
    for _ in range(30):
        sums.see({"x": 1.0})
    found = [sums.see({"x": 10**0.3}) for _ in range(4)]  # three deviations of the least size
    assert found == pytest.approx([2, 4, 6, 8])
    assert sums.see({"x": 10**-5.0}) == 0


def test_a_warning_comes_once_and_only_where_something_is_wrong():
    warning = EarlyWarning("one2many")
    assert [warning.see(s, row(s)) for s in range(1, 500)] == [None] * 499
    found = [warning.see(s, row(s, loss=1e8, grad_norm=1e9)) for s in range(500, 560)]
    told = [f for f in found if f is not None]
    assert len(told) == 1
    assert told[0].detector in IN_USE
    assert told[0].statistic > told[0].threshold == IN_USE[told[0].detector]
    assert told[0].detector in told[0].told


def test_an_overflow_that_the_scaler_looked_for_is_no_sign():
    warning = EarlyWarning("one2many")
    overflow = {"grad_norm": math.inf, "loss": math.inf, "skipped": 1.0}
    assert [warning.see(s, row(s, **(overflow if s % 7 == 1 else {}))) for s in range(1, 100)] == [None] * 99
    assert warning.see(100, row(100, loss=math.nan)) is not None


def test_every_detector_answers_to_a_run_and_none_to_nothing():
    frame = pd.DataFrame([row(s, update_norm=0.1, param_norm=10.0) for s in range(1, 80)], index=range(1, 80))
    flow = pd.DataFrame(
        {"activation_rms_max": 3.0, "activation_rms_spread": 2.0, "output_grad_rms_max": 0.1}, index=[1, 11, 21]
    )
    rows = signals(LiveRun(META, frame.rename_axis("step")), flow)
    assert rows[10][1]["activation_rms_max"] == 3.0
    assert "activation_rms_max" not in rows[11][1]
    for name, make in DETECTORS.items():
        detector = make("one2many")
        assert any(detector.see(scalars) is not None for _, scalars in rows), name
        assert make("one2many").see({}) is None, name
