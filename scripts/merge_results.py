# SPDX-License-Identifier: AGPL-3.0-or-later
"""Merge the telemetry parts of recorded runs, so that results take less room and are read faster.

    python scripts/merge_results.py results

Every run below the folder is merged in place and read before and after: its scalars, vectors and what could not be read
must be the same, value for value, or the old parts are put back and the command ends with an error. Done twice, it
changes nothing.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import pandas as pd

from yolo_gradstudy.run_folder import QUANTITIES, TELEMETRY, TelemetryFolder


def read_all(folder: TelemetryFolder) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """All that can be read of a run's numbers, by quantity, and what can't."""
    damaged: list[str] = []
    return {quantity: folder.read(quantity, damaged) for quantity in QUANTITIES}, damaged


def merge_run(folder: TelemetryFolder) -> int:
    """Merge a run's parts.

    Returns:
        How many files there are less.

    Raises:
        ValueError: What is read is not the same as before; the parts are as they were.
    """
    if all(len(parts) < 2 for parts in folder.all_parts().values()):
        return 0
    before, damaged = read_all(folder)
    with tempfile.TemporaryDirectory(prefix="gradstudy-merge-") as kept:
        old = [path for parts in folder.all_parts().values() for path in parts]
        for path in old:
            shutil.copy2(path, kept)
        gone = folder.merge_parts()
        after, damaged_after = read_all(folder)
        try:
            assert damaged == damaged_after, "other parts can't be read"
            for quantity in QUANTITIES:
                pd.testing.assert_frame_equal(after[quantity], before[quantity], check_exact=True)
        except AssertionError as error:
            for path in old:
                shutil.copy2(Path(kept) / path.name, path)
            raise ValueError(f"{folder.path} would be read as something else: {error}") from error
    return gone


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a study's folder, a run's, or any above them")
    words = parser.parse_args()
    found = sorted(path.parent for path in words.folder.rglob(f"{TELEMETRY}/meta.json"))
    if not found:
        parser.error(f"there is no telemetry below {words.folder}")
    try:
        gone = [merge_run(TelemetryFolder(path)) for path in found]
    except ValueError as error:
        parser.error(str(error))
    print(f"{sum(map(bool, gone))} of {len(found)} runs merged, {sum(gone)} files less")


if __name__ == "__main__":
    main()
