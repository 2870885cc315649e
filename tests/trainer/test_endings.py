# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whatever ends a training, what was flushed stays."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from yolo_gradstudy import GradStudyTrainer, RecordConfig, diagnose, load_run

from .small import train


@pytest.mark.parametrize("error", [RuntimeError("the disk caught fire"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_an_exception_leaves_closed_telemetry(small_yaml, tmp_path, error):
    steps = []

    def fail(trainer):
        steps.append(trainer.epoch)
        if len(steps) == 4:
            raise error

    trainer = GradStudyTrainer.using(RecordConfig(flush_every=3))
    with pytest.raises(type(error)):
        train(trainer, small_yaml, tmp_path / "run", imgsz=32, callbacks={"on_train_batch_end": fail})
    run = load_run(tmp_path / "run")
    assert run.steps.index.tolist() == [1, 2, 3, 4]
    assert run.layers("grad_norm").index.tolist() == [1, 2, 3, 4]
    pressed = ["interrupted"] if isinstance(error, KeyboardInterrupt) else []
    assert [e["event"] for e in run.events] == ["started", *pressed, "stopped"]
    assert run.events[-1]["step"] == 4
    assert run.damaged == []
    assert diagnose(run).outcome == ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")


def test_a_finished_training_is_closed_once(small_yaml, tmp_path):
    train(GradStudyTrainer, small_yaml, tmp_path / "run", epochs=1, imgsz=32)
    run = load_run(tmp_path / "run")
    assert [e["event"] for e in run.events] == ["started", "finished"]
    assert run.steps.index.tolist() == [1, 2, 3]


def test_a_training_anew_in_the_same_folder_is_not_a_continuation(small_yaml, tmp_path):
    for lr0 in (0.01, 0.02):
        train(GradStudyTrainer, small_yaml, tmp_path / "run", epochs=1, imgsz=32, lr0=lr0, warmup_epochs=0.0)
    run = load_run(tmp_path / "run")
    assert [e["event"] for e in run.events] == ["started", "finished"]
    assert run.steps.index.tolist() == [1, 2, 3]
    assert run.steps["lr_pg0"].iloc[0] == pytest.approx(0.02)


_KILLED = """
import os, signal, sys, time
from pathlib import Path
from ultralytics import YOLO
from yolo_gradstudy import GradStudyTrainer, RecordConfig
data, folder = sys.argv[1], Path(sys.argv[2])
batches = []
def kill(trainer):
    batches.append(1)
    if len(batches) == 5:
        part = folder / "telemetry" / "steps-000000003.parquet"
        deadline = time.monotonic() + 60
        while not part.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
yolo = YOLO("yolo26n.yaml")
yolo.add_callback("on_train_batch_end", kill)
yolo.train(
    trainer=GradStudyTrainer.using(RecordConfig(flush_every=2)), data=data, project=str(folder.parent),
    name=folder.name, exist_ok=True, imgsz=32, batch=2, nbs=2, epochs=1, workers=0, plots=False, device="cpu",
    optimizer="SGD", pretrained=False,
)
"""


def test_a_killed_training_keeps_every_flushed_row(small_yaml, tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(small_yaml), str(folder)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    run = load_run(folder)
    assert run.steps.index.tolist() == [1, 2, 3, 4]  # the fifth waited on the device
    assert run.layers("grad_norm").index.tolist() == [1, 2, 3, 4]
    assert np.isfinite(run.steps["grad_norm"]).all()
    assert run.damaged == []
    assert [e["event"] for e in run.events] == ["started"]
    verdict = diagnose(run)
    assert verdict.outcome == "interrupted"
    assert "step 4" in verdict.evidence
