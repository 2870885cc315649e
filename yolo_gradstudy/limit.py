# SPDX-License-Identifier: AGPL-3.0-or-later
"""The search for the largest learning rate at which each arm stays alive: plan → executor → verdicts → plan, in rounds.

A search lies in a study's folder like any other; its ``plan.json`` grows by the rates that were asked for. Which they
are follows from the verdicts on what is recorded, so that a search that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from yolo_gradstudy.datasets import resolve_dataset
from yolo_gradstudy.diagnoses import StudyJudge
from yolo_gradstudy.executors import Executor, RunEvent
from yolo_gradstudy.plan import CONTROL, Limit, Probe, Study, next_probes
from yolo_gradstudy.records import Outcome, RunSpec
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import RecordedRun, StudyFolder
from yolo_gradstudy.study import check_folder, train_runs, without_result


def search_limits(
    study: Study,
    folder: StudyFolder,
    executor: Executor,
    on_event: Callable[[RunEvent], None] = lambda event: None,
    on_round: Callable[[int, int], None] = lambda round_number, runs: None,
    retry_failed: bool = False,
) -> Path:
    """Find the edge of each arm and seed, and write the report.

    The control at the study's smallest learning rate is trained for each seed, whatever the search asks for: the other
    runs are judged beside it.

    Args:
        study: Arms, seeds and the range of rates.
        folder: Where; created where it is not there.
        executor: Places the runs.
        on_event: Called as runs start and end.
        on_round: Called with each round's number, from 1, and how many runs it trains.
        retry_failed: Whether runs that failed are trained again.

    Returns:
        The path of the report's page.

    Raises:
        ValueError: As :func:`yolo_gradstudy.study.run_study`.
    """
    study = as_search(study)
    check_folder(study, folder)
    data = resolve_dataset(study.data)
    with folder.locked():
        check_folder(study, folder)  # again: another process may have begun meanwhile
        search = _Search(study, folder)
        number = 0
        while specs := search.next_runs():
            missing = without_result(specs, folder, retry_failed and number == 0)
            number += 1
            on_round(number, len(missing))
            train_runs(missing, study, search.planned, folder, data, executor, on_event)
        return write_report(folder.path)


def as_search(study: Study) -> Study:
    """The study as its search's folder holds it: one learning rate, and lost runs stop unless it says otherwise."""
    arguments = {"on_unhealthy": "stop", **study.arguments}
    limit = (study.limit or Limit()).model_dump(exclude_none=True)
    return Study.model_validate({**study.to_dict(), "arguments": arguments, "lr0": [study.anchor], "limit": limit})


class _Search:
    """The state of a search, derived from what lies in its folder."""

    def __init__(self, study: Study, folder: StudyFolder) -> None:
        self._study = study
        self._folder = folder
        self._grid = study.grid()
        self._found: dict[tuple[str, int], dict[int, Probe]] = {
            (arm, seed): {} for seed in study.seeds for arm in study.arms
        }
        self._asked: dict[str, tuple[str, int, int]] = {}
        self._controls: dict[int, RecordedRun | None] = {}
        self._verdict = StudyJudge()
        self.planned: list[RunSpec] = []

    def next_runs(self) -> list[RunSpec]:
        """The next round's runs, done before or not; none when the search is over."""
        self._judge()
        wanted = [] if self.planned else [(CONTROL, seed, 0) for seed in self._study.seeds]
        for (arm, seed), found in self._found.items():
            wanted += [(arm, seed, index) for index in next_probes(self._grid, found)]
        specs = []
        for arm, seed, index in dict.fromkeys(wanted):
            spec = self._study.run(arm, self._grid.rate(index), seed)
            self._asked[spec.run_id] = (arm, seed, index)
            specs.append(spec)
        self.planned += specs
        return specs

    def _judge(self) -> None:
        """Find out what the runs of the last round came to."""
        for run_id, (arm, seed, index) in self._asked.items():
            if index in self._found[arm, seed]:
                continue
            folder = self._folder.run(run_id)
            outcome = self._verdict(folder.load(), folder.read_result(), self._control(arm, seed, index)).outcome
            self._found[arm, seed][index] = _probe(outcome)

    def _control(self, arm: str, seed: int, index: int) -> RecordedRun | None:
        """The run that another is judged beside: the control at the study's smallest rate."""
        if (arm, index) == (CONTROL, 0):
            return None
        if seed not in self._controls:
            spec = self._study.run(CONTROL, self._study.anchor, seed)
            self._controls[seed] = self._folder.run(spec.run_id).load()
        return self._controls[seed]


def _probe(outcome: Outcome) -> Probe:
    """On which side of the edge a run is; a stuck one learns too slowly, which a larger rate mends."""
    if not outcome.tells:
        return Probe.UNTOLD
    return Probe.BROKEN if outcome.broken else Probe.ALIVE
