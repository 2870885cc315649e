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
        kind: ``started`` or ``ended``.
        spec: The run.
        result: How it ended, for ``ended``.
        place: Where it runs, as ``cpu`` or a device number.
    """

    kind: Literal["started", "ended"]
    spec: RunSpec
    result: RunResult | None = None
    place: str = ""


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
