# SPDX-License-Identifier: AGPL-3.0-or-later
"""Print what the committed studies are: scale, seeds, outcomes, machine, versions, hours, and the command of each.

    python scripts/results_card.py results

Everything is read from the folders' study.yaml, results.csv and result.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from yolo_gradstudy.readings import counted, is_search
from yolo_gradstudy.records import Outcome, RunResult
from yolo_gradstudy.run_folder import StudyFolder, read_results
from yolo_gradstudy.tables import (
    accuracy_table,
    comparisons_table,
    limit_ratios_table,
    limits_table,
    over_rates_table,
)


@dataclass(frozen=True)
class Card:
    """What one study's folder says of itself.

    Attributes:
        name: The folder's name.
        study: Its study.yaml.
        searched: Whether it is a search for the largest stable rate.
        table: Its results.csv.
        results: The results of its runs.
    """

    name: str
    study: dict[str, Any]
    searched: bool
    table: pd.DataFrame
    results: tuple[RunResult, ...]

    @classmethod
    def read(cls, path: Path) -> Card:
        """The card of a study's folder.

        Raises:
            ValueError: It lacks a file, or one can't be read.
        """
        folder = StudyFolder(path)
        plan, study = folder.read_plan(), folder.read_study()
        if study is None or not folder.results_path.is_file():
            lacking = folder.study_path if study is None else folder.results_path
            raise ValueError(f"{lacking} is not there; `gradstudy report {path}` writes results.csv.")
        found = (folder.run(spec.run_id).read_result() for spec in plan)
        results = tuple(result for result in found if result is not None)
        return cls(path.name, study, is_search(study, plan), read_results(path), results)

    @property
    def answers(self) -> dict[str, pd.DataFrame]:
        """The tables that answer it, by the names of their files."""
        if not self.searched:
            made = {"over_rates": over_rates_table, "comparisons": comparisons_table, "accuracy": accuracy_table}
            return {name: table(self.table) for name, table in made.items()}
        limits = limits_table(self.table, float(self.study["limit"]["factor"]))
        return {"limits": limits, "limit_ratios": limit_ratios_table(limits)}

    @property
    def scale(self) -> str:
        """Model, data, image size, steps."""
        start = " from scratch" if str(self.study["model"]).endswith(".yaml") else ""
        words = {"imgsz": "{} px", "batch": "batch {}", "optimizer": "{}"}
        arguments = self.study.get("arguments") or {}
        told = [words[name].format(arguments[name]) for name in words if name in arguments]
        steps = f"{counted(self.ended['steps'].astype('Int64'))} steps"
        return ", ".join([f"{self.study['model']}{start}", str(self.study["data"]), *told, steps])

    @property
    def design(self) -> str:
        """Arms, learning rates and seeds."""
        rates = sorted(self.table["lr0"].unique())
        of_rates = (
            f"lr0 {rates[0]:g} to {rates[-1]:g}" if self.searched else f"lr0 {', '.join(f'{r:g}' for r in rates)}"
        )
        arms, seeds = self.table["arm"].nunique(), self.table["seed"].nunique()
        return f"{_count(arms, 'arm')}; {of_rates}; {_count(seeds, 'seed')}"

    @property
    def ended(self) -> pd.DataFrame:
        """The rows of runs that have ended; the others have not been trained yet, or not to their end."""
        return self.table[self.table["status"].notna()]

    @property
    def is_complete(self) -> bool:
        """Whether all its runs have ended."""
        return len(self.ended) == len(self.table)

    @property
    def outcomes(self) -> str:
        """How many runs ended how, in the order of :class:`Outcome`."""
        counts = self.ended["outcome"].value_counts()
        told = ", ".join(f"{counts[str(o)]} {o}" for o in Outcome if str(o) in counts)
        number = str(len(self.table)) if self.is_complete else f"{len(self.ended)} of {len(self.table)} so far"
        return f"{number}: {told}"

    @property
    def hours(self) -> str:
        """Hours of all runs together, each on its own threads."""
        return f"{self.table['duration_s'].sum() / 3600:.1f}"

    @property
    def machine(self) -> str:
        """Devices, processors and threads that the runs name."""
        devices = _named("CPU" if r.device == "cpu" else r.device for r in self.results)
        processors = _named(r.processor for r in self.results)
        unnamed = sum(r.processor is None for r in self.results)
        if processors and unnamed:
            processors += f" of {_count(len(self.results) - unnamed, 'run')}, not noted of {unnamed}"
        threads = _named(str(r.threads) for r in self.results if r.threads)
        named = f" ({processors})" if processors else ""
        used = f", {threads} thread{'' if threads == '1' else 's'} a run" if threads else ""
        return f"{devices}{named}{used}"

    @property
    def versions(self) -> str:
        """Versions of what the runs ran on."""
        names = dict.fromkeys(name for result in self.results for name in result.versions)
        return ", ".join(f"{name} {_named(r.versions.get(name) for r in self.results)}" for name in names)

    @property
    def days(self) -> str:
        """The days between which the runs began."""
        days = sorted(result.started[:10] for result in self.results if result.started)
        return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""

    @property
    def command(self) -> str:
        """What trains it anew."""
        return f"gradstudy {'limit' if self.searched else 'run'} results/{self.name}/study.yaml --out runs/{self.name}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _named(values: Iterable[str | None]) -> str:
    """The different values, in the order in which they come."""
    return ", ".join(dict.fromkeys(value for value in values if value))


def tables(cards: Sequence[Card]) -> str:
    """What was run, and on what, as Markdown."""
    lines = ["| folder | scale | design | runs | trained anew by |", "|---|---|---|---|---|"]
    for card in cards:
        cells = (f"`results/{card.name}`", card.scale, card.design, card.outcomes, f"`{card.command}`")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| folder | machine | hours of runs | when | versions |", "|---|---|---|---|---|"]
    for card in cards:
        cells = (f"`results/{card.name}`", card.machine, card.hours, card.days, card.versions)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="a folder of studies' folders")
    words = parser.parse_args()
    folders = sorted(path.parent for path in words.results.glob("*/plan.json"))
    if not folders:
        parser.error(f"{words.results} has no study's folder: none below it has a plan.json.")
    try:
        cards = [Card.read(folder) for folder in folders]
    except ValueError as error:
        parser.error(str(error))
    print(tables(cards), end="")


if __name__ == "__main__":
    main()
