# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where runs are placed and how their ends are collected. A stand-in plays the process of a run."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import psutil
import pytest
from synthetic import make_spec
from trainer.small import write_small

from yolo_gradstudy.executors import EXECUTORS, Limits, LocalExecutor, processes
from yolo_gradstudy.records import RunSpec
from yolo_gradstudy.run import DISK_FULL
from yolo_gradstudy.run_folder import RunFolder, StudyFolder

_STAND_IN = """#!{python} -SE
import json, os, sys, time
from pathlib import Path
folder, device = Path(sys.argv[3]), sys.argv[5]
spec = json.loads(sys.stdin.readline())
act = spec["arguments"]
note = folder.parent.parent / "notes"
facts = dict(argv=sys.argv[1:], pid=os.getpid(), session=os.getsid(0), threads=os.environ["OMP_NUM_THREADS"],
             autoinstall=os.environ["YOLO_AUTOINSTALL"], run_id=spec["run_id"], began=time.time())
def write():
    path = note / (spec["run_id"] + ".json")
    path.with_suffix(".tmp").write_text(json.dumps(facts))
    path.with_suffix(".tmp").replace(path)
print("noise on stdout")
print("noise on stderr", file=sys.stderr)
note.mkdir(exist_ok=True)
time.sleep(act.get("sleep", 0))
if "signal" in act:
    write()
    os.kill(os.getpid(), act["signal"])
if act.get("forever"):
    write()
    sys.stdin.read()
facts["ended"] = time.time()
write()
if "status" in act:
    (folder / "result.json").write_text(json.dumps(dict(run_id=spec["run_id"], status=act["status"], steps=4)))
sys.exit(act.get("exit", 0))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A program in the place of Python, that does what a spec's arguments say."""
    path = tmp_path / "python"
    path.write_text(_STAND_IN.format(python=os.path.realpath(sys.executable)))
    path.chmod(0o755)
    monkeypatch.setattr(processes, "sys", SimpleNamespace(executable=str(path), platform=sys.platform))


def fresh(*places, **settings):
    """An executor that starts the stand-in, where it would fork from a server of its own."""
    return LocalExecutor(places or ("cpu",), preload=False, **settings)


def spec_for(seed, **act):
    return RunSpec.from_dict({**make_spec(seed=seed).to_dict(), "arguments": act})


def notes(folder):
    return {p.stem: json.loads(p.read_text()) for p in (folder.path / "notes").glob("*.json")}


def execute(executor, specs, folder):
    return [(e.kind, e.spec.run_id, e.result and e.result.status, e.place) for e in executor.execute(specs, folder)]


@pytest.mark.parametrize(("places", "most"), [(("cpu",), 1), (("0", "1", "1"), 3)])
def test_no_more_runs_at_once_than_places(stand_in, tmp_path, places, most):
    folder, specs = StudyFolder(tmp_path / "study"), [spec_for(i, sleep=0.2, status="finished") for i in range(6)]
    at_once, peak, used = 0, 0, []
    for event in fresh(*places).execute(specs, folder):
        at_once += 1 if event.kind == "started" else -1
        peak = max(peak, at_once)
        used.append(event.place)
        assert event.result is None or event.result.status == "finished"
    assert (at_once, peak) == (0, most)
    assert set(used) == set(places)
    facts = notes(folder)
    assert facts.keys() == {s.run_id for s in specs}
    for fact in facts.values():  # the processes overlapped no more either
        assert sum(f["began"] <= fact["began"] < f["ended"] for f in facts.values()) <= most
    for place in set(places):  # and no place held more than it has
        on = [f for f in facts.values() if f["argv"][4] == place]
        assert max(sum(f["began"] <= o["began"] < f["ended"] for f in on) for o in on) <= places.count(place)


