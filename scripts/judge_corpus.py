# SPDX-License-Identifier: AGPL-3.0-or-later
"""Judge the corpus and compare verdicts with labels: a confusion matrix in Markdown.

    python scripts/judge_corpus.py results/corpus

A label rests on how the run was made to end (an error was planted, it was killed), on whether Ultralytics gave it up
for NaN, and on what its last checkpoint finds in the validation images with scores above 0.001. On `shapes` it detects
nothing where its mAP50 is below 0.001: a healthy run has 0.004 at half this length and 0.02 to 0.1 at its end. On COCO,
where a healthy run of this length makes one or two true detections, one makes it detect; none, and less than one an
image, false ones counted, means that it detects nothing; else the label is `undecided`, and the verdict is neither
right nor wrong.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from yolo_gradstudy import load_run
from yolo_gradstudy.diagnoses import diagnose_run
from yolo_gradstudy.records import Outcome
from yolo_gradstudy.run_folder import read_json
from yolo_gradstudy.tables import to_markdown

LABELS = ("detects", "detects nothing", "not finite", "error", "killed", "undecided")
LEAST_MAP50 = 1e-3
CONTROLS = {"adamw": "control", "sgd": "sgd", "coco": "coco-control"}
"""The arm beside which a run is judged: of the same data and optimizer, at a usual learning rate."""


@dataclass(frozen=True)
class Judged:
    """A run of the corpus.

    Attributes:
        run_id: Its name.
        label: One of ``LABELS``.
        outcome: The verdict's.
        evidence: The verdict's sentence.
        facts: What the label rests on.
    """

    run_id: str
    label: str
    outcome: Outcome
    evidence: str
    facts: dict[str, Any]


def label_of(facts: dict[str, Any], on_coco: bool) -> str:
    """A run's label.

    Args:
        facts: Its ``label.json``.
        on_coco: Whether it saw COCO images, of which nothing learns much in so few steps.
    """
    error = facts.get("error") or ""
    if facts["ended"] == "killed":
        return "killed"
    if "planted" in error:
        return "error"
    if not facts["weights_finite"] or "NaN persisted" in error:
        return "not finite"
    if facts["map50"] > (0 if on_coco else LEAST_MAP50):
        return "detects"
    return "undecided" if on_coco and facts["detections"] >= facts["images"] else "detects nothing"


def judge(corpus: Path) -> list[Judged]:
    """Label and verdict of each run; a run is judged beside the control of its seed, where there is one."""
    judged = []
    for path in sorted(p.parent for p in corpus.glob("*/label.json")):
        run = load_run(path)
        assert run.spec is not None
        scale = "coco" if run.spec.arm.startswith("coco") else str(run.spec.arguments["optimizer"]).lower()
        paired = corpus / f"{CONTROLS[scale]}-s{run.spec.seed}"
        control = load_run(paired) if paired.is_dir() and paired != path else None
        facts = read_json(path / "label.json")
        verdict = diagnose_run(run, run.result, control)
        label = label_of(facts, on_coco=scale == "coco")
        judged.append(Judged(path.name, label, verdict.outcome, verdict.evidence, facts))
    return judged


def confusion(judged: list[Judged]) -> pd.DataFrame:
    """Runs by label (rows) and outcome (columns)."""
    counts = pd.crosstab([j.label for j in judged], [str(j.outcome) for j in judged])
    counts = counts.reindex(index=list(LABELS), columns=[str(o) for o in Outcome], fill_value=0)
    return counts.rename_axis("label", axis=0).rename_axis(None, axis=1)


def wrong(judged: list[Judged]) -> list[Judged]:
    """Dead runs that are called healthy, and living ones that are called unhealthy."""
    dead = ("detects nothing", "not finite")
    return [
        j for j in judged if (j.label in dead and j.outcome.healthy) or (j.label == "detects" and j.outcome.unhealthy)
    ]


def main() -> None:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--each", action="store_true", help="a line for each run, too")
    words = parser.parse_args()
    judged = judge(words.corpus)
    print(to_markdown(confusion(judged).reset_index()).rstrip())
    bad = wrong(judged)
    print(f"\n{len(judged)} runs; dead ones called healthy or living ones called unhealthy: {len(bad)}.")
    for one in judged if words.each else bad:
        print(f"- {one.run_id}: {one.label}, {one.outcome} ({one.evidence}); {one.facts}")


if __name__ == "__main__":
    main()
