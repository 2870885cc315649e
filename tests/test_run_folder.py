# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is written outlives the machine's power, and what a killed process had begun to write is cleared away."""

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import make_result, make_spec

from yolo_gradstudy.run_folder import RunFolder, StudyFolder, make_folder, replacing, write_text


class Calls:
    """What is asked of the system, in order, with the content at that moment."""

    def __init__(self, monkeypatch):
        self.made = []
        self._fsync, self._replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)

    def fsync(self, descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self._fsync(descriptor)
        self.made.append(("sync", path, None if path.is_dir() else path.read_bytes()))

    def replace(self, source, target):
        self._replace(source, target)
        self.made.append(("rename", Path(source), Path(target)))

    def synced(self):
        return [path for call, path, _ in self.made if call == "sync"]


@pytest.fixture
def calls(monkeypatch):
    if sys.platform != "linux":
        pytest.skip("needs Linux's /proc/self/fd, which tells a descriptor's file")
    return Calls(monkeypatch)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    path = tmp_path / "result.json"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        assert calls.made == []
        assert path.read_text() == "old"
    (first, temporary, content), renamed, last = calls.made
    assert (first, content) == ("sync", b"new")  # all of it, not what was left of a buffer
    assert temporary.parent == tmp_path
    assert renamed == ("rename", temporary, path)
    assert last == ("sync", tmp_path, None)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_new_folders_outlive_the_power_too(tmp_path, calls):
    make_folder(tmp_path / "study" / "runs" / "one")
    assert set(calls.synced()) == {tmp_path, tmp_path / "study", tmp_path / "study" / "runs"}
    make_folder(tmp_path / "study" / "runs" / "one")
    assert len(calls.made) == 3  # nothing is new


def test_a_result_is_written_after_all_that_it_tells_of(tmp_path, calls):
    run, spec = RunFolder(tmp_path / "runs" / "one"), make_spec()
    run.start_afresh(spec)
    (run.path / "results.csv").write_bytes(b"of a training")
    run.write_result(make_result(spec))
    paths = calls.synced()
    renamed = calls.made.index(next(c for c in calls.made if c[0] == "rename" and c[2] == run.result_path))
    written = calls.made.index(("sync", run.path / "results.csv", b"of a training"))
    assert written < renamed
    assert tmp_path / "runs" in paths  # without which the run's folder could be gone


def test_what_was_not_written_whole_is_not_there(tmp_path):
    path = tmp_path / "plan.json"
    write_text(path, "old")

    def refuse():
        with replacing(path) as file:
            file.write(b"ne")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as refused:
        refuse()
    assert refused.value.filename == str(path)  # which the system does not say of a write
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from yolo_gradstudy.run_folder import replacing
begun = [replacing(Path(path)) for path in sys.argv[1:]]
for one in begun:
    one.__enter__().write(b"half of it")
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_while_writing(*paths):
    """Let a process be killed while it writes; returns what it left."""
    subprocess.run([sys.executable, "-c", _KILLED, *map(str, paths)], check=False)
    return {p for path in paths for p in path.parent.glob(".*.tmp")}


def test_a_study_clears_away_what_a_killed_one_had_begun_to_write(tmp_path):
    folder = StudyFolder(tmp_path / "out")
    folder.report_path.mkdir(parents=True)
    left = kill_while_writing(folder.results_path, folder.report_path / "index.html")
    assert len(left) == 2
    mine = folder.path / f".results.csv.{os.getpid()}@{platform.node()}.tmp"  # a report is being made besides
    elsewhere = folder.path / ".results.csv.1@another-machine.tmp"  # whose processes can't be known
    notes = folder.path / ".notes.tmp"
    for path in (mine, elsewhere, notes):
        path.write_text("x")
    with folder.locked():
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in (mine, elsewhere, notes))


def test_a_study_killed_before_its_first_file_was_whole_can_begin_again(tmp_path):
    """Its folder then holds a temporary file alone, which is no file of something else."""
    folder = StudyFolder(tmp_path / "out")
    folder.path.mkdir()
    (left,) = kill_while_writing(folder.study_path)
    assert folder.strangers() == []
    (folder.path / "thesis.tex").write_text("x")
    assert folder.strangers() == ["thesis.tex"]
    assert left.exists()
