# SPDX-License-Identifier: AGPL-3.0-or-later
"""A run that learns nothing, told from one that has not learned yet and from one that had no chance to."""

import math

import numpy as np
import pytest

from tests.diagnoses.cases import DEAD, FINISHED, epochs, learned, make_run, validations, with_
from yolo_gradstudy.diagnoses import Evidence, diagnose, diagnose_run
from yolo_gradstudy.diagnoses.learning import is_stuck
from yolo_gradstudy.records import Outcome, RunResult, RunSpec

CHANCE = 7.3
MANY = 20
# YOLO26n on `shapes`, SGD, lr0 0.02, 25 epochs of 16 steps: mAP50-95 0.15 at the end.
HEALTHY = (
    9.3, 9.1, 5547, 7755, 7326, 7468, 5488, 1771, 1241, 223, 11.7, 6.7, 5.0, 8.2, 7.2, 4.7, 4.6, 4.5, 4.4, 4.4, 4.4,
    4.3, 4.3, 4.3, 4.3,
)  # fmt: skip
# The same without BatchNorm: mAP50-95 0.004.
VANISHED = (7.28, 7.78, 7.38, 7.64, 7.69, 7.64, 7.65, 7.70, 7.74, 7.75, 7.75)


def run_of(losses, scores=None, **changes):
    run = with_(make_run(), validations=validations(list(losses), CHANCE), **changes)
    return with_(run, epochs=epochs(scores)) if scores is not None else run


def state(run, control=None, result=FINISHED):
    return is_stuck(Evidence(run, result, control)).state


@pytest.mark.parametrize("until", range(1, len(HEALTHY) + 1))
def test_a_healthy_training_is_stuck_after_no_epoch(until):
    """Its loss is at 1000 times chance for seven epochs; neither alone nor beside a control is that stuck."""
    for control in (None, run_of(HEALTHY), learned()):
        run = run_of(HEALTHY[:until])
        if control is None or len(control.validations) == len(HEALTHY):
            assert state(run, control) != "matched"
    assert state(run_of(HEALTHY)) == "not matched"


def test_a_run_that_vanishes_is_stuck_beside_a_control_of_as_many_epochs():
    run = run_of(VANISHED, [0.004] * len(VANISHED))
    assert state(run, run_of(HEALTHY)) == "not checked"  # after 11 epochs the control has not learned either
    assert state(run_of((*VANISHED, 7.76)), run_of(HEALTHY)) == "not checked"  # 6.7 of 7.3 is no clear case
    vanished = run_of((*VANISHED, 7.76, 7.76))
    assert state(vanished, run_of(HEALTHY)) == "matched"
    assert diagnose(vanished, run_of(HEALTHY)).outcome is Outcome.STUCK
    learned_a_little = run_of((*VANISHED, 7.76, 7.76), [0.004] * 13)
    control = run_of(HEALTHY, [0.15] * len(HEALTHY))
    assert state(learned_a_little, control) == "not matched"  # a fortieth of the control's mAP is not nothing
    assert state(run_of((*VANISHED, 7.76, 7.76), [0.0] * 13), control) == "matched"
    assert state(run) == "not checked"


def test_a_control_that_has_not_learned_either_is_said():
    finding = is_stuck(Evidence(run_of([9.3] * 4), FINISHED, run_of([9.3] * 4)))
    assert finding.state == "not checked"
    assert "paired control has not learned either" in finding.evidence
    assert "is not validated" in is_stuck(Evidence(run_of([9.3] * 4), FINISHED, make_run())).evidence
    assert diagnose(run_of([9.3] * 4), run_of([9.3] * 4)).outcome is Outcome.STABLE


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([9.3] * MANY, "matched"),
        ([9.3] * (MANY - 1), "not checked"),
        (np.linspace(20, 8, MANY), "not checked"),  # still improves
        (np.linspace(8, 20, MANY), "matched"),
        ([9.3] * 15 + [9.0] * 5, "not checked"),  # 3% better in the last five epochs
        ([9.3] * 15 + [9.2] * 5, "matched"),  # 1%
        ([9.3] * 10 + [9.0] * 10, "matched"),  # and no better since
        ([*[9.3] * (MANY - 1), 7.0], "not matched"),
        ([7.25] * MANY, "matched"),  # within 2% of chance
        ([math.nan] * MANY, "matched"),  # NaN is not below chance
    ],
)
def test_without_a_control_it_takes_many_epochs_that_improve_nothing(losses, expected):
    assert state(run_of(losses)) == expected


@pytest.mark.parametrize(("score", "expected"), [(0.02, "not matched"), (0.005, "matched")])
def test_map_is_proof_too(score, expected):
    """An overfitted or overconfident detector has a bad loss and detects."""
    assert state(run_of([50.0] * MANY, [score] * MANY)) == expected
    result = RunResult("r", "finished", metrics={"metrics/mAP50-95(B)": score}, weights_finite=True)
    assert state(run_of([50.0] * MANY), None, result) == expected
    assert (
        state(run_of([50.0] * MANY, [score] * MANY), learned()) == "matched" if expected == "matched" else "not matched"
    )


def test_a_low_map_alone_is_no_proof():
    """Runs recorded before validations were: on 128 images and 96 steps nothing learns."""
    result = RunResult("r", "finished", metrics={"metrics/mAP50-95(B)": 0.0}, weights_finite=True)
    assert state(make_run(), None, result) == "not checked"
    assert state(make_run(), with_(make_run(), result=result), result) == "not checked"
    assert diagnose_run(make_run(), result).outcome is Outcome.STABLE
    good = RunResult("r", "finished", metrics={"metrics/mAP50-95(B)": 0.3}, weights_finite=True)
    assert state(make_run(), with_(make_run(), result=good), result) == "matched"


def test_a_dead_run_is_collapsed_before_it_is_stuck():
    run = with_(make_run(target_scores_one2many=DEAD), validations=validations([9.3] * MANY))
    assert diagnose(run, learned()).outcome is Outcome.COLLAPSED


def test_the_branch_that_inference_uses_is_asked():
    both = validations([9.3] * MANY).join(validations([4.0] * MANY, branch="one2one"))
    assert diagnose(with_(make_run(), validations=both)).outcome is Outcome.STUCK
    assert diagnose(with_(make_run(inference="one2one"), validations=both)).outcome is Outcome.STABLE


def spec(lr0):
    return RunSpec("r", "s", "a", (), "m", "d", lr0, 0)


def test_advice_is_the_rate_of_the_control_or_one_that_moves_the_weights():
    norms = {"update_norm": np.full(60, 1e-6), "param_norm": np.full(60, 1.0)}
    slow = with_(make_run(**norms), validations=validations([9.3] * MANY), arguments={"lr0": 1e-5, "optimizer": "SGD"})
    control = with_(learned(), spec=spec(0.02), validations=validations([4.0] * MANY))
    assert dict(is_stuck(Evidence(slow, FINISHED, control)).advice.arguments) == {"lr0": 0.02}
    assert dict(is_stuck(Evidence(slow, FINISHED)).advice.arguments) == {"lr0": pytest.approx(0.01)}
    assert is_stuck(Evidence(run_of([9.3] * MANY), FINISHED)).advice is None
