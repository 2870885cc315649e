# SPDX-License-Identifier: AGPL-3.0-or-later
"""One spec, one result: whatever happens is a fact in the run's folder."""

import errno
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from synthetic import make_spec
from trainer.small import write_small

from yolo_gradstudy import run as runs
from yolo_gradstudy.records import RunSpec
from yolo_gradstudy.run_folder import RunFolder

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def small_yaml(shapes_yaml, tmp_path_factory):
    return write_small(shapes_yaml, tmp_path_factory.mktemp("small"))


def spec_for(small_yaml, ablations=(), lr0=0.01, record=None, **arguments):
    arguments = {
        "epochs": 1, "imgsz": 32, "batch": 4, "nbs": 4, "optimizer": "SGD", "pretrained": False, "plots": False,
        "val": False, "warmup_epochs": 0, **arguments,
    }  # fmt: skip
    return RunSpec.from_dict(
        {
            **make_spec(seed=5).to_dict(),
            "data": str(small_yaml), "arguments": arguments, "ablations": ablations, "lr0": lr0,
            "record": record or {},
        }
    )  # fmt: skip


def test_a_run_finishes(small_yaml, tmp_path):
    spec, folder = spec_for(small_yaml, ablations=["no_batchnorm", "no_clip"], lr0=0.02), RunFolder(tmp_path / "run")
    (folder.path / "telemetry").mkdir(parents=True)
    (folder.path / "telemetry" / "steps-000000001.parquet").write_text("of an attempt that was cut short")
    (folder.path / "result.txt").write_text("stale")
    folder.log_path.write_text("kept\n")
    result = runs.execute(spec, folder)
    assert result == folder.read_result()
    assert (result.status, result.error, result.traceback) == ("finished", None, None)
    assert result.steps == 3
    assert result.weights_finite is True
    assert result.metrics.keys() >= {"metrics/mAP50(B)", "metrics/mAP50-95(B)"}
    assert result.changed["no_batchnorm"] > 50
    assert result.parameters > 2_000_000
    assert result.device == "cpu"
    info = Path("/proc/cpuinfo")
    if info.is_file() and "model name" in info.read_text():
        assert f": {result.processor}\n" in info.read_text()
    else:
        assert result.processor
    assert result.threads == torch.get_num_threads()
    assert result.versions["torch"] == torch.__version__.split("+")[0]
    assert result.duration_s > 0
    assert folder.read_spec() == spec
    run = folder.load()
    assert run.damaged == []
    assert run.steps.index.tolist() == [1, 2, 3]
    assert run.meta["seed"] == 5
    assert run.meta["clip_norm"] is None
    assert run.steps["lr_pg0"].iloc[0] == pytest.approx(0.02)
    assert folder.log_path.read_text() == "kept\n"
    assert not (folder.path / "result.txt").exists()
    assert not (folder.path / "weights").exists()


def test_weights_are_kept_when_asked(small_yaml, tmp_path):
    runs.execute(spec_for(small_yaml, batch=12), RunFolder(tmp_path / "run"), keep_weights=True)
    assert (tmp_path / "run" / "weights" / "last.pt").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arguments": {"epochs": "many"}}, "epochs"),
        ({"data": "/nowhere/at/all.yaml"}, "/nowhere/at/all.yaml"),
        ({"model": "yolo99n.yaml"}, "yolo99"),
        ({"record": {"every": 0}}, "every=0"),
        ({"ablations": ["no_such"]}, "no_such"),
    ],
    ids=lambda c: next(iter(c)) if isinstance(c, dict) else "",
)
def test_an_error_is_a_result(small_yaml, tmp_path, change, said):
    spec = RunSpec.from_dict({**spec_for(small_yaml).to_dict(), **change})
    folder = RunFolder(tmp_path / "run")
    result = runs.execute(spec, folder)
    assert result == folder.read_result()
    assert result.status == "failed"
    assert said in result.error
    assert "\n" not in result.error
    assert result.traceback.startswith("Traceback (most recent call last)")
    assert result.steps == 0
    assert result.versions["yolo_gradstudy"]


def test_an_error_in_the_middle_keeps_its_steps(small_yaml, tmp_path, monkeypatch):
    from ultralytics.models.yolo.detect import DetectionTrainer

    monkeypatch.setattr(DetectionTrainer, "final_eval", lambda self: 1 / 0)
    folder = RunFolder(tmp_path / "run")
    result = runs.execute(spec_for(small_yaml), folder)
    assert (result.status, result.steps) == ("failed", 3)
    assert result.error.startswith("ZeroDivisionError")
    assert folder.load().events[-1]["event"] == "stopped"


@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_an_interrupt_and_a_full_disk_leave_no_result(small_yaml, tmp_path, monkeypatch, end):
    def interrupted(*_):
        raise end

    monkeypatch.setattr(runs, "_train", interrupted)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(type(end)):
        runs.execute(spec_for(small_yaml), folder)
    assert folder.read_result() is None
    assert folder.read_spec() == spec_for(small_yaml)


_FULL = """
import errno, os, sys
from yolo_gradstudy import run
def execute(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
run.execute = execute
sys.exit(run.main(["folder"]))
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full, /dev/full")
def test_a_full_disk_is_told_by_the_exit_status_though_the_log_has_no_room_either(small_yaml):
    with Path("/dev/full").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", _FULL], stdin=subprocess.PIPE, stdout=log, stderr=log)
    process.stdin.write(json.dumps(spec_for(small_yaml).to_dict()).encode() + b"\n")
    process.stdin.flush()  # and left open: the process ends with its input
    assert process.wait(timeout=120) == runs.DISK_FULL
    process.stdin.close()


def test_the_process_ends_when_its_input_does(small_yaml, tmp_path):
    """A run belongs to the process that holds its standard input."""
    spec = spec_for(small_yaml, epochs=500, record={"flush_every": 1})
    process = subprocess.Popen(
        [sys.executable, "-m", "yolo_gradstudy.run", str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    process.stdin.write(json.dumps(spec.to_dict()).encode() + b"\n")
    process.stdin.flush()
    folder, deadline = RunFolder(tmp_path / "run"), time.monotonic() + 120
    while not folder.telemetry.parts("steps"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.stdin.close()
    assert process.wait(timeout=20) == 1
    assert folder.read_result() is None
    assert len(folder.load().steps) >= 1


def test_precision_comes_from_the_arguments_of_a_study(small_yaml, tmp_path):
    """A CPU trains in fp32 unless this package's own argument says otherwise; a scaler begins at 65536."""
    folder = RunFolder(tmp_path / "run")
    result = runs.execute(spec_for(small_yaml, precision="fp16"), folder)
    assert (result.status, result.error) == ("finished", None)
    run = folder.load()
    assert run.steps["amp_scale"].iloc[0] == 65536
    assert run.meta["precision"] == "fp16"
