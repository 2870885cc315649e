# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study's tables and figures → the text of one self-contained HTML page.

The page needs no other file and no network: style and script stand in it, and a policy in its head lets nothing else
load or run. What it says is text also where scripts are off; the script sorts, filters and draws.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import pandas as pd
from markupsafe import Markup
from matplotlib.colors import to_hex

from yolo_gradstudy.figures.palette import OUTCOMES
from yolo_gradstudy.readings import ANSWERS, StudyReading, StudyTables, counted
from yolo_gradstudy.records import Outcome, RunReading, RunSpec
from yolo_gradstudy.report.answer import answer
from yolo_gradstudy.report.claims import Claim, Evidence, flow_frame, judge_claims, verdict_rule
from yolo_gradstudy.report.drawings import Drawing
from yolo_gradstudy.report.heatmap import BROKEN, DARKEST, FIRST, MISSING, ZERO, Packed, pack_courses
from yolo_gradstudy.tables import CONTROL, UNHEALTHY, arm_order, outcome_text_table

_SEARCHED = {
    "limits": "The largest stable learning rate of each arm and seed",
    "limit_ratios": "Octaves of learning rate against the control",
    "lr50": "The learning rate at which half of the runs break",
    "effects": "Effects of the crossed factors, in octaves of the largest stable rate",
}
"""Tables of a search besides, with their headings."""

_ON_THE_PAGE = (
    "effects", "limit_ratios", "lr50", "limits", "over_rates", "comparisons", "accuracy", "survival", "sensitivity",
    "saved",
)  # fmt: skip
"""Tables that the page shows, in this order; the others are long, and stand in their files."""


