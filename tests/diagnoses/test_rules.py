# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every rule of the table matches its case, says what it lacks, and leaves a healthy run alone."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.diagnoses.cases import CASES, DEAD, FAILED, FINISHED, STEPS, from_step, learned, make_run, nonfinite_run
from yolo_gradstudy.arguments import check_words
from yolo_gradstudy.diagnoses import RULES, THRESHOLDS, Evidence, diagnose, diagnose_run
from yolo_gradstudy.records import Outcome, RunResult

RULE = {rule.__name__: (outcome, rule) for outcome, rule in RULES}


def test_every_rule_has_a_case_and_outcomes_stand_in_their_order():
    assert set(CASES) == set(RULE)
    order = list(Outcome)
    assert [o for o, _ in RULES] == sorted((o for o, _ in RULES), key=order.index)


@pytest.mark.parametrize("name", CASES)
def test_rule_matches_its_case(name):
    outcome, rule = RULE[name]
    case = CASES[name]
    finding = rule(Evidence(*case.matches))
    assert (finding.rule, finding.state, finding.step) == (name, "matched", case.step)
    assert case.says in finding.evidence
    verdict = diagnose_run(*case.matches)
    assert verdict.outcome is outcome
    assert verdict.onset_step == case.step
    assert case.says in verdict.evidence


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.unchecked])
def test_rule_says_what_it_lacks(name):
    finding = RULE[name][1](Evidence(*CASES[name].unchecked))
    assert finding.state == "not checked"
    assert finding.evidence


@pytest.mark.parametrize("name", [n for n in CASES if n != "is_stable"])
def test_rule_leaves_a_healthy_run_alone(name):
    assert RULE[name][1](Evidence(learned(), FINISHED)).state == "not matched"


@pytest.mark.parametrize("name", CASES)
def test_advice_has_valid_arguments(name):
    for advice in diagnose_run(*CASES[name].matches).advice:
        check_words(dict(advice.arguments))
        assert all(f"{key}=" in advice.text for key in advice.arguments)


def test_low_loss_is_no_witness():
    """A dead head's loss is lower than a healthy one's: the verdict does not move with the loss."""
    dead = make_run(target_scores_one2many=DEAD, loss=np.full(STEPS, 150.0))
    low = make_run(loss=from_step(25, 0.0, 150.0))
    assert diagnose(dead).outcome is Outcome.COLLAPSED
    assert diagnose(low).outcome is Outcome.STABLE


@pytest.mark.parametrize(("inference", "outcome"), [("one2one", Outcome.COLLAPSED), ("one2many", Outcome.STABLE)])
def test_only_the_branch_that_inference_uses_decides(inference, outcome):
    verdict = diagnose(make_run(inference=inference, target_scores_one2one=DEAD))
    assert verdict.outcome is outcome
    if outcome is Outcome.STABLE:
        assert "one2one branch, which inference does not use here, is dead from step 25" in verdict.evidence


def test_control_counts_before_the_own_start():
    """A run that was dead from its first step has no healthy start to compare with; the control has."""
    run = make_run(target_scores_one2many=np.full(STEPS, 1e-6))
    assert diagnose(run).outcome is Outcome.STABLE
    verdict = diagnose(run, make_run())
    assert verdict.outcome is Outcome.COLLAPSED
    assert verdict.onset_step == 1
    assert "the paired control" in verdict.evidence


def test_dead_control_is_not_compared_with():
    dead = make_run(target_scores_one2many=DEAD)
    assert "its own start" in diagnose(make_run(), dead).evidence
    assert diagnose(make_run(target_scores_one2many=DEAD), dead).outcome is Outcome.COLLAPSED


def test_error_after_divergence_is_divergence():
    """Ultralytics raises where its NaN recovery gives up; that is no failure of data or memory."""
    result = RunResult("r", "failed", error="RuntimeError: Training failed: NaN persisted", weights_finite=None)
    assert diagnose_run(nonfinite_run(), result).outcome is Outcome.NONFINITE
    assert diagnose_run(make_run(), FAILED).outcome is Outcome.FAILED
    assert diagnose_run(None, FAILED).outcome is Outcome.FAILED


