# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs on a real Ray cluster of two nodes on this machine, one of which is killed; and what needs no cluster."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from synthetic import make_spec
from trainer.small import write_small
from typer.testing import CliRunner

from yolo_gradstudy.cli import app
from yolo_gradstudy.executors import EXECUTORS, Limits, LocalExecutor, RayExecutor
from yolo_gradstudy.executors.ray import choose_threads, connect, count_places
from yolo_gradstudy.records import RunResult, RunSpec
from yolo_gradstudy.run_folder import RunFolder, StudyFolder, scratch_study

# Without a cluster -----------------------------------------------------------------------------------


def test_table_of_executors():
    assert EXECUTORS["ray"] is RayExecutor


def test_the_package_does_not_import_ray():
    code = "import sys, yolo_gradstudy.executors as e; e.EXECUTORS['ray']; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"Ray is not installed; `pip install 'yolo_gradstudy\[ray\]'` installs it"):
        RayExecutor()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "127.0.0.1:6379"], ["--address 127.0.0.1:6379", "--executor ray"]),
        (["--executor", "ray", "--address", "somewhere"], ["--address somewhere", "host:port"]),
        (["--executor", "ray", "--address", "127.0.0.1:9"], ["--address 127.0.0.1:9", "refused", "ray start"]),
        (["--executor", "ray", "--device", "0,1"], ["--device 0,1", "'cuda'"]),
        (["--executor", "ray", "--device", "mps"], ["--device mps", "'cpu'"]),
        (["--executor", "rey"], ["'rey'", "'ray'"]),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["run", "limit"])
def test_words_that_are_refused(tmp_path, command, words, said):
    out = tmp_path / "out"
    answer = CliRunner().invoke(app, [command, "quick", "--out", str(out), *words])
    assert answer.exit_code == 2
    (line,) = answer.stderr.strip().splitlines()
    assert all(word in line for word in said), line
    assert not out.exists()


def test_places_on_nodes():
    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}, {"CPU": 3.0, "GPU": 1.0}, {}]
    assert count_places(nodes, 1, None) == 27
    assert count_places(nodes, 4, None) == 4 + 2
    assert count_places(nodes, 1, 1) == 3
    assert count_places(nodes, 1, 4) == 8 + 3
    assert count_places(nodes, 4, 2) == 4
    assert choose_threads(nodes, None, 0) == 1  # a run a core
    assert choose_threads(nodes, None, 3) == 8
    assert choose_threads(nodes, 1, 0) == 3  # a run each on three GPUs, one of them beside 3 cores
    assert choose_threads(nodes, 1, 2) == 8
    assert choose_threads([{"CPU": 4.0}], None, 9) == 1
    assert choose_threads([{}], None, 0) == 1


@pytest.mark.parametrize(
    ("device", "gpus", "chosen"),
    [
        ("cpu", [], ("cpu", ())),
        ("cpu", [0], ("cpu", ())),
        ("cuda", [3], ("3", ("CUDA_VISIBLE_DEVICES",))),
        ("cuda", ["3"], ("3", ("CUDA_VISIBLE_DEVICES",))),
        ("cuda", ["MIG-7c"], ("0", ())),
    ],
)
def test_the_device_of_a_place(device, gpus, chosen):
    from yolo_gradstudy.executors.node import choose_device

    assert choose_device(device, gpus) == chosen


def filled(path, text="one\n"):
    run = RunFolder(path)
    spec = make_spec()
    run.start_afresh(spec)
    run.log_path.write_text(text)
    run.telemetry.add_event({"event": text})
    run.write_result(RunResult(spec.run_id, "finished"))
    return run


def test_a_folder_that_was_packed_and_received_is_the_same(tmp_path):
    sent, received = filled(tmp_path / "a" / "run"), RunFolder(tmp_path / "b" / "run")
    received.receive(sent.pack())
    files = {p.relative_to(sent.path): p.read_bytes() for p in sent.path.rglob("*") if p.is_file()}
    assert {p.relative_to(received.path): p.read_bytes() for p in received.path.rglob("*") if p.is_file()} == files
    filled(sent.path, "two\n")
    (received.path / "stale").touch()
    received.receive(sent.pack())
    assert received.log_path.read_text() == "one\ntwo\n"  # of both attempts
    assert [e["event"] for e in received.telemetry.read_events()] == ["two\n"]
    assert sorted(p.name for p in received.path.parent.iterdir()) == [".run.lock", "run"]
    assert not (received.path / "stale").exists()


@pytest.mark.parametrize("kind", ["above", "absolute", "link"])
def test_a_path_outside_is_refused_and_nothing_changes(tmp_path, kind):
    member = tarfile.TarInfo({"above": "../evil", "absolute": f"{tmp_path}/evil", "link": "evil"}[kind])
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(member)
    run = filled(tmp_path / "runs" / "run")
    before = run.read_result()
    with pytest.raises(ValueError, match="refused"):
        run.receive(packed.getvalue())
    assert run.read_result() == before
    assert not list(tmp_path.rglob("evil"))


