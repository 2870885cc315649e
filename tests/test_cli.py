# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the commands say to bad input, what they print, and how they exit."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from synthetic import make_result, make_spec, make_study, parameter_names, scalars
from test_study import STUDY, Pretended, snapshot
from trainer.small import write_small
from typer.testing import CliRunner

from yolo_gradstudy.ablations import ABLATIONS
from yolo_gradstudy.cli import app
from yolo_gradstudy.cli.loading import vocabulary
from yolo_gradstudy.plan import load_study
from yolo_gradstudy.run_folder import RunFolder, StudyFolder, TelemetryFolder, load_run
from yolo_gradstudy.study import run_study


@pytest.fixture(scope="module")
def small_yaml(shapes_yaml, tmp_path_factory):
    return write_small(shapes_yaml, tmp_path_factory.mktemp("small"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def write_study(small_yaml, tmp_path):
    def write(**changes):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**STUDY, "data": str(small_yaml), **changes}))
        return str(path)

    return write


def invoke(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def assert_refused(*words, said):
    """Exit status 2, one sentence that names all of ``said``, no traceback, and nothing written anywhere."""
    before = snapshot(here := Path.cwd().parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultralytics.YOLO.train", lambda *_, **__: pytest.fail("it trains"))
        patch.setattr("yolo_gradstudy.executors.LocalExecutor.execute", lambda *_: pytest.fail("it trains"))
        answer = invoke(*words)
    assert answer.exit_code == 2, answer.output
    assert isinstance(answer.exception, SystemExit), answer.exception
    lines = answer.stderr.strip().splitlines()
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("error: ")
    for word in said:
        assert word in lines[0]
    assert "Traceback" not in answer.output
    assert snapshot(here) == before
    return lines[0]


# Bad studies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sedes": [0]}, ["'sedes'", "nearest valid is 'seeds'"]),
        ({"arguments": {**STUDY["arguments"], "epoch": 3}}, ["'epoch'", "nearest valid is 'epochs'"]),
        ({"arguments": {**STUDY["arguments"], "optimizer": "auto"}}, ["optimizer", "ignores lr0", "'SGD'"]),
        ({"arguments": {**STUDY["arguments"], "epochs": "many"}}, ["epochs", "many"]),
        ({"record": {"evry": 1}}, ["'evry'", "nearest valid is 'every'"]),
        (
            {"arms": {"control": {}, "a": {"ablation": [], "arguments": {"nms": False}}}},
            ["'ablation'", "nearest valid is 'ablations'"],
        ),
        ({"arms": {"control": {}, "a": {"ablations": ["no_clipp"]}}}, ["'no_clipp'", "nearest valid is 'no_clip'"]),
        ({"arms": {"a": {"ablations": ["no_clip"]}}}, ["'control'", "control: {}"]),
        ({"lr0": [0]}, ["lr0", "0 is no learning rate", "0.01"]),
        ({"lr0": [0.1, -0.01]}, ["lr0", "-0.01 is no learning rate"]),
        ({"lr0": ["fast"]}, ["lr0", "'fast' is not a number"]),
        ({"lr0": [float("nan")]}, ["lr0", "nan"]),
        ({"lr0": [float("inf")]}, ["lr0", "inf"]),
        ({"model": "yolo26nn.yaml"}, ["yolo26nn.yaml", "'yolo26n.yaml'"]),
    ],
    ids=str,
)
def test_a_bad_study(write_study, command, changes, said):
    assert_refused(command, write_study(**changes), said=said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lr0=0"], ["lr0", "0 is no learning rate"]),
        (["lr0=-1"], ["lr0", "-1 is no learning rate"]),
        (["lr0=quick"], ["lr0", "'quick' is not a number"]),
        (["lr0=nan"], ["lr0", "nan"]),
        (["arms=no_batchnor"], ["'no_batchnor'", "nearest valid is 'no_batchnorm'"]),
        (["epoch=3"], ["'epoch'", "'epochs'"]),
        (["epochs"], ["'epochs'", "epochs=..."]),
        (["model=yolo26nn.yaml"], ["yolo26nn.yaml", "'yolo26n.yaml'"]),
        (["--executor", "lokal"], ["'lokal'", "'local'"]),
        (["--jobs", "-1"], ["--jobs -1", "1"]),
        (["lr0="], ["'lr0'", "has no value"]),
        (["model="], ["'model'", "has no value"]),
        (["model=yolo26n-cls.yaml"], ["'yolo26n-cls.yaml'", "'classify'", "'yolo26n.yaml'"]),
        (["model=yolo26n-seg.yaml"], ["'yolo26n-seg.yaml'", "'segment'", "'yolo26n.yaml'"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_bad_words_on_the_command_line(write_study, words, said):
    assert_refused("run", write_study(), *words, said=said)
    if "--executor" not in words:
        assert_refused("plan", write_study(), *words, said=said)


def test_every_problem_of_a_study_at_once(write_study):
    answer = invoke("run", write_study(lr0=[0], seedz=[1], arms={"control": {}, "a": {"ablations": ["no_clipp"]}}))
    assert answer.exit_code == 2
    lines = answer.stderr.strip().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


def test_a_study_that_is_not_there():
    assert_refused("run", "stabilization", said=["stabilization", "nearest is stabilisation"])
    assert_refused("run", "nowhere/study.yaml", said=["nowhere/study.yaml"])


# Bad data, model, device, folder ---------------------------------------------------------------------


@pytest.fixture
def unlabelled(small_yaml, tmp_path):
    """A data YAML whose images have no labels, and nothing else wrong."""
    path = write_small_without_labels(small_yaml, tmp_path / "unlabelled")
    return str(path)


def write_small_without_labels(small_yaml, folder):
    data = yaml.safe_load(small_yaml.read_text())
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        for image in (small_yaml.parent / "images" / split).iterdir():
            (folder / "images" / split / image.name).write_bytes(image.read_bytes())
    path = folder / "unlabelled.yaml"
    path.write_text(yaml.safe_dump({**data, "path": str(folder)}))
    return path


@pytest.mark.parametrize("command", ["run", "train"])
def test_data_without_labels(write_study, unlabelled, command):
    words = ["run", write_study(), "--data", unlabelled] if command == "run" else ["train", f"data={unlabelled}"]
    assert_refused(*words, said=["unlabelled.yaml", "label"])


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize(
    ("data", "said"), [("smal.yaml", "small.yaml"), ("shape", "'shapes'"), ("coco-2pct", "'coco-1pct'")]
)
def test_data_that_is_not_there(write_study, small_yaml, place, command, data, said):
    place.joinpath("small.yaml").write_text(small_yaml.read_text())
    words = ["run", write_study(), "--data", data] if command == "run" else ["train", f"data={data}"]
    assert_refused(*words, said=[data, said])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("yolo26nn.yaml", "'yolo26n.yaml'"),
        ("yolo26q.yaml", "'yolo26"),
        ("yolo26nn.pt", "'yolo26n"),
        ("yolo26n.pt", "'yolo26n.yaml'"),  # there is one, but not on this machine, and there is no network
        ("nowhere/best.pt", "nowhere/best.pt"),
    ],
)
def test_a_model_that_is_not_there(small_yaml, model, said):
    assert_refused("train", f"model={model}", f"data={small_yaml}", said=[model, said])


@pytest.mark.parametrize("command", ["plan", "run", "train"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bad.pt", "hello"),
        ("empty.yaml", ""),
        ("list.yaml", "- a"),
        ("layers.yaml", "nc: 3\nbackbone:\n- [-1, 1, Convv, [16, 3, 2]]\nhead:\n- [[0], 1, Detect, [nc]]\n"),
    ],
)
def test_a_model_that_can_not_be_built(write_study, small_yaml, place, command, name, text):
    (place / name).write_text(text)
    words = ["train", f"data={small_yaml}"] if command == "train" else [command, write_study()]
    line = assert_refused(*words, f"model={name}", said=[f"model {name!r} can't be opened", "'yolo26n.yaml'"])
    assert len(line) < 300
    if command == "plan":
        assert_refused("ablations", "--model", name, said=[name])


@pytest.mark.parametrize("command", ["plan", "run", "train"])
def test_weights_to_be_downloaded_without_a_network(write_study, small_yaml, monkeypatch, command):
    """Also where the environment does not say that there is none."""
    monkeypatch.delenv("YOLO_OFFLINE")
    monkeypatch.setattr("ultralytics.utils.is_online", lambda: False)
    words = ["train", f"data={small_yaml}"] if command == "train" else [command, write_study()]
    assert_refused(*words, "model=yolo26n.pt", said=["'yolo26n.pt'", "there is no network", "'yolo26n.yaml'"])


def test_weights_of_another_task_are_known_before_they_are_downloaded(write_study, monkeypatch):
    monkeypatch.delenv("YOLO_OFFLINE")
    monkeypatch.setattr("ultralytics.utils.is_online", lambda: True)
    assert_refused("run", write_study(), "model=yolo26n-seg.pt", said=["'yolo26n-seg.pt'", "'segment'", "yolo26n.yaml"])


def test_weights_that_can_not_be_downloaded(write_study, monkeypatch):
    """There is a network, but not to where they are: said once, where each run would have failed."""
    from ultralytics.utils import downloads

    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.delenv("YOLO_OFFLINE")
    monkeypatch.setattr("ultralytics.utils.is_online", lambda: True)
    monkeypatch.setattr(downloads, "attempt_download_asset", refuse)
    assert_refused("run", write_study(), "model=yolo26n.pt", said=["'yolo26n.pt'", "no route"])
    answer = invoke("plan", write_study(), "model=yolo26n.pt")
    assert answer.exit_code == 0, answer.output
    assert "no estimate of the time: yolo26n.pt is not on this machine yet" in " ".join(answer.stdout.split())


def test_a_folder_that_can_not_be_written(write_study, place):
    (place / "file").write_text("in the way")
    assert_refused("run", write_study(), "--out", "file/out", said=["--out file/out can't be written", str(place)])


@pytest.fixture
def spoiled(small_yaml, tmp_path):
    """A data YAML whose every label is of a class that is not there."""
    path = tmp_path / "spoiled" / small_yaml.name
    shutil.copytree(small_yaml.parent, path.parent, ignore=shutil.ignore_patterns("*.cache"))
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "path": str(path.parent)}))
    for label in (path.parent / "labels" / "train").iterdir():
        label.write_text("99 0.5 0.5 0.5 0.5\n")
    return path


