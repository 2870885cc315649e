# SPDX-License-Identifier: AGPL-3.0-or-later
"""The verdict on a training that goes on: whether it is certain already that the run will be called unhealthy.

Only steps that were made are looked at, by the rules that judge a run at its end. Nothing here knows a trainer: it is
handed the scalars of each step, live or out of telemetry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from yolo_gradstudy.diagnoses.collapse import is_collapsed
from yolo_gradstudy.diagnoses.divergence import is_exploded, is_nonfinite
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.diagnoses.onset import find_onset
from yolo_gradstudy.diagnoses.spikes import find_spikes
from yolo_gradstudy.diagnoses.thresholds import THRESHOLDS
from yolo_gradstudy.records import Finding, Outcome, RunResult, RunSpec

CHECK_EVERY = 10
"""Recorded steps between two looks: a look costs some milliseconds."""

CERTAIN_AFTER = 40
"""Steps over which every look must find trouble before it is certain. Of 63 and 68 runs those that got well were in
trouble for 27 steps at most (no BatchNorm, He weights, lr0 0.1 on COCO), the others for 15."""

KEPT_AT_START = 50
"""Steps of the run's start that are kept: rules compare with it."""

KEPT_AT_END = 150
"""Newest steps that are kept, so that a look costs the same however long the run is."""

ALWAYS = ("loss", "grad_norm")
"""Scalars that every step has, so that NaN is a measurement."""

LIVE_THRESHOLDS = replace(THRESHOLDS, end_share=0.0, end_steps=CHECK_EVERY)
"""A look asks what the steps since the last one show, so that no step is witness twice."""


def is_exploded_throughout(evidence: Evidence) -> Finding:
    """As :func:`is_exploded`, of most steps of the end: single spikes come and go in runs that get well."""
    finding = is_exploded(evidence)
    if finding.state != "matched" or any(spikes.mostly_at_end for spikes in find_spikes(evidence)):
        return finding
    return replace(finding, state="not matched", evidence=f"{finding.evidence}; in single steps")


CERTAIN_RULES: tuple[tuple[Outcome, Callable[[Evidence], Finding]], ...] = (
    (Outcome.NONFINITE, is_nonfinite),
    (Outcome.EXPLODED, is_exploded_throughout),
    (Outcome.COLLAPSED, is_collapsed),
)
"""Rules that need no end of the run, in the order of ``RULES``. That a run is stuck is certain only at its end."""


@dataclass(frozen=True)
class LiveRun:
    """The recorded steps of a training that goes on, and nothing else. Implements :class:`records.Run`."""

    meta: Mapping[str, Any]
    steps: pd.DataFrame
    name: str = "this training"
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)
    validations: pd.DataFrame = field(default_factory=pd.DataFrame)
    events: Sequence[Mapping[str, Any]] = ()
    incidents: Sequence[Mapping[str, Any]] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    spec: RunSpec | None = None
    result: RunResult | None = None
    damaged: Sequence[str] = ()

    def layers(self, quantity: str) -> pd.DataFrame:
        """None are kept."""
        return pd.DataFrame()

    def flow(self, quantity: str) -> pd.DataFrame:
        """None is kept."""
        return pd.DataFrame()


@dataclass(frozen=True)
class Certainty:
    """That a training is lost.

    Attributes:
        step: The step after which it was certain.
        outcome: What the run will be called.
        evidence: The rule's sentence.
        onset: The step at which the run left its course.
    """

    step: int
    outcome: Outcome
    evidence: str
    onset: int


class LiveVerdict:
    """Judges a training while it goes on.

    Args:
        meta: ``telemetry/meta.json``, or as much of it as names the assigners' branches.
        arguments: Ultralytics' training arguments.
    """

    def __init__(self, meta: Mapping[str, Any], arguments: Mapping[str, Any] | None = None) -> None:
        self._meta = meta
        self._arguments = arguments or {}
        self._rows: dict[int, Mapping[str, float]] = {}
        self._seen = 0
        self._since: tuple[Outcome, int] | None = None
        self._clean = 0

    @property
    def suspects(self) -> bool:
        """Whether the last look found something."""
        return self._since is not None

    def see(self, step: int, scalars: Mapping[str, float]) -> Certainty | None:
        """Take a step.

        Args:
            step: Its number.
            scalars: What was recorded of it.

        Returns:
            What is certain now, where something is; asked again after ``CHECK_EVERY`` steps.
        """
        self._rows[step] = dict(scalars)
        self._seen += 1
        if len(self._rows) > KEPT_AT_START + 2 * KEPT_AT_END:
            steps = list(self._rows)
            for old in steps[KEPT_AT_START:-KEPT_AT_END]:
                del self._rows[old]
        return self._look(step) if self._seen % CHECK_EVERY == 0 else None

    def forget_after(self, step: int) -> None:
        """Go back: the steps after this one were no part of a healthy course, those before stay to compare with."""
        self._rows = {number: row for number, row in self._rows.items() if number <= step}
        self._since = None

    def _look(self, step: int) -> Certainty | None:
        frame = pd.DataFrame.from_dict(self._rows, orient="index").rename_axis("step")
        evidence = Evidence(LiveRun(self._meta, frame, arguments=self._arguments), thresholds=LIVE_THRESHOLDS)
        outcome, finding = self._unhealthy(evidence)
        if outcome is None or finding is None:
            self._since, self._clean = None, step
            return None
        if self._since is None:
            self._since = (outcome, step)
        if step - self._since[1] < CERTAIN_AFTER:
            return None
        # What the rule names may be a spike of long ago, that training came back from: looks after it were clean.
        stale = finding.step is None or finding.step <= self._clean - CHECK_EVERY
        trouble = self._since[1] if stale or finding.step is None else finding.step
        found = find_onset(Evidence(evidence.run, thresholds=LIVE_THRESHOLDS, trouble=trouble)) or trouble
        onset = max(found, min(trouble, self._clean - CHECK_EVERY))
        return Certainty(step, outcome, finding.evidence, onset)

    def _unhealthy(self, evidence: Evidence) -> tuple[Outcome | None, Finding | None]:
        for outcome, rule in CERTAIN_RULES:
            finding = rule(evidence)
            if finding.state == "matched":
                return outcome, finding
        return None, None


def find_certainty(run: Any) -> Certainty | None:
    """When it would have been certain that a recorded run is lost, had it been judged while it went on.

    Args:
        run: What :func:`yolo_gradstudy.load_run` returned.
    """
    live = LiveVerdict(run.meta, run.arguments)
    return next((certain for step in recorded_scalars(run.steps) if (certain := live.see(*step)) is not None), None)


def recorded_scalars(steps: pd.DataFrame) -> Iterator[tuple[int, dict[str, float]]]:
    """Number and scalars of each recorded step, as a trainer hands them on: what was not recorded is not there.

    Args:
        steps: ``run.steps``, with further columns or without.
    """
    for step, numbers in steps.iterrows():
        yield int(str(step)), {str(k): float(v) for k, v in numbers.items() if k in ALWAYS or not math.isnan(v)}
