# SPDX-License-Identifier: AGPL-3.0-or-later
"""Synthetic studies on disk, as the recorder would leave them, for the tests of tables, figures and report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from yolo_gradstudy.records import Diagnosis, Finding, Outcome, RunReading, RunResult, RunSpec
from yolo_gradstudy.run_folder import StudyFolder

BRANCH = "one2one"
STEPS = 60


def parameter_names(head: int = 96) -> list[str]:
    """Names as in an Ultralytics model: convolutions with BatchNorm, then a large head."""
    names = []
    for module in range(23):
        depth = 1 if module in (0, 1, 3, 5, 7) else 4
        for child in range(depth):
            inner = "" if depth == 1 else f".m.{child}"
            names += [f"model.{module}{inner}.conv.weight", f"model.{module}{inner}.bn.weight"]
    for branch in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
        names += [f"model.23.{branch}.{i}.conv.weight" for i in range(head // 4)]
    return names


def make_spec(arm: str = "control", lr0: float = 0.01, seed: int = 0, study: str = "demo") -> RunSpec:
    return RunSpec(
        run_id=f"{arm}-lr{lr0:g}-s{seed}-abc123",
        study=study,
        arm=arm,
        ablations=() if arm == "control" else (arm,),
        model="yolo26n.yaml",
        data="shapes",
        lr0=lr0,
        seed=seed,
        arguments={"imgsz": 96, "batch": 16},
    )


def make_result(spec: RunSpec, **changes) -> RunResult:
    facts = {
        "status": "finished",
        "steps": STEPS,
        "metrics": {"metrics/mAP50(B)": 0.31, "metrics/mAP50-95(B)": 0.21, "fitness": 0.2},
        "weights_finite": True,
        "parameters": 2_500_000,
        "device": "cpu",
        "threads": 1,
        "versions": {"torch": "2.14.1", "python": "3.11.2"},
        "started": "2025-01-01T00:00:00+00:00",
        "duration_s": 12.5,
    }
    return RunResult(run_id=spec.run_id, **{**facts, **changes})


def make_verdict(outcome: Outcome | str, evidence: str = "so it was measured") -> Diagnosis:
    outcome = Outcome(outcome)
    state = "not checked" if outcome is Outcome.UNKNOWN else "matched"
    step = 7 if outcome.unhealthy else None
    return Diagnosis(outcome, (Finding(f"is_{outcome}", state, evidence, step),), onset_step=step)


def make_reading(arm="control", lr0=0.01, seed=0, outcome="stable", run=None, result=None) -> RunReading:
    return RunReading(make_spec(arm, lr0, seed), run, result, make_verdict(outcome))


class FakeRun:
    """A recorded run in memory, as :class:`yolo_gradstudy.records.Run`."""

    def __init__(self, steps, layers=None, meta=None, validations=None, events=(), flows=None):
        self.name = "fake"
        self.steps = steps
        self._layers = layers
        self._flows = flows or {}
        self.meta = {"inference_branch": BRANCH, "clip_norm": 10.0} if meta is None else meta
        self.epochs, self.events, self.incidents, self.damaged = pd.DataFrame(), tuple(events), (), ()
        self.validations = pd.DataFrame() if validations is None else validations
        self.spec = self.result = None

    def layers(self, quantity):
        return self._layers

    def flow(self, quantity):
        return self._flows.get(quantity, pd.DataFrame(index=pd.Index([], name="step", dtype="int64")))


def scalars(kind: str, seed: int, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Step scalars of a run that is ``stable``, ``collapsed`` or ``nonfinite``."""
    random = np.random.default_rng(seed)
    t = np.arange(1, steps + 1)
    norm = 1450 / t + 29 * np.exp(random.normal(0, 0.25, steps))
    loss = 157 - 20 * (1 - np.exp(-t / 30)) + random.normal(0, 2, steps)
    scores = 0.4 + 2.5 * (1 - np.exp(-t / 25)) + random.normal(0, 0.05, steps)
    if kind == "collapsed":
        norm[20:] = np.maximum(1e6 * np.exp(-(t[20:] - 21) / 2.0), 0)
        norm[45:] = 0.0
        loss[30:], scores[25:] = 13.0, 0.0
    if kind == "nonfinite":
        norm[10:18] *= 10.0 ** np.arange(8)
        norm[18:], loss[18:], scores[18:] = math.nan, math.nan, math.nan
    boxes = random.integers(30, 60, steps).astype(float)
    return {
        "grad_norm": norm,
        "clip_coefficient": np.minimum(10 / (norm + 1e-6), 1.0),
        "loss": loss,
        "boxes": boxes,
        f"target_scores_{BRANCH}": scores * boxes,
        f"positives_{BRANCH}": np.round(scores * boxes * 2),
        "target_scores_one2many": np.full(steps, 110.0),
    }


