# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much earlier than the trouble each early-warning detector speaks, and how often in vain: a Markdown table.

    python scripts/early_warning.py results/corpus

Thresholds are set on the runs with an even seed, so that no healthy one of them is alarmed; leads and false alarms are
of the runs with an odd seed. A run is unhealthy where its verdict says so, and the trouble is at the step that the
verdict names; faults that were planted from outside come without a sign and are left out, and so are runs that
recovered, in which an alarm is neither right nor wrong.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from yolo_gradstudy import load_run
from yolo_gradstudy.diagnoses import diagnose_run
from yolo_gradstudy.diagnoses.early import DETECTORS, FLOW, flow_signals, signals, statistics_of
from yolo_gradstudy.records import Outcome

ROOM = 16
"""Steps before which no lead of 10 is possible: a band takes 6."""

MARGIN = 1.1
"""Factor over the largest statistic of a healthy run that makes the threshold."""


@dataclass(frozen=True)
class Case:
    """A run to warn of, or not.

    Attributes:
        name: Its folder's name.
        held_out: Whether thresholds are judged on it, not set.
        trouble: The step at which it turned unhealthy; None for a healthy one.
        statistics: Step and statistic by detector.
    """

    name: str
    held_out: bool
    trouble: int | None
    statistics: dict[str, list[tuple[int, float]]]


def read(path: Path) -> Case | None:
    """A run's statistics; None for one that says nothing of a warning."""
    run = load_run(path)
    verdict = diagnose_run(run, run.result)
    outcome = verdict.so_far or verdict.outcome
    names = ("dead_head", "kick", "blow_up")
    planted = run.spec is not None and any(name in ablation for name in names for ablation in run.spec.ablations)
    if planted or outcome in (Outcome.RECOVERED, Outcome.UNKNOWN, Outcome.STUCK):
        return None
    trouble = None
    if outcome.unhealthy:
        trouble = next(f.step for f in verdict.findings if f.state == "matched" and f.rule == f"is_{outcome}")
        if trouble is None:  # broken after the last recorded step
            return None
    branch = str(run.meta.get("inference_branch"))
    detectors = {name: make(branch) for name, make in DETECTORS.items()}
    statistics: dict[str, list[tuple[int, float]]] = {name: [] for name in detectors}
    kept = path / FLOW
    flow = pd.read_csv(kept, index_col="step") if kept.is_file() else flow_signals(run)
    for step, scalars in signals(run, flow):
        for name, value in statistics_of(detectors, scalars):
            statistics[name].append((step, value))
    seed = run.spec.seed if run.spec is not None else 0
    return Case(path.name, seed % 2 == 1, trouble, statistics)


def first_above(case: Case, name: str, threshold: float) -> int | None:
    """The first step whose statistic passes the threshold."""
    return next((step for step, value in case.statistics[name] if value > threshold), None)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, nargs="+", help="folders of runs")
    words = parser.parse_args()
    folders = sorted(p.parent.parent for c in words.corpus for p in c.glob("*/telemetry/meta.json"))
    cases = [case for case in map(read, folders) if case is not None]
    sets = {key: [c for c in cases if c.held_out == key] for key in (False, True)}
    told = {
        key: f"{sum(c.trouble is None for c in s)} healthy, {sum(c.trouble is not None for c in s)} unhealthy"
        for key, s in sets.items()
    }
    print(f"Thresholds set on {told[False]} runs, judged on {told[True]}.\n")
    print(
        "| detector | threshold | warned before the trouble | median lead, steps | 10 steps or more "
        f"| median lead after step {ROOM} | false alarms |\n|---|---|---|---|---|---|---|"
    )
    for name in DETECTORS:
        print(row(name, sets[False], sets[True]))


def row(name: str, calibration: list[Case], held_out: list[Case]) -> str:
    """A detector's row."""
    healthy = [v for c in calibration if c.trouble is None for _, v in c.statistics[name] if math.isfinite(v)]
    if not healthy:
        return f"| `{name}` | not recorded | | | | | |"
    top = max(healthy)
    threshold = float(f"{top + abs(top) * (MARGIN - 1):.3g}")
    leads, alarms, well = [], 0, 0
    unhealthy = [case for case in held_out if case.trouble is not None]
    for case in held_out:
        alarm = first_above(case, name, threshold)
        if case.trouble is None:
            well += 1
            alarms += alarm is not None
        else:  # not warned counts as no lead
            leads.append(0 if alarm is None or alarm >= case.trouble else case.trouble - alarm)
    warned = sum(lead > 0 for lead in leads)
    ten = sum(lead >= 10 for lead in leads)
    median = f"{np.median(leads):.0f}" if leads else "-"
    roomy = [lead for lead, case in zip(leads, unhealthy, strict=True) if (case.trouble or 0) > ROOM]
    later = f"{np.median(roomy):.0f} ({len(roomy)} runs)" if roomy else "-"
    numbers = f"{warned} of {len(leads)} | {median} | {ten} of {len(leads)} | {later} | {alarms} of {well}"
    return f"| `{name}` | {threshold:g} | {numbers} |"


if __name__ == "__main__":
    main()