def test_scratch_folders_are_removed_also_those_of_killed_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal; from yolo_gradstudy.run_folder import scratch_study\n"
        "with scratch_study() as s: s.path.mkdir(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    assert len(list(tmp_path.iterdir())) == 2  # the folder and its lock
    with scratch_study() as first:
        first.path.mkdir()
        with scratch_study():
            assert first.path.is_dir()
            assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1
    assert list(tmp_path.iterdir()) == []


# On a cluster ----------------------------------------------------------------------------------------


class TwoNodes:
    """A head and another node, a CPU each, that listen on loopback alone."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.temporary = Path(tempfile.mkdtemp(prefix="gs-", dir="/tmp"))  # short: Ray has sockets below it
        common = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}
        # A lost node is found out in seconds.
        quick = {
            "health_check_initial_delay_ms": 1000,
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 4,
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(self.temporary))
            patch.setenv("OMP_NUM_THREADS", "2")  # which runs must not take over
            self._cluster = Cluster(
                initialize_head=True, head_node_args={**common, "include_dashboard": False, "_system_config": quick}
            )
            self._other = self._cluster.add_node(**common)
        self.address = self._cluster.address

    def _others(self):
        """The processes of the other node, its raylet first."""
        (raylet,) = self._other.all_processes["raylet"]
        process = psutil.Process(raylet.process.pid)
        return [process, *process.children(recursive=True)]

    def other_trains(self):
        """Whether a run is on its way on the other node: its server of runs has forked one."""
        pids = {process.pid for process in self._others()}
        servers = {process.pid for process in self.processes()} & pids
        return any(process.ppid() in servers for process in self.processes() if process.pid in servers)

    def occupy_head(self):
        """Other work holds the head's CPU, so that a run can begin on the other node alone; returns what ends it."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        class Work:
            def ready(self):
                pass

        here = NodeAffinitySchedulingStrategy(self._cluster.head_node.node_id, soft=False)
        work = ray.remote(Work).options(num_cpus=1, scheduling_strategy=here).remote()
        ray.get(work.ready.remote())
        return lambda: ray.kill(work)

    def kill_other(self):
        """The machine is gone: its raylet and its workers."""
        for process in self._others():
            process.kill()

    def begun(self):
        """Folders of runs on the nodes that have recorded a step."""
        return {p.parents[1].name for p in self.temporary.glob("gradstudy-scratch-*/runs/*/telemetry/steps-*.parquet")}

    def processes(self):
        """The servers of runs, and the runs that were forked from them."""
        found = []
        for process in psutil.process_iter():
            try:
                if "yolo_gradstudy.executors.server" in process.cmdline():
                    found += [process] if process.environ().get("TMPDIR") == str(self.temporary) else []
            except psutil.Error:
                continue
        return found

    def close(self):
        import ray

        ray.shutdown()
        self._cluster.shutdown()
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    nodes = TwoNodes()
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def small_yaml(shapes_yaml, tmp_path_factory):
    return write_small(shapes_yaml, tmp_path_factory.mktemp("small"))


def real_spec(small_yaml, seed=0, **arguments):
    arguments = {
        "epochs": 6, "imgsz": 32, "batch": 4, "nbs": 4, "optimizer": "SGD", "pretrained": False, "plots": False,
        "val": False, "warmup_epochs": 0, **arguments,
    }  # fmt: skip
    spec = {**make_spec(seed=seed).to_dict(), "data": str(small_yaml), "record": {"flush_every": 1}}
    return RunSpec.from_dict({**spec, "arguments": arguments})


def wait_for(what, seconds=300):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def numbers(run):
    """What was measured of a run, without the clock."""
    steps = run.load().steps
    return steps.drop(columns=[c for c in steps if "time" in c or c.endswith("_s")]), run.load().layers("grad_norm")


