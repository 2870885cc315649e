# SPDX-License-Identifier: AGPL-3.0-or-later
"""The verdict on a run: a file for each family of rules, asked in one order, first match wins.

A rule is a function ``Evidence -> Finding``. A rule that lacks what it needs says ``not checked`` and why.
Verdicts are derived whenever they are asked for and never stored as truth: a better rule re-judges old runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from yolo_gradstudy.diagnoses.activity import is_activation_dead, is_batchnorm_still, is_without_gradient
from yolo_gradstudy.diagnoses.balance import is_head_dominating
from yolo_gradstudy.diagnoses.batches import is_accumulation_moving, is_repeating_with_images, is_scaler_skipping
from yolo_gradstudy.diagnoses.clip import is_living_on_clip, is_unclipped
from yolo_gradstudy.diagnoses.collapse import is_collapsed, is_recovered, is_stable
from yolo_gradstudy.diagnoses.comparison import (
    Parting,
    SideBySide,
    compare_runs,
    differences_of_specs,
    nearest_first,
)
from yolo_gradstudy.diagnoses.depth import is_exploding_with_depth, is_vanishing_with_depth
from yolo_gradstudy.diagnoses.divergence import is_exploded, is_nonfinite
from yolo_gradstudy.diagnoses.early import EarlyWarning, Sign
from yolo_gradstudy.diagnoses.endings import is_failed, is_interrupted
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.diagnoses.learning import is_stuck
from yolo_gradstudy.diagnoses.live import Certainty, LiveVerdict, find_certainty
from yolo_gradstudy.diagnoses.losses import is_one_loss_dominating
from yolo_gradstudy.diagnoses.onset import find_onset, find_onset_layers
from yolo_gradstudy.diagnoses.rates import is_at_bias_rate, is_at_rate_peak
from yolo_gradstudy.diagnoses.thresholds import THRESHOLDS, Thresholds
from yolo_gradstudy.diagnoses.updates import is_update_too_large, is_update_too_small
from yolo_gradstudy.records import Advice, Diagnosis, Finding, Outcome, Run, RunResult

__all__ = [
    "EXPLANATIONS",
    "RULES",
    "THRESHOLDS",
    "Certainty",
    "EarlyWarning",
    "Evidence",
    "LiveVerdict",
    "Parting",
    "SideBySide",
    "Thresholds",
    "Sign",
    "StudyJudge",
    "compare_runs",
    "diagnose",
    "diagnose_run",
    "differences_of_specs",
    "find_certainty",
    "nearest_first",
]

RULES: tuple[tuple[Outcome, Callable[[Evidence], Finding]], ...] = (
    (Outcome.FAILED, is_failed),
    (Outcome.INTERRUPTED, is_interrupted),
    (Outcome.NONFINITE, is_nonfinite),
    (Outcome.EXPLODED, is_exploded),
    (Outcome.COLLAPSED, is_collapsed),
    (Outcome.STUCK, is_stuck),
    (Outcome.RECOVERED, is_recovered),
    (Outcome.STABLE, is_stable),
)
"""Outcomes and their rules in the order in which they are asked."""

EXPLANATIONS: tuple[Callable[[Evidence], Finding], ...] = (
    is_at_rate_peak,
    is_at_bias_rate,
    is_update_too_large,
    is_update_too_small,
    is_unclipped,
    is_living_on_clip,
    is_vanishing_with_depth,
    is_exploding_with_depth,
    is_head_dominating,
    is_one_loss_dominating,
    is_scaler_skipping,
    is_accumulation_moving,
    is_repeating_with_images,
    is_activation_dead,
    is_batchnorm_still,
    is_without_gradient,
)
"""Rules that explain besides the outcome, whatever it is: all are asked, and any number may match."""

_SAYS_NOTHING = (Outcome.FAILED, Outcome.INTERRUPTED)
"""Outcomes that say nothing of the detector, so that later rules are asked what the steps until then show."""


def diagnose(run: Run, control: Run | None = None) -> Diagnosis:
    """Judge a recorded run.

    Args:
        run: What :func:`yolo_gradstudy.load_run` returned.
        control: A healthy run to compare with, of the same data and seed, where there is one.

    Returns:
        The outcome with every rule's answer, and what explains it. The outcome is ``unknown`` where no rule matched,
        which happens where rules could not be checked: a run is not called healthy by rules that skipped.
    """
    return diagnose_run(run, run.result, control)


def diagnose_run(run: Run | None, result: RunResult | None, control: Run | None = None) -> Diagnosis:
    """Judge a run of a study, which may have recorded nothing.

    Args:
        run: Its telemetry, where there is any.
        result: How its process ended, where it did.
        control: The paired control, used where it is itself not dead against its own start.

    Returns:
        As :func:`diagnose`.
    """
    if control is not None and not is_healthy_control(control):
        control = None
    return _judge(run, result, control, explain=True)


class StudyJudge:
    """Judges the runs of one study, as :func:`diagnose_run` does, without what explains besides the outcome.

    Explanations read every vector that was recorded, and a study's tables tell of none; a control is looked at once,
    however many runs have it.
    """

    def __init__(self) -> None:
        self._healthy: WeakKeyDictionary[Run, bool] = WeakKeyDictionary()

    def __call__(self, run: Run | None, result: RunResult | None, control: Run | None = None) -> Diagnosis:
        """The outcome with the answers of the rules that decide on it."""
        if control is not None and control not in self._healthy:
            self._healthy[control] = is_healthy_control(control)
        if control is not None and not self._healthy[control]:
            control = None
        return _judge(run, result, control, explain=False)


def _judge(run: Run | None, result: RunResult | None, control: Run | None, *, explain: bool) -> Diagnosis:
    """The verdict, given a control that is healthy."""
    evidence = Evidence(run, result, control)
    findings: list[Finding] = []
    outcome: Outcome | None = None
    so_far: Outcome | None = None
    decisive: Finding | None = None
    for asked, rule in RULES:
        finding = rule(evidence)
        findings.append(finding)
        if finding.state != "matched":
            continue
        if outcome is None:
            outcome = asked
        elif asked not in _SAYS_NOTHING:
            so_far = asked
        decisive = finding
        if asked not in _SAYS_NOTHING:
            break
    outcome = outcome or Outcome.UNKNOWN
    evidence = evidence.with_trouble(None if decisive is None else decisive.step)
    if run is not None and explain:
        findings += [replace(rule(evidence), explains=True) for rule in EXPLANATIONS]
    onset = find_onset(evidence) if evidence.trouble is not None else None
    layers = find_onset_layers(evidence, onset)
    fallback = None if decisive is None else decisive.layer
    advice = [f.advice for f in findings if f.state == "matched" and f.advice is not None]
    return Diagnosis(
        outcome, tuple(findings), _distinct(advice), onset, layers[0] if layers else fallback, layers, so_far
    )


def _distinct(advice: Sequence[Advice]) -> tuple[Advice, ...]:
    """The advice without what says no more than another: the same arguments again."""
    kept: list[Advice] = []
    for one in advice:
        if not one.arguments or all(one.arguments != other.arguments for other in kept):
            kept.append(one)
    return tuple(kept)


def is_healthy_control(control: Run) -> bool:
    """Whether a control is fit to compare with: judged against its own start, it is stable.

    Whether it has learned need not be known: :func:`is_stuck` asks that of a control itself.
    """
    evidence = Evidence(control, control.result)
    for outcome, rule in RULES:
        state = rule(evidence).state
        allowed = {Outcome.STABLE: ("matched",), Outcome.STUCK: ("not matched", "not checked")}
        if state not in allowed.get(outcome, ("not matched",)):
            return False
    return True
