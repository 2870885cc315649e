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
    validations: pd.DataFrame = field(default_factory=pd.DataFrame)
    vectors: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    incidents: tuple = ()
    damaged: tuple = ()
    spec: object = None
    result: object = None

    def layers(self, quantity):
        return self.norms if quantity == "grad_norm" else self.vectors.get(quantity, pd.DataFrame())

    def flow(self, quantity):
        return self.vectors.get(quantity, pd.DataFrame())


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


def spike(step, value, otherwise):
    """A column that has ``value`` at one step."""
    return np.where(np.arange(1, STEPS + 1) == step, value, otherwise)


def with_(run, **changes):
    """A run with attributes set."""
    for name, value in changes.items():
        setattr(run, name, value)
    return run


def validations(losses, chance=7.3, branch="one2many"):
    """What each epoch's validation gave: the class loss of a fixed assignment, and chance."""
    index = pd.RangeIndex(len(losses), name="epoch")
    return pd.DataFrame({f"fixed_class_{branch}": losses, f"fixed_chance_{branch}": chance}, index=index)


def epochs(scores=None, losses=None):
    """A ``results.csv``: a row an epoch, counted from 1."""
    count = len(scores if scores is not None else losses)
    columns = {"train/box_loss": [3.0] * count, "train/cls_loss": [4.0] * count if losses is None else losses}
    if scores is not None:
        columns["metrics/mAP50-95(B)"] = scores
    return pd.DataFrame(columns, index=pd.RangeIndex(1, count + 1, name="epoch"), dtype="float64")


def plain_run(**columns):
    """An Ultralytics folder that nothing recorded: 10 epochs of ``results.csv``, and ``args.yaml``."""
    run = MemoryRun(pd.DataFrame(index=pd.Index([], name="step")), {}, [], pd.DataFrame())
    return with_(run, epochs=epochs(**columns), arguments={"epochs": 10, "lr0": 0.1, "optimizer": "SGD", "patience": 0})


def learned():
    """A control that has learned."""
    return with_(make_run(), validations=validations([9.0, 500.0, 6.5, 5.0]))


def vector(values, every=1, names=PARAMETERS):
    """A number a parameter or module, from step 1 on."""
    index = pd.Index(np.arange(len(values)) * every + 1, name="step")
    return pd.DataFrame(np.asarray(values, dtype="float64"), index=index, columns=list(names))


LADDER = tuple(f"model.{i}" for i in range(20))
PARAMETER_META = [
    {"name": "model.0.weight", "group": 0},
    {"name": "model.0.bn.weight", "group": 1},
    {"name": "model.1.weight", "group": 0},
    {"name": "model.2.weight", "group": 0},
    {"name": "model.2.bias", "group": 2},
]
NAMES = tuple(p["name"] for p in PARAMETER_META)


def rich_run(quantity, values, **columns):
    """A run with vectors of five parameters in three groups."""
    run = make_run(**columns)
    run.meta |= {"parameters": PARAMETER_META, "groups": ["weight", "bn", "bias"]}
    run.vectors[quantity] = vector(values, names=NAMES)
    return run


def head_run(share):
    """A run whose last numbered layer has a share of the squared gradient."""
    return with_(make_run(), norms=vector([[np.sqrt(1 - share), 0.0, np.sqrt(share)]] * STEPS))


def warmed_run(rates, biases=None, **columns):
    """A run with a learning rate a step, and a bias rate of its own."""
    run = make_run(lr_pg0=rates, **({} if biases is None else {"lr_pg1": biases}), **columns)
    run.meta["groups"] = ["weight", "bias"]
    return run


def depth_run(ratio):
    """A run of 20 modules whose gradient changes by ``ratio`` from the last to the first."""
    gradient = np.geomspace(ratio, 1.0, len(LADDER))
    return with_(make_run(), vectors={"output_grad_rms": vector([gradient] * 3, 20, LADDER)})


def incidents_run(*images, images_each=4.0):
    """A run with incidents at steps 10, 20, ..., of these images; an epoch is 15 steps."""
    run = make_run(images=np.full(STEPS, images_each), epoch=np.arange(STEPS) // 15)
    incidents = [{"step": 10 * (n + 1), "kind": "spike", "images": names} for n, names in enumerate(images)]
    return with_(run, incidents=tuple(incidents))


SPIKING = {"grad_norm": from_step(40, 1e6, 30.0)}
RAMP = np.minimum(np.arange(1, STEPS + 1), 50) / 500


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
    "is_stuck": RuleCase(
        (with_(make_run(), validations=validations([9.3, 9.2, 9.3, 9.3])), FINISHED, learned()),
        None,
        "9.3, chance 7.3; the paired control has learned",
        (make_run(), FINISHED),
    ),
    "is_recovered": RuleCase(
        (make_run(loss=spike(20, 1e5, 150.0)), FINISHED),
        20,
        "spiked from step 20 to 20",
        (make_run(branches=(), loss=spike(20, 1e5, 150.0)), FINISHED),
    ),
    "is_stable": RuleCase((make_run(), FINISHED), None, "60 steps finite", (make_run(branches=()), FINISHED)),
}
CASES["is_interrupted"].unchecked[0].events.clear()


@dataclass(frozen=True)
class ExplanationCase:
    """A run that a rule explains, with the step that it names, its advice, and a run on which it can't be checked.

    ``spared`` is a run that is nearly the same and has nothing to be explained.
    """

    matches: MemoryRun
    step: int | None
    says: str
    spared: MemoryRun
    unchecked: MemoryRun | None
    advises: dict = field(default_factory=dict)


NO_NORMS = with_(make_run(), norms=pd.DataFrame())

