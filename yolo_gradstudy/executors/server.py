# SPDX-License-Identifier: AGPL-3.0-or-later
"""``python -m yolo_gradstudy.executors.server``: imports what a training needs, then forks a process for each run.

Requests come as lines of JSON on standard input, ``{"arguments": [...], "spec": {...}, "log": "..."}``; answers go to
standard output, ``{"started": pid}`` and ``{"ended": pid, "code": code}``. When standard input closes, the server ends
every run that goes on, and itself.

Nothing here may compute with torch, ask CUDA for anything but a count, or start a thread: a fork keeps neither.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from io import RawIOBase
from typing import Any, BinaryIO

from yolo_gradstudy import run
from yolo_gradstudy.run_folder import is_disk_full
from yolo_gradstudy.trainer.preload import preload


class Server:
    """Forks, and waits for what it forked.

    Args:
        requests: Where requests come from.
        answers: Where answers go to.
    """

    def __init__(self, requests: RawIOBase, answers: BinaryIO) -> None:
        self._requests = requests
        self._answers = answers
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)
        self._inputs: dict[int, int] = {}  # process id → write end of its standard input, which keeps it alive
        self._watched: dict[int, int] = {}  # descriptor of a process → process id

    def serve(self) -> None:
        """Answer until standard input closes."""
        unread = b""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._requests:
                    data = os.read(self._requests.fileno(), 65536)
                    if not data:
                        self._end()
                        return
                    *lines, unread = (unread + data).split(b"\n")
                    for line in lines:
                        self._answer({"started": self._fork(json.loads(line))})
                else:
                    self._collect(int(key.fd))

    def _answer(self, message: Mapping[str, int]) -> None:
        self._answers.write(json.dumps(message).encode() + b"\n")
        self._answers.flush()

    def _fork(self, request: Mapping[str, Any]) -> int:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become(request, read, write)
        os.close(read)
        self._inputs[pid] = write
        with suppress(BrokenPipeError):  # ended already, which its exit code says
            os.write(write, json.dumps(request["spec"]).encode() + b"\n")
        descriptor = os.pidfd_open(pid)
        self._watched[descriptor] = pid
        self._selector.register(descriptor, selectors.EVENT_READ)
        return pid

    def _become(self, request: Mapping[str, Any], read: int, write: int) -> None:
        """Be the process of a run; never returns."""
        code = 1
        try:
            os.setsid()
            self._selector.close()
            log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.dup2(read, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            for descriptor in {read, write, log, self._answers.fileno(), *self._inputs.values(), *self._watched} - {
                0,
                1,
                2,
            }:
                os.close(descriptor)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the server's own has read ahead
            code = run.main(request["arguments"])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            if is_disk_full(error):  # there was no room for the log: standard error is still the study's
                code = run.DISK_FULL
            else:
                traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # without what the server registered for its own end

    def _collect(self, descriptor: int) -> None:
        pid = self._watched.pop(descriptor)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        os.close(self._inputs.pop(pid))
        self._answer({"ended": pid, "code": os.waitstatus_to_exitcode(status)})

    def _end(self) -> None:
        for pid in self._inputs:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main() -> None:
    """Import, then serve."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an import prints is no answer
    preload()
    gc.collect()
    gc.freeze()  # collections in a run neither walk through what is imported nor copy its pages
    Server(os.fdopen(os.dup(0), "rb", buffering=0), answers).serve()


if __name__ == "__main__":
    main()
