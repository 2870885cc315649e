# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice is tried: trainings that go wrong are trained again as their own diagnosis says, and go better."""

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.utils import LOGGER

from tests.trainer.small import train, write_small
from yolo_gradstudy import GradStudyTrainer, RecordConfig, diagnose, load_run
from yolo_gradstudy.arguments import OWN_ARGUMENTS, check_words
from yolo_gradstudy.diagnoses import Evidence
from yolo_gradstudy.diagnoses.evidence import scores_per_box
from yolo_gradstudy.records import Advice, Diagnosis, Finding, Outcome, Run

# Ten epochs of three steps on a dozen pictures.
SHORT = {
    "epochs": 10, "imgsz": 32, "batch": 4, "nbs": 4, "optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 0.0,
    "mosaic": 0.0, "save": False, "seed": 0,
}  # fmt: skip
ALIKE = 0.5
"""Share of the target scores before that is not worse: equally good trainings of 18 steps differed by a third."""


@dataclass(frozen=True)
class Setup:
    """A training: what is set beside :data:`SHORT`.

    Attributes:
        arguments: Training arguments, Ultralytics' or this package's own.
        ablations: Names of ablations.
        clip_norm: Where the gradient norm is clipped; None for nowhere.
        flow: Whether the flow through the modules is sampled.
        callbacks: Ultralytics' callbacks, by event.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    ablations: tuple[str, ...] = ()
    clip_norm: float | None = 10.0
    flow: bool = False
    callbacks: dict[str, Callable[[Any], None]] = field(default_factory=dict)

    def follow(self, advice: Advice) -> "Setup":
        """The same training with the advice's arguments, or where it has none, the first option that its text names."""
        check_words(dict(advice.arguments))
        changed: dict[str, Any] = {"arguments": {**self.arguments, **advice.arguments}}
        if not advice.arguments and (clip := re.search(r"--clip ([\d.]+)", advice.text)):
            changed["clip_norm"] = float(clip[1])
        elif not advice.arguments:
            changed["ablations"] = (*self.ablations, re.search(r"--ablate (\w+)", advice.text)[1])
        return replace(self, **changed)


@dataclass(frozen=True)
class Case:
    """A kind of trouble.

    Attributes:
        name: The trouble.
        setup: The training that gets into it.
        outcome: What it ends as; None where the finding alone is the trouble, whatever the outcome.
        rule: The rule whose advice is followed.
        advises: What the rule's advice sets, or the option that it names.
        plain: Whether the training is judged by Ultralytics' own files, without any telemetry; what comes of the advice
            is judged by the telemetry, which tells more.
        times: How often advice may have to be followed, each time that of the training before: a third of a rate
            may still be too high, and on another machine, whose last digits differ, may break in another way.
    """

    name: str
    setup: Setup
    outcome: Outcome | None
    rule: str
    advises: tuple[str, ...]
    plain: bool = False
    times: int = 1


def overflow_often(trainer):
    """Have the scaler try a larger scale after each step, not after 2000, so that it goes on overflowing."""
    trainer.scaler.set_growth_interval(1)


HOT = Setup({"lr0": 0.3}, ("replace_silu_by_relu",), clip_norm=None)
"""ReLU at a rate that nothing holds back: nearly dead, but not by the threshold of the rule for collapse."""
LEAKY = ("no_batchnorm", "replace_silu_by_leakyrelu", "replace_init_by_he", "no_nan_recovery")
NAN = Setup({"lr0": 0.01, "seed": 1}, LEAKY, clip_norm=None)
"""Of the seeds 0 to 5 the one that was stable both at a third of the rate and at a tenth."""

CASES = [
    Case("absurd rate", Setup({"lr0": 1.0}), Outcome.COLLAPSED, "is_collapsed", ("lr0", "warmup_epochs")),
    Case("NaN", NAN, Outcome.NONFINITE, "is_nonfinite", ("lr0",), times=3),
    Case("NaN in results.csv", NAN, Outcome.NONFINITE, "is_nonfinite", ("lr0",), plain=True, times=3),
    Case(
        "rate of biases",
        Setup({"warmup_epochs": 8.0, "warmup_bias_lr": 0.3}, clip_norm=None),
        Outcome.COLLAPSED,
        "is_at_bias_rate",
        ("warmup_bias_lr",),
    ),
    Case(
        "peak of the rate",
        Setup(
            {"lr0": 0.1, "lrf": 1.0},
            ("no_batchnorm", "replace_silu_by_leakyrelu", "replace_init_by_xavier"),
            clip_norm=None,
        ),
        Outcome.COLLAPSED,
        "is_at_rate_peak",
        ("lr0",),
        times=3,
    ),
    Case("nothing moves", Setup({"lr0": 1e-5}), None, "is_update_too_small", ("lr0",)),
    Case("updates too large", HOT, None, "is_update_too_large", ("lr0",)),
    Case("no clip", HOT, None, "is_unclipped", ("--clip",)),
    Case("one loss", Setup({"box": 1000.0}), None, "is_one_loss_dominating", ("box",)),
    Case(
        "accumulation",
        Setup({"nbs": 12, "warmup_epochs": 5.0, "warmup_bias_lr": 0.0}),
        None,
        "is_accumulation_moving",
        ("nbs",),
    ),
    Case(
        "fp16",
        Setup({"precision": "fp16", "epochs": 6, "batch": 2, "nbs": 2}, callbacks={"on_train_start": overflow_often}),
        None,
        "is_scaler_skipping",
        ("precision",),
    ),
    Case("initial weights", Setup({}, ("no_batchnorm",), flow=True), None, "is_activation_dead", ("--ablate",)),
]


