# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write the SHA-256 of every CSV file of the committed reports, also of those that are not committed.

    python scripts/checksums.py results            (writes results/checksums.sha256, as `sha256sum -c` reads it)
    python scripts/checksums.py results --check    (exit status 1, and names, where a file is not what it was)

Curves at each learning rate, trajectories and heatmaps have large CSV files, which `scripts/reproduce_plots.sh` writes
again from the telemetry. Whether they are the same bit for bit is told by this file.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

NAME = "checksums.sha256"


def checksums(results: Path) -> dict[str, str]:
    """By path below the folder, in order, the SHA-256 of each CSV file of a study or its report."""
    found = sorted([*results.glob("*/results.csv"), *results.glob("*/report/*.csv")])
    return {path.relative_to(results).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="a folder of studies' folders")
    parser.add_argument("--check", action="store_true", help="compare what is there, and write nothing")
    words = parser.parse_args()
    there, path = checksums(words.results), words.results / NAME
    if not words.check:
        path.write_text("".join(f"{digest}  {name}\n" for name, digest in there.items()))
        return 0
    if not path.is_file():
        parser.error(f"{path} is not there; without --check it is written.")
    known = {name: digest for digest, name in (line.split(maxsplit=1) for line in path.read_text().splitlines())}
    wrong = [name for name, digest in there.items() if known.get(name) != digest]
    for name in wrong:
        print(f"{name} is {'not what it was' if name in known else 'new'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
