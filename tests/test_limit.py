# SPDX-License-Identifier: AGPL-3.0-or-later
"""The search for the largest stable learning rate: few runs, the right edge, and on from where it was."""

import contextlib
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_study import STUDY, Pretended
from trainer.small import write_small
from typer.testing import CliRunner
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import one_cycle

from yolo_gradstudy.arguments import known_arguments
from yolo_gradstudy.cli import app
from yolo_gradstudy.cli.loading import vocabulary
from yolo_gradstudy.datasets import count_classes, count_images
from yolo_gradstudy.limit import search_limits
from yolo_gradstudy.plan import Probe, RateGrid, edge_of, load_study, most_runs, next_probes
from yolo_gradstudy.plan.beginnings import automatic, beginning
from yolo_gradstudy.run_folder import StudyFolder

GRID = RateGrid.between(0.01, math.sqrt(2), 0.01 / 16, 1.0)


def probe(grid, alive):
    found = {}
    while wanted := next_probes(grid, found):
        assert not set(wanted) & found.keys()
        assert set(wanted) <= set(grid.indices)
        for index in wanted:
            found[index] = alive(index)
    return found


@pytest.mark.parametrize("edge", range(GRID.indices[0] - 1, GRID.indices[-1] + 1))
def test_every_edge_is_found_with_half_of_the_grid(edge):
    found = probe(GRID, lambda index: Probe.ALIVE if index <= edge else Probe.BROKEN)
    assert edge_of(GRID, found) == (edge, edge + 1)
    assert len(found) <= min(most_runs(GRID), len(GRID.indices) / 2)
    sides = range(edge - 3, edge + 5)
    assert {index for index in sides if index in GRID.indices} <= found.keys()


@settings(max_examples=200)
@given(st.lists(st.sampled_from(list(Probe)), min_size=len(GRID.indices), max_size=len(GRID.indices)))
def test_it_ends_whatever_is_found(outcomes):
    by_index = dict(zip(GRID.indices, outcomes, strict=True))
    low, high = edge_of(GRID, probe(GRID, by_index.get))
    assert low < high
    assert by_index.get(low, Probe.ALIVE) is Probe.ALIVE
    assert by_index.get(high, Probe.BROKEN) is Probe.BROKEN
    assert all(by_index[index] is Probe.UNTOLD for index in range(low + 1, high))


@settings(max_examples=100)
@given(st.integers(GRID.indices[0] - 1, GRID.indices[-1]), st.data())
def test_what_is_known_is_not_asked_again(edge, data):
    def alive(index):
        return Probe.ALIVE if index <= edge else Probe.BROKEN

    whole = probe(GRID, alive)
    kept = data.draw(st.sets(st.sampled_from(sorted(whole))))
    found = {index: alive(index) for index in kept}
    while wanted := next_probes(GRID, found):
        found |= {index: alive(index) for index in wanted}
    assert edge_of(GRID, found) == (edge, edge + 1)
    assert found.keys() == whole.keys()


def test_rates_are_a_persons_and_the_wider_grid_has_those_of_the_narrower():
    assert [GRID.rate(index) for index in (-1, 0, 1, 2)] == [0.007071, 0.01, 0.01414, 0.02]
    assert GRID.rate(GRID.indices[-1]) <= 1.0 < 0.01 * math.sqrt(2) ** (GRID.indices[-1] + 1)
    narrow = RateGrid.between(0.01, math.sqrt(2), 0.005, 0.04)
    assert [narrow.rate(i) for i in narrow.indices] == [0.005, 0.007071, 0.01, 0.01414, 0.02, 0.02828, 0.04]
    assert {narrow.rate(i) for i in narrow.indices} <= {GRID.rate(i) for i in GRID.indices}
    assert all(GRID.index(GRID.rate(i)) == i for i in GRID.indices)


# A whole search, with an executor that only pretends to train -----------------------------------------

EDGES = {"control": 0.08, "no_batchnorm": 0.01}


def breaks_above_its_edge(spec):
    return "collapsed" if spec.lr0 > EDGES[spec.arm] * (0.5 if spec.seed else 1) * 1.01 else "stable"


@pytest.fixture
def study(tmp_path, shapes_yaml, monkeypatch):
    monkeypatch.setattr("yolo_gradstudy.report.draw", lambda *_: [])
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "data": str(write_small(shapes_yaml, tmp_path / "data"))}))
    return load_study(path, vocabulary(), {"limit": {"factor": 2}})


