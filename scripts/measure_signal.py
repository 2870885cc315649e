# SPDX-License-Identifier: AGPL-3.0-or-later
"""Measure signals and gradients of networks that are not trained: the evidence that needs no study.

    python scripts/measure_signal.py                     (all, about 3 minutes on one CPU thread)
    python scripts/measure_signal.py depth residuals     (some of it)

Writes a CSV file for each claim into results/signal; the same machine and versions give the same bytes. What is
random is drawn from seeds 0 to 4. `python scripts/write_claims.py` makes docs/claims.md of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where this file is imported

from signals.depth import measure_depth, measure_residuals
from signals.detectors import measure_detectors
from signals.initialisation import measure_initialisations
from signals.normalisation import measure_batchnorm, measure_landscapes
from signals.optimisers import measure_loss_scale, measure_quadratics

ROOT = Path(__file__).resolve().parent.parent

FAMILIES: Mapping[str, Callable[[], dict[str, pd.DataFrame]]] = {
    "depth": measure_depth,
    "residuals": measure_residuals,
    "initialisations": measure_initialisations,
    "loss_scale": measure_loss_scale,
    "quadratics": measure_quadratics,
    "batchnorm": measure_batchnorm,
    "landscapes": measure_landscapes,
    "detectors": measure_detectors,
}
"""Each gives tables by the names of their files."""


def write(names: list[str], folder: Path) -> None:
    """Measure families, and write their tables.

    Args:
        names: Keys of ``FAMILIES``.
        folder: Where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        start = time.monotonic()
        for file, frame in FAMILIES[name]().items():
            frame.to_csv(folder / f"{file}.csv", index=False, float_format="%.6g", lineterminator="\n")
        print(f"{name}: {time.monotonic() - start:.0f} s")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(FAMILIES)}")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "signal", help="the folder of the CSV files")
    words = parser.parse_args()
    if unknown := [name for name in words.names if name not in FAMILIES]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(FAMILIES)}")
    torch.set_num_threads(1)  # sums over threads differ in their last bits
    write(words.names or list(FAMILIES), words.out)


if __name__ == "__main__":
    main()
