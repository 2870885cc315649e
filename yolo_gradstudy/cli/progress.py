# SPDX-License-Identifier: AGPL-3.0-or-later
"""What runs, what is done and how it went, while a study trains: a table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from yolo_gradstudy.records import Diagnosis, Finding, Outcome, RunSpec

if TYPE_CHECKING:
    from yolo_gradstudy.executors import RunEvent

_JUDGE_S = 5.0
"""Between two looks at how a run that goes on fares: each reads what it has recorded."""

_MOST_ROWS = 16
"""Most running runs that the table has rows for."""


_WIDE = 90
"""Columns of a terminal from which on the table has all of its own."""


@dataclass
class _Running:
    since: float
    place: str
    judged: float = -math.inf
    so_far: str = ""


class Progress:
    """Takes an executor's events and tells of them.

    Args:
        console: Where to.
        folder: The study's folder.
        total: Runs of the study.
        missing: Those that are to be trained.
        plan: The study's runs, where they are known before.
        quiet: Whether nothing is told.
    """

    def __init__(
        self,
        console: Console,
        folder: Path,
        total: int,
        missing: int,
        plan: Sequence[RunSpec] | None = None,
        quiet: bool = False,
    ) -> None:
        self._console = console
        self._folder = folder
        self._total = total
        self._plan = plan
        self._missing = missing
        self._quiet = quiet
        self._ended = 0
        self._running: dict[str, _Running] = {}
        self._outcomes: Counter[str] = Counter()
        self._durations: list[float] = []
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)

    @property
    def _is_live(self) -> bool:
        return self._console.is_terminal and not self._quiet

    def __enter__(self) -> Progress:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_live:
            self._live.stop()

    def on_round(self, number: int, runs: int) -> None:
        """Tell that a search's next round begins."""
        self._say(f"round {number}: {runs} runs to train")

    def on_event(self, event: RunEvent) -> None:
        """Take note of a run that started or ended, and tell."""
        run_id = event.spec.run_id
        if event.kind == "started":
            self._running[run_id] = _Running(time.monotonic(), event.place)
            return
        self._running.pop(run_id, None)
        if event.kind == "retried":
            error = event.result.error if event.result is not None else None
            self._say(f"{run_id} failed and is tried again: {error}")
            return
        self._ended += 1
        verdict = self._judge(run_id, event.result)
        self._outcomes[str(verdict.outcome)] += 1
        duration = event.result.duration_s if event.result is not None else None
        if duration is not None:
            self._durations.append(duration)
        done = self._total - self._missing + self._ended
        took = f" in {duration:.0f} s" if duration is not None else ""
        self._say(f"[{done}/{self._total}] {run_id}: {verdict.outcome}{took}: {verdict.evidence}")

    def _say(self, sentence: str) -> None:
        if not self._quiet:
            self._console.print(Text(sentence, overflow="fold"))

    def _judge(self, run_id: str, result: Any = None) -> Diagnosis:
        """The verdict on what a run has recorded; a damaged file must not end the other runs."""
        from yolo_gradstudy.diagnoses import StudyJudge
        from yolo_gradstudy.readings import control_of
        from yolo_gradstudy.run_folder import StudyFolder

        run = StudyFolder(self._folder).run(run_id).load()
        try:
            return StudyJudge()(run, result, control_of(run, self._plan) if run is not None else None)
        except ValueError as error:
            return Diagnosis(Outcome.UNKNOWN, (Finding("is_readable", "not checked", str(error)),))

    def _render(self) -> Group:
        from yolo_gradstudy.run_folder import StudyFolder

        now = time.monotonic()
        wide = self._console.width >= _WIDE
        columns = ["run", *(["on", "done"] if wide else []), "", *(["batch/s"] if wide else [])]
        table = Table(*columns, "norm / clip", "so far", "left", box=None, pad_edge=False)
        for column in table.columns:
            column.no_wrap = True
        left_s = []
        for run_id, running in list(self._running.items())[:_MOST_ROWS]:
            told = StudyFolder(self._folder).run(run_id).read_progress()
            share, took = float(told.get("share", 0.0)), now - running.since
            if now - running.judged > _JUDGE_S and told:
                running.judged, running.so_far = now, _so_far(self._judge(run_id))
            left = took / share - took if share > 0 else None
            left_s.append(left)
            bar: list[Any] = [running.place, ProgressBar(total=1.0, completed=share, width=12)] if wide else []
            speed = [f"{told['batches_per_s']:.2f}" if told else "–"] if wide else []
            cells = [_norms(told), running.so_far or "–", _duration(left)]
            table.add_row(run_id, *bar, f"{share:.0%}", *speed, *cells)
        if len(self._running) > _MOST_ROWS:
            table.add_row(f"and {len(self._running) - _MOST_ROWS} more")
        counts = ", ".join(f"{count} {name}" for name, count in self._outcomes.most_common()) or "none yet"
        eta = self._remaining([left for left in left_s if left is not None])
        about = f", about {_duration(eta)} left" if eta is not None else ""
        return Group(table, Text(f"{self._ended} of {self._missing} done{about}; outcomes so far: {counts}"))

    def _remaining(self, left_s: Sequence[float]) -> float | None:
        """Seconds until the study is done: what the running runs have left, and the others at the mean."""
        places, waiting = len(self._running), self._missing - self._ended - len(self._running)
        if not places or not (self._durations or left_s):
            return None
        mean = sum(self._durations) / len(self._durations) if self._durations else max(left_s)
        left = sum(left_s) / len(left_s) if left_s else mean / 2
        return left + max(waiting, 0) * mean / places


def _so_far(verdict: Diagnosis) -> str:
    outcome = verdict.so_far if verdict.so_far is not None else verdict.outcome
    return str(outcome)


def _norms(told: dict[str, Any]) -> str:
    if not told:
        return "–"
    clip = told.get("clip_norm")
    return f"{told['grad_norm']:.3g} / {'off' if clip is None else f'{clip:g}'}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