def test_order_session_threads_and_log(stand_in, tmp_path):
    folder, specs = StudyFolder(tmp_path / "study"), [spec_for(i, status="finished") for i in range(3)]
    executor = fresh(threads=3, workers=2, keep_weights=True)
    assert execute(executor, specs, folder) == [
        (kind, s.run_id, status, "cpu") for s in specs for kind, status in (("started", None), ("ended", "finished"))
    ]
    for fact in notes(folder).values():
        assert fact["session"] == fact["pid"] != os.getsid(0)
        assert fact["threads"] == "3"
        assert fact["autoinstall"] == "false"
        assert fact["argv"][5:] == ["--workers", "2", "--threads", "3", "--keep-weights"]
        log = folder.run(fact["run_id"]).log_path.read_text()
        assert "noise on stdout" in log
        assert "noise on stderr" in log


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ({"signal": int(signal.SIGKILL)}, "signal SIGKILL"),
        ({"signal": int(signal.SIGSEGV)}, "signal SIGSEGV"),
        ({"exit": 3}, "exit status 3"),
        ({"exit": 0}, "exit status 0"),
    ],
    ids=str,
)
def test_a_death_is_a_result_and_the_next_run_starts(stand_in, tmp_path, act, said):
    folder, specs = StudyFolder(tmp_path / "study"), [spec_for(0, **act), spec_for(1, status="finished")]
    events = execute(fresh(limits=Limits(retries=0)), specs, folder)
    assert [e[2] for e in events if e[0] == "ended"] == ["failed", "finished"]
    result = folder.run(specs[0].run_id).read_result()
    assert result.status == "failed"
    assert said in result.error
    assert "log.txt" in result.error


def test_a_failure_that_the_run_reported_is_kept(stand_in, tmp_path):
    folder, spec = StudyFolder(tmp_path / "study"), spec_for(0, status="failed", exit=1)
    assert execute(fresh(), [spec], folder)[-1][2] == "failed"
    assert folder.run(spec.run_id).read_result().steps == 4


@pytest.mark.parametrize("end", ["close", "error", "ctrl-c"])
def test_an_end_ends_the_runs_and_leaves_no_result(stand_in, tmp_path, end):
    folder, specs = StudyFolder(tmp_path / "study"), [spec_for(i, forever=True) for i in range(3)]
    error = {"close": None, "error": RuntimeError, "ctrl-c": KeyboardInterrupt}[end]

    def consume():
        with closing(fresh("cpu", "cpu").execute(specs, folder)) as events:
            next(events)
            next(events)
            deadline = time.monotonic() + 20
            while len(notes(folder)) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            if error is not None:
                raise error

    if error is None:
        consume()
    else:
        with pytest.raises(error):
            consume()
    facts = notes(folder)
    assert len(facts) == 2  # the third never began
    assert not any(psutil.pid_exists(f["pid"]) for f in facts.values())
    assert all(folder.run(s.run_id).read_result() is None for s in specs)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(seconds=1, retries=3), "longer than the 1 s that a run may take"),
        (Limits(memory_bytes=2**20, retries=3), "more than the 0.00 GiB that a run may use"),
    ],
    ids=["time", "memory"],
)
def test_a_run_that_takes_too_much_is_ended_once(stand_in, tmp_path, limits, said):
    folder, specs = StudyFolder(tmp_path / "study"), [spec_for(0, forever=True), spec_for(1, status="finished")]
    events = execute(fresh(limits=limits), specs[:1], folder)
    assert [(e[0], e[2]) for e in events] == [("started", None), ("ended", "failed")]  # it is not tried again
    assert said in folder.run(specs[0].run_id).read_result().error
    assert not any(psutil.pid_exists(f["pid"]) for f in notes(folder).values())
    assert execute(fresh(), specs[1:], folder)[-1][2] == "finished"


def test_a_killed_run_is_tried_again_and_its_attempts_are_counted(stand_in, tmp_path):
    folder, spec = StudyFolder(tmp_path / "study"), spec_for(0, signal=int(signal.SIGKILL))
    events = execute(fresh(limits=Limits(retries=2)), [spec], folder)
    assert [e[0] for e in events] == ["started", "retried", "started", "retried", "started", "ended"]
    assert folder.run(spec.run_id).read_result().attempts == 3


