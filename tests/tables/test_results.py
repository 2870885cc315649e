# SPDX-License-Identifier: AGPL-3.0-or-later
import math

import pandas as pd
import pytest
from synthetic import BRANCH, FakeRun, make_reading, make_result, make_spec

from tables.cases import fake_run
from yolo_gradstudy.records import RunResult
from yolo_gradstudy.tables import results_table


def validated(losses, steps, chance=7.0, branch=BRANCH):
    frame = pd.DataFrame(
        {"step": steps, f"fixed_loss_{branch}": losses, f"fixed_chance_{branch}": chance, "fixed_loss_other": 1.0}
    )
    return FakeRun(fake_run().steps, validations=frame)


def only(run=None, result=None):
    return results_table([make_reading(run=run, result=result)]).iloc[0]


def test_the_first_and_the_last_loss_of_the_branch_that_inference_uses():
    row = only(validated([20.0, 9.0, 6.5], [0.0, 8.0, 16.0]))
    assert (row["fixed_loss_first"], row["fixed_loss_last"], row["fixed_step_first"]) == (20.0, 6.5, 0)
    assert row["fixed_loss_chance"] == 8.0


def test_a_loss_that_is_not_finite_at_the_end_is_not_replaced_by_an_earlier_one():
    row = only(validated([20.0, math.nan], [8, 16]))
    assert row["fixed_loss_first"] == 20.0
    assert math.isnan(row["fixed_loss_last"])
    assert only(validated([20.0, math.inf], [8, 16]))["fixed_loss_last"] == math.inf


def test_a_run_without_validations_has_no_fixed_loss():
    told = ["fixed_loss_first", "fixed_loss_last", "fixed_loss_chance", "fixed_step_first"]
    assert only(fake_run())[told].isna().all()
    assert only(validated([1.0], [8], branch="another"))[told].iloc[:3].isna().all()


ENDED = {"event": "ended_early", "step": 30, "planned_steps": 120, "saved_share": 0.75, "outcome": "collapsed"}


def test_what_the_guard_saved():
    row = only(FakeRun(fake_run().steps, events=[{"event": "started", "step": 0}, ENDED]))
    assert (row["stopped_at"], row["planned_steps"], row["saved_share"]) == (30, 120, 0.75)


@pytest.mark.parametrize(
    "events", [(), ({"event": "finished", "step": 60},), (ENDED, {"event": "resumed", "step": 30})]
)
def test_a_run_that_went_on_saved_nothing(events):
    assert only(FakeRun(fake_run().steps, events=events))[["stopped_at", "planned_steps", "saved_share"]].isna().all()


def test_a_run_ended_again_after_it_was_resumed_is_told_by_the_last_end():
    events = [ENDED, {"event": "resumed", "step": 30}, {**ENDED, "step": 90, "saved_share": 0.25}]
    row = only(FakeRun(fake_run().steps, events=events))
    assert (row["stopped_at"], row["saved_share"]) == (90, 0.25)


def test_attempts():
    assert only(result=make_result(make_spec()))["attempts"] == 1
    assert only(result=make_result(make_spec(), attempts=3))["attempts"] == 3
    assert pd.isna(only()["attempts"])


def test_a_result_of_an_earlier_version_is_read():
    old = {k: v for k, v in make_result(make_spec()).to_dict().items() if k != "attempts"}
    assert RunResult.from_dict(old).attempts == 1
    assert RunResult.from_dict({**old, "attempts": 2}).attempts == 2
    with pytest.raises(ValueError, match="'attempts' is '2'"):
        RunResult.from_dict({**old, "attempts": "2"})
