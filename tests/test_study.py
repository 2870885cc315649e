# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study is trained once, whatever interrupts it, and a folder holds one study."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pandas as pd
import psutil
import pytest
import yaml
from filelock import FileLock
from synthetic import make_result, record
from trainer.small import write_small
from typer.testing import CliRunner

from yolo_gradstudy.cli import app
from yolo_gradstudy.cli.loading import vocabulary
from yolo_gradstudy.executors import Executor, RunEvent
from yolo_gradstudy.plan import load_study
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import StudyFolder
from yolo_gradstudy.study import check_folder, missing_runs, run_only, run_study

STUDY = {
    "name": "small",
    "model": "yolo26n.yaml",
    "arguments": {
        "epochs": 2, "imgsz": 64, "batch": 2, "nbs": 2, "optimizer": "SGD", "warmup_epochs": 1, "amp": False,
        "pretrained": False, "patience": 0, "val": False, "plots": False,
    },
    "lr0": [0.01],
    "seeds": [0, 1],
    "record": {"flush_every": 1},
    "arms": {"control": {}, "no_batchnorm": {"ablations": ["no_batchnorm", "no_clip"]}},
}  # fmt: skip
TIMES = ["started", "duration_s"]


@pytest.fixture(scope="module")
def small_yaml(shapes_yaml, tmp_path_factory):
    return write_small(shapes_yaml, tmp_path_factory.mktemp("small"))