def test_a_study_outlives_a_node_and_is_as_if_it_were_local(cluster, small_yaml, tmp_path):
    specs = [real_spec(small_yaml, seed) for seed in (0, 1, 3)]
    specs.insert(2, real_spec(small_yaml, 2, epochs="many"))
    local, folder = StudyFolder(tmp_path / "local"), StudyFolder(tmp_path / "ray")
    assert len(list(LocalExecutor(("cpu", "cpu")).execute(specs, local))) == 8

    executor = RayExecutor(cluster.address)
    free_head = cluster.occupy_head()

    def kill_in_the_middle():
        try:
            wait_for(cluster.other_trains)
            cluster.kill_other()
        finally:
            free_head()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_in_the_middle)
        with closing(executor.execute(specs, folder)) as stream:
            events = [(event.kind, event.spec.run_id) for event in stream]
        killed.result()
    kinds = [kind for kind, _ in events]
    assert kinds.count("retried") == 1
    assert kinds.count("started") == 5
    assert kinds.count("ended") == 4
    (lost,) = [run_id for kind, run_id in events if kind == "retried"]
    for spec in specs:
        there, here = local.run(spec.run_id), folder.run(spec.run_id)
        expected, result = there.read_result(), here.read_result()
        assert result.attempts == (2 if spec.run_id == lost else 1)
        assert (result.status, result.error, result.steps) == (expected.status, expected.error, expected.steps)
        assert result.threads == expected.threads
        assert result.changed == expected.changed
        assert {p.name for p in here.path.iterdir()} == {p.name for p in there.path.iterdir()}
        assert here.read_spec() == spec
        if spec is not specs[2]:
            assert result.threads == 1
            for ours, theirs in zip(numbers(here), numbers(there), strict=True):
                assert len(ours) == 18
                pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert "Traceback" in folder.run(specs[2].run_id).log_path.read_text()
    wait_for(lambda: not cluster.processes())


def test_ray_listens_on_loopback_alone(cluster):
    connect(cluster.address)
    listening = set()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            listening |= {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_closing_ends_what_trains(cluster, small_yaml, tmp_path):
    folder, spec = StudyFolder(tmp_path / "study"), real_spec(small_yaml, 5, epochs=500)
    with closing(RayExecutor(cluster.address, jobs=1).execute([spec], folder)) as events:
        assert next(events).place == "127.0.0.1 cpu"
        wait_for(cluster.begun)
        assert len(cluster.processes()) == 2
    wait_for(lambda: not cluster.processes(), 20)
    assert not folder.run(spec.run_id).path.exists()


def test_limits_hold_on_a_node_and_what_was_left_there_is_gone(cluster, small_yaml, tmp_path):
    folder, spec = StudyFolder(tmp_path / "study"), real_spec(small_yaml, 6, epochs=500)
    executor = RayExecutor(cluster.address, limits=Limits(seconds=1.0, retries=2))
    assert [e.kind for e in executor.execute([spec], folder)] == ["started", "ended"]
    assert "longer than the 1 s" in folder.run(spec.run_id).read_result().error
    assert list(cluster.temporary.glob("gradstudy-scratch-*")) == []


def test_data_that_a_node_lacks(cluster, small_yaml, tmp_path):
    folder, spec = StudyFolder(tmp_path / "study"), make_spec()
    spec = RunSpec.from_dict({**spec.to_dict(), "data": "/nowhere/data.yaml"})
    with pytest.raises(ValueError, match=r"node 127.0.0.1 cpu: .*/nowhere/data.yaml does not exist"):
        list(RayExecutor(cluster.address).execute([spec], folder))
    assert not folder.run(spec.run_id).path.exists()


def test_a_cluster_without_gpus(cluster):
    with pytest.raises(ValueError, match="--device cuda: the Ray cluster has no GPU; the nearest that it has is 'cpu'"):
        RayExecutor(cluster.address, device="cuda")


def test_a_run_that_no_node_has_room_for(cluster):
    with pytest.raises(ValueError, match="a run takes 7 CPUs, and the cluster's largest node has 1 CPUs"):
        RayExecutor(cluster.address, threads=7)


def test_a_killed_driver_leaves_no_result_and_another_trains_what_is_missing(cluster, small_yaml, tmp_path):
    spec = real_spec(small_yaml)
    study = tmp_path / "study.yaml"
    study.write_text(
        yaml.safe_dump(
            {
                "name": "small",
                "model": spec.model,
                "data": spec.data,
                "arguments": {**spec.arguments, "epochs": 8},
                "lr0": [0.01],
                "seeds": [0],
                "record": spec.record,
                "arms": {"control": {}},
            }
        )
    )
    out = tmp_path / "out"
    words = ["run", str(study), "--out", str(out), "--executor", "ray", "--address", cluster.address]
    driver = subprocess.Popen([sys.executable, "-m", "yolo_gradstudy.cli", *words])
    try:
        wait_for(lambda: cluster.begun() or driver.poll() is not None)
        assert driver.poll() is None
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not cluster.processes(), 20)
    plan = json.loads((out / "plan.json").read_text())
    assert [StudyFolder(out).run(r["run_id"]).read_result() for r in plan] == [None]
    answer = CliRunner().invoke(app, [*words, "--only", plan[0]["run_id"]])
    assert answer.exit_code == 0, answer.output
    assert "1 trained, 0 done before" in answer.stdout
    assert StudyFolder(out).run(plan[0]["run_id"]).read_result().steps == 24
    answer = CliRunner().invoke(app, [*words, "--only", plan[0]["run_id"]])
    assert answer.exit_code == 0, answer.output
    assert "0 trained, 1 done before" in answer.stdout
