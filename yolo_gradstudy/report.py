# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables and figures of a study's folder → CSV, PNG and SVG files and one self-contained HTML page.

Everything is derived from what the runs recorded, at the moment of reading; the same folder gives the same
files, byte for byte.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from yolo_gradstudy.figures import (
    plot_gradient_norms,
    plot_layer_heatmap,
    plot_outcome_grid,
    plot_target_scores,
    plot_unhealthy_rate,
    write_caption,
)
from yolo_gradstudy.figures.palette import OUTCOMES
from yolo_gradstudy.readings import ANSWERS, Judge, StudyReading, StudyTables, counted, write_tables
from yolo_gradstudy.records import Outcome, RunReading, RunSpec
from yolo_gradstudy.run_folder import replacing, write_text
from yolo_gradstudy.tables import CONTROL, UNHEALTHY, arm_order, outcome_text_table

_STYLE: tuple[tuple[Any, Any], ...] = (
    ("font.size", 9.0),
    ("svg.hashsalt", "yolo_gradstudy"),
    ("figure.facecolor", "white"),
    ("hatch.linewidth", 0.5),
)
_PANELS_ACROSS = 3
_WIDEST_SHARED_DECADES = 12.0
"""Panels whose norms together span more decades have an axis each."""


@dataclass(frozen=True)
class Drawing:
    """One figure of the report.

    Attributes:
        name: The files' name without its ending.
        title: Heading.
        alt: What it shows, for those who do not see it.
        png: The file's bytes.
        svg: The file's bytes.
    """

    name: str
    title: str
    alt: str
    png: bytes
    svg: bytes

    @property
    def source(self) -> str:
        """The PNG as a ``data:`` URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def write_report(study_dir: Path, judge: Judge | None = None, processes: int = 1) -> Path:
    """Write ``results.csv`` and the folder ``report/`` of a study that may be partly finished.

    Args:
        study_dir: The study's folder.
        judge: Gives the verdicts; where None, :class:`yolo_gradstudy.diagnoses.StudyJudge`.
        processes: As :func:`yolo_gradstudy.readings.write_tables`.

    Returns:
        The path of ``report/index.html``, which needs no other file.

    Raises:
        ValueError: The folder holds no study.
    """
    tables = write_tables(study_dir, judge, processes)
    folder = tables.reading.folder
    scale, machine = _scale(tables), _machine(tables.results)
    caption = {"scale": scale, "machine": machine}
    with _style():
        drawings = list(_draw(tables, caption))
    for drawing in drawings:
        for ending, data in ((".png", drawing.png), (".svg", drawing.svg)):
            with replacing(folder.report_path / f"{drawing.name}{ending}") as file:
                file.write(data)

    page = folder.report_path / "index.html"
    write_text(page, _render(tables, drawings, scale, machine))
    return page


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


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's defaults and this report's style for a while, whatever the person's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for key, value in _STYLE:
            matplotlib.rcParams[key] = value
        yield


def _draw(tables: StudyTables, caption: Mapping[str, str]) -> Iterator[Drawing]:
    results, outcomes, layers = tables.results, tables.outcomes, tables.layers
    # A search has its runs at many rates, a few each: curves of every rate would hide what it found.
    trajectories = tables.trajectories.iloc[:0] if tables.reading.is_search else tables.trajectories
    arms = arm_order(results["arm"])
    rates = sorted(results["lr0"].unique())
    ordered = results.sort_values("arm", key=lambda names: names.map(arms.index), kind="stable")

    figure = _figure(3.2 + 1.3 * max(len(rates), 2), 1.3 + 0.42 * len(arms))
    plot_outcome_grid(ordered, figure.subplots())
    yield _saved(figure, "outcome_grid", "Outcome of each run", "Outcomes by arm and learning rate", caption)

    figure = _figure(4.0 + 1.5 * max(len(rates), 2), max(4.0, 1.2 + 0.24 * len(arms)))  # a line of the legend an arm
    plot_unhealthy_rate(outcomes, figure.subplots(), arms=arms)
    yield _saved(
        figure, "unhealthy_rate", "Share of unhealthy runs", "Unhealthy share by learning rate and arm", caption
    )

    for lr0 in rates:
        at_rate = trajectories[trajectories["lr0"] == lr0]
        if at_rate.empty:
            continue
        for name, title, plot in (
            ("gradient_norms", "Gradient norm", plot_gradient_norms),
            ("target_scores", "Target scores of the inference branch", plot_target_scores),
        ):
            if name == "target_scores" and at_rate["target_scores_median"].isna().all():
                continue
            extra = {"clip_norm": tables.clip_norm} if name == "gradient_norms" else {}
            heading = f"{title} at lr0 {lr0:g}"
            figure = _panels(f"{heading}: median over seeds, band from least to largest", at_rate, arms, plot, **extra)
            yield _saved(figure, f"{name}-lr0_{lr0:g}", heading, f"{title} over the steps, a panel an arm", caption)

    specs = {r.spec.run_id: r for r in tables.reading.readings}
    for run_id, frame in layers.items():
        spec = specs[run_id].spec
        figure = _figure(6.4, 5.4, dpi=100)
        plot_layer_heatmap(frame, figure.subplots())
        title = f"{spec.arm}, lr0 {spec.lr0:g}, seed {spec.seed}: {specs[run_id].diagnosis.outcome}"
        figure.suptitle(f"{title} (n = 1 run)", fontsize=10)
        yield _saved(
            figure, f"layers-{run_id}", title, f"Gradient norm of every layer at every step of {run_id}", caption
        )


def _panels(
    title: str, trajectories: pd.DataFrame, arms: Sequence[str], plot: Callable[..., None], **extra: Any
) -> Figure:
    """A panel an arm, each with the control for comparison, and one legend."""
    present = [arm for arm in arms if (trajectories["arm"] == arm).any()]
    shown = [arm for arm in present if arm != CONTROL] or present
    across = min(_PANELS_ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    figure = _figure(max(3.3 * across, 5.0), 2.5 * down + 1.1)
    norms = trajectories[["grad_norm_low", "grad_norm_high"]].to_numpy(dtype="float64")
    decades = np.log10(norms[norms > 0])
    wide = len(decades) > 0 and float(np.ptp(decades)) > _WIDEST_SHARED_DECADES
    shared = plot is plot_target_scores or not wide
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=shared)
    handles: dict[str, Any] = {}
    for place, ax in enumerate(axes.flat):
        if place >= len(shown):
            ax.set_axis_off()
            continue
        rows = trajectories[trajectories["arm"].isin([shown[place], CONTROL])]
        plot(rows, ax, arms=arms, legend=False, **extra)
        n = rows.loc[rows["arm"] == shown[place], "n"].max()
        ax.set_title(f"{shown[place]} (n = {n})", fontsize=9)
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            name = label.split(" (n = ")[0]
            if name not in shown or name == CONTROL:  # a panel's own arm stands in its title
                handles.setdefault(name, handle)
        ax.set_ylabel("") if place % across else None
        last_of_column = place + across >= len(shown)
        ax.set_xlabel("optimizer step" if last_of_column else "")
        ax.tick_params(labelbottom=last_of_column)
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=min(len(handles), 4), fontsize=8,
        frameon=False, title=title, title_fontsize=10.5,
    )  # fmt: skip
    return figure


def _figure(width: float, height: float, dpi: int = 120) -> Figure:
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _saved(figure: Figure, name: str, title: str, alt: str, caption: Mapping[str, str]) -> Drawing:
    write_caption(figure, caption)
    drawn, png, svg = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    # 256 colours are enough for a chart, and less than half the bytes: a page holds dozens of them.
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(png, format="png", optimize=True)
    figure.set_layout_engine("none")  # the layout stands; reckoning it again would take as long as drawing
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return Drawing(name, title, alt, png.getvalue(), svg.getvalue())


def _named(path: str) -> str:
    """A data set's name; of a path outside the project its last part only."""
    return Path(path).name if Path(path).is_absolute() else path


def _scale(tables: StudyTables) -> str:
    specs = [r.spec for r in tables.reading.readings]
    models = ", ".join(dict.fromkeys(spec.model for spec in specs))
    data = ", ".join(dict.fromkeys(_named(spec.data) for spec in specs))
    sizes = dict.fromkeys(f"{spec.arguments['imgsz']} px" for spec in specs if "imgsz" in spec.arguments)
    steps = f"{tables.recorded} steps recorded" if tables.recorded else ""
    return ", ".join(part for part in (models, data, *sizes, steps) if part)


def _machine(results: pd.DataFrame) -> str:
    devices = list(dict.fromkeys(results["device"].dropna()))
    threads = counted(results["threads"])
    names = ", ".join("CPU" if _is_cpu(device) else device for device in devices)
    if not names:
        return "not known yet, no run has ended"
    return f"{names}, {threads} thread{'' if threads == '1' else 's'} a run" if threads else names


def _is_cpu(device: str) -> bool:
    return device.lower().startswith("cpu")


def _render(tables: StudyTables, drawings: Sequence[Drawing], scale: str, machine: str) -> str:
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