@pytest.fixture
def write_study(small_yaml, tmp_path):
    """Writes the study, with other values for some of its keys; returns its path."""

    def write(**changes) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**STUDY, "data": str(small_yaml), **changes}))
        return path

    return write


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of change of every file; of no file where there is no folder."""
    return {
        str(p.relative_to(folder)): (s.st_ino, s.st_size, s.st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and (s := p.stat())
    }


# With real processes ---------------------------------------------------------------------------------


def hear_ctrl_c() -> None:
    """A shell's background jobs ignore SIGINT and so would theirs: a person's terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command:
    """`gradstudy run` in a process and session of its own, two runs at once."""

    started: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, study: Path, out: Path, log: Path) -> None:
        self.out, self.log = out, log
        command = [sys.executable, "-m", "yolo_gradstudy.cli", "run", str(study), "--out", str(out), "--jobs", "2"]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, start_new_session=True, preexec_fn=hear_ctrl_c
            )
        self.started.append(self.process)

    def wait(self) -> int:
        return self.process.wait(timeout=400)

    def wait_for(self, condition, timeout=300) -> list[psutil.Process]:
        """Wait until a condition holds; the runs' processes at that moment."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        return psutil.Process(self.process.pid).children(recursive=True)

    def runs(self) -> list[Path]:
        return sorted(p for p in (self.out / "runs").glob("*") if p.is_dir())

    def begun(self) -> list[str]:
        return [r.name for r in self.runs() if not done(r) and list(r.glob("telemetry/steps-*.parquet"))]


def done(run: Path) -> bool:
    return (run / "result.json").exists()


def gone(processes) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=30)
    return all(p.status() == psutil.STATUS_ZOMBIE for p in alive)


@pytest.fixture(autouse=True, scope="module")
def _none_outlives_its_tests():
    yield
    for process in Command.started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def left_alone(small_yaml, tmp_path_factory):
    """A study that nothing disturbed, but for a second start that was refused."""
    folder = tmp_path_factory.mktemp("alone")
    study, out = folder / "small.yaml", folder / "out"
    study.write_text(yaml.safe_dump({**STUDY, "data": str(small_yaml)}))
    first = Command(study, out, folder / "log.txt")
    first.wait_for(lambda: (out / "plan.json").exists())
    plan = snapshot(out)["plan.json"]
    second = Command(study, out, folder / "second.txt")
    assert second.wait() == 2
    assert first.process.poll() is None, "the first was done before the second began: this tests nothing"
    assert first.wait() == 0, (folder / "log.txt").read_text()
    assert snapshot(out)["plan.json"] == plan
    return out, (folder / "second.txt").read_text()


def test_started_twice_at_once_the_second_refuses(left_alone):
    out, said = left_alone
    error = next(line for line in said.splitlines() if line.startswith("error:"))
    assert "in use by another `gradstudy run`" in " ".join(said.split())
    assert str(out) in error
    assert "Traceback" not in said


def test_killed_and_started_again_it_ends_as_one_left_alone(left_alone, write_study, tmp_path):
    study, out, log = write_study(), tmp_path / "out", tmp_path / "log.txt"
    first = Command(study, out, log)
    running = first.wait_for(lambda: any(map(done, first.runs())) and first.begun())
    first.process.kill()
    first.wait()
    assert gone(running)
    finished = {r.name: snapshot(r) for r in first.runs() if done(r)}
    assert 1 <= len(finished) < 4
    assert not (out / "results.csv").exists()

    again = Command(study, out, log)
    assert again.wait() == 0, log.read_text()
    assert f"{4 - len(finished)} to train" in " ".join(log.read_text().split())
    for name, files in finished.items():
        assert snapshot(out / "runs" / name) == files, f"{name} was finished and trained again"
    alone, killed = (pd.read_csv(folder / "results.csv") for folder in (left_alone[0], out))
    assert len(alone) == 4
    assert set(TIMES) <= set(alone.columns)
    pd.testing.assert_frame_equal(alone.drop(columns=TIMES), killed.drop(columns=TIMES), check_exact=True)
    assert (killed["status"] == "finished").all()
    assert killed["grad_norm_median"].nunique() == 4  # the rows are not alike for being empty
    assert (out / "report" / "index.html").is_file()


def test_ctrl_c_ends_the_runs_and_leaves_a_study_that_goes_on(write_study, tmp_path, monkeypatch):
    study, out, log = write_study(), tmp_path / "out", tmp_path / "log.txt"
    command = Command(study, out, log)
    running = command.wait_for(lambda: len(command.begun()) == 2)
    begun = command.begun()
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130
    assert len(running) >= 2
    assert gone(running)
    said = log.read_text()
    assert "interrupted: finished runs are kept" in " ".join(said.split())
    assert "Traceback" not in said
    assert not any(map(done, command.runs()))
    loaded = load_study(study, vocabulary())
    monkeypatch.setattr("yolo_gradstudy.report.draw", lambda *_: [])
    executor = Pretended()
    run_study(loaded, StudyFolder(out), executor)
    assert {s.run_id for s in executor.trained} == {s.run_id for s in loaded.runs()} > set(begun)
    assert len(pd.read_csv(out / "results.csv")) == 4


def test_a_killed_run_is_tried_again_and_the_study_goes_on(write_study, tmp_path):
    study, out, log = write_study(seeds=[0]), tmp_path / "out", tmp_path / "log.txt"
    command = Command(study, out, log)
    running = command.wait_for(lambda: command.begun())
    victim = command.begun()[0]
    (process,) = [p for p in running if any(victim in file.path for file in p.open_files())]
    process.kill()
    assert command.wait() == 0, log.read_text()
    results = pd.read_csv(out / "results.csv").set_index("run_id")
    assert len(results) == 2
    assert (results["status"] == "finished").all()
    assert results["attempts"].to_dict() == {**dict.fromkeys(results.index, 1), victim: 2}
    assert "ended by signal SIGKILL" in " ".join(log.read_text().split())


# With an executor that only pretends to train --------------------------------------------------------


class Pretended(Executor):
    """Writes what a run of a ``kind`` would leave; raises before the run whose turn is ``stop_at``."""

    def __init__(self, stop_at: int = -1, kind=lambda spec: "stable") -> None:
        self.trained = []
        self.stop_at = stop_at
        self.kind = kind

    def execute(self, specs, folder):
        for spec in specs:
            yield RunEvent("started", spec, place="cpu")
            if len(self.trained) == self.stop_at:
                raise KeyboardInterrupt
            record(folder, spec, self.kind(spec))
            folder.run(spec.run_id).write_result(result := make_result(spec))
            self.trained.append(spec)
            yield RunEvent("ended", spec, result, "cpu")


@pytest.fixture
def no_figures(monkeypatch):
    """Reports without figures, whose drawing takes most of their time and is tested elsewhere."""
    monkeypatch.setattr("yolo_gradstudy.report.draw", lambda *_: [])


@pytest.fixture
def loaded(write_study, no_figures):
    """Loads the study, with other values for some of its keys."""
    return lambda **changes: load_study(write_study(**changes), vocabulary())


@pytest.fixture
def finished(loaded, tmp_path):
    """The folder of a study whose four runs are done."""
    folder = StudyFolder(tmp_path / "out")
    page = run_study(loaded(), folder, Pretended())
    assert page == folder.path / "report" / "index.html"
    return folder


def test_a_study_leaves_what_it_says(finished, loaded):
    names = {p.name for p in finished.path.iterdir()} - {".lock"}
    assert names == {"study.yaml", "plan.json", "results.csv", "runs", "report"}
    assert finished.read_plan() == loaded().runs()
    assert finished.read_study() == loaded().to_dict()
    assert len(pd.read_csv(finished.results_path)) == 4


def test_a_finished_study_trains_nothing_again(finished, loaded):
    runs, csv = snapshot(finished.path / "runs"), finished.results_path.read_bytes()
    run_study(loaded(), finished, executor := Pretended())
    assert executor.trained == []
    assert snapshot(finished.path / "runs") == runs
    assert finished.results_path.read_bytes() == csv


def test_interrupted_it_goes_on(loaded, tmp_path):
    study, folder = loaded(), StudyFolder(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run_study(study, folder, Pretended(stop_at=2))
    assert [s.run_id for s in missing_runs(study, folder)] == [s.run_id for s in study.runs()[2:]]
    run_study(study, folder, executor := Pretended())
    assert executor.trained == study.runs()[2:]


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"seeds": [0, 1, 2]}, 2),
        ({"seeds": [2, 0, 1]}, 2),
        ({"lr0": [0.01, 0.1]}, 4),
        ({"arms": {**STUDY["arms"], "no_clip": {"ablations": ["no_clip"]}}}, 2),
        ({"description": "in other words"}, 0),
    ],
    ids=["seed", "seed before", "lr0", "arm", "words"],
)
def test_a_grown_study_trains_only_what_is_new(finished, loaded, changes, new):
    old = {s.run_id for s in loaded().runs()}
    runs = {r: snapshot(finished.run(r).path) for r in old}
    study = loaded(**changes)
    run_study(study, finished, executor := Pretended())
    assert len(executor.trained) == new
    assert not {s.run_id for s in executor.trained} & old
    assert {r: snapshot(finished.run(r).path) for r in old} == runs
    assert len(pd.read_csv(finished.results_path)) == 4 + new
    assert finished.read_plan() == study.runs()


def test_a_study_that_holds_a_searchs_range_is_no_search(loaded, tmp_path):
    folder = StudyFolder(tmp_path / "out")
    run_study(loaded(limit={"factor": 2}), folder, Pretended())
    written = {p.name for p in folder.report_path.iterdir()}
    assert "comparisons.csv" in written
    assert "limits.csv" not in written


def test_an_array_trains_each_run_once_and_leaves_what_one_process_does(loaded, finished, tmp_path):
    study, folder = loaded(), StudyFolder(tmp_path / "array")
    for spec in reversed(study.runs()):
        assert run_only([spec.run_id], study, folder, executor := Pretended()) == [spec]
        assert executor.trained == [spec]
    assert run_only([spec.run_id for spec in study.runs()], study, folder, executor := Pretended()) == []
    assert executor.trained == []
    assert not folder.results_path.exists()
    write_report(folder.path)
    alone, array = (pd.read_csv(f.results_path).drop(columns=TIMES) for f in (finished, folder))
    pd.testing.assert_frame_equal(alone, array)


def test_an_array_can_run_beside_another(loaded, tmp_path):
    """The study is not held while a run trains: the second begins and ends within the first."""
    study, folder = loaded(), StudyFolder(tmp_path / "array")
    first, second, *_ = study.runs()
    inner = Pretended()

    def on_event(event):
        if event.kind == "started":
            run_only([second.run_id], study, folder, inner)

    assert run_only([first.run_id], study, folder, Pretended(), on_event) == [first]
    assert inner.trained == [second]


def test_a_run_that_is_not_planned_is_refused(loaded, tmp_path):
    folder = StudyFolder(tmp_path / "array")
    with pytest.raises(
        ValueError, match=r"'control-lr0\.01-s9-x' is no run of the study 'small'; the nearest valid is"
    ):
        run_only(["control-lr0.01-s9-x"], loaded(), folder, Pretended())
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "other"}, "name was 'small', is 'other'"),
        ({"model": "yolo11n.yaml"}, "model was 'yolo26n.yaml', is 'yolo11n.yaml'"),
        ({"arguments": {**STUDY["arguments"], "epochs": 3}}, "arguments.epochs was 2, is 3"),
        ({"arguments": {**STUDY["arguments"], "momentum": 0.8}}, "arguments.momentum was not set, is 0.8"),
        ({"record": {}}, "record.flush_every was 1, is not set"),
        ({"seeds": [0]}, "seed 1 is gone"),
        ({"arms": {"control": {}}}, "arm no_batchnorm is gone"),
        ({"arms": {"control": {}, "no_batchnorm": {"ablations": ["no_batchnorm"]}}}, "arms.no_batchnorm.ablations was"),
    ],
    ids=str,
)
def test_another_studys_folder_is_refused(finished, loaded, changes, said):
    before, study = snapshot(finished.path), loaded(**changes)
    for refusing in (
        lambda: check_folder(study, finished),
        lambda: run_study(study, finished, Pretended()),
    ):
        with pytest.raises(ValueError, match="holds another study") as refused:
            refusing()
        assert said in str(refused.value)
        assert str(finished.path) in str(refused.value)
        assert str(finished.path.with_name("out-2")) in str(refused.value)  # which is free
    assert snapshot(finished.path) == before


def test_a_folder_of_something_else_is_refused(loaded, tmp_path):
    folder = StudyFolder(tmp_path / "thesis")
    folder.path.mkdir()
    (folder.path / "chapter.tex").write_text("x")
    with pytest.raises(ValueError, match=r"not empty and holds no study.*chapter\.tex") as refused:
        run_study(loaded(), folder, Pretended())
    assert str(folder.path / "small") in str(refused.value)
    assert list(snapshot(folder.path)) == ["chapter.tex"]


def test_a_study_in_use_is_refused(finished, loaded):
    before = snapshot(finished.path)
    with FileLock(finished.path / ".lock"), pytest.raises(ValueError, match="in use by another"):
        run_study(loaded(seeds=[0, 1, 2]), finished, executor := Pretended())
    assert executor.trained == []
    assert snapshot(finished.path) == before
    run_study(loaded(seeds=[0, 1, 2]), finished, executor)  # the lock is free again
    assert len(executor.trained) == 2


def test_data_that_can_not_be_had_writes_nothing(loaded, tmp_path):
    folder = StudyFolder(tmp_path / "out")
    with pytest.raises(ValueError, match=r"nowhere\.yaml does not exist"):
        run_study(loaded(data="nowhere.yaml"), folder, Pretended())
    assert not folder.path.exists()


def spoil(small_yaml, folder, what):
    """A data set that passes for one until its files are read; returns its data YAML."""
    shutil.copytree(small_yaml.parent, folder, ignore=shutil.ignore_patterns("*.cache"))
    path = folder / small_yaml.name
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "path": str(folder)}))
    for file in (folder / what / "train").iterdir():
        file.write_text("99 0.5 0.5 0.5 0.5\n")
    return path


@pytest.mark.parametrize("what", ["labels", "images"])
def test_data_that_can_not_be_trained_on_writes_nothing(loaded, small_yaml, tmp_path, what):
    """Every label of a class that is not there, every image broken; corrected, the study starts in the same folder."""
    bad = spoil(small_yaml, tmp_path / "bad", what)
    folder = StudyFolder(tmp_path / "new" / "out")
    with pytest.raises(ValueError, match="can't be trained on: No valid images found") as refused:
        run_study(loaded(data=str(bad)), folder, Pretended())
    assert str(bad) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not folder.path.parent.exists()
    run_study(loaded(), folder, executor := Pretended())
    assert len(executor.trained) == 4


def test_data_that_can_not_be_trained_on_leaves_a_study_as_it_was(finished, loaded, small_yaml, tmp_path):
    before = snapshot(finished.path)
    bad = spoil(small_yaml, tmp_path / "bad", "labels")
    changed = {**finished.read_study(), "data": str(bad)}
    finished.study_path.write_text(yaml.safe_dump(changed))
    with pytest.raises(ValueError, match="can't be trained on"):
        run_study(loaded(data=str(bad), seeds=[0, 1, 2]), finished, Pretended())
    assert yaml.safe_load(finished.study_path.read_text()) == changed
    assert {**snapshot(finished.path), "study.yaml": 0} == {**before, "study.yaml": 0}


def test_a_folder_that_can_not_be_written_is_one_sentence(loaded, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "out", Path("/proc/foo")):
        with pytest.raises(
            ValueError, match=r"--out .* can't be written .*; the nearest folder that can is"
        ) as refused:
            run_study(loaded(), StudyFolder(path), Pretended())
        nearest = Path(str(refused.value).rpartition(" ")[2].rstrip("."))
        assert str(path) in str(refused.value)
        nearest.mkdir()
        nearest.rmdir()
    assert not Path("/proc/foo").exists()


def test_failed_runs_are_trained_again_when_asked(finished, loaded):
    study = loaded()
    failed, *others = study.runs()
    for spec in (failed, others[0]):
        finished.run(spec.run_id).write_result(make_result(spec, status="failed", error="no memory"))
    runs = {s.run_id: snapshot(finished.run(s.run_id).path) for s in others[1:]}
    run_study(study, finished, executor := Pretended())
    assert executor.trained == []
    assert missing_runs(study, finished) == []
    assert missing_runs(study, finished, retry_failed=True) == [failed, others[0]]
    with pytest.raises(KeyboardInterrupt):
        run_study(study, finished, Pretended(stop_at=0), retry_failed=True)
    assert [s.run_id for s in missing_runs(study, finished)] == [
        failed.run_id,
        others[0].run_id,
    ]  # interrupted, not done
    run_study(study, finished, executor, retry_failed=True)
    assert executor.trained == [failed, others[0]]
    assert {run_id: snapshot(finished.run(run_id).path) for run_id in runs} == runs
    assert set(pd.read_csv(finished.results_path)["status"]) == {"finished"}


def test_the_command_names_failed_runs_and_trains_them_again(finished, write_study, loaded, monkeypatch):
    executor = Pretended()
    trained = executor.trained
    monkeypatch.setattr("yolo_gradstudy.executors.LocalExecutor.execute", lambda _, *given: executor.execute(*given))
    failed = loaded().runs()[2]
    finished.run(failed.run_id).write_result(make_result(failed, status="failed", error="no memory"))
    words = ["run", str(write_study()), "--out", str(finished.path)]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    assert f"1 run failed: {failed.run_id}; `--retry-failed` trains it again" in answer.stdout
    assert trained == []
    answer = CliRunner().invoke(app, [*words, "--retry-failed"])
    assert answer.exit_code == 0, answer.output
    assert trained == [failed]
    assert "--retry-failed" not in answer.stdout


def test_runs_that_read_other_labels_are_trained_after_the_others(loaded, tmp_path, monkeypatch):
    """A data set has one label cache: it is made for those that are trained together, before they are."""
    done = []

    class Noting(Pretended):
        def execute(self, specs, folder):
            done.append([s.arguments.get("fraction") for s in specs])
            yield from super().execute(specs, folder)

    def cache_labels(data, arguments):
        done.append(arguments.get("fraction"))

    monkeypatch.setattr("yolo_gradstudy.study.cache_labels", cache_labels)
    half = {"arguments": {"fraction": 0.5}}
    run_study(loaded(arms={"control": {}, "half": half}), StudyFolder(tmp_path / "out"), executor := Noting())
    assert done == [0.5, None, [None, None], 0.5, [0.5, 0.5]]
    assert len(executor.trained) == 4
    done.clear()
    run_study(loaded(arguments={**STUDY["arguments"], "fraction": 0.25}), StudyFolder(tmp_path / "other"), Noting())
    assert done == [0.25, [0.25] * 4]


def test_a_study_of_a_share_of_the_images_reads_its_labels_once(write_study, small_yaml, tmp_path):
    """The runs find the cache that the study made, and write none."""
    fresh = tmp_path / "fresh"
    shutil.copytree(small_yaml.parent, fresh, ignore=shutil.ignore_patterns("*.cache"))
    data = fresh / small_yaml.name
    data.write_text(yaml.safe_dump({**yaml.safe_load(data.read_text()), "path": str(fresh)}))
    arguments = {**STUDY["arguments"], "fraction": 0.5, "epochs": 1, "imgsz": 32}
    study = write_study(data=str(data), arguments=arguments, seeds=[0], arms={"control": {}})
    command = Command(study, tmp_path / "out", tmp_path / "log.txt")
    assert command.wait() == 0, (tmp_path / "log.txt").read_text()
    (log,) = (tmp_path / "out" / "runs").glob("*/log.txt")
    assert "New cache created" not in log.read_text()
    assert "6 images, 0 backgrounds" in log.read_text()


def test_a_torn_result_is_named(finished, loaded):
    """Results are written whole or not at all; something else tore this one."""
    torn = finished.run(loaded().runs()[0].run_id).result_path
    for text in ("{", "{}", "[]"):
        torn.write_text(text)
        with pytest.raises(ValueError, match=r"result\.json"):
            run_study(loaded(), finished, Pretended())
        assert torn.read_text() == text


def test_a_run_without_telemetry_is_in_the_results(loaded, tmp_path):
    class Failing(Executor):
        def execute(self, specs, folder):
            for spec in specs:
                result = make_result(spec, status="failed", error="the data vanished", metrics={}, steps=0)
                folder.run(spec.run_id).path.mkdir(parents=True)
                folder.run(spec.run_id).write_result(result)
                yield RunEvent("ended", spec, result, "cpu")

    folder = StudyFolder(tmp_path / "out")
    run_study(loaded(), folder, Failing())
    results = pd.read_csv(folder.results_path)
    assert set(results["outcome"]) == {"failed"}
    assert set(results["error"]) == {"the data vanished"}


def test_the_command_refuses_what_the_room_refuses(finished, write_study):
    before = snapshot(finished.path)
    study = write_study(arguments={**STUDY["arguments"], "imgsz": 96})
    answer = CliRunner().invoke(app, ["run", str(study), "--out", str(finished.path)])
    assert answer.exit_code == 2
    assert "arguments.imgsz was 64, is 96" in answer.stderr
    assert snapshot(finished.path) == before


def test_the_command_trains_nothing_of_a_finished_study(finished, write_study):
    runs = snapshot(finished.path / "runs")
    shutil.rmtree(finished.report_path)
    answer = CliRunner().invoke(app, ["run", str(write_study()), "--out", str(finished.path)])
    assert answer.exit_code == 0, answer.output
    assert "0 to train" in " ".join(answer.stdout.split())
    assert "index.html" in answer.stdout
    assert (finished.report_path / "index.html").is_file()
    assert snapshot(finished.path / "runs") == runs
    assert os.listdir(finished.path / "runs")  # noqa: PTH208