def _shown(answers: Mapping[str, pd.DataFrame]) -> list[tuple[str, str, list[str], list[dict[str, Any]]]]:
    """Name, heading, columns and rows of the tables that the page shows."""
    headings = {**{name: heading for name, (heading, _) in ANSWERS.items()}, **_SEARCHED}
    return [
        (name, headings[name], list(map(str, answers[name].columns)), _records(answers[name]))
        for name in _ON_THE_PAGE
        if name in answers and len(answers[name]) and (name != "accuracy" or not answers[name]["reason"].all())
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


def render(
    tables: StudyTables,
    drawings: Sequence[Drawing],
    scale: str,
    machine: str,
    claims: Sequence[Claim] | None = None,
    refresh_s: int | None = None,
) -> str:
    """The page's HTML.

    Args:
        tables: The study's tables.
        drawings: Its figures.
        scale: :func:`describe_scale`.
        machine: :func:`describe_machine`.
        claims: What the study says of claims; where None, those of :mod:`yolo_gradstudy.report.claims`.
        refresh_s: Seconds after which a browser reads the page again, for as long as runs have not ended.
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
    environment.filters["pixels"] = _pixels
    judged = _judged(tables) if claims is None else claims
    devices = list(dict.fromkeys(results["device"].dropna()))
    root = f"{reading.folder.path}/"
    run_damage = [sentence for r in reading.readings if r.run is not None for sentence in r.run.damaged]
    damaged = [s.replace(root, "") for s in dict.fromkeys([*reading.damaged, *run_damage])]
    ended = all(r.result is not None for r in reading.readings)
    style, script = _template("report.css") + _outcome_colours(), _template("report.js")
    rows = _records(results.map(lambda v: v.replace(root, "") if isinstance(v, str) else v))
    page = environment.get_template("report.html.j2").render(
        name=str(reading.study.get("name", reading.folder.path.name)),
        description=str(reading.study.get("description") or ""),
        folder=reading.folder.path.name,
        status=_status(reading.readings),
        answer=answer(results, tables.answers),
        claims=[claim for claim in judged if claim.experiments],
        untested=[claim for claim in judged if not claim.experiments],
        verdict_rule=verdict_rule(),
        device_word="CPU results" if devices and all(map(_is_cpu, devices)) else "",
        facts=_facts(reading, results, scale, machine),
        outcome_text=_records(outcome_text_table(results)),
        outcomes=[row for row in _records(outcomes) if row["count"] or row["outcome"] == UNHEALTHY],
        answers=(shown := _shown(tables.answers)),
        shown=[name for name, *_ in shown],
        runs=rows,
        has_error=any(row["error"] for row in rows),
        choices={key: list(dict.fromkeys(row[key] for row in rows)) for key in ("arm", "outcome", "lr0", "seed")},
        styles={str(outcome): style for outcome, style in OUTCOMES.items()},
        order={str(outcome): place for place, outcome in enumerate(OUTCOMES)},
        sections=_sections(drawings),
        held=_held(drawings),
        unchecked=_unchecked(reading.readings, root),
        damaged=damaged,
        refresh_s=None if ended else refresh_s,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_DATA,
    )
    budget = max(_LEAST_COURSES, PAGE_BYTES - len(page.encode()))
    before, _, after = page.rpartition(_DATA)  # the last: a description may hold the same words
    return before + _embedded(_data(tables, pack_courses(tables.courses, budget))) + after


def _judged(tables: StudyTables) -> list[Claim]:
    """The claims by the study's tables, and by what its layers did where that was recorded."""
    flow = flow_frame((r.spec, r.run) for r in tables.reading.readings)
    return judge_claims(Evidence(tables.results, tables.answers, flow))


PAGE_BYTES = 4_700_000
"""Bytes that a page may have, and a little for what is reckoned last; courses of runs take what is left of them."""

FIGURE_BYTES = 2_400_000
"""Bytes that figures may have in a page; those that come after lie beside it."""

_LEAST_COURSES = 1_000_000
"""Bytes that courses may have, however much the rest takes."""

_DATA = "@@courses of runs@@"

_COLOURS = 64
"""Of the colour map, between which the page draws lines."""


def _template(name: str) -> str:
    """A file of the templates; its first lines, which say of whom it is, stay."""
    return resources.files("yolo_gradstudy").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a page's policy names a script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _outcome_colours() -> str:
    """The outcomes' badges as CSS: a policy forbids styles in attributes."""
    return "".join(
        f".o-{outcome} {{ background: {style.colour}; color: {style.ink}; }}\n" for outcome, style in OUTCOMES.items()
    )


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that no HTML parser can take for an end of its element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(tables: StudyTables, packed: Packed) -> dict[str, Any]:
    """What the page's script reads."""
    specs = {r.spec.run_id: r.spec for r in tables.reading.readings}
    # A run is compared with the control of its seed, at its own rate or else at the smallest that is here.
    controls: dict[tuple[int, float], str] = {}
    for run_id in packed.runs:
        spec = specs[run_id]
        if spec.arm == CONTROL:
            controls[spec.seed, spec.lr0] = run_id
    runs = []
    for run_id, run in packed.runs.items():
        spec = specs[run_id]
        of_seed = sorted(lr0 for seed, lr0 in controls if seed == spec.seed)
        rate = spec.lr0 if spec.lr0 in of_seed and spec.arm != CONTROL else of_seed[0] if of_seed else None
        control = None if rate is None else controls[spec.seed, rate]
        label = f"{spec.arm}, lr0 {spec.lr0:g}, seed {spec.seed}"
        runs.append({"id": run_id, "label": label, "control": None if control == run_id else control, **run})
    place = {run_id: n for n, run_id in enumerate(specs)}
    blocks = list(dict.fromkeys(packed.blocks))
    return {
        "names": packed.names,
        "blocks": blocks,
        "block": [blocks.index(block) for block in packed.blocks],
        "codes": {"missing": MISSING, "zero": ZERO, "broken": BROKEN, "first": FIRST},
        "darkest": DARKEST,
        "map": "".join(to_hex(matplotlib.colormaps["viridis"](n / (_COLOURS - 1)))[1:] for n in range(_COLOURS)),
        "recorded": sum(r.run is not None for r in tables.reading.readings),
        "runs": sorted(runs, key=lambda run: place[run["id"]]),
    }


_SECTIONS = (
    ("rates", "Share of unhealthy runs", ("unhealthy_rate", "incidence")),
    ("limits", "Learning rates", ("largest_stable", "sensitivity_curves", "accuracy")),
    (
        "trajectories",
        "Trajectories",
        ("gradient_norms", "target_scores", "loss_and_scores", "clip_share", "update_ratios", "amp_scale"),
    ),
    ("depth", "By depth", ("gradient_depth", "gains")),
)
"""Sections of figures besides that of outcomes: id, heading, and the kinds of which they are."""

_ELSEWHERE = ("outcome_grid", "layers")
"""Kinds of figures that stand elsewhere on the page, or that it draws itself."""


def _kind(drawing: Drawing) -> str:
    return drawing.name.split("-")[0]


def _sections(drawings: Sequence[Drawing]) -> dict[str, Any]:
    """Figures by section; what no section names has one of its own."""
    known = [kind for _, _, kinds in _SECTIONS for kind in kinds]
    found = [
        (name, heading, [d for kind in kinds for d in drawings if _kind(d) == kind])
        for name, heading, kinds in _SECTIONS
    ]
    more = [d for d in drawings if _kind(d) not in (*known, *_ELSEWHERE)]
    return {
        "outcomes": [d for d in drawings if _kind(d) == "outcome_grid"],
        "figures": [section for section in (*found, ("more", "More figures", more)) if section[2]],
    }


def _pixels(png: bytes) -> tuple[int, int]:
    """Width and height from a PNG's header: a page that knows them does not move while pictures are decoded."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _held(drawings: Sequence[Drawing]) -> set[str]:
    """Names of the figures that there is room for: what comes first on the page, and of the rest what still fits."""
    sections = _sections(drawings)
    held, size = set(), 0
    for drawing in (*sections["outcomes"], *(d for _, _, drawn in sections["figures"] for d in drawn)):
        if size + len(drawing.source) <= FIGURE_BYTES:
            size += len(drawing.source)
            held.add(drawing.name)
    return held


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
        return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.{digits}g}"
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
