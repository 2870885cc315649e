# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write the tables of README and docs that come from committed results, between their marks.

    python scripts/readme_tables.py            (write)
    python scripts/readme_tables.py --check    (exit status 1 where a page is not up to date)

A mark is ``<!-- outcomes: DIR -->``, with DIR a study's folder that has a results.csv,
``<!-- models: DIR DIR ... -->``, with studies of different models: the outcomes of the runs that all of them have,
``<!-- accuracy: DIR -->``, with DIR likewise: mAP50-95 at the end of each arm and rate, and against the control,
``<!-- answer: DIR -->``, with DIR likewise: the sentences at the top of its report, or with ``DIR, first 2`` the first
two of them,
``<!-- table: FILE -->``, with FILE a CSV file of its report, or
``<!-- printed by: COMMAND -->``, with COMMAND a script of this repository; then what is written, then ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from results_card import Card

from yolo_gradstudy.report.answer import answer, signed
from yolo_gradstudy.run_folder import read_results
from yolo_gradstudy.tables import arm_order, outcome_text_table, to_markdown

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/ablations.md", "docs/diagnosis.md", "docs/results.md", "docs/studies.md")
_MARKED = re.compile(
    r"(<!-- (?P<kind>outcomes|models|accuracy|answer|table|printed by): (?P<what>[^\n]+) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)


def fill(text: str, root: Path = ROOT) -> str:
    """The text with each marked table made anew."""

    def table(match: re.Match[str]) -> str:
        if match["kind"] == "outcomes":
            made = to_markdown(outcome_text_table(read_results(root / match["what"])))
        elif match["kind"] == "models":
            made = beside([root / folder for folder in match["what"].split()])
        elif match["kind"] == "accuracy":
            made = to_markdown(accuracies(Card.read(root / match["what"]).answers["accuracy"]))
        elif match["kind"] == "answer":
            made = answered(match["what"], root)
        elif match["kind"] == "table":
            made = to_markdown(pd.read_csv(root / match["what"], keep_default_na=False, na_values=[""]))
        else:
            made = printed_by(match["what"], root)
        return f"{match[1]}{made}{match[4]}"

    return _MARKED.sub(table, text)


def beside(folders: Sequence[Path]) -> str:
    """Outcomes of an arm in each model, at the arms, learning rates and seeds that all studies have."""
    cards = [Card.read(folder) for folder in folders]
    keys = ["arm", "lr0", "seed"]
    common = set.intersection(*(set(card.table[keys].itertuples(index=False, name=None)) for card in cards))
    tables = []
    for card in cards:
        shared = [key in common for key in card.table[keys].itertuples(index=False, name=None)]
        table = outcome_text_table(card.table[shared])
        table.insert(1, "model", Path(str(card.study["model"])).stem)
        tables.append(table)
    arms = list(tables[0]["arm"])
    return to_markdown(pd.concat(tables).sort_values("arm", key=lambda names: names.map(arms.index), kind="stable"))


def accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """Of `accuracy_table`, a row an arm and a column a rate; a difference whose interval leaves out 0 is bold."""
    rates = sorted(table["lr0"].unique())
    cells = {(row["arm"], row["lr0"]): _accuracy(row) for row in table.to_dict("records")}
    rows = [[arm, *(cells.get((arm, lr0), "") for lr0 in rates)] for arm in arm_order(table["arm"])]
    return pd.DataFrame(rows, columns=["arm", *(f"lr0 {lr0:g}" for lr0 in rates)])


def _accuracy(row: Mapping[Hashable, Any]) -> str:
    """mAP50-95 with its interval, of an arm its difference from the control's with the difference's."""
    if pd.isna(row["map50_95"]):
        return ""
    told = f"{row['map50_95']:.3f}"
    if pd.notna(row["difference"]):
        difference, low, high = (row[name] for name in ("difference", "difference_low", "difference_high"))
        if pd.isna(low):
            told += f"; {signed(difference, 3)}"
        else:
            ends = (f"{end:+.3f}".replace("-", "−") for end in (low, high))  # −0.000 lies below 0
            words = f"{signed(difference, 3)} ({' to '.join(ends)})"
            told += f"; **{words}**" if low > 0 or high < 0 else f"; {words}"
    elif pd.notna(row["low"]):
        told += f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{told}; {row['n_broken']} of {row['n']} broke" if row["n_broken"] else told


def answered(what: str, root: Path) -> str:
    """What a study found, as a list: what its report says first, all of it or so many sentences."""
    folder, _, most = what.partition(", first ")
    card = Card.read(root / folder)
    found = answer(card.table, card.answers)
    lines = found.sentences[: int(most)] if most else (*found.sentences, found.control, *found.caveats)
    return "".join(f"- {line}\n" for line in lines if line)


def put(text: str, mark: str, made: str) -> str:
    """The text with what stands between ``<!-- mark -->`` and the next ``<!-- end -->`` replaced.

    Raises:
        ValueError: There is no such mark, or more than one.
    """
    block = re.compile(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- end -->)", re.DOTALL)
    filled, count = block.subn(lambda match: f"{match[1]}{made}{match[2]}", text)
    if count != 1:
        raise ValueError(f"a page needs one `<!-- {mark} -->` with an `<!-- end -->` after it, this one has {count}.")
    return filled


def printed_by(command: str, root: Path) -> str:
    """What a script prints.

    Raises:
        ValueError: The command is not ``python scripts/...``.
    """
    program, *words = shlex.split(command)
    if program != "python" or not words or not words[0].startswith("scripts/"):
        raise ValueError(f"a page asks for the output of {command!r}; only `python scripts/...` is run.")
    environment = {**os.environ, "YOLO_VERBOSE": "false"}
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, stdout=subprocess.PIPE, check=True)
    return f"{done.stdout.decode().strip()}\n"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the pages are up to date")
    words = parser.parse_args()
    status = 0
    for name in PAGES:
        page = ROOT / name
        old = page.read_text()
        new = fill(old)
        if not words.check:
            page.write_text(new)
        elif old != new:
            print(f"{name} is not what the results say.")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
