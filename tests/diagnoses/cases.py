# SPDX-License-Identifier: AGPL-3.0-or-later
"""A row a rule: telemetry on which it matches, and telemetry on which it can't be checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from yolo_gradstudy.records import RunResult

STEPS = 60
PARAMETERS = ("model.0.weight", "model.1.weight", "model.2.weight")


@dataclass
class MemoryRun:
    """A run in memory, as records.Run."""

    steps: pd.DataFrame
    meta: dict
    events: list
    norms: pd.DataFrame
    name: str = "memory"
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)
    incidents: tuple = ()
    damaged: tuple = ()
    spec: object = None
    result: object = None

    def layers(self, quantity):
        return self.norms


def make_run(steps=STEPS, ended="finished", branches=("one2many", "one2one"), inference="one2many", **columns):
    """A healthy YOLO26 run, with columns replaced; a column of None is left out."""
    t = np.arange(1, steps + 1)
    values = {
        "loss": 157 - 10 * (1 - np.exp(-t / 30)),
        "grad_norm": 1450 / t + 29,
        "grad_nonfinite": np.zeros(steps),
        "skipped": np.zeros(steps),
        "lr_pg0": np.full(steps, 0.03),
        "boxes": np.full(steps, 80.0),
        "target_scores_one2many": 40 + t / 2,
        "target_scores_one2one": 16 + t / 4,
        **columns,
    }
    frame = pd.DataFrame({k: v for k, v in values.items() if v is not None}, index=pd.Index(t, name="step"))
    norms = pd.DataFrame(np.ones((steps, len(PARAMETERS))), index=frame.index, columns=list(PARAMETERS))
    meta = {"inference_branch": inference, "branches": list(branches), "groups": ["weight"]}
    events = [{"event": "started"}, *([{"event": ended}] if ended else [])]
    return MemoryRun(frame, meta if branches else {"inference_branch": None, "branches": []}, events, norms)


def from_step(first, value, otherwise):
    """A column that has ``value`` from a step on."""
    return np.where(np.arange(1, STEPS + 1) >= first, value, otherwise)


def nonfinite_run():
    run = make_run(loss=from_step(31, math.nan, 150.0), grad_nonfinite=from_step(30, 5.0, 0.0))
    run.norms.loc[30:, ["model.0.weight", "model.1.weight"]] = math.nan
    return run


DEAD = from_step(25, 0.0, 40.0)
FINISHED = RunResult("r", "finished", weights_finite=True)
FAILED = RunResult("r", "failed", error="FileNotFoundError: no such image")


@dataclass(frozen=True)
class RuleCase:
    """Evidence on which a rule matches, with the step that it must name, and on which it can't be checked."""

    matches: tuple
    step: int | None
    says: str
    unchecked: tuple | None


CASES = {
    "is_failed": RuleCase((make_run(), FAILED), None, "no such image", None),
    "is_interrupted": RuleCase((make_run(ended=None), None), None, "step 60", (make_run(), None)),
    "is_nonfinite": RuleCase((nonfinite_run(), FINISHED), 30, "gradient", (None, None)),
    "is_exploded": RuleCase(
        (make_run(loss=from_step(40, 1e5, 150.0)), FINISHED), 40, "1e+05 on the way", (make_run(5), FINISHED)
    ),
    "is_collapsed": RuleCase(
        (make_run(target_scores_one2many=DEAD, loss=from_step(25, 0.0, 150.0)), FINISHED),
        25,
        "the loss there is 0",
        (make_run(branches=()), FINISHED),
    ),
    "is_recovered": RuleCase(
        (make_run(loss=np.where(np.arange(1, STEPS + 1) == 20, 1e5, 150.0)), FINISHED),
        20,
        "spiked from step 20 to 20",
        (make_run(branches=(), loss=np.where(np.arange(1, STEPS + 1) == 20, 1e5, 150.0)), FINISHED),
    ),
    "is_stable": RuleCase((make_run(), FINISHED), None, "60 steps finite", (make_run(branches=()), FINISHED)),
}
CASES["is_interrupted"].unchecked[0].events.clear()
