# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is recorded reaches the loggers that Ultralytics has on, and can be read back from what they stored."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from yolo_gradstudy import load_run
from yolo_gradstudy.trainer.trackers import SENDERS, SUMMARY, Trackers, summarise

STEP = {
    "epoch": 0.0, "grad_norm": 4.0, "clip_coefficient": 0.5, "grad_nonfinite": 0.0, "param_norm": 10.0,
    "update_norm": 0.1, "boxes": 4.0, "target_scores_one2one": 8.0, "lr_pg0": 0.01, "wall_time_s": 1.0,
}  # fmt: skip


def test_an_epoch_in_a_few_numbers():
    steps = [STEP, {**STEP, "grad_norm": 1.0, "clip_coefficient": 1.0, "boxes": 12.0}, {"grad_norm": math.inf}]
    assert summarise(steps, "one2one") == {
        "grad_norm": 2.5, "grad_norm_max": 4.0, "grad_nonfinite_steps": 1.0, "clipped_share": 0.5,
        "update_ratio": pytest.approx(0.01), "target_scores": 1.0,
    }  # fmt: skip
    assert list(summarise([], None)) == list(SUMMARY), "the columns of results.csv must stay"
    assert all(math.isnan(value) for value in summarise([], None).values())
    assert not [name for name in SUMMARY if "loss" in name or "metric" in name], "Ultralytics would plot it"


def trackers_of(*modules):
    callbacks = {
        "on_train_epoch_end": [SimpleNamespace(__module__=f"ultralytics.utils.callbacks.{m}") for m in modules]
    }
    return Trackers(SimpleNamespace(callbacks=callbacks, epoch=0), "one2one")


def test_steps_are_sent_some_at_a_time_and_a_logger_that_fails_ends_alone(monkeypatch, caplog):
    sent = []

    def fail(trainer, steps):
        raise ConnectionError("no network")

    monkeypatch.setitem(SENDERS, "comet", lambda trainer, steps: sent.extend(steps))
    monkeypatch.setitem(SENDERS, "clearml", fail)
    trackers = trackers_of("comet", "clearml", "platform")
    for step in range(1, 120):
        trackers.see(step, {**STEP, "epoch": float(step > 100)})
        trackers.end_batch()
    assert [step for step, _ in sent] == list(range(1, 101))
    trackers.end_epoch(0)
    assert [step for step, _ in sent] == list(range(1, 120))
    assert set(sent[0][1]) == {
        "grad_norm", "clip_coefficient", "grad_nonfinite", "param_norm", "update_norm", "boxes", "target_scores_one2one"
    }  # fmt: skip
    assert trackers.summary["clipped_share"] == 1.0
    assert not trackers.wants_layers


def test_without_a_logger_nothing_waits():
    trackers = trackers_of("platform")
    for step in range(1, 1000):
        trackers.see(step, STEP)
    assert not trackers._waiting


# Real loggers: in a process of their own, since Ultralytics' integrations stay off under pytest ----------

TRAIN = """
import sys, json
from pathlib import Path
from ultralytics import YOLO, settings
names = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
settings.update({name: name in sys.argv[3].split(",") for name in names})
from yolo_gradstudy import GradStudyTrainer
yolo = YOLO("yolo26n.yaml")
yolo.train(
    trainer=GradStudyTrainer, data=sys.argv[1], project=str(Path(sys.argv[2]).parent), name=Path(sys.argv[2]).name,
    epochs=2, imgsz=64, batch=2, nbs=2, optimizer="SGD", pretrained=False, plots=False, workers=0, device="cpu",
)
"""


