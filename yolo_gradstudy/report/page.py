# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study's tables and figures → the text of one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from yolo_gradstudy.figures.palette import OUTCOMES
from yolo_gradstudy.readings import ANSWERS, StudyReading, StudyTables, counted
from yolo_gradstudy.records import Outcome, RunReading, RunSpec
from yolo_gradstudy.report.drawings import Drawing
from yolo_gradstudy.tables import UNHEALTHY, arm_order, outcome_text_table

_SEARCHED = {
    "limits": "The largest stable learning rate of each arm and seed",
    "limit_ratios": "Octaves of learning rate against the control",
    "lr50": "The learning rate at which half of the runs break",
    "effects": "Effects of the crossed factors, in octaves of the largest stable rate",
}
"""Tables of a search besides, with their headings."""

_ON_THE_PAGE = ("effects", "limit_ratios", "lr50", "limits", "comparisons", "survival", "sensitivity", "saved")
"""Tables that the page shows, in this order; the others are long, and stand in their files."""


def _shown(answers: Mapping[str, pd.DataFrame]) -> list[tuple[str, str, list[str], list[dict[str, Any]]]]:
    """Name, heading, columns and rows of the tables that the page shows."""
    headings = {**{name: heading for name, (heading, _) in ANSWERS.items()}, **_SEARCHED}
    return [
        (name, headings[name], list(map(str, answers[name].columns)), _records(answers[name]))
        for name in _ON_THE_PAGE
        if name in answers and len(answers[name])
    ]


def _named(path: str) -> str:
    """A data set's name; of a path outside the project its last part only."""
    return Path(path).name if Path(path).is_absolute() else path


def describe_scale(tables: StudyTables) -> str:
    """Models, data, image sizes and how many steps were recorded."""
    specs = [r.spec for r in tables.reading.readings]
    models = ", ".join(dict.fromkeys(spec.model for spec in specs))
    data = ", ".join(dict.fromkeys(_named(spec.data) for spec in specs))
    sizes = dict.fromkeys(f"{spec.arguments['imgsz']} px" for spec in specs if "imgsz" in spec.arguments)
    steps = f"{tables.recorded} steps recorded" if tables.recorded else ""
    return ", ".join(part for part in (models, data, *sizes, steps) if part)


def describe_machine(results: pd.DataFrame) -> str:
    """The devices that runs were trained on, and the threads of each."""
    devices = list(dict.fromkeys(results["device"].dropna()))
    threads = counted(results["threads"])
    names = ", ".join("CPU" if _is_cpu(device) else device for device in devices)
    if not names:
        return "not known yet, no run has ended"
    return f"{names}, {threads} thread{'' if threads == '1' else 's'} a run" if threads else names


def _is_cpu(device: str) -> bool:
    return device.lower().startswith("cpu")


def render(tables: StudyTables, drawings: Sequence[Drawing], scale: str, machine: str) -> str:
    """The page's HTML.

    Args:
        tables: The study's tables.
        drawings: Its figures.
        scale: :func:`describe_scale`.
        machine: :func:`describe_machine`.
    """
    reading, results, outcomes = tables.reading, tables.results, tables.outcomes
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("yolo_gradstudy"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    devices = list(dict.fromkeys(results["device"].dropna()))
    by_kind = {kind: [d for d in drawings if d.name.startswith(kind)] for kind in _KINDS}
    root = f"{reading.folder.path}/"
    run_damage = [sentence for r in reading.readings if r.run is not None for sentence in r.run.damaged]
    damaged = [s.replace(root, "") for s in dict.fromkeys([*reading.damaged, *run_damage])]
    return environment.get_template("report.html.j2").render(
        name=str(reading.study.get("name", reading.folder.path.name)),
        description=str(reading.study.get("description") or ""),
        folder=reading.folder.path.name,
        status=_status(reading.readings),
        lead=_lead(outcomes),
        device_word="CPU results" if devices and all(map(_is_cpu, devices)) else "",
        facts=_facts(reading, results, scale, machine),
        outcome_text=_records(outcome_text_table(results)),
        outcomes=[row for row in _records(outcomes) if row["count"] or row["outcome"] == UNHEALTHY],
        answers=_shown(tables.answers),
        runs=_records(results.map(lambda v: v.replace(root, "") if isinstance(v, str) else v)),
        styles={str(outcome): style for outcome, style in OUTCOMES.items()},
        drawings=by_kind,
        not_drawn=tables.not_drawn,
        unchecked=_unchecked(reading.readings, root),
        damaged=damaged,
    )


_KINDS = ("outcome_grid", "unhealthy_rate", "gradient_norms", "target_scores", "layers")


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts, None where missing."""
    return [
        {str(k): None if pd.isna(v) else v for k, v in row.items()} for row in frame.astype("object").to_dict("records")
    ]


def _number(value: Any, digits: int = 4) -> str:
    """A number for people; ``–`` where missing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)