def test_data_that_can_not_be_trained_on(write_study, spoiled, place):
    answer = invoke("run", write_study(), "--data", spoiled, "--out", "out")
    assert answer.exit_code == 2, answer.output
    line = answer.stderr.strip().splitlines()[-1]  # what comes before is Ultralytics' progress
    assert line.startswith(f"error: {spoiled} can't be trained on: No valid images found")
    assert "Label class 99 exceeds" in line
    assert "\x1b" not in line
    assert "Traceback" not in answer.output
    assert "Scanning" not in answer.stdout
    assert list(place.iterdir()) == []
    spoiled.write_text(spoiled.read_text().replace("path:", "nc: abc\npath:"))
    assert_refused("run", write_study(), "--data", spoiled, "--out", "out", said=[str(spoiled), "'nc' is 'abc'"])


_NO_NETWORK = """
import socket
def refuse(*args, **_):
    with open({log!r}, "a") as file:
        file.write(repr(args) + "\\n")
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
"""


@pytest.mark.parametrize("command", ["train", "run"])
def test_a_model_that_is_not_there_asks_no_network(write_study, place, tmp_path, command):
    site = tmp_path / "site"
    site.mkdir()
    site.joinpath("sitecustomize.py").write_text(_NO_NETWORK.format(log=str(tmp_path / "asked")))
    words = ["run", write_study(), "model=yolo26nn.yaml"] if command == "run" else ["train", "model=yolo26nn.pt"]
    done = subprocess.run(
        [sys.executable, "-m", "yolo_gradstudy.cli", *words],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site), "YOLO_OFFLINE": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "'yolo26nn." in done.stderr
    assert "'yolo26n" in done.stderr.replace("'yolo26nn", "")
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize("device", ["0", "7", "0,1", "gpu", "cuda:0", "-1"])
def test_a_device_that_is_not_there(write_study, small_yaml, monkeypatch, command, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    words = (
        ["run", write_study(), f"--device={device}"]
        if command == "run"
        else ["train", f"data={small_yaml}", f"device={device}"]
    )
    assert_refused(*words, said=[repr(device), "cpu"])


def test_a_gpu_beyond_those_that_are_there(write_study, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert_refused("run", write_study(), "--device", "0,7", said=["'0,7'", "2 CUDA devices", "0, 1"])


def test_a_folder_of_another_study(write_study, place):
    make_study(place / "out", {"control": {0.01: "stable"}}, seeds=[0], name="other")
    assert_refused("run", write_study(), "--out", "out", said=["out", "another study", "'other'", "out-2"])


def test_a_folder_of_something_else(write_study, place):
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("x")
    assert_refused("run", write_study(), "--out", "out", said=["out", "thesis.tex"])


def test_a_study_that_runs_already(write_study, place, monkeypatch):
    monkeypatch.setattr("yolo_gradstudy.report.draw", lambda *_: [])
    study = write_study()
    run_study(load_study(study, vocabulary()), folder := StudyFolder(place / "out"), Pretended())
    with folder.locked():
        assert_refused("run", study, "--out", "out", "seed=0,1,2", said=["out", "in use by another"])


def test_report_of_a_folder_without_a_study(place):
    assert_refused("report", place, said=[str(place), "no study"])
    assert_refused("report", place / "nowhere", said=["nowhere"])


# `gradstudy train` -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "run"])
def test_an_image_size_that_is_no_number(write_study, small_yaml, command):
    words = ["run", write_study()] if command == "run" else ["train", f"data={small_yaml}"]
    assert_refused(*words, "imgsz=big", said=["imgsz", "big"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["epoch=3"], ["'epoch'", "'epochs'"]),
        (["epochs=many"], ["epochs", "many"]),
        (["--ablate", "no_clipp"], ["'no_clipp'", "'no_clip'"]),
        (["--ablate", "no_clip", "--ablate", "no_clip"], ["'no_clip'", "twice"]),
        (["--clip", "0"], ["--clip 0", "10 or off"]),
        (["--clip", "-1"], ["--clip -1", "10 or off"]),
        (["--clip", "nan"], ["--clip nan", "10 or off"]),
        (["--clip", "inf"], ["--clip inf", "10 or off"]),
        (["--clip", "tight"], ["--clip 'tight'", "10 or off"]),
        (["--every", "0"], ["every=0", "nearest valid is 1"]),
        (["lr0=0"], ["lr0", "0 is no learning rate; it must be a finite number above 0, such as 0.01."]),
        (["lr0=-0.1"], ["lr0", "-0.1 is no learning rate"]),
        (["lr0=nan"], ["lr0", "'nan' is not a number"]),
        (["lr0=fast"], ["lr0", "'fast' is not a number"]),
        (["on_unhealthy=stopp"], ["'on_unhealthy=stopp'", "continue, stop, recover", "'stop'"]),
        (["lr0="], ["'lr0'", "has no value"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_bad_words_of_train(small_yaml, words, said):
    assert_refused("train", "model=yolo26n.yaml", f"data={small_yaml}", *words, said=said)


def test_train_records_and_judges(small_yaml, place):
    answer = invoke(
        "train", "model=yolo26n.yaml", f"data={small_yaml}", "epochs=1", "imgsz=32", "batch=4", "nbs=4", "plots=False",
        "device=cpu", "workers=0", "pretrained=False", "optimizer=SGD", "lr0=0.01", f"project={place}", "name=mine",
        "on_unhealthy=stop", "precision=fp32", "--ablate", "no_batchnorm", "--clip", "off",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert "mine: unknown" in answer.stdout  # three steps are too few to judge, and it says so
    telemetry = TelemetryFolder(place / "mine" / "telemetry")
    assert telemetry.last_step() == 3
    assert telemetry.read_meta()["clip_norm"] is None
    assert telemetry.read_meta()["ablations"] == ["no_batchnorm"]
    assert telemetry.read_meta()["on_unhealthy"] == "stop"
    assert telemetry.read_meta()["precision"] == "fp32"


def test_train_takes_another_task(small_yaml, place):
    """A classifier's data set is a folder of folders, without a data YAML."""
    images = sorted((small_yaml.parent / "images" / "train").iterdir())
    for split in ("train", "val"):
        for number, image in enumerate(images[:4]):
            target = place / "set" / split / f"class{number % 2}" / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
    answer = invoke(
        "train", "model=yolo26n-cls.yaml", f"data={place / 'set'}", "epochs=1", "imgsz=32", "batch=4", "plots=False",
        "device=cpu", "workers=0", "pretrained=False", "optimizer=SGD", "lr0=0.01", f"project={place}", "name=mine",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert "mine: unknown" in answer.stdout  # one step is too few to judge
    assert TelemetryFolder(place / "mine" / "telemetry").last_step() == 1


# `gradstudy diagnose` --------------------------------------------------------------------------------


@pytest.fixture
def make_run(place):
    """Telemetry as a run of this kind would leave it, in three parts."""

    def make(kind, name="run", last_event="finished"):
        folder = RunFolder(place / name).telemetry
        folder.write_meta({"inference_branch": "one2one", "branches": ["one2many", "one2one"], "clip_norm": 10.0})
        folder.add_event({"event": "started", "step": 0})
        if last_event != "started":
            folder.add_event({"event": last_event, "step": 60})
        columns = {k: np.asarray(v, dtype="float32") for k, v in scalars(kind, seed=0).items()}
        names = parameter_names()[:3]
        for first in (0, 20, 40):
            steps = pa.array(range(first + 1, first + 21), pa.int64())
            part = {k: pa.array(v[first : first + 20]) for k, v in columns.items()}
            folder.write_part("steps", pa.table({"step": steps, **part}))
            norms = {n: pa.array(columns["grad_norm"][first : first + 20]) for n in names}
            folder.write_part("grad_norm", pa.table({"step": steps, **norms}))
        return folder.path.parent

    return make


@pytest.mark.parametrize(
    ("kind", "last_event", "status", "outcome"),
    [
        ("stable", "finished", 0, "stable"),
        ("collapsed", "finished", 1, "collapsed"),
        ("nonfinite", "finished", 1, "nonfinite"),
        ("nonfinite", "stopped", 1, "nonfinite"),
        ("stable", "started", 2, "interrupted"),
        ("stable", "stopped", 2, "failed"),
    ],
)
def test_exit_status_of_diagnose(make_run, kind, last_event, status, outcome):
    run = make_run(kind, last_event=last_event)
    answer = invoke("diagnose", run)
    assert answer.exit_code == status, answer.output
    assert outcome in answer.stdout
    answer = invoke("diagnose", run, "--json")
    assert answer.exit_code == status
    told = json.loads(answer.stdout)
    assert told["outcome"] == outcome
    assert told["run"] == str(run)
    assert told["damaged"] == []
    assert told["evidence"]
    assert {f["state"] for f in told["findings"]} <= {"matched", "not matched", "not checked"}
    assert (told["onset_step"] is not None) == (status == 1)


def test_json_of_a_nonfinite_run_is_json_by_the_standard(make_run):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    answer = invoke("diagnose", make_run("nonfinite"), "--json")
    json.loads(answer.stdout, parse_constant=refuse)


def test_too_short_a_run_can_not_be_told(place):
    folder = RunFolder(place / "run").telemetry
    folder.write_meta({"inference_branch": "one2one"})
    folder.add_event({"event": "started", "step": 0})
    folder.add_event({"event": "finished", "step": 2})
    folder.write_part("steps", pa.table({"step": pa.array([1, 2], pa.int64()), "loss": pa.array([1.0, 1.0])}))
    answer = invoke("diagnose", place / "run")
    assert answer.exit_code == 2
    assert "unknown" in answer.stdout
    assert "not checked" in answer.stdout


def test_a_folder_without_telemetry(make_run, place):
    (place / "empty").mkdir()
    assert_refused("diagnose", place / "empty", said=[str(place / "empty"), "no telemetry"])
    run = make_run("stable", "runs/a")
    assert_refused("diagnose", place, said=[str(place), "no telemetry", f"nearest run with telemetry is {run}"])
    assert_refused("diagnose", place / "nowhere", said=["nowhere", f"nearest that exists is {place}"])
    assert_refused("diagnose", "nope", said=["nope", f"nearest that exists is {place}"])
    assert_refused("diagnose", run, "--control", place / "empty", said=[str(place / "empty"), "no telemetry"])


@pytest.mark.parametrize("damage", ["torn", "empty", "garbage", "folder"])
def test_a_torn_part_is_named_and_the_rest_is_read(make_run, damage):
    run = make_run("stable")
    part = run / "telemetry" / "steps-000000021.parquet"
    whole = part.read_bytes()
    part.unlink()
    if damage == "folder":
        part.mkdir()
    else:
        part.write_bytes({"torn": whole[: len(whole) // 2], "empty": b"", "garbage": b"PAR1" + b"\x00" * 80}[damage])
    answer = invoke("diagnose", run)
    assert answer.exit_code == 0, answer.output  # 40 of 60 steps tell enough
    said = " ".join(answer.stdout.split())
    assert "stable" in said
    assert "40 steps" in said
    assert part.name in said.replace(" ", "")
    told = json.loads(invoke("diagnose", run, "--json").stdout)
    assert len(told["damaged"]) == 1
    assert str(part) in told["damaged"][0]


def test_a_flipped_byte_in_a_part_is_named(make_run):
    run = make_run("stable")
    part = run / "telemetry" / "steps-000000021.parquet"
    whole, named = part.read_bytes(), 0
    for position in range(4, len(whole), max(1, len(whole) // 60)):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        part.write_bytes(flipped)
        answer = invoke("diagnose", run, "--json")
        told = json.loads(answer.stdout)
        assert told["damaged"] == [] or part.name in told["damaged"][0]
        named += len(told["damaged"])
    assert named > 40  # a few bytes matter to no reader


def test_a_torn_part_in_a_study(place):
    folder = make_study(place / "out", {"control": {0.01: "stable"}}, seeds=[0])
    (spec,) = folder.read_plan()
    part = folder.run(spec.run_id).telemetry.parts("steps")[0]
    part.write_bytes(part.read_bytes()[:100])
    answer = invoke("report", place / "out")
    assert answer.exit_code == 0, answer.output
    assert part.name in (folder.report_path / "index.html").read_text()
    assert len(pd.read_csv(folder.results_path)) == 1


def test_torn_meta_is_one_sentence(make_run):
    run = make_run("stable")
    (run / "telemetry" / "meta.json").write_text('{"schema": 1, ')
    assert_refused("diagnose", run, said=["meta.json", "not valid JSON"])
    (run / "telemetry" / "meta.json").write_text('{"schema": 99}')
    assert_refused("diagnose", run, said=["meta.json", "schema 99", "upgrade"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("telemetry/meta.json", "[1]"),
        ("telemetry/meta.json", '{"schema": "new"}'),
        ("telemetry/events.jsonl", "[1]\n"),
        ("result.json", "[]"),
        ("result.json", "{}"),
        ("spec.json", "{}"),
        ("spec.json", '{"run_id": []}'),
        ("incidents/001/incident.json", "[]"),
    ],
)
def test_json_of_another_shape_is_one_sentence(make_run, name, text):
    run = make_run("stable")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(text)
    if "incident" in name:
        with pytest.raises(ValueError, match=r"incident\.json"):
            _ = load_run(run).incidents
    else:
        assert_refused("diagnose", run, said=[str(run / name)])


@pytest.mark.parametrize("text", ["[{}]", "{}", "[]", "3"])
def test_a_plan_of_another_shape_is_one_sentence(place, text):
    folder = make_study(place / "out", {"control": {0.01: "stable"}}, seeds=[0])
    (spec,) = folder.read_plan()
    folder.plan_path.write_text(text)
    assert_refused("report", folder.path, said=[str(folder.plan_path)])
    assert_refused("diagnose", folder.run(spec.run_id).path, said=["plan.json"])


def test_a_damaged_study_yaml_is_one_sentence(write_study, place):
    folder = make_study(place / "out", {"control": {0.01: "stable"}}, seeds=[0])
    folder.study_path.write_text("name: small\nlr0: [0.01\narms: {}\n")
    assert_refused("report", folder.path, said=[f"{folder.study_path} line 3 is not valid YAML"])
    assert_refused("run", write_study(), "--out", folder.path, said=[f"{folder.study_path} line 3"])
    folder.study_path.write_text("- a\n")
    assert_refused("report", folder.path, said=[str(folder.study_path), "not a study"])


# What the other commands print -----------------------------------------------------------------------


def test_plan_as_json_is_the_runs(write_study):
    study = write_study()
    answer = invoke("plan", study, "--json", "seed=3,4", "epochs=1")
    assert answer.exit_code == 0, answer.output
    overrides = {"seed": [3, 4], "epochs": 1}
    assert json.loads(answer.stdout) == [s.to_dict() for s in load_study(study, vocabulary(), overrides).runs()]
    assert len(json.loads(answer.stdout)) == 4


@pytest.mark.parametrize("name", ["quick", "stabilisation", "accuracy"])
def test_plan_of_the_packaged_studies(name):
    answer = invoke("plan", name, "--json")
    assert answer.exit_code == 0, answer.output
    assert [r["arm"] for r in json.loads(answer.stdout)][:2] == ["control", "no_clip"]


def test_plan_says_what_and_about_how_long(write_study, monkeypatch):
    monkeypatch.setattr("yolo_gradstudy.arguments.seconds_per_step", lambda model, arguments: 0.5)
    answer = invoke("plan", write_study(), "--jobs", "2")
    assert answer.exit_code == 0, answer.output
    said = " ".join(answer.stdout.split())
    assert "2 arms × 1 learning rate × 2 seeds = 4 runs of 2 epochs" in said
    assert re.search(r"no_batchnorm \(\d+\), no_clip", said)
    assert "(48 batches, 0.50 s each" in said  # 4 runs of 2 epochs of 6 batches
    assert list(Path.cwd().iterdir()) == []


def test_plan_measures(write_study):
    answer = invoke("plan", write_study(arguments={**STUDY["arguments"], "imgsz": 32}))
    assert answer.exit_code == 0, answer.output
    assert "min of training on this CPU" in " ".join(answer.stdout.split())


@pytest.mark.parametrize(
    ("words", "batches"),
    [
        (["fraction=0.5"], 24),  # 4 runs of 2 epochs of 3 batches
        (["fraction=4"], 16),
        (["fraction=[0.25,1.0]"], 16),
        (["fraction=1"], 48),
        (["imgsz=[64,64]"], 48),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_plan_counts_the_images_that_are_used(write_study, words, batches):
    answer = invoke("plan", write_study(arguments={**STUDY["arguments"], "imgsz": 32}), *words)
    assert answer.exit_code == 0, answer.output
    assert f"({batches} batches, " in " ".join(answer.stdout.split())


def test_plan_of_a_model_that_can_not_be_timed(write_study, monkeypatch):
    def fail(*_):
        raise KeyError("gt_groups")

    monkeypatch.setattr("yolo_gradstudy.arguments.seconds_per_step", fail)
    answer = invoke("plan", write_study())
    assert answer.exit_code == 0, answer.output
    assert "no estimate of the time: yolo26n.yaml can't be timed (KeyError)." in " ".join(answer.stdout.split())


@pytest.mark.parametrize("data", ["nope", "nope.yaml", "nowhere/data.yaml"])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_plan_of_data_that_is_nowhere(write_study, data, more):
    assert_refused("plan", write_study(), "--data", data, *more, said=[data])


def test_plan_of_data_that_is_not_here_yet(write_study):
    answer = invoke("plan", write_study(), "--data", "coco-1pct")
    assert answer.exit_code == 0, answer.output
    assert "no estimate of the time: data: coco-1pct is not built yet" in " ".join(answer.stdout.split())


def test_json_alone_is_on_standard_output(tmp_path, place):
    """Also on the first use, where Ultralytics tells of the settings that it makes."""
    done = subprocess.run(
        [sys.executable, "-m", "yolo_gradstudy.cli", "plan", "quick", "--json"],
        capture_output=True, text=True, env={**os.environ, "YOLO_CONFIG_DIR": str(tmp_path / "fresh")}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["arm"] == "control"
    assert "Settings" in done.stderr


def test_ablations_are_listed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    answer = invoke("ablations")
    assert answer.exit_code == 0
    assert all(name in answer.stdout for name in ABLATIONS)
    assert_refused("ablations", "--model", "yolo62n.yaml", said=["yolo62n.yaml"])


def test_ablations_of_a_model(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    answer = invoke("ablations", "--model", "yolo26n.yaml")
    assert answer.exit_code == 0, answer.output
    row = next(line for line in answer.stdout.splitlines() if line.strip().startswith("no_batchnorm"))
    assert any(word.replace(",", "").isdigit() and int(word.replace(",", "")) > 50 for word in row.split())


def test_data_sets_are_listed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    answer = invoke("data", "list")
    assert answer.exit_code == 0, answer.output
    assert all(name in answer.stdout for name in ("shapes", "coco8", "coco128", "coco-1pct", "coco-10pct"))


def test_data_set_is_built(shapes_yaml):
    answer = invoke("data", "build", "shapes")
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.strip() == str(shapes_yaml)
    assert_refused("data", "build", "shape", said=["'shape'", "'shapes'"])


def test_no_command_shows_the_commands():
    answer = invoke()
    assert all(word in answer.output for word in ("train", "plan", "run", "report", "diagnose", "data", "ablations"))


def test_progress_shows_what_runs_what_is_done_and_the_outcomes(tmp_path):
    """One run ended, one goes on, one waits."""
    from rich.console import Console

    from yolo_gradstudy.cli.progress import Progress
    from yolo_gradstudy.executors import RunEvent

    console = Console(record=True, width=120, force_terminal=True)
    progress = Progress(console, tmp_path, total=4, missing=3)
    first, second = make_spec("control"), make_spec("no_clip")
    for spec in (first, second):
        progress.on_event(RunEvent("started", spec, place="cpu"))
    progress.on_event(RunEvent("ended", first, make_result(first, status="failed", error="no such image"), "cpu"))
    told = {"share": 0.25, "step": 30, "batches_per_s": 3.21, "grad_norm": 2345.6, "clip_norm": 10.0}
    StudyFolder(tmp_path).run(second.run_id).path.mkdir(parents=True)
    StudyFolder(tmp_path).run(second.run_id).write_progress(told)
    console.print(progress._render())
    shown = console.export_text()
    assert f"[2/4] {first.run_id}: failed in 12 s: no such image" in shown
    row = next(line for line in shown.splitlines() if line.startswith(second.run_id)).split()
    assert (row[1], row[3:8]) == ("cpu", ["25%", "3.21", "2.35e+03", "/", "10"])
    assert "1 of 3 done" in shown
    assert "1 failed" in shown