def layer_norms(norm: np.ndarray, names: Sequence[str], seed: int) -> np.ndarray:
    random = np.random.default_rng(seed + 1000)
    shape = np.exp(np.linspace(1.5, -2, len(names)) + random.normal(0, 0.7, len(names)))
    noise = np.exp(random.normal(0, 0.2, (len(norm), len(names))))
    return norm[:, None] * shape / np.sqrt((shape**2).sum()) * noise


def record(folder: StudyFolder, spec: RunSpec, kind: str, clip_norm: float | None = 10.0, steps: int = STEPS) -> None:
    """Leave a run's telemetry in two parts."""
    run_folder = folder.run(spec.run_id)
    run_folder.start_afresh(spec)
    names = parameter_names()
    columns = scalars(kind, spec.seed, steps)
    if clip_norm is None:
        del columns["clip_coefficient"]
    layers = layer_norms(columns["grad_norm"], names, spec.seed)
    run_folder.telemetry.write_meta(
        {"inference_branch": BRANCH, "clip_norm": clip_norm, "parameters": [{"name": n} for n in names]}
    )
    for first, last in ((0, steps // 2), (steps // 2, steps)):
        index = pa.array(range(first + 1, last + 1), pa.int64())
        for quantity, values in (
            ("steps", {k: v[first:last] for k, v in columns.items()}),
            ("grad_norm", dict(zip(names, layers[first:last].T, strict=True))),
        ):
            part = {k: pa.array(np.asarray(v, dtype="float32")) for k, v in values.items()}
            run_folder.telemetry.write_part(quantity, pa.table({"step": index, **part}))


def make_study(
    path: Path,
    arms: Mapping[str, Mapping[float, str]],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    finished: bool = True,
    steps: int = STEPS,
    name: str = "demo",
    description: str = "Synthetic.",
) -> StudyFolder:
    """A study's folder: the kind of run of each arm at each learning rate, for every seed."""
    folder = StudyFolder(path)
    plan = [make_spec(arm, lr0, seed, name) for arm, kinds in arms.items() for lr0 in kinds for seed in seeds]
    folder.write_study(
        {"name": name, "description": description, "model": "yolo26n.yaml", "data": "shapes",
         "arguments": {"imgsz": 96, "batch": 16}, "lr0": [0.01], "seeds": list(seeds)},
        plan,
    )  # fmt: skip
    if finished:
        for spec in plan:
            kind = arms[spec.arm][spec.lr0]
            record(folder, spec, kind, None if spec.arm == "no_clip" else 10.0, steps)
            folder.run(spec.run_id).write_result(make_result(spec, weights_finite=kind != "nonfinite"))
    return folder


def judge(run, result, control) -> Diagnosis:
    """A verdict good enough for synthetic runs."""
    if run is None and result is None:
        return make_verdict(Outcome.INTERRUPTED, "nothing was recorded")
    if run is None:
        return make_verdict(Outcome.FAILED if result.status == "failed" else Outcome.UNKNOWN, "no telemetry")
    norms = run.steps["grad_norm"]
    if not np.isfinite(norms).all():
        return make_verdict(Outcome.NONFINITE, f"the gradient norm was NaN at {(~np.isfinite(norms)).sum()} steps")
    if float(run.steps[f"target_scores_{BRANCH}"].iloc[-1]) == 0:
        return make_verdict(Outcome.COLLAPSED, "target scores of one2one fell to 0 while the loss fell to 13")
    return make_verdict(Outcome.STABLE, "target scores rose as the control's")
