# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules on how a run's process ended, which say nothing of the detector."""

from __future__ import annotations

from yolo_gradstudy.diagnoses.epochs import nonfinite_epochs
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.records import Finding


def is_failed(evidence: Evidence) -> Finding:
    """An error ended the run, and it is not divergence: data, memory, a bug.

    Ultralytics raises a ``RuntimeError`` where its NaN recovery gives up. Whether an error is of that kind
    is told by the telemetry, not by its message: where the last step is non-finite, training diverged.
    """
    result = evidence.result
    if result is None:
        if evidence.last_event == "stopped":
            if evidence.last_is_nonfinite:
                return Finding("is_failed", "not matched", "training stopped after a non-finite step")
            return Finding("is_failed", "matched", "an error ended training before its last epoch")
        return Finding("is_failed", "not matched", "no error is on record")
    if result.status != "failed":
        return Finding("is_failed", "not matched", "the run's process finished")
    if evidence.last_is_nonfinite:
        return Finding("is_failed", "not matched", f"the error came after a non-finite step: {result.error}")
    return Finding("is_failed", "matched", str(result.error))


def is_interrupted(evidence: Evidence) -> Finding:
    """The run has no end on record: it was killed, or it is still going."""
    if evidence.result is not None:
        return Finding("is_interrupted", "not matched", "the run's process ended by itself")
    if evidence.run is None:
        return Finding("is_interrupted", "matched", "the run has not begun, or was killed before its first step")
    if evidence.last_event == "finished":
        return Finding("is_interrupted", "not matched", "recording was closed at the end of training")
    if evidence.last_event == "stopped":
        return Finding("is_interrupted", "not matched", "recording was closed when an error ended training")
    if evidence.last_event == "interrupted":
        last = max(evidence.run.steps.index, default=0)
        return Finding("is_interrupted", "matched", f"training was interrupted by its user after step {last}")
    if evidence.only_epochs:
        return _ends_early(evidence)
    if evidence.last_event is None:
        return Finding("is_interrupted", "not checked", "the telemetry has no events")
    return Finding(
        "is_interrupted",
        "matched",
        f"recording ends after step {max(evidence.run.steps.index, default=0)} and was never closed: "
        "the run was killed, or is still going",
    )


def _ends_early(evidence: Evidence) -> Finding:
    """The rule on ``results.csv`` alone, which has a row an epoch."""
    rule, last, planned = "is_interrupted", int(evidence.epochs.index[-1]), evidence.arguments.get("epochs")
    if not isinstance(planned, int):
        return Finding(
            rule, "not checked", f"results.csv ends with epoch {last}; how many there were to be is not known"
        )
    if last >= planned:
        return Finding(rule, "not matched", f"results.csv has all of {planned} epochs")
    if last in nonfinite_epochs(evidence.epochs):
        return Finding(
            rule, "not matched", f"results.csv ends with epoch {last} of {planned}, whose loss is not finite"
        )
    patience = evidence.arguments.get("patience")
    if isinstance(patience, int) and 0 < patience < last:
        told = f"results.csv ends with epoch {last} of {planned}: killed, still going, or ended by patience={patience}"
        return Finding(rule, "not checked", told)
    return Finding(rule, "matched", f"results.csv ends with epoch {last} of {planned}: killed, or still going")
