# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs on this machine: a process and session each, as many at once as there are places."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime

import psutil

from yolo_gradstudy.executors.base import Executor, Limits, RunEvent
from yolo_gradstudy.executors.processes import ForkServer, FreshProcesses, Processes, can_fork
from yolo_gradstudy.records import RunResult, RunSpec
from yolo_gradstudy.run import DISK_FULL
from yolo_gradstudy.run_folder import RunFolder, StudyFolder, make_folder, no_room

_LOOK_S = 0.5
"""Between two looks at a run's time and memory."""

_GRACE_S = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

TRANSIENT = (
    "AcceleratorError",  # CUDA
    "BrokenPipeError",
    "ConnectionError",
    "ConnectionResetError",
    "MemoryError",
    "OSError",
    "OutOfMemoryError",
    "TimeoutError",
)
"""Errors, by type, that a second attempt may not meet; any other is a mistake or a bug, which it would."""


@dataclass
class _Running:
    spec: RunSpec
    folder: RunFolder
    place: str
    attempt: int
    began: float
    ended_for: str | None = None  # why this executor ended it


class LocalExecutor(Executor):
    """Runs on this machine.

    Args:
        devices: A place for each run that goes on at once: ``("cpu", "cpu")`` or ``("0", "1")``.
        threads: CPU threads a run.
        workers: Data loader workers a run.
        keep_weights: Whether checkpoints stay.
        limits: What a run may take, and how often it is tried.
        preload: Whether runs are forked from a server that has imported everything; None where that is possible.
        processes: What starts the runs' processes, which the caller closes; some of its own for each call where None.
        attempt: The number of each run's first attempt: higher where it was tried elsewhere before.
    """

    def __init__(
        self,
        devices: Sequence[str] = ("cpu",),
        threads: int = 1,
        workers: int = 0,
        keep_weights: bool = False,
        limits: Limits | None = None,
        preload: bool | None = None,
        processes: Processes | None = None,
        attempt: int = 1,
    ) -> None:
        self._devices = tuple(devices)
        self._threads = threads
        self._workers = workers
        self._keep_weights = keep_weights
        self._limits = limits or Limits()
        self._preload = can_fork() and "mps" not in self._devices if preload is None else preload
        self._processes = processes
        self._attempt = attempt

    def execute(self, specs: Sequence[RunSpec], folder: StudyFolder) -> Generator[RunEvent]:
        """See :meth:`Executor.execute`."""
        if not specs:
            return
        waiting = deque((spec, self._attempt) for spec in specs)
        free = deque(self._devices)
        running: dict[int, _Running] = {}
        held = self._processes
        with nullcontext(held) if held else closing(start_processes(self._threads, self._preload)) as processes:
            try:
                while waiting or running:
                    while waiting and free:
                        spec, attempt = waiting.popleft()
                        run = _Running(spec, folder.run(spec.run_id), free.popleft(), attempt, time.monotonic())
                        running[self._start(processes, run)] = run
                        yield RunEvent("started", spec, place=run.place)
                    for pid, code in processes.ended(_LOOK_S):
                        run = running.pop(pid)
                        free.append(run.place)
                        own = self._own_result(run, code, folder)
                        result = own or self._failure(run, code)
                        if self._again(run, code, result):
                            waiting.appendleft((run.spec, run.attempt + 1))
                            run.folder.forget_result()
                            yield RunEvent("retried", run.spec, result, run.place)
                        else:
                            if own is None:  # written only now: killed in between, the study would take it for final
                                run.folder.write_result(result)
                            yield RunEvent("ended", run.spec, result, run.place)
                    for pid, run in running.items():
                        self._hold_to_limits(pid, run)
            finally:
                _end(list(running), processes)

    def _start(self, processes: Processes, run: _Running) -> int:
        make_folder(run.folder.path)
        arguments = [str(run.folder.path), "--device", run.place, "--workers", str(self._workers)]
        arguments += ["--threads", str(self._threads)]
        arguments += ["--attempt", str(run.attempt)] if run.attempt > 1 else []
        arguments += ["--keep-weights"] if self._keep_weights else []
        return processes.start(arguments, run.spec.to_dict(), run.folder.log_path)

    def _hold_to_limits(self, pid: int, run: _Running) -> None:
        """End a run that takes more than it may."""
        if run.ended_for is not None:
            return
        took = time.monotonic() - run.began
        if self._limits.seconds is not None and took > self._limits.seconds:
            run.ended_for = f"it took longer than the {self._limits.seconds:g} s that a run may take (--timeout)"
        elif self._limits.memory_bytes is not None:
            used = session_memory(pid)
            if used > self._limits.memory_bytes:
                run.ended_for = (
                    f"it used {used / 2**30:.2f} GiB of memory, more than the {self._limits.memory_bytes / 2**30:.2f} "
                    "GiB that a run may use (--memory-limit)"
                )
        if run.ended_for is not None:
            _signal(pid, signal.SIGKILL)

    def _own_result(self, run: _Running, code: int, folder: StudyFolder) -> RunResult | None:
        """What a run wrote itself, if it was let.

        Raises:
            ValueError: The disk is full; the run keeps no result.
        """
        if code == DISK_FULL:
            raise ValueError(no_room(f"--out {folder.path}"))
        return run.folder.read_result() if run.ended_for is None else None

    def _failure(self, run: _Running, code: int) -> RunResult:
        """What is known of a run that wrote no result."""
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        why = run.ended_for or f"the run's process ended {how} and left no result; see {run.folder.log_path.name}"
        return RunResult(
            run.spec.run_id,
            "failed",
            why,
            steps=run.folder.telemetry.last_step(),
            started=datetime.now().astimezone().isoformat(timespec="seconds"),
            attempts=run.attempt,
        )

    def _again(self, run: _Running, code: int, result: RunResult) -> bool:
        """Whether a run that ended so is tried again: not where it would only end so again."""
        if run.attempt > self._limits.retries or result.status != "failed" or run.ended_for is not None:
            return False
        killed = code < 0
        return killed or (result.error or "").partition(":")[0].rpartition(".")[2] in TRANSIENT


def start_processes(threads: int, preload: bool, hidden: Sequence[str] = ()) -> Processes:
    """What starts the processes of runs, in this process' environment.

    Args:
        threads: CPU threads a run.
        preload: Whether runs are forked from a server that has imported everything.
        hidden: Names of variables that runs must not see.
    """
    environment = {
        **os.environ,
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        "YOLO_AUTOINSTALL": "false",  # a run must not change the environment of the others
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
    }
    for name in hidden:
        environment.pop(name, None)
    return ForkServer(environment) if preload else FreshProcesses(environment)


def session_memory(leader: int) -> int:
    """Bytes of memory that a session's processes have for themselves, without what they share with others.

    Args:
        leader: Process id of the session's first process, whose descendants are its others.
    """
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(leader)
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += _own_memory(member)
    return total


def _own_memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)  # resident memory would count what is shared with the server
    except (AttributeError, psutil.AccessDenied):
        return int(process.memory_info().rss)


def _end(pids: Sequence[int], processes: Processes) -> None:
    """End processes with everything that they started: politely first, then not."""
    left = set(pids)
    for number, grace in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 60.0)):
        for pid in left:
            _signal(pid, number)
        deadline = time.monotonic() + grace
        while left and (time_left := deadline - time.monotonic()) > 0:
            left -= {pid for pid, _ in processes.ended(time_left)}


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # ended meanwhile
        os.killpg(pid, number)