def test_a_search_finds_each_edge_and_goes_on_where_it_was(study, tmp_path):
    whole, cut = StudyFolder(tmp_path / "whole"), StudyFolder(tmp_path / "cut")
    rounds = []
    search_limits(
        study, whole, everything := Pretended(kind=breaks_above_its_edge), on_round=lambda *r: rounds.append(r)
    )
    found = pd.read_csv(whole.report_path / "limits.csv").set_index(["arm", "seed"])
    assert found["largest_stable"].to_dict() == {
        ("control", 0): 0.08, ("control", 1): 0.04, ("no_batchnorm", 0): 0.01, ("no_batchnorm", 1): 0.005,
    }  # fmt: skip
    assert found["resolved"].all()
    assert found["exceptions"].sum() == 0
    assert [number for number, _ in rounds] == list(range(1, len(rounds) + 1))
    assert sum(runs for _, runs in rounds) == len(everything.trained) == len({s.run_id for s in everything.trained})
    ratios = pd.read_csv(whole.report_path / "limit_ratios.csv").set_index("arm")
    assert ratios.loc["no_batchnorm", "log2_ratio"] == pytest.approx(-3)

    trained = []
    while True:
        executor = Pretended(stop_at=3, kind=breaks_above_its_edge)
        with contextlib.suppress(KeyboardInterrupt):
            search_limits(study, cut, executor)
            break
        trained += executor.trained
    trained += executor.trained
    assert sorted(s.run_id for s in trained) == sorted(s.run_id for s in everything.trained), "once each"
    assert (cut.report_path / "limits.csv").read_bytes() == (whole.report_path / "limits.csv").read_bytes()


# A training of one's own ------------------------------------------------------------------------------

DEFAULTS = known_arguments()


def lf(arguments, epoch):
    """The share of lr0 at an epoch, as `BaseTrainer._setup_scheduler` has it."""
    epochs, lrf = arguments["epochs"], arguments["lrf"]
    if arguments["cos_lr"]:
        return one_cycle(1, lrf, epochs)(epoch)
    return max(1 - epoch / epochs, 0) * (1.0 - lrf) + lrf


@given(st.integers(1, 400), st.floats(0.001, 1), st.floats(0, 6), st.integers(1, 20), st.integers(0, 30))
def test_the_beginning_has_the_rates_and_the_mosaic_of_the_whole(epochs, lrf, warmup, first, close):
    whole = {**DEFAULTS, "epochs": epochs, "lrf": lrf, "warmup_epochs": warmup, "close_mosaic": close}
    part = {**whole, **beginning(whole, min(first, epochs))}
    assert part["epochs"] == min(first, epochs)
    for epoch in range(part["epochs"]):
        assert lf(part, epoch) == pytest.approx(lf(whole, epoch), rel=1e-9)
        closed = [bool(a["close_mosaic"]) and epoch >= a["epochs"] - a["close_mosaic"] for a in (part, whole)]
        assert closed[0] == closed[1]


def test_a_cosine_is_the_line_to_its_value():
    whole = {**DEFAULTS, "epochs": 100, "cos_lr": True}
    part = {**whole, **beginning(whole)}
    assert part["epochs"] == 5
    assert not part["cos_lr"]
    assert lf(part, 5) == pytest.approx(lf(whole, 5), rel=1e-12)
    assert max(abs(lf(part, e) / lf(whole, e) - 1) for e in range(5)) < 0.003


def test_a_training_without_an_end_to_cut_is_whole():
    assert beginning({**DEFAULTS, "epochs": 4}) == {}
    assert beginning({**DEFAULTS, "epochs": 4}, 6) == {"epochs": 6}


@pytest.mark.parametrize("epochs", [100, 40_000], ids=["AdamW", "MuSGD"])
def test_auto_is_what_ultralytics_chooses(small_data, tmp_path, epochs):
    """Its trainer is set up, which builds the optimizer, and does not train."""
    overrides = {"model": "yolo26n.yaml", "data": str(small_data), "epochs": epochs, "batch": 4, "nbs": 4, "imgsz": 32}
    trainer = DetectionTrainer(overrides={**overrides, "device": "cpu", "workers": 0, "project": str(tmp_path)})
    trainer._setup_train()
    group = min(
        trainer.optimizer.param_groups, key=lambda group: group["initial_lr"]
    )  # MuSGD trains heads at 3 times it
    chosen = automatic({**DEFAULTS, **overrides}, count_images(small_data), count_classes(small_data))
    assert (type(trainer.optimizer).__name__, group["initial_lr"]) == (chosen["optimizer"], chosen["lr0"])
    assert trainer.args.warmup_bias_lr == chosen["warmup_bias_lr"]
    if chosen["optimizer"] == "AdamW":
        assert group["betas"][0] == chosen["momentum"]
    told = vars(trainer.args)  # what its checkpoint would hold
    assert {**told, **automatic(told, 1, 1)} == {**told, **chosen}, "the same from the checkpoint"


@pytest.fixture(scope="module")
def small_data(shapes_yaml, tmp_path_factory):
    return write_small(shapes_yaml, tmp_path_factory.mktemp("small"))


@pytest.fixture
def write_checkpoint(small_data, tmp_path, monkeypatch):
    """Writes the checkpoint of a training with some arguments, as Ultralytics' `save_model` does."""
    monkeypatch.chdir(tmp_path)

    def write(note=None, **arguments):
        model = YOLO("yolo26n.yaml").model
        if note is not None:
            model.gradstudy = note
        told = {"model": "yolo26n.yaml", "data": str(small_data), "epochs": 50, "imgsz": 32, "batch": 4, "nbs": 4}
        told |= {"optimizer": "SGD", "lr0": 0.02, "seed": 3, "name": "train7", "device": "0", "workers": 8}
        path = tmp_path / "runs" / "train7" / "weights" / "last.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": model, "train_args": {**told, **arguments}}, path)
        return path.relative_to(tmp_path)

    return write


