# SPDX-License-Identifier: AGPL-3.0-or-later
"""What happens around a study: a file system that is really full, and a clock that jumps.

Neither changes a result. A full disk is told in one sentence, and the study goes on when there is room.
"""

import os
import runpy
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from trainer.small import write_small
from typer.testing import CliRunner

from yolo_gradstudy.cli import app
from yolo_gradstudy.run_folder import StudyFolder

STUDY = {
    "name": "full",
    "model": "yolo26n.yaml",
    "arguments": {
        "epochs": 1, "imgsz": 32, "batch": 4, "nbs": 4, "optimizer": "SGD", "warmup_epochs": 0, "amp": False,
        "pretrained": False, "patience": 0, "val": False, "plots": False,
    },
    "lr0": [0.01],
    "seeds": [0, 1],
    "record": {"flush_every": 1},
    "arms": {"control": {}},
}  # fmt: skip
JUMPS = """
import itertools, time
now, looks = time.time, itertools.count(1)
def jumping():
    look = next(looks)
    return now() + 3600.0 * (look if look % 2 else -look)
time.time, time.time_ns = jumping, lambda: int(jumping() * 1e9)
"""
"""A clock that jumps at every look at it, forward and back, first by hours, soon by days, and is never twice as wrong;
in a process that finds it as its ``sitecustomize``."""

compare = runpy.run_path(str(Path(__file__).resolve().parent.parent / "scripts" / "kill_study.py"))["compare"]


class Disk:
    """A file system of its own, a ballast in it that leaves only so much room."""

    def __init__(self, path: Path, files: int) -> None:
        self.path, self._ballast = path, path / "ballast"
        command = ["mount", "-t", "tmpfs", "-o", f"size=64m,nr_inodes={files}", "gradstudy", path]
        self.refused = subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()

    def leave(self, room: int) -> None:
        """Leave so many bytes."""
        self.free()
        found = os.statvfs(self.path)
        left = found.f_bavail * found.f_frsize - room
        with self._ballast.open("wb") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, left)

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path, request):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs the right to mount a file system: root on Linux")
    path = tmp_path / "disk"
    path.mkdir()
    disk = Disk(path, getattr(request, "param", 1000))
    if disk.refused:
        pytest.skip(f"needs the right to mount a file system: {disk.refused}")
    yield disk
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(scope="module")
def study(shapes_yaml, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    (folder / "data").mkdir()
    path = folder / "full.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "data": str(write_small(shapes_yaml, folder / "data"))}))
    return path


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Their drawing takes most of a report's time; tables and the page are written as they are."""
    monkeypatch.setattr("yolo_gradstudy.report.draw", lambda *_: [])


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_gradstudy.report.draw", lambda *_: [])
        assert start(study, out).exit_code == 0
    return out


def start(study, out, *words):
    return CliRunner().invoke(app, ["run", str(study), "--out", str(out), "--jobs", "2", *words])


def refused(study, out, capfd, *words):
    """Start a study that the disk refuses, and check that it says so; what it left of runs that are done."""
    capfd.readouterr()
    answer = start(study, out, *words)
    said = answer.stderr + "".join(capfd.readouterr())  # of the server and its runs, too
    assert answer.exit_code == 2, (answer.exception, said)
    (sentence,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert str(out) in sentence
    assert sentence.endswith(
        "the disk has no room left; free some and give the same command again, which goes on from the runs that are "
        "finished."
    )
    assert "Traceback" not in said
    runs = [path.parent for path in out.glob("runs/*/result.json")]
    assert all(StudyFolder(out).run(run.name).read_result().status == "finished" for run in runs)
    return {run.name for run in runs}


def test_a_disk_that_is_full_while_it_trains(study, undisturbed, disk, capfd):
    """Without room for the plan, for a run's first file, for its log and telemetry, for its checkpoints."""
    out = disk.path / "out"
    for room in (0, 12, 300, 4096):
        disk.leave(room * 1024)
        assert refused(study, out, capfd) == set(), f"{room} KiB"
    disk.free()
    answer = start(study, out)
    assert answer.exit_code == 0, answer.output
    compare(undisturbed, out)


def test_a_disk_that_is_full_when_the_report_is_written(study, undisturbed, disk, capfd):
    out = disk.path / "out"
    subprocess.run(["cp", "-a", undisturbed, out], check=True)
    (out / "results.csv").unlink()
    subprocess.run(["rm", "-r", out / "report"], check=True)
    runs = {run.name for run in (out / "runs").iterdir() if run.is_dir()}
    for room in (0, 8, 40):
        disk.leave(room * 1024)
        assert refused(study, out, capfd) == runs, f"{room} KiB"
    disk.free()
    answer = start(study, out)
    assert answer.exit_code == 0, answer.output
    for path in (undisturbed / "results.csv", *(undisturbed / "report").iterdir()):
        assert (out / path.relative_to(undisturbed)).read_bytes() == path.read_bytes()
    assert not list(out.rglob("*.tmp"))


_TO_THE_RUN = 7
"""Files and folders up to the first run's folder: the disk itself, the study, its lock, two files, runs, and that."""


@pytest.mark.parametrize("disk", [_TO_THE_RUN], indirect=True, ids=["no log"])
def test_a_disk_that_takes_no_further_file(study, disk, tmp_path, capfd):
    """There is room, but none for the log of a run, which its process opens before it says anything."""
    assert refused(study, disk.path / "out", capfd, "--jobs", "1") == set()
    assert len(list(disk.path.glob("out/runs/*"))) == 1
    assert not list(disk.path.glob("out/runs/*/*"))


def test_a_clock_that_jumps_by_days(study, undisturbed, tmp_path, monkeypatch):
    """During runs, between them, and in the study's own process."""
    clock = tmp_path / "sitecustomize.py"
    clock.write_text(JUMPS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    for name in ("time", "time_ns"):  # to be put back
        monkeypatch.setattr(time, name, getattr(time, name))
    runpy.run_path(str(clock))
    out, began = tmp_path / "out", time.monotonic()
    answer = start(study, out, "--timeout", "30")
    most = time.monotonic() - began
    assert answer.exit_code == 0, answer.output
    compare(undisturbed, out)
    for spec in StudyFolder(out).read_plan():
        folder = StudyFolder(out).run(spec.run_id)
        result, run = folder.read_result(), folder.load()
        assert (result.status, result.attempts) == ("finished", 1)
        assert 0 < result.duration_s < most
        assert (run.steps["wall_time_s"].diff().dropna() > 0).all()
        assert run.steps["wall_time_s"].between(0, result.duration_s).all()
        told = [event["unix_time_s"] for event in run.events]
        assert max(told) - min(told) > 3000, "the clock did not jump: this tests nothing"
