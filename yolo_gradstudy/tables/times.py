# SPDX-License-Identifier: AGPL-3.0-or-later
"""Steps until a run went wrong, censored where it did not: what survival analysis needs, and its estimators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.intervals import Floats

HEALTHY = ""
"""The cause of a run that has not gone wrong by its last step."""


@dataclass(frozen=True)
class Times:
    """Runs as pairs of a step and what happened there.

    Attributes:
        steps: The step of the event, or the last step under observation.
        causes: The unhealthy outcome, or :data:`HEALTHY` where the run is censored.
    """

    steps: Floats
    causes: tuple[str, ...]

    @property
    def events(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which runs went wrong."""
        return np.array([cause != HEALTHY for cause in self.causes], dtype=bool)


def times_of(runs: pd.DataFrame) -> Times:
    """The times of runs.

    An unhealthy run has its event at its onset, or at its last step where no onset is known; a ``stuck`` one at its
    last step, since nobody can tell before. A healthy run is censored at its last step, and so is one that failed or
    was interrupted, as if that had nothing to do with its state. Unknown runs, and runs of which no step is known,
    say nothing and are left out.

    Args:
        runs: Rows of :func:`results_table`.
    """
    steps, causes = [], []
    for name, onset, last in zip(runs["outcome"], runs["onset_step"], runs["steps"], strict=True):
        outcome = Outcome(name)
        step = onset if outcome.unhealthy and outcome is not Outcome.STUCK and not pd.isna(onset) else last
        if outcome is Outcome.UNKNOWN or pd.isna(step) or step < 1:
            continue
        steps.append(float(step))
        causes.append(str(outcome) if outcome.unhealthy else HEALTHY)
    return Times(np.array(steps, dtype="float64"), tuple(causes))


@dataclass(frozen=True)
class Curve:
    """Counts at each distinct step of an event or a censoring, rising, and the Kaplan–Meier estimate there.

    Attributes:
        steps: The steps.
        at_risk: Runs that are under observation and healthy just before.
        events: Runs that go wrong, of any cause.
        before: The share of runs that are healthy just before.
        after: The share of runs that are healthy from this step on: Kaplan and Meier (1958), JASA 53, 457–481.
    """

    steps: Floats
    at_risk: Floats
    events: Floats
    before: Floats
    after: Floats

    def at(self, step: float) -> float:
        """The share of runs that are healthy at a step, after what happens there."""
        index = int(np.searchsorted(self.steps, step, side="right"))
        return float(self.after[index - 1]) if index else 1.0

    def area(self, start: float, end: float) -> float:
        """The area under the curve between two steps."""
        inside = self.steps[(self.steps > start) & (self.steps < end)]
        edges = np.concatenate([[start], inside, [end]])
        return float(sum(self.at(low) * (high - low) for low, high in pairwise(edges)))


def curve_of(times: Times) -> Curve:
    """The Kaplan–Meier curve, all causes together; events come before censorings at the same step."""
    steps = np.unique(times.steps)
    at_risk = np.array([(times.steps >= step).sum() for step in steps], dtype="float64")
    events = counts_of(times, steps)
    after = np.cumprod(1 - events / at_risk) if len(steps) else np.empty(0)
    before = np.concatenate([[1.0], after[:-1]]) if len(steps) else np.empty(0)
    return Curve(steps, at_risk, events, before, after)


def counts_of(times: Times, steps: Floats, causes: Sequence[str] | None = None) -> Floats:
    """Events at each step, of some causes or of all."""
    wanted = times.events if causes is None else np.array([cause in causes for cause in times.causes], dtype=bool)
    return np.array([((times.steps == step) & wanted).sum() for step in steps], dtype="float64")


def median_step(times: Times) -> float:
    """The first step by which half of the runs went wrong by the Kaplan–Meier estimate; infinite where they did not."""
    curve = curve_of(times)
    below = np.flatnonzero(curve.after <= 0.5 + 1e-12)
    return float(curve.steps[below[0]]) if len(below) else math.inf
