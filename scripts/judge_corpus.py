# SPDX-License-Identifier: AGPL-3.0-or-later
"""Judge the corpus and compare verdicts with labels: a confusion matrix in Markdown.

    python scripts/judge_corpus.py results/corpus

A label rests on nothing that a rule looks at: how the run was made to end (an error was planted, it was killed),
whether the weights of its last checkpoint are finite, how many detections that checkpoint makes of the validation
images with a score above 0.001, and with AdamW on `shapes`, where the control reaches a clear mAP, whether its mAP50
is a tenth of the control's.
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

LABELS = ("detects", "detects nothing", "not finite", "error", "killed")
CONTROLS = {"adamw": "control", "sgd": "sgd", "coco": "coco-control"}
"""The arm beside which a run is judged: of the same data and optimizer, at a usual learning rate."""
SHARE = 0.1
"""Share of the control's detections, and of its mAP50, below which a detector detects nothing."""


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


def label_of(facts: dict[str, Any], control: dict[str, Any], with_map: bool) -> str:
    """A run's label.

    Args:
        facts: Its ``label.json``.
        control: That of the control.
        with_map: Whether mAP tells something at this scale.
    """
    if facts["ended"] == "killed":
        return "killed"
    if "planted" in (facts.get("error") or ""):
        return "error"
    if not facts["weights_finite"]:
        return "not finite"
    few = facts["detections"] < SHARE * control["detections"]
    lost = with_map and facts["map50"] < SHARE * control["map50"]
    return "detects nothing" if few or lost else "detects"


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
        usual = read_json(corpus / f"{CONTROLS[scale]}-s0" / "label.json")
        verdict = diagnose_run(run, run.result, control)
        label = label_of(facts, usual, with_map=scale == "adamw")
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
