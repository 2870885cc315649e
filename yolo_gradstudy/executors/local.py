# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs on this machine: a process and session each, as many at once as there are places."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from yolo_gradstudy.executors.base import Executor, RunEvent
from yolo_gradstudy.records import RunResult, RunSpec
from yolo_gradstudy.run_folder import RunFolder, StudyFolder

_POLL_S = 0.1
_GRACE_S = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Process:
    spec: RunSpec
    folder: RunFolder
    place: str
    process: subprocess.Popen[bytes]


class LocalExecutor(Executor):
    """Runs on this machine.

    Args:
        devices: A place for each run that goes on at once: ``("cpu", "cpu")`` or ``("0", "1")``.
        threads: CPU threads a run.
        workers: Data loader workers a run.
        keep_weights: Whether checkpoints stay.
    """

    def __init__(
        self, devices: Sequence[str] = ("cpu",), threads: int = 1, workers: int = 0, keep_weights: bool = False
    ) -> None:
        self._devices = tuple(devices)
        self._threads = threads
        self._workers = workers
        self._keep_weights = keep_weights

    def execute(self, specs: Sequence[RunSpec], folder: StudyFolder) -> Generator[RunEvent]:
        """See :meth:`Executor.execute`."""
        waiting, free, running = list(specs), list(self._devices), list[_Process]()
        try:
            while waiting or running:
                while waiting and free:
                    started = self._start(waiting.pop(0), folder, free.pop(0))
                    running.append(started)
                    yield RunEvent("started", started.spec, place=started.place)
                for ended in [r for r in running if r.process.poll() is not None]:
                    running.remove(ended)
                    free.append(ended.place)
                    yield RunEvent("ended", ended.spec, self._collect(ended), ended.place)
                if running:
                    time.sleep(_POLL_S)
        finally:
            _end(running)

    def _start(self, spec: RunSpec, folder: StudyFolder, place: str) -> _Process:
        run = folder.run(spec.run_id)
        run.path.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "yolo_gradstudy.run", str(run.path), "--device", place]
        command += ["--workers", str(self._workers), "--threads", str(self._threads)]
        command += ["--keep-weights"] if self._keep_weights else []
        environment = {
            **os.environ,
            **dict.fromkeys(_THREAD_VARIABLES, str(self._threads)),
            "YOLO_AUTOINSTALL": "false",  # a run must not change the environment of the others
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "Agg",
        }
        with run.log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        # The pipe stays open: the run ends itself when this process is gone and the pipe with it.
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # ended before it read the spec; _collect says how
            process.stdin.write(json.dumps(spec.to_dict()).encode() + b"\n")
            process.stdin.flush()
        return _Process(spec, run, place, process)

    def _collect(self, ended: _Process) -> RunResult:
        if ended.process.stdin is not None:
            ended.process.stdin.close()
        if (result := ended.folder.read_result()) is not None:
            return result
        code = ended.process.returncode
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        result = RunResult(
            ended.spec.run_id,
            "failed",
            f"the run's process ended {how} and left no result; see {ended.folder.log_path.name}",
            steps=ended.folder.telemetry.last_step(),
            started=datetime.now().astimezone().isoformat(timespec="seconds"),
        )
        ended.folder.write_result(result)
        return result


def _end(running: Sequence[_Process]) -> None:
    """End processes with everything that they started: politely first, then not."""
    for run in running:
        _signal(run, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    for run in running:
        try:
            run.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(run, signal.SIGKILL)
            run.process.wait()
        if run.process.stdin is not None:
            run.process.stdin.close()


def _signal(run: _Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # ended meanwhile
        os.killpg(run.process.pid, number)