def test_no_result_is_written_of_a_run_that_is_tried_again(stand_in, tmp_path, monkeypatch):
    """A study that is killed before the next attempt would take it for the run's end."""
    written = []
    monkeypatch.setattr(RunFolder, "write_result", lambda self, result: written.append(result.attempts))
    spec = spec_for(0, signal=int(signal.SIGKILL))
    assert execute(fresh(limits=Limits(retries=1)), [spec], StudyFolder(tmp_path / "study"))[-1][0] == "ended"
    assert written == [2]


def test_an_error_that_would_come_again_is_not_tried_again(stand_in, tmp_path):
    folder, spec = StudyFolder(tmp_path / "study"), spec_for(0, exit=3)
    assert [e[0] for e in execute(fresh(), [spec], folder)] == ["started", "ended"]


def test_a_full_disk_leaves_no_result(stand_in, tmp_path):
    folder, spec = StudyFolder(tmp_path / "study"), spec_for(0, exit=DISK_FULL)
    with pytest.raises(ValueError, match="the disk has no room left; free some and give the same command again"):
        execute(fresh(), [spec], folder)
    assert folder.run(spec.run_id).read_result() is None


def test_nothing_to_run(tmp_path):
    assert execute(LocalExecutor(), [], StudyFolder(tmp_path)) == []


def test_table_of_executors():
    assert EXECUTORS["local"] is LocalExecutor


# With real runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_yaml(shapes_yaml, tmp_path_factory):
    return write_small(shapes_yaml, tmp_path_factory.mktemp("small"))


def real_spec(small_yaml, seed=0, **arguments):
    spec = make_spec(seed=seed).to_dict()
    arguments = {
        "epochs": 1, "imgsz": 32, "batch": 4, "nbs": 4, "optimizer": "SGD", "pretrained": False, "plots": False,
        "val": False, "warmup_epochs": 0, **arguments,
    }  # fmt: skip
    return RunSpec.from_dict({**spec, "data": str(small_yaml), "arguments": arguments, "record": {"flush_every": 1}})


def test_a_real_run_that_fails_and_one_that_finishes(small_yaml, tmp_path):
    folder = StudyFolder(tmp_path / "study")
    specs = [real_spec(small_yaml, 0, epochs="many"), real_spec(small_yaml, 1)]
    events = execute(LocalExecutor(), specs, folder)
    assert [e[2] for e in events if e[0] == "ended"] == ["failed", "finished"]
    failed, finished = (folder.run(s.run_id) for s in specs)
    result = failed.read_result()
    assert "Error" in result.error
    assert "\n" not in result.error
    assert result.traceback.startswith("Traceback")
    assert result.traceback in failed.log_path.read_text()
    assert finished.read_result().steps == 3
    assert finished.load().steps.index.tolist() == [1, 2, 3]
    assert finished.read_spec() == specs[1]
    assert "epochs completed" in finished.log_path.read_text()


_PARENT = """
import json, sys
from pathlib import Path
from yolo_gradstudy.executors import LocalExecutor
from yolo_gradstudy.records import RunSpec
from yolo_gradstudy.run_folder import RunFolder, StudyFolder
spec = RunSpec.from_dict(json.loads(sys.argv[1]))
for event in LocalExecutor().execute([spec], StudyFolder(Path(sys.argv[2]))):
    print(event.kind, flush=True)
"""


def test_a_real_run_ends_with_its_parent(small_yaml, tmp_path):
    folder, spec = StudyFolder(tmp_path / "study"), real_spec(small_yaml, epochs=200)
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, json.dumps(spec.to_dict()), str(folder.path)])
    try:
        deadline = time.monotonic() + 120
        while not folder.run(spec.run_id).telemetry.parts("steps"):
            assert time.monotonic() < deadline, folder.run(spec.run_id).log_path.read_text()
            assert parent.poll() is None
            time.sleep(0.05)
        (child,) = psutil.Process(parent.pid).children()
        assert os.getsid(child.pid) == child.pid != os.getsid(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert folder.run(spec.run_id).read_result() is None  # to be trained again
    assert len(folder.run(spec.run_id).load().steps) >= 1  # what was flushed stays
