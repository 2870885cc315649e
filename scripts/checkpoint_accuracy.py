# SPDX-License-Identifier: AGPL-3.0-or-later
"""Print the runs whose saved checkpoint does not detect as well, or as badly, as the weights that it was saved from.

    python scripts/checkpoint_accuracy.py results/accuracy-shapes-cpu

Ultralytics validates the EMA after the last epoch in full precision (`map50_95` of results.csv), saves it in half
precision, and validates what it saved (`metrics` of result.json). Half precision ends at 65504.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from yolo_gradstudy.diagnoses.epochs import map_name
from yolo_gradstudy.records import Outcome
from yolo_gradstudy.run_folder import StudyFolder, read_results
from yolo_gradstudy.tables import to_markdown

FAR = 0.005
"""A difference of mAP50-95 that rounding does not make."""


def differing(folder: StudyFolder) -> pd.DataFrame:
    """A row a run whose two mAP50-95 are more than `FAR` apart; a run that broke is left out."""
    rows = []
    results = read_results(folder.path)
    for run_id, outcome, trained in results[["run_id", "outcome", "map50_95"]].itertuples(index=False):
        result = folder.run(run_id).read_result()
        name = None if result is None or Outcome(outcome).broken else map_name(result.metrics)
        if name and abs(result.metrics[name] - trained) > FAR:
            rows.append([run_id, outcome, f"{trained:.3f}", f"{result.metrics[name]:.3f}"])
    return pd.DataFrame(rows, columns=["run", "outcome", "mAP50-95 of the EMA", "of its checkpoint"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path, help="a study's folder with a results.csv")
    print(to_markdown(differing(StudyFolder(parser.parse_args().study))))


if __name__ == "__main__":
    main()
