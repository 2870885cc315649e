# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verdicts on recorded runs whose labels rest on nothing that a rule looks at."""

import sys
from pathlib import Path

import pytest

from yolo_gradstudy import load_run
from yolo_gradstudy.diagnoses import diagnose_run, find_certainty
from yolo_gradstudy.records import Outcome

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "results" / "corpus"
sys.path.insert(0, str(ROOT / "scripts"))

import judge_corpus  # noqa: E402

DEAD = ("detects nothing", "not finite")


@pytest.fixture(scope="module")
def judged():
    return judge_corpus.judge(CORPUS)


def test_the_corpus_has_sixty_runs_of_every_outcome_and_label(judged):
    assert len(judged) >= 60
    assert {j.outcome for j in judged} >= set(Outcome) - {Outcome.UNKNOWN}
    assert {j.label for j in judged} == set(judge_corpus.LABELS)


def test_no_dead_run_is_called_healthy_and_no_living_one_unhealthy(judged):
    assert judge_corpus.wrong(judged) == []


def test_what_was_planted_or_killed_is_called_so(judged):
    for one in judged:
        assert (one.outcome is Outcome.FAILED) == (one.label == "error"), one
        assert (one.outcome is Outcome.INTERRUPTED) == (one.label == "killed"), one


def test_a_wrong_verdict_would_be_seen(judged):
    dead = next(j for j in judged if j.label == "detects nothing")
    alive = next(j for j in judged if j.label == "detects")
    for one, outcome in ((dead, Outcome.STABLE), (dead, Outcome.RECOVERED), (alive, Outcome.COLLAPSED)):
        assert judge_corpus.wrong([judge_corpus.Judged(one.run_id, one.label, outcome, "", one.facts)])


def test_without_a_control_no_dead_head_is_called_healthy(judged):
    """What has never learned looks like a beginning without one; what died does not."""
    for one in judged:
        if one.label in DEAD and not one.run_id.startswith("too-slow"):
            run = load_run(CORPUS / one.run_id)
            assert not diagnose_run(run, run.result).outcome.healthy, one


def test_nothing_is_certain_of_a_run_that_lives(judged):
    certain = {j.run_id: j for j in judged if find_certainty(load_run(CORPUS / j.run_id)) is not None}
    assert len(certain) >= 10
    assert all(j.label != "detects" and j.outcome.unhealthy for j in certain.values())