@pytest.fixture(scope="module")
def tracked(small_yaml, tmp_path_factory):
    """A training with TensorBoard, W&B and MLflow on, all of them offline."""
    folder = tmp_path_factory.mktemp("tracked")
    world = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    (folder / "config").mkdir()
    world |= {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(folder),
        "YOLO_CONFIG_DIR": str(folder / "config"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_EXPERIMENT_NAME": "tracked",
    }  # fmt: skip
    words = [sys.executable, "-c", TRAIN, str(small_yaml), str(folder / "run"), "tensorboard,wandb,mlflow"]
    done = subprocess.run(words, capture_output=True, text=True, env=world, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def steps(tracked):
    frame = load_run(tracked / "run").steps
    assert len(frame) == 12
    return frame


def test_results_csv_has_the_summary_of_each_epoch(tracked, steps):
    results = pd.read_csv(tracked / "run" / "results.csv")
    branch = load_run(tracked / "run").meta["inference_branch"]
    for epoch, rows in steps.groupby("epoch"):
        row = results.iloc[int(epoch)]
        assert row["train/grad_norm"] == pytest.approx(rows["grad_norm"].median(), rel=1e-5)
        assert row["train/grad_norm_max"] == pytest.approx(rows["grad_norm"].max(), rel=1e-5)
        assert row["train/clipped_share"] == pytest.approx((rows["clip_coefficient"] < 1).mean())
        assert row["train/target_scores"] == pytest.approx(
            rows[f"target_scores_{branch}"].sum() / rows["boxes"].sum(), rel=1e-5
        )
    assert (results["train/grad_nonfinite_steps"] == 0).all()


def test_tensorboard_has_each_step_and_a_histogram_of_the_layers(tracked, steps):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "run"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("gradstudy/grad_norm")}
    assert logged == pytest.approx(steps["grad_norm"].to_dict(), rel=1e-6)
    assert [event.step for event in events.Scalars("train/grad_norm")] == [1, 2]
    first, second = events.Histograms("gradstudy/layer_grad_norm_log10")
    last = load_run(tracked / "run").layers("grad_norm").loc[6]
    expected = np.log10(last[last > 0])
    assert first.histogram_value.num == len(expected)
    assert first.histogram_value.sum == pytest.approx(expected.sum(), rel=1e-4)
    assert second.step == 2


def wandb_records(stored):
    """The records of W&B's file: LevelDB's log format after a header of 7 bytes."""
    whole, place = b"", 7
    while place + 7 <= len(stored):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(stored[place + 4 : place + 6], "little"), stored[place + 6]
        whole += stored[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_has_each_step(tracked, steps):
    from wandb.proto import wandb_internal_pb2

    (path,) = tracked.rglob("run-*.wandb")
    rows = []
    for data in wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items()})
    logged = {row["gradstudy/step"]: row["gradstudy/grad_norm"] for row in rows if "gradstudy/grad_norm" in row}
    assert logged == pytest.approx(steps["grad_norm"].to_dict(), rel=1e-6)
    summaries = [row for row in rows if "train/grad_norm" in row]
    assert [row["epoch"] for row in summaries] == [1, 2]
    assert sum("gradstudy/layer_grad_norm_log10/bins" in row for row in rows) == 2


def test_mlflow_has_each_step(tracked, steps):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tracked").experiment_id])
    history = client.get_metric_history(run.info.run_id, "gradstudy/grad_norm")
    assert {metric.step: metric.value for metric in history} == pytest.approx(steps["grad_norm"].to_dict(), rel=1e-6)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/grad_norm")] == [0, 1]


CALLS = """
import json
from unittest.mock import create_autospec, patch
import clearml, comet_ml
from yolo_gradstudy.trainer.trackers import SENDERS
steps = [(7, {"grad_norm": 4.0}), (8, {"grad_norm": 5.0})]
experiment = create_autospec(comet_ml.OfflineExperiment, instance=True)
with patch.object(comet_ml, "get_running_experiment", autospec=True, return_value=experiment):
    SENDERS["comet"](None, steps)
task, logger = create_autospec(clearml.Task, instance=True), create_autospec(clearml.Logger, instance=True)
task.get_logger.return_value = logger
with patch.object(clearml.Task, "current_task", autospec=True, return_value=task):
    SENDERS["clearml"](None, steps)
for name in ("comet", "clearml"):  # without a run of theirs nothing is sent, and nothing is wrong
    SENDERS[name](None, steps)
calls = [experiment.log_metrics.call_args_list, logger.report_scalar.call_args_list]
print(json.dumps([[[*call.args, call.kwargs] for call in several] for several in calls]))
"""


def test_comet_and_clearml_are_called_as_their_libraries_want(tmp_path):
    """Their signatures are checked by specs made of their own classes; both would need an account to store anything."""
    world = {**os.environ, "COMET_CONFIG": str(tmp_path), "CLEARML_CONFIG_FILE": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, env=world, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    comet, clearml = json.loads(done.stdout.splitlines()[-1])
    assert comet == [[{"gradstudy/grad_norm": 4.0}, {"step": 7}], [{"gradstudy/grad_norm": 5.0}, {"step": 8}]]
    assert clearml == [
        ["gradstudy", "grad_norm", 4.0, {"iteration": 7}], ["gradstudy", "grad_norm", 5.0, {"iteration": 8}],
    ]  # fmt: skip