EXPLANATION_CASES = {
    "is_at_rate_peak": ExplanationCase(
        with_(warmed_run(RAMP, **SPIKING), arguments={"warmup_epochs": 3.0, "optimizer": "SGD"}),
        40,
        "lr 0.08 at step 40",
        warmed_run(RAMP),
        make_run(lr_pg0=None),
        {"lr0": 0.03, "warmup_epochs": 6.0},
    ),
    "is_at_bias_rate": ExplanationCase(
        warmed_run(RAMP, np.full(STEPS, 0.5), **SPIKING),
        40,
        "biases train at 0.5 and weights at 0.08",
        warmed_run(RAMP, RAMP, **SPIKING),
        make_run(),
        {"warmup_bias_lr": 0.1},
    ),
    "is_update_too_large": ExplanationCase(
        rich_run("update_ratio", [[0.01] * 5] * 9 + [[0.2] * 5] + [[0.01] * 5]),
        10,
        "weight 0.2, bn 0.2; over 0.1 first at step 10",
        rich_run("update_ratio", [[0.01, 0.01, 0.01, 0.01, 3.0]] * 11),  # a bias begins at 0
        make_run(),
        {"lr0": 0.01},
    ),
    "is_update_too_small": ExplanationCase(
        with_(rich_run("update_ratio", [[1e-8] * 5] * 9), arguments={"lr0": 1e-5, "optimizer": "SGD"}),
        1,
        "weight 1e-08",
        rich_run("update_ratio", [[1e-4] * 5] * 9),
        make_run(),
        {"lr0": 0.01},
    ),
    "is_unclipped": ExplanationCase(
        with_(make_run(**SPIKING), meta={**make_run().meta, "clip_norm": None, "clip": None}),
        40,
        "30 in the median, 1e+06 at most",
        with_(make_run(**SPIKING, clip_coefficient=np.full(STEPS, 0.5)), meta={**make_run().meta, "clip_norm": 10.0}),
        make_run(**SPIKING),
    ),
    "is_living_on_clip": ExplanationCase(
        make_run(clip_coefficient=from_step(5, 0.1, 1.0)),
        5,
        "93% of 60 steps are clipped, median coefficient 0.1",
        make_run(clip_coefficient=spike(5, 0.1, 1.0)),
        make_run(),
    ),
    "is_vanishing_with_depth": ExplanationCase(
        depth_run(1e-6), 1, "model.0 and model.1 is 1.5e-06 of the largest", depth_run(1e-2), make_run()
    ),
    "is_exploding_with_depth": ExplanationCase(
        depth_run(1e6), 1, "model.0 and model.1 is ", depth_run(1e2), make_run()
    ),
    "is_head_dominating": ExplanationCase(
        head_run(0.9999), 1, "model.2, the head, has 100.0% of the squared gradient", head_run(0.5), NO_NORMS
    ),
    "is_one_loss_dominating": ExplanationCase(
        make_run(box_loss=from_step(21, 99.0, 1.0), cls_loss=np.ones(STEPS)),
        21,
        "box_loss is 99%",
        make_run(box_loss=np.full(STEPS, 3.0), cls_loss=np.ones(STEPS)),
        make_run(),
        {"box": 3.8},
    ),
    "is_scaler_skipping": ExplanationCase(
        make_run(amp_scale=np.full(STEPS, 64.0), skipped=(np.arange(1, STEPS + 1) % 10 == 0) * 1.0),
        40,
        "3 of 30 steps skipped",
        make_run(amp_scale=np.full(STEPS, 64.0), skipped=from_step(4, 0.0, 1.0)),  # a scaler that finds its scale
        make_run(),
        {"amp": False},
    ),
    "is_accumulation_moving": ExplanationCase(
        with_(
            make_run(images=from_step(21, 64.0, 16.0), grad_norm=from_step(21, 400.0, 100.0)),
            meta={**make_run().meta, "batch": 16},
        ),
        21,
        "100, 6.25 an image, from there on 400, 6.25 an image",
        make_run(images=np.full(STEPS, 64.0)),
        make_run(),
        {"nbs": 16},
    ),
    "is_repeating_with_images": ExplanationCase(
        incidents_run(["a.jpg", "b.jpg"], ["c.jpg", "b.jpg"], ["b.jpg", "d.jpg"]),
        10,
        "1 images are in 3 of 3 incidents",
        incidents_run(["a.jpg", "b.jpg"], ["c.jpg", "e.jpg"], ["f.jpg", "d.jpg"]),
        incidents_run(["a.jpg"]),
    ),
    "is_activation_dead": ExplanationCase(
        with_(make_run(), vectors={"dead_share": vector([[0, 0, 0], [0, 0.2, 0.9], [0, 0.1, 0.9]], 20)}),
        21,
        "1 of 3 modules are dead in more than half of their channels, the first is model.2.weight",
        with_(make_run(), vectors={"dead_share": vector([[0, 0.9, 0], [0, 0, 0.1]], 20)}),
        make_run(),
        {"lr0": 0.01},
    ),
    "is_batchnorm_still": ExplanationCase(
        rich_run("param_norm", [[1, 1, 1, 1, 0], [2, 1, 2, 2, 1]]),
        1,
        "norms of 1 of 1 BatchNorm parameters did not change",
        rich_run("param_norm", [[1, 1, 1, 1, 0], [2, 2, 2, 2, 1]]),
        rich_run("param_norm", [[1, 1, 1, 1, 0]]),
    ),
    "is_without_gradient": ExplanationCase(
        with_(make_run(), norms=vector([[1.0, 1.0, 0.0 if t > 30 else 1.0] for t in range(1, STEPS + 1)])),
        31,
        "1 one that is 0 at the end: model.2.weight, from step 31 on",
        make_run(),
        NO_NORMS,
    ),
}
