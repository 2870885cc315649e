# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `on_unhealthy` saves of the corpus' failing runs: a Markdown table.

    python scripts/act_on_unhealthy.py results/acting.csv                                         # what is committed
    python scripts/act_on_unhealthy.py results/acting.csv results/corpus coco128.yaml runs/acting  # trains; resumable

`stop` changes nothing before it ends a run, so what it saves is read out of the recorded steps. `recover` trains each
run that failed of itself (no fault was planted) once more. A run is saved where its verdict is healthy then.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from make_corpus import LABEL, make

from yolo_gradstudy import load_run
from yolo_gradstudy.diagnoses import diagnose_run, find_certainty
from yolo_gradstudy.records import RunSpec
from yolo_gradstudy.run_folder import read_json

COLUMNS = ("run_id", "arm", "seed", "outcome", "steps", "certain_after", "certain_outcome",
           "recovered_outcome", "recoveries", "recovered_evidence", "map50_before", "map50_after")  # fmt: skip


def failing(corpus: Path) -> list[tuple[RunSpec, dict[str, Any]]]:
    """Specs of the runs that failed of themselves, with what `stop` would have saved."""
    found = []
    for path in sorted(p.parent for p in corpus.glob("*/spec.json")):
        run = load_run(path) if (path / "telemetry").is_dir() else None
        if run is None or run.spec is None:
            continue
        verdict = diagnose_run(run, run.result)
        if not verdict.outcome.unhealthy or verdict.outcome == "stuck" or any(":" in a for a in run.spec.ablations):
            continue
        certain = find_certainty(run)
        facts = {
            "run_id": run.spec.run_id,
            "arm": run.spec.arm,
            "seed": run.spec.seed,
            "outcome": str(verdict.outcome),
            "steps": len(run.steps),
            "certain_after": None if certain is None else certain.step,
            "certain_outcome": None if certain is None else str(certain.outcome),
            "map50_before": read_json(path / LABEL).get("map50"),
        }
        found.append((run.spec, facts))
    return found


def recover(spec: RunSpec, root: Path, coco: str) -> dict[str, Any]:
    """Train a run again with ``recover``, and judge it."""
    data = coco if spec.arm.startswith("coco") else spec.data
    again = replace(spec, data=data, arguments={**spec.arguments, "on_unhealthy": "recover"})
    make(again, root)
    run = load_run(root / spec.run_id)
    verdict = diagnose_run(run, run.result)
    return {
        "recovered_outcome": str(verdict.outcome),
        "recoveries": sum(event["event"] == "went_back" for event in run.events),
        "recovered_evidence": verdict.evidence,
        "map50_after": read_json(root / spec.run_id / LABEL).get("map50"),
    }


def table(rows: pd.DataFrame) -> str:
    """The rows by arm."""
    lines = [
        "| arm | failing runs | known lost | after, of all steps | steps saved by `stop` | healthy with `recover` |",
        "|---|---|---|---|---|---|",
    ]
    for arm, group in [*rows.groupby("arm"), ("all", rows)]:
        known = group[group["certain_after"].notna()]
        # Ultralytics itself ended some: nothing is saved after that.
        saved = (known["steps"] - known["certain_after"]).clip(lower=0).sum() / max(1, group["steps"].sum())
        after = " ".join(f"{int(r.certain_after)}/{int(r.steps)}" for r in known.itertuples())
        healthy = group["recovered_outcome"].isin(["stable", "recovered"]).sum()
        told = f"{arm} | {len(group)} | {len(known)} | {'' if arm == 'all' else after} | {saved:.0%}"
        lines.append(f"| {told} | {healthy} of {len(group)} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path, help="the rows, written where runs are trained, else read")
    parser.add_argument("corpus", nargs="?", type=Path, help="folder of the corpus")
    parser.add_argument("coco", nargs="?", help="a data YAML of COCO images")
    parser.add_argument("root", nargs="?", type=Path, help="where the runs are kept")
    parser.add_argument("--jobs", type=int, default=2)
    words = parser.parse_args()
    if words.corpus is not None:
        if words.root is None:
            parser.error("a corpus needs a data YAML of COCO images and a folder for the runs")
        cases, coco = failing(words.corpus), str(Path(words.coco).resolve())
        with ThreadPoolExecutor(words.jobs) as pool:
            answers = list(pool.map(lambda case: recover(case[0], words.root, coco), cases))
        rows = [{**facts, **answer} for (_, facts), answer in zip(cases, answers, strict=True)]
        pd.DataFrame(rows, columns=COLUMNS).to_csv(words.table, index=False)
    print(table(pd.read_csv(words.table)))


if __name__ == "__main__":
    main()