def _status(readings: Sequence[RunReading]) -> str:
    """How far the study is."""
    ended = sum(r.result is not None for r in readings)
    begun = sum(r.result is None and r.run is not None for r in readings)
    text = f"{ended} of {len(readings)} runs have ended"
    if begun:
        text += f", {begun} began and did not end"
    waiting = len(readings) - ended - begun
    return text + (f", {waiting} left no record." if waiting else ".")


def _lead(outcomes: pd.DataFrame) -> list[str]:
    """The counts that answer the question, a sentence an arm."""
    sentences = []
    for arm, rows in outcomes[outcomes["outcome"] == UNHEALTHY].groupby("arm", sort=False):
        rates = [
            f"{row['count']} of {row['n']} at lr0 {row['lr0']:g}" for row in rows.to_dict("records") if row["n"] > 0
        ]
        if rates:
            sentences.append(f"{arm}: {', '.join(rates)}")
    return sentences


def _facts(reading: StudyReading, results: pd.DataFrame, scale: str, machine: str) -> list[tuple[str, str]]:
    """What was run, as words and what they say."""
    specs = [r.spec for r in reading.readings]
    ended = [r.result for r in reading.readings if r.result is not None]
    versions: dict[str, dict[str, None]] = {}
    for result in ended:
        for name, version in result.versions.items():
            versions.setdefault(name, {})[str(version)] = None
    common = dict(reading.study.get("arguments") or {})
    parameters = counted(pd.Series([r.parameters for r in ended], dtype="Int64"))
    facts = [
        ("Model", ", ".join(dict.fromkeys(spec.model for spec in specs))),
        ("Parameters", parameters),
        ("Data", ", ".join(dict.fromkeys(_named(spec.data) for spec in specs))),
        ("Arms", "; ".join(_arm_words(arm, specs) for arm in arm_order(spec.arm for spec in specs))),
        ("Learning rates", ", ".join(f"{lr0:g}" for lr0 in sorted({spec.lr0 for spec in specs}))),
        ("Seeds", ", ".join(str(seed) for seed in sorted({spec.seed for spec in specs}))),
        ("Training arguments", ", ".join(f"{key}={value}" for key, value in common.items())),
        ("Optimizer steps a run", counted(results["steps"])),
        ("Machine", machine),
        ("Versions", ", ".join(f"{name} {' / '.join(found)}" for name, found in sorted(versions.items()))),
    ]
    return [(word, said) for word, said in facts if said]


def _arm_words(arm: str, specs: Sequence[RunSpec]) -> str:
    ablations = next(spec.ablations for spec in specs if spec.arm == arm)
    return f"{arm} ({' + '.join(ablations)})" if ablations and ablations != (arm,) else arm


def _unchecked(readings: Sequence[RunReading], root: str) -> list[tuple[str, str, list[str]]]:
    """Rules that lacked what they need: rule, reason, runs; of runs that left a record."""
    found: dict[tuple[str, str], list[str]] = {}
    for reading in readings:
        if reading.run is None and reading.result is None and reading.diagnosis.outcome is Outcome.INTERRUPTED:
            continue  # nothing was recorded, which the status says
        for finding in reading.diagnosis.findings:
            if finding.state == "not checked" and not finding.explains:  # the page tells outcomes
                found.setdefault((finding.rule, finding.evidence.replace(root, "")), []).append(reading.spec.run_id)
    return [(rule, reason, runs) for (rule, reason), runs in found.items()]