def test_onset_layer_is_the_first_that_the_backward_pass_reached():
    assert diagnose_run(nonfinite_run(), FINISHED).onset_layer == "model.1.weight"


def test_nonfinite_step_that_training_came_back_from():
    loss = np.full(STEPS, 150.0)
    loss[19] = math.inf
    assert diagnose_run(make_run(loss=loss), FINISHED).outcome is Outcome.RECOVERED
    assert diagnose_run(make_run(loss=np.where(np.isinf(loss), np.nan, loss)), FINISHED).outcome is Outcome.RECOVERED
    poisoned = RunResult("r", "finished", weights_finite=False)
    assert diagnose_run(make_run(loss=loss), poisoned).outcome is Outcome.NONFINITE


def test_steps_that_the_scaler_skipped_are_not_divergence():
    overflow = from_step(3, 0.0, 7.0)
    run = make_run(grad_nonfinite=overflow, skipped=overflow, grad_norm=np.where(overflow > 0, math.inf, 30.0))
    assert diagnose(run).outcome is Outcome.STABLE


def test_overflowed_norm_of_finite_gradients_is_an_explosion():
    assert diagnose(make_run(grad_norm=from_step(40, math.inf, 30.0))).outcome is Outcome.EXPLODED


def test_run_that_exploded_on_its_way_and_went_quiet_is_collapsed():
    norm = np.full(STEPS, 30.0)
    norm[20:30], norm[30:] = 1e9, 1e-5
    run = make_run(grad_norm=norm, target_scores_one2many=DEAD, loss=from_step(25, 0.0, 150.0))
    assert diagnose(run).outcome is Outcome.COLLAPSED


def test_run_that_spiked_and_ended_low_is_not_called_healthy():
    spiked = np.where(np.arange(1, STEPS + 1) == 20, 1e5, 150.0)
    run = make_run(loss=spiked, target_scores_one2many=from_step(21, 12.0, 40.0))
    verdict = diagnose(run)
    assert verdict.outcome is Outcome.UNKNOWN
    assert diagnose(make_run(loss=from_step(58, 1e5, 150.0))).outcome is Outcome.EXPLODED


def test_no_rule_that_skipped_itself_calls_a_run_healthy():
    for run in (make_run(branches=()), make_run(THRESHOLDS.fewest_steps - 1), make_run(0)):
        verdict = diagnose(run)
        assert verdict.outcome is Outcome.UNKNOWN
        assert not verdict.outcome.healthy
        assert verdict.evidence


def test_killed_and_unstarted_runs_are_interrupted():
    assert diagnose(make_run(ended=None)).outcome is Outcome.INTERRUPTED
    assert diagnose_run(None, None).outcome is Outcome.INTERRUPTED
    resumed = make_run()
    resumed.events.append({"event": "resumed"})
    assert diagnose(resumed).outcome is Outcome.INTERRUPTED


@pytest.mark.parametrize(
    ("events", "outcome"),
    [(["stopped"], Outcome.FAILED), (["interrupted", "stopped"], Outcome.INTERRUPTED), (["finished"], Outcome.STABLE)],
)
def test_an_interrupt_is_no_failure(events, outcome):
    run = make_run(ended=None)
    run.events += [{"event": event} for event in events]
    assert diagnose(run).outcome is outcome


def test_advice_names_arguments_and_the_evidence():
    verdict = diagnose(make_run(target_scores_one2many=DEAD))
    advice = verdict.advice[0]
    assert advice.arguments["lr0"] == pytest.approx(0.01)
    assert "step 25" in advice.text
    assert "0.03" in advice.text
    assert json.loads(json.dumps(verdict.to_dict()))["outcome"] == "collapsed"


@given(st.integers(2, STEPS - 6), st.floats(1e-6, 0.09), st.integers(0, 5))
def test_onset_of_a_death_is_exact(step, share, noise):
    """Wherever the scores fall below a tenth of the control for good, that step is named."""
    random = np.random.default_rng(noise)
    scores = 40 * random.uniform(0.9, 1.1, STEPS)
    scores[step - 1 :] *= share
    verdict = diagnose(make_run(target_scores_one2many=scores), make_run(target_scores_one2many=np.full(STEPS, 40.0)))
    assert (verdict.outcome, verdict.onset_step) == (Outcome.COLLAPSED, step)
