# SPDX-License-Identifier: AGPL-3.0-or-later
"""The verdict on a run: a file for each family of rules, asked in one order, first match wins.

A rule is a function ``Evidence -> Finding``. A rule that lacks what it needs says ``not checked`` and why.
Verdicts are derived whenever they are asked for and never stored as truth: a better rule re-judges old runs.
"""

from __future__ import annotations

from collections.abc import Callable

from yolo_gradstudy.diagnoses.collapse import is_collapsed, is_recovered, is_stable
from yolo_gradstudy.diagnoses.divergence import is_exploded, is_nonfinite
from yolo_gradstudy.diagnoses.endings import is_failed, is_interrupted
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.diagnoses.thresholds import THRESHOLDS, Thresholds
from yolo_gradstudy.records import Diagnosis, Finding, Outcome, Run, RunResult

__all__ = ["RULES", "THRESHOLDS", "Evidence", "Thresholds", "diagnose", "diagnose_run"]

RULES: tuple[tuple[Outcome, Callable[[Evidence], Finding]], ...] = (
    (Outcome.FAILED, is_failed),
    (Outcome.INTERRUPTED, is_interrupted),
    (Outcome.NONFINITE, is_nonfinite),
    (Outcome.EXPLODED, is_exploded),
    (Outcome.COLLAPSED, is_collapsed),
    (Outcome.RECOVERED, is_recovered),
    (Outcome.STABLE, is_stable),
)
"""Outcomes and their rules in the order in which they are asked."""


def diagnose(run: Run, control: Run | None = None) -> Diagnosis:
    """Judge a recorded run.

    Args:
        run: What :func:`yolo_gradstudy.load_run` returned.
        control: A healthy run to compare with, of the same data and seed, where there is one.

    Returns:
        The outcome with every rule's answer. The outcome is ``unknown`` where no rule matched, which
        happens where rules could not be checked: a run is not called healthy by rules that skipped.
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
    evidence = Evidence(run, result, control)
    findings = []
    for outcome, rule in RULES:
        finding = rule(evidence)
        findings.append(finding)
        if finding.state == "matched":
            return Diagnosis(
                outcome,
                tuple(findings),
                (finding.advice,) if finding.advice is not None else (),
                finding.step,
                finding.layer,
            )
    return Diagnosis(Outcome.UNKNOWN, tuple(findings))


def is_healthy_control(control: Run) -> bool:
    """Whether a control is fit to compare with: judged against its own start, it is stable."""
    evidence = Evidence(control, control.result)
    return all(
        rule(evidence).state == ("matched" if outcome is Outcome.STABLE else "not matched") for outcome, rule in RULES
    )
