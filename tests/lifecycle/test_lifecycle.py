# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every ablation on every family of detectors, through a model's whole life.

Built, trained for four steps, validated, interrupted, saved, loaded and predicted with in a process where this package
is not, resumed to its end, exported to ONNX. A class a family, so that the processes of a test run share them out.

What changes no model is tried on YOLO26 and on one family of each other trainer and loss: YOLO11's and YOLO12's are
YOLOv8's.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ablations.cases import CASES
from tests.trainer.small import train, write_small
from yolo_gradstudy import ABLATIONS, GradStudyTrainer, load_run

HERE = Path(__file__).parent
RTDETR = HERE / "rtdetr-small.yaml"
STEPS, EPOCHS = 2, 2

ARGUMENTS = {
    "no_accumulation": {"nbs": 8},
    "replace_optimizer_by_sgd": {"optimizer": "AdamW", "lr0": 0.001},
    "no_amp_scaling": {"imgsz": 32},  # fp16 is slow on a CPU
}
"""What an ablation needs a training to have, so that there is something to remove."""

PRECISION = {"no_amp_scaling": "fp16"}

REFUSED = {
    (
        "rtdetr",
        "no_target_score_normaliser",
    ): "found nothing to change: the loss of .* does not divide by target scores",
}
"""Where an ablation has nothing to act on: the sentence that says so."""


def changes_model(name):
    return ABLATIONS[name].surgery is not None or bool(ABLATIONS[name].parts)


@pytest.fixture(scope="session")
def few_yaml(shapes_yaml, tmp_path_factory):
    """Eight images to train on, four to validate on."""
    return write_small(shapes_yaml, tmp_path_factory.mktemp("few"), train=4 * STEPS, val=4)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    """Asks a process without this package about a checkpoint."""
    command = [sys.executable, "-P", str(HERE / "elsewhere.py")]
    log = (tmp_path_factory.mktemp("elsewhere") / "log.txt").open("w")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def ask(path, export):
        process.stdin.write(json.dumps({"path": str(path), "export": export}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"the process ended; see {log.name}"
        return json.loads(answer)

    yield ask
    process.stdin.close()
    process.wait(30)
    log.close()


def pytest_generate_tests(metafunc):
    metafunc.parametrize("name", metafunc.cls.names)


class Lifecycle:
    """The suite; a subclass names the family and its model."""

    family = ""
    model = ""
    names = tuple(ABLATIONS)

    def test_life(self, name, few_yaml, elsewhere, tmp_path):
        sentence = REFUSED.get((self.family, name), "")
        trainer = GradStudyTrainer if "rtdetr" not in self.family else rtdetr_trainer()
        using = trainer.using(ablations=[name], precision=PRECISION.get(name))
        arguments = {"epochs": EPOCHS, "val": True, **ARGUMENTS.get(name, {})}
        folder = tmp_path / "run"
        refused = sentence or ("found nothing to change" if self.expected(name) == 0 else "")
        if refused:
            with pytest.raises(ValueError, match=refused):
                train(using, few_yaml, folder, self.model, **arguments)
            return

        # Trained and validated, and interrupted in its second epoch.
        with pytest.raises(KeyboardInterrupt):
            train(using, few_yaml, folder, self.model, callbacks={"on_train_batch_end": press_in_epoch(1)}, **arguments)
        first = load_run(folder)
        assert first.steps.index.tolist() == list(range(1, STEPS + 1 + 1))
        assert first.meta["ablations"] == [name]
        if (expected := self.expected(name)) is not None:
            assert sum(first.meta["changed"].values()) == expected
        assert len(first.epochs) == 1
        assert np.isfinite(first.steps["grad_norm"]).all()

        # Loaded where this package is not.
        said = elsewhere(folder / "weights" / "last.pt", export=changes_model(name))
        assert "error" not in said, said
        assert said["package"] == said["foreign"] == []
        assert said["predicted"], said
        if changes_model(name):
            assert said["exported"], said
            if self.family != "rtdetr":  # which picks other queries where the last digits differ
                assert said["difference"] < 1e-3, said

        # Resumed by the plain class, which knows no ablation, to the end.
        yolo = train(trainer, None, folder, folder / "weights" / "last.pt", resume=True)
        run = load_run(folder)
        assert run.meta["ablations"] == [name]
        assert run.steps["epoch"].tolist() == [0] * STEPS + [1] * (STEPS + 1)
        assert [event["event"] for event in run.events] == ["started", "interrupted", "stopped", "resumed", "finished"]
        assert len(run.epochs) == EPOCHS
        assert run.meta["switched_off"] == first.meta["switched_off"]
        assert run.meta["clip"] == first.meta["clip"]
        assert run.meta["clip_norm"] == first.meta["clip_norm"]
        trained = yolo.trainer.model
        assert sum(p.numel() for p in trained.parameters()) == said["parameters"]
        assert all(bool(t.isfinite().all()) for t in trained.state_dict().values() if t.is_floating_point())

    def expected(self, name):
        """How many modules the ablation changes in this model; None where that is not said."""
        return CASES[name].changed.get(self.model) if changes_model(name) and not ABLATIONS[name].parts else None


def press_in_epoch(epoch):
    """A callback that presses Ctrl-C after the first batch of an epoch, from 0."""

    def press(trainer):
        if trainer.epoch == epoch:
            raise KeyboardInterrupt

    return press


def rtdetr_trainer():
    from ultralytics.models.rtdetr.train import RTDETRTrainer

    from yolo_gradstudy import gradstudy_trainer

    return gradstudy_trainer(RTDETRTrainer)


class TestYolov8(Lifecycle):
    family, model = "yolov8", "yolov8n.yaml"


class TestYolo11(Lifecycle):
    family, model, names = "yolo11", "yolo11n.yaml", tuple(filter(changes_model, ABLATIONS))


class TestYolo12(Lifecycle):
    family, model, names = "yolo12", "yolo12n.yaml", TestYolo11.names


class TestYolo26(Lifecycle):
    family, model = "yolo26", "yolo26n.yaml"


class TestRtdetr(Lifecycle):
    family, model = "rtdetr", str(RTDETR)


def setup_module():
    torch.set_num_threads(1)