@pytest.fixture(scope="module")
def trained(shapes_yaml, tmp_path_factory):
    """Train a setup, or give the run that it was trained in before: cases share some."""
    data = write_small(shapes_yaml, tmp_path_factory.mktemp("small"))
    known, level, threads = {}, LOGGER.level, torch.get_num_threads()

    def train_once(setup):
        key = repr(replace(setup, arguments={**DEFAULT_CFG_DICT, **SHORT, **setup.arguments}))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("tried") / "run"
            train_setup(setup, data, known[key])
        return known[key]

    LOGGER.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    yield train_once
    LOGGER.setLevel(level)
    torch.set_num_threads(threads)


def train_setup(setup, data, folder):
    arguments = {**SHORT, **setup.arguments}
    own = {key: arguments.pop(key) for key in OWN_ARGUMENTS if key in arguments}
    record = RecordConfig(update_every=5, extremes_every=0, flow_every=5 if setup.flow else 0)
    trainer = GradStudyTrainer.using(record, ablations=setup.ablations, clip_norm=setup.clip_norm, threads=1, **own)
    train(trainer, data, folder, callbacks=setup.callbacks, **arguments)


def judge(folder, plain=False) -> tuple[Run, Diagnosis]:
    """A run and its verdict; of Ultralytics' own files alone where asked for."""
    if plain:
        copy = folder.with_name("plain")
        copy.mkdir(exist_ok=True)
        for name in ("results.csv", "args.yaml"):
            shutil.copy(folder / name, copy / name)
        folder = copy
    run = load_run(folder)
    return run, diagnose(run)


def finding_of(verdict: Diagnosis, rule: str) -> Finding:
    return next(f for f in verdict.findings if f.rule == rule)


def scores_at_end(run: Run) -> float:
    """How well the best predictions overlap the objects at the end of a run; 0 where nothing is finite there."""
    evidence = Evidence(run)
    return 0.0 if evidence.last_is_nonfinite else evidence.end(scores_per_box(run))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_following_the_advice_ends_the_trouble(case, trained):
    """The advice of one rule is applied to the run that it was given for, all else equal: once, or up to `times`, then
    also that of the rule by which the next run broke."""
    setup = case.setup
    _, verdict = judge(trained(setup), case.plain)
    if case.outcome is not None:
        assert verdict.outcome is case.outcome, verdict.evidence
    finding = finding_of(verdict, case.rule)
    assert finding.state == "matched", finding.evidence
    told = [*finding.advice.arguments] or re.findall(r"--clip|--ablate", finding.advice.text)[:1]
    assert tuple(told) == case.advises
    assert dict(finding.advice.arguments) in [dict(advice.arguments) for advice in verdict.advice]

    first, _ = judge(trained(setup))
    followed, texts = finding, []
    for _ in range(case.times):
        texts.append(followed.advice.text)
        setup = setup.follow(followed.advice)
        last, then = judge(trained(setup))
        followed = finding_of(then, case.rule)
        if followed.state != "matched":
            if not then.outcome.broken:
                break
            followed = finding_of(then, f"is_{then.outcome}")
    before, after = scores_at_end(first), scores_at_end(last)
    print(  # what docs/diagnosis.md shows: pytest -rP
        f"\n| {case.name} | {verdict.outcome} | `{case.rule}` | {'; then: '.join(texts)} | {then.outcome} | "
        f"{before:.2g} | {after:.2g} |"
    )
    assert then.outcome is Outcome.STABLE, then.evidence
    assert finding_of(then, case.rule).state == "not matched"
    assert after > (ALIKE if case.outcome is None else 2.0) * before


def test_six_kinds_of_trouble_are_tried():
    """By the arguments of as many rules' advice, options of the command line aside."""
    assert len({case.rule for case in CASES if not case.advises[0].startswith("--")}) >= 6
