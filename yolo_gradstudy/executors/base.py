# SPDX-License-Identifier: AGPL-3.0-or-later
"""The interface of an executor: specs go in, events come out, results lie in the runs' folders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from yolo_gradstudy.records import RunResult, RunSpec
from yolo_gradstudy.run_folder import StudyFolder


@dataclass(frozen=True)
class RunEvent:
    """Something happened to a run.

    Attributes:
        kind: ``started``, ``ended``, or ``retried``: it ended in a way that another attempt may not, and waits for one.
        spec: The run.
        result: How it ended, or the attempt did.
        place: Where it runs, as ``cpu`` or a device number.
    """

    kind: Literal["started", "ended", "retried"]
    spec: RunSpec
    result: RunResult | None = None
    place: str = ""


@dataclass(frozen=True)
class Limits:
    """What a run may take, and how often it is tried.

    Attributes:
        seconds: Longest time of an attempt; any where None.
        memory_bytes: Most memory of a run's processes together; any where None.
        retries: Further attempts for a run that failed in a way that may not repeat, which divergence never is.
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    retries: int = 1


class Executor(ABC):
    """Trains runs, each in a process of its own."""

    @abstractmethod
    def execute(self, specs: Sequence[RunSpec], folder: StudyFolder) -> Generator[RunEvent]:
        """Train every run, in order as places become free.

        A run that fails ends with a result that says so. Closing the iterator, or an exception in its
        consumer, ends the runs that are on their way and leaves them without a result.

        Args:
            specs: The runs to train.
            folder: The study's folder, held by the caller.

        Yields:
            An event as each run starts and ends.
        """
