# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study on a file system that is really full: one sentence, no false result, and it goes on when there is room."""

import os
import runpy
import subprocess
import sys
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
compare = runpy.run_path(str(Path(__file__).resolve().parent.parent / "scripts" / "kill_study.py"))["compare"]


class Disk:
    """A file system of its own, a ballast in it that leaves only so much room."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self._ballast = path, path / "ballast"
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "gradstudy", path]
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
def disk(tmp_path):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs the right to mount a file system: root on Linux")
    path = tmp_path / "disk"
    path.mkdir()
    disk = Disk(path, 64 * 2**20)
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
    monkeypatch.setattr("yolo_gradstudy.report._draw", lambda *_: [])


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_gradstudy.report._draw", lambda *_: [])
        assert start(study, out).exit_code == 0
    return out


def start(study, out):
    return CliRunner().invoke(app, ["run", str(study), "--out", str(out), "--jobs", "2"])


def refused(study, out, capfd):
    """Start a study that the disk refuses, and check that it says so; what it left of runs that are done."""
    capfd.readouterr()
    answer = start(study, out)
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
    for room in (0, 12, 64, 300, 4096):
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
    assert not [path for path in out.rglob("*.tmp")]
