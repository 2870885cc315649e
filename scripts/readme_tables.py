# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write the outcome tables of committed results into README and docs, between their marks.

    python scripts/readme_tables.py            (write)
    python scripts/readme_tables.py --check    (exit status 1 where a page is not up to date)

A mark is ``<!-- outcomes: DIR -->``, a table, ``<!-- end -->``; DIR is a study's folder with results.csv.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from yolo_gradstudy.run_folder import read_results
from yolo_gradstudy.tables import outcome_text_table, to_markdown

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/ablations.md")
_MARKED = re.compile(r"(<!-- outcomes: (?P<folder>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, root: Path = ROOT) -> str:
    """The text with each marked table made anew from its results."""

    def table(match: re.Match[str]) -> str:
        results = read_results(root / match["folder"])
        return f"{match[1]}{to_markdown(outcome_text_table(results))}{match[3]}"

    return _MARKED.sub(table, text)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the pages are up to date")
    words = parser.parse_args()
    for page in (ROOT / name for name in PAGES):
        old = page.read_text()
        new = fill(old)
        if words.check and old != new:
            return 1
        if not words.check:
            page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
