# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write the SHA-256 of every CSV file of the committed results, also of those that are not committed.

    python scripts/checksums.py results            (writes results/checksums.sha256, as `sha256sum -c` reads it)
    python scripts/checksums.py results --check    (exit status 1, and names, where a file is not what it was)
    python scripts/checksums.py results --check --complete      (likewise where one is not there)

Curves at each learning rate, trajectories and heatmaps have large CSV files, which `scripts/reproduce_plots.sh` writes
again from the telemetry. Whether they are the same bit for bit is told by this file.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

NAME = "checksums.sha256"

_MADE = ("*.csv", "signal/*.csv", "*/results.csv", "*/report/*.csv")
"""What scripts and reports write; the files of runs are what they read."""


def checksums(results: Path) -> dict[str, str]:
    """By path below the folder, in order, the SHA-256 of each CSV file but those of runs."""
    found = sorted(path for pattern in _MADE for path in results.glob(pattern))
    return {path.relative_to(results).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="a folder of studies' folders")
    parser.add_argument("--check", action="store_true", help="compare what is there, and write nothing")
    parser.add_argument("--complete", action="store_true", help="with --check: a file that is not there is wrong too")
    words = parser.parse_args()
    there, path = checksums(words.results), words.results / NAME
    if not path.is_file() and words.check:
        parser.error(f"{path} is not there; without --check it is written.")
    lines = path.read_text().splitlines() if path.is_file() else []
    known = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    if not words.check:
        path.write_text("".join(f"{digest}  {name}\n" for name, digest in there.items()))
        for name in sorted(known.keys() - there.keys()):
            print(f"{name} is not there: its checksum is left out", file=sys.stderr)
        return 0
    asked = {*known, *there} if words.complete else there.keys()
    wrong = sorted(name for name in asked if known.get(name) != there.get(name))
    for name in wrong:
        told = "not what it was" if name in known and name in there else "new" if name in there else "not there"
        print(f"{name} is {told}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
