# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a run's process is started: by a server that has imported everything and forks, or as a new interpreter.

Either way the process runs ``yolo_gradstudy.run`` in a session of its own, reads its spec from standard input, writes
its output to the run's log, and ends itself when its standard input closes, which it does when the study is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_POLL_S = 0.05


class Processes(ABC):
    """Starts the processes of runs and tells which have ended.

    Args:
        environment: Environment of every process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)

    @abstractmethod
    def start(self, arguments: Sequence[str], spec: Mapping[str, Any], log: Path) -> int:
        """Start a process.

        Args:
            arguments: Of ``python -m yolo_gradstudy.run``.
            spec: The first line of its standard input, as JSON.
            log: The file to which its output is appended.

        Returns:
            The process id, which is also its session's and its group's.
        """

    @abstractmethod
    def ended(self, timeout_s: float) -> list[tuple[int, int]]:
        """Process ids and exit codes (negative: a signal) of those that ended, waiting up to ``timeout_s`` for one."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what starts processes; the caller has ended them."""


class FreshProcesses(Processes):
    """A new Python interpreter for each run, which imports torch and Ultralytics again."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, arguments: Sequence[str], spec: Mapping[str, Any], log: Path) -> int:
        """See :meth:`Processes.start`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "yolo_gradstudy.run", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # ended before it read the spec, which its exit code says
            process.stdin.write(json.dumps(spec).encode() + b"\n")
            process.stdin.flush()
        self._running[process.pid] = process
        return process.pid

    def ended(self, timeout_s: float) -> list[tuple[int, int]]:
        """See :meth:`Processes.ended`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = [(pid, code) for pid, process in self._running.items() if (code := process.poll()) is not None]
            if found or (left := deadline - time.monotonic()) <= 0:
                break
            time.sleep(min(_POLL_S, left))
        for pid, _ in found:
            self._forget(pid)
        return found

    def close(self) -> None:
        """See :meth:`Processes.close`."""
        for pid in list(self._running):
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        process = self._running.pop(pid)
        if process.stdin is not None:
            process.stdin.close()


class ForkServer(Processes):
    """A server (``executors/server.py``) that imports everything once and forks a process for each run.

    A run then starts in a fraction of a second. One that is killed takes nothing else with it; a server that is killed
    ends its runs, and the next start makes another.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # So that asking for GPUs does not start CUDA in the server: a forked process can't use it then.
        super().__init__({"PYTORCH_NVML_BASED_CUDA_CHECK": "1", **environment})
        self._server: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._running: set[int] = set()
        self._ended: list[tuple[int, int]] = []

    def start(self, arguments: Sequence[str], spec: Mapping[str, Any], log: Path) -> int:
        """See :meth:`Processes.start`."""
        request = json.dumps({"arguments": list(arguments), "spec": dict(spec), "log": str(log.resolve())})
        for _ in range(2):  # a server that died meanwhile is replaced once
            server = self._server or self._launch()
            assert server.stdin is not None
            with suppress(BrokenPipeError):
                server.stdin.write(request.encode() + b"\n")
                server.stdin.flush()
                while (answer := self._read(None)) is not None:
                    if "started" in answer:
                        self._running.add(pid := int(answer["started"]))
                        return pid
                    self._note(answer)
            self._lose()
        raise RuntimeError(f"the server that starts runs ended at once; try `{sys.executable} -m {_SERVER}`")

    def ended(self, timeout_s: float) -> list[tuple[int, int]]:
        """See :meth:`Processes.ended`."""
        deadline = time.monotonic() + timeout_s
        while not self._ended and self._server is not None:
            left = max(0.0, deadline - time.monotonic())
            answer = self._read(left)
            if answer is None:
                self._lose()
            elif answer:
                self._note(answer)
            elif left <= 0:
                break
        found, self._ended = self._ended, []
        return found

    def close(self) -> None:
        """See :meth:`Processes.close`."""
        if self._server is not None:
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            with suppress(BrokenPipeError):
                self._server.stdin.close()  # which ends it
            self._server.wait()
            self._server.stdout.close()
            self._server = None

    def _launch(self) -> subprocess.Popen[bytes]:
        self._unread = b""
        self._server = subprocess.Popen(
            [sys.executable, "-m", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,  # a terminal's Ctrl-C is for the study, which ends its runs itself
        )
        return self._server

    def _read(self, timeout_s: float | None) -> dict[str, int] | None:
        """The server's next message; empty where none came in time, None where the server is gone."""
        assert self._server is not None
        assert self._server.stdout is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._server.stdout], [], [], timeout_s)
            if not ready:
                return {}
            data = os.read(self._server.stdout.fileno(), 65536)
            if not data:
                return None
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, int] = json.loads(line)
        return message

    def _note(self, answer: Mapping[str, int]) -> None:
        pid = answer["ended"]
        self._running.discard(pid)
        self._ended.append((pid, answer["code"]))

    def _lose(self) -> None:
        """The server is gone, and with it its runs."""
        if self._server is not None:
            self._server.kill()
            self.close()
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            self._ended.append((pid, -signal.SIGKILL))
        self._running.clear()


_SERVER = "yolo_gradstudy.executors.server"


def can_fork() -> bool:
    """Whether a process that has imported torch may fork: elsewhere than on Linux not all its libraries allow it."""
    return sys.platform == "linux"