def invoke(*words):
    return CliRunner().invoke(app, ["limit", *map(str, words)])


def search(monkeypatch, *words, kind=lambda spec: "stable"):
    """The command's answer and what it trained."""
    executor = Pretended(kind=kind)
    monkeypatch.setattr("yolo_gradstudy.report.draw", lambda *_: [])
    monkeypatch.setattr("yolo_gradstudy.executors.LocalExecutor.execute", lambda _, *a: executor.execute(*a))
    return invoke(*words), executor.trained


def test_how_far_a_training_is_from_the_edge(write_checkpoint, small_data, monkeypatch):
    answer, trained = search(
        monkeypatch, "--model", write_checkpoint(), "--data", small_data, "--factor", 2, "box=5",
        kind=lambda spec: "collapsed" if spec.lr0 > 0.1 else "stable",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert "control, seed 3: alive up to lr0 0.08, 4 × 0.02 (+2.0 octaves); lr0 0.16 breaks it" in answer.output
    (spec, *_), models = trained, {s.model for s in trained}
    assert models == {"yolo26n.yaml"}
    assert (spec.data, spec.seed) == (str(small_data), 3)
    told = {key: spec.arguments[key] for key in ("box", "epochs", "imgsz", "batch", "nbs", "optimizer")}
    assert told == {"box": 5, "epochs": 5, "imgsz": 32, "batch": 4, "nbs": 4, "optimizer": "SGD"}
    assert not spec.arguments.keys() & {"device", "workers", "name", "lr0", "seed"}
    assert (Path("runs") / "train7-limit" / "report" / "limits.csv").is_file()


def test_the_start_of_a_training_or_its_weights(write_checkpoint, monkeypatch):
    path = write_checkpoint()
    common = ("--model", path, "--factor", 100, "--highest", 0.02)
    assert {s.model for s in search(monkeypatch, *common)[1]} == {"yolo26n.yaml"}
    answer, trained = search(monkeypatch, *common, "--from-weights", "--out", "other")
    assert {s.model for s in trained} == {str(path)}, answer.output
    for number, gone in enumerate(("no_longer_there.pt", str(path.resolve()))):
        answer, trained = search(monkeypatch, "--model", write_checkpoint(model=gone), *common[2:], "--out", number)
        assert {s.model for s in trained} == {str(path)}, answer.output
        assert "its weights are what runs begin with" in " ".join(answer.stderr.split())


def test_a_training_that_is_only_planned(small_data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    answer, trained = search(monkeypatch, "--model", "yolo26n.yaml", "--data", small_data, "--factor", 100)
    assert answer.exit_code == 0, answer.output
    assert trained[0].lr0 == pytest.approx(0.002 * 5 / (4 + 8), abs=1e-6)
    assert trained[0].arguments["optimizer"] == "AdamW"
    assert "the largest that was tried" in answer.output


NOTE = {"ablations": [], "clip_norm": 10.0, "clip": None, "precision": None, "on_unhealthy": "continue"}


@pytest.mark.parametrize(
    ("note", "words", "said"),
    [
        ({**NOTE, "ablations": ["no_batchnorm"]}, [], ["trained with no_batchnorm", "gradstudy limit STUDY"]),
        ({**NOTE, "clip_norm": None}, [], ["trained with clip_norm=None"]),
        (NOTE, ["quick"], ["'quick'", "key=value"]),
        (NOTE, ["batch=x"], ["batch"]),
        (NOTE, ["epochs=0.5"], ["epochs"]),
        (NOTE, ["epoch=3"], ["'epoch'", "'epochs'"]),
        (NOTE, ["device=0"], ["'device'", "--device"]),
        (NOTE, ["optimizer=auto", "lr0=0.1"], ["optimizer=auto chooses its own"]),
        (NOTE, ["--data", "nowhere.yaml"], ["nowhere.yaml"]),
        (NOTE, ["--highest", "2"], ["limit.highest 2 is more than Ultralytics takes"]),
    ],
)
def test_bad_words_about_a_training(write_checkpoint, note, words, said):
    answer = invoke("--model", write_checkpoint(note), *words)
    assert answer.exit_code == 2, answer.output
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in said:
        assert word in line


def test_neither_a_study_nor_a_training():
    for words in ((), ("quick", "--from-weights")):
        answer = invoke(*words)
        assert (answer.exit_code, "takes a STUDY, or --model" in answer.stderr) == (2, True)
    answer = invoke("--model", "yolo26n.yaml", "--data", "shapes", "--from-weights")
    assert (answer.exit_code, "a checkpoint of a training of yours" in answer.stderr) == (2, True)
    answer = invoke("--model", "yolo26n.yaml")
    assert (answer.exit_code, "give it with --data" in answer.stderr) == (2, True)
