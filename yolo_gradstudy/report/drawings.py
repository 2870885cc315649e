# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study's tables → its figures, as PNG and SVG: which there are, their order, their sizes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from yolo_gradstudy.figures import FIGURES, write_caption
from yolo_gradstudy.readings import StudyTables, chosen_rates
from yolo_gradstudy.tables import CONTROL, UNHEALTHY, arm_order

_STYLE: tuple[tuple[Any, Any], ...] = (
    ("font.size", 9.0),
    ("svg.hashsalt", "yolo_gradstudy"),
    ("figure.facecolor", "white"),
    ("hatch.linewidth", 0.5),
)
_TITLE_LETTERS = 34
"""Letters of a panel's title that its width has room for at 9 points."""

_PANELS_ACROSS = 3
_NARROWEST = 6.6
"""Inches that a figure's title and the words at its foot take."""

_WIDEST_SHARED_DECADES = 12.0
"""Panels whose norms together span more decades have an axis each."""

_MINOR_TICKS = 100.0
"""Ends of a log axis further apart than by this factor need no ticks between powers; drawing them takes long."""


@dataclass(frozen=True)
class Drawing:
    """One figure of the report.

    Attributes:
        name: The files' name without its ending.
        title: Heading.
        alt: What it shows, for those who do not see it.
        plot: The name of its function in ``FIGURES``.
        data: What it was drawn from: the CSV file beside it, with no column that it does not use.
        png: The file's bytes.
        svg: The file's bytes.
    """

    name: str
    title: str
    alt: str
    plot: str
    data: pd.DataFrame
    png: bytes
    svg: bytes

    @property
    def source(self) -> str:
        """The PNG as a ``data:`` URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def draw(tables: StudyTables, caption: Mapping[str, str]) -> list[Drawing]:
    """Every figure of a study, in the order of the page.

    Args:
        tables: The study's tables.
        caption: What stands at each figure's foot.
    """
    with _style():
        return list(_draw(tables, caption))


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's defaults and this report's style for a while, whatever the person's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for key, value in _STYLE:
            matplotlib.rcParams[key] = value
        yield


@dataclass(frozen=True)
class _Sketch:
    """A figure that is drawn, but not yet saved."""

    name: str
    title: str
    alt: str
    plot: str
    data: pd.DataFrame
    figure: Figure


@dataclass(frozen=True)
class _Course:
    """A figure over the steps: a panel an arm, at a learning rate.

    Attributes:
        plot: The name of its function.
        title: Heading.
        quantities: What it draws of ``trajectories_table``.
        counts: Further columns that it draws.
        every_rate: Whether there is one at each learning rate, and not only at :func:`chosen_rates`.
        shared: Whether panels always have one axis, however many decades they span.
    """

    plot: str
    title: str
    quantities: tuple[str, ...]
    counts: tuple[str, ...] = ()
    every_rate: bool = False
    shared: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns that are drawn."""
        ends = [f"{quantity}_{end}" for quantity in self.quantities for end in ("median", "low", "high")]
        return ["arm", "lr0", "step", "n", *self.counts, *ends, "ended", "ended_as"]

    def says(self, rows: pd.DataFrame) -> bool:
        """Whether there is something to see: of a loss scale, that it changes or that steps are skipped."""
        if self.quantities == ("amp_scale",):
            return bool((rows["skipped"] > 0).any() or rows["amp_scale_low"].min() < rows["amp_scale_high"].max())
        return bool(rows[[f"{quantity}_median" for quantity in self.quantities]].notna().any().all())


_COURSES = {
    "gradient_norms": _Course("plot_gradient_norms", "Gradient norm", ("grad_norm",), ("nonfinite",), True),
    "target_scores": _Course(
        "plot_target_scores", "Target scores of the inference branch", ("target_scores",), (), True, True
    ),
    "loss_and_scores": _Course("plot_loss_and_scores", "Training loss beside target scores", ("loss", "target_scores")),
    "clip_share": _Course("plot_clip_share", "Share of clipped steps", ("clipped_share",), (), False, True),
    "update_ratios": _Course("plot_update_ratios", "Update-to-weight ratio", ("update_ratio",)),
    "amp_scale": _Course("plot_amp_scale", "AMP loss scale", ("amp_scale",), ("skipped",)),
}
"""Figures over the steps, by the beginning of their names."""


def _draw(tables: StudyTables, caption: Mapping[str, str]) -> Iterator[Drawing]:
    for sketch in _sketches(tables):
        yield _saved(sketch, caption)


def _sketches(tables: StudyTables) -> Iterator[_Sketch]:
    arms, rates = arm_order(tables.results["arm"]), sorted(tables.results["lr0"].unique())
    yield from _outcomes(tables, arms, len(rates))
    if tables.reading.is_search:
        # A search has its runs at many rates, a few each: curves of every rate would hide what it found.
        yield from _limits(tables, arms)
        return
    yield from _answers(tables, arms, rates)
    for lr0 in rates:
        yield from _courses(tables, arms, lr0, lr0 in chosen_rates(rates))
    for lr0 in chosen_rates(rates):
        yield from _depths(tables, arms, lr0)
    yield from _heatmaps(tables)


def _outcomes(tables: StudyTables, arms: Sequence[str], rates: int) -> Iterator[_Sketch]:
    runs = tables.results[["run_id", "arm", "lr0", "seed", "outcome"]]
    runs = runs.sort_values("arm", key=lambda names: names.map(arms.index), kind="stable")
    figure = _figure(3.2 + 1.3 * max(rates, 2) + _room(arms), 1.3 + 0.42 * len(arms))
    FIGURES["plot_outcome_grid"](runs, figure.subplots())
    alt = "Outcomes by arm and learning rate"
    yield _Sketch("outcome_grid", "Outcome of each run", alt, "plot_outcome_grid", runs, figure)

    shares = tables.outcomes[tables.outcomes["outcome"] == UNHEALTHY]
    figure = _figure(4.0 + 1.5 * max(rates, 2), max(4.0, 1.2 + 0.24 * len(arms)))  # a line of the legend an arm
    FIGURES["plot_unhealthy_rate"](shares, figure.subplots(), arms=arms)
    alt = "Unhealthy share by learning rate and arm"
    yield _Sketch("unhealthy_rate", "Share of unhealthy runs", alt, "plot_unhealthy_rate", shares, figure)


def _room(arms: Sequence[str]) -> float:
    """Inches that names of arms at the left take beyond the usual ones."""
    return 0.08 * max(0, max(map(len, arms), default=0) - 24)


def _limits(tables: StudyTables, arms: Sequence[str]) -> Iterator[_Sketch]:
    limits, ratios = tables.answers["limits"], tables.answers["limit_ratios"]
    if limits[["largest_stable", "first_broken"]].isna().all(axis=None):
        return
    answers = ratios[["arm", "limit_median", "median_bound", "n", "log2_ratio", "t_low", "t_high"]]
    edges = limits[["arm", "seed", "largest_stable", "first_broken", "bound"]]
    frame = edges.merge(answers.rename(columns={"n": "pairs"}), on="arm", how="left")
    figure = _figure(8.4 + _room(arms), 1.5 + 0.55 * len(arms))
    FIGURES["plot_limits"](frame, figure.subplots(), arms=arms)
    figure.suptitle(
        "Where training breaks, and octaves against the control, paired by seed [Student's 95%]", fontsize=10
    )
    alt = "The largest stable and the first broken learning rate of each seed, by arm"
    yield _Sketch("largest_stable", "The largest stable learning rates", alt, "plot_limits", frame, figure)


def _answers(tables: StudyTables, arms: Sequence[str], rates: Sequence[float]) -> Iterator[_Sketch]:
    curves = tables.answers["sensitivity_curves"]
    if curves["loss_median"].notna().any():
        figure = _figure(4.0 + 1.3 * max(len(rates), 3), max(3.6, 1.4 + 0.24 * len(arms)))
        FIGURES["plot_sensitivity"](curves, figure.subplots(), arms=arms)
        title = "Loss at each learning rate: median over seeds, bars from least to largest"
        figure.suptitle(title, fontsize=10)
        alt = "The loss that each arm ends with, against the learning rate"
        yield _Sketch("sensitivity_curves", "Learning-rate sensitivity", alt, "plot_sensitivity", curves, figure)

    accuracy = tables.answers["accuracy"]
    if (accuracy["map50_95"].notna() & (accuracy["reason"] == "")).any():
        figure = _figure(4.0 + 1.5 * max(len(rates), 2), max(4.0, 1.2 + 0.24 * len(arms)))
        FIGURES["plot_accuracy"](accuracy, figure.subplots(), arms=arms)
        alt = "mAP50-95 at the end of training by learning rate and arm"
        yield _Sketch("accuracy", "Detection accuracy", alt, "plot_accuracy", accuracy, figure)

    incidence = tables.answers["incidence"]
    events = incidence[incidence["lr0"].isin(chosen_rates(rates)) & (incidence["cause"] == UNHEALTHY)]
    shown = [arm for arm in arms if (events.loc[events["arm"] == arm, "incidence"] > 0).any()]
    if shown:
        frame = incidence[incidence["lr0"].isin(chosen_rates(rates)) & incidence["arm"].isin(shown)]
        title = "Share of runs that have gone wrong by a step"
        alt = f"{title}, a row an arm and a column a learning rate"
        yield _Sketch("incidence", title, alt, "plot_incidence", incidence, _incidence_grid(frame, shown, title))


def _incidence_grid(incidence: pd.DataFrame, arms: Sequence[str], title: str) -> Figure:
    """A row an arm, a column a learning rate."""
    rates = sorted(incidence["lr0"].unique())
    figure = _figure(max(2.6 * len(rates) + 0.6, _NARROWEST), 1.4 * len(arms) + 1.5)
    axes = figure.subplots(len(arms), len(rates), squeeze=False, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for (row, column), ax in np.ndenumerate(axes):
        rows = incidence[(incidence["arm"] == arms[row]) & (incidence["lr0"] == rates[column])]
        FIGURES["plot_incidence"](rows, ax, last_step=int(incidence["step"].max()), legend=False)
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
        n = f"n = {rows['n'].max()}" if len(rows) else "n = 0"
        ax.set_title(f"{arms[row]}\nlr0 {rates[column]:g} ({n})", fontsize=7.5)
        ax.set_ylabel("share gone wrong" if column == 0 else "", fontsize=8)
        ax.set_xlabel("optimizer step" if row == len(arms) - 1 else "")
        ax.tick_params(labelsize=7.5)
    order = sorted(handles, key=lambda label: label.startswith("any"))
    _legend(figure, {label: handles[label] for label in order}, f"{title} (Aalen–Johansen, 95%)")
    return figure


def _courses(tables: StudyTables, arms: Sequence[str], lr0: float, chosen: bool) -> Iterator[_Sketch]:
    at_rate = tables.trajectories[tables.trajectories["lr0"] == lr0]
    for name, course in _COURSES.items():
        if at_rate.empty or not (chosen or course.every_rate) or not course.says(at_rate):
            continue
        rows = at_rate[course.columns]
        extra = {"clip_norm": tables.clip_norm} if name == "gradient_norms" else {}
        title = f"{course.title} at lr0 {lr0:g}"
        heading = f"{title}: median over seeds, band from least to largest"
        shared = course.shared or _decades(rows, course.quantities[:1]) <= _WIDEST_SHARED_DECADES
        plot = partial(FIGURES[course.plot], arms=arms, legend=False, **extra)
        alt = f"{course.title} over the steps, a panel an arm"
        figure = _panels(heading, rows, arms, plot, shared)
        yield _Sketch(f"{name}-lr0_{lr0:g}", title, alt, course.plot, rows, figure)


def _depths(tables: StudyTables, arms: Sequence[str], lr0: float) -> Iterator[_Sketch]:
    for name, title, table, shared_by in (
        ("gradient_depth", "Gradient by depth", tables.gradient_depth, "grad_norm"),
        ("gains", "Gains by depth", tables.gains, "forward_gain"),
    ):
        rows = table[table["lr0"] == lr0]
        if rows.empty:
            continue
        shared = _decades(rows, (shared_by,)) <= _WIDEST_SHARED_DECADES
        plot = partial(FIGURES[f"plot_{name}"], legend=False)
        heading = f"{title} at lr0 {lr0:g}: median over seeds, band from least to largest"
        figure = _panels(heading, rows, arms, plot, shared, with_control=False)
        alt = f"{title} at a few moments of the training, a panel an arm"
        yield _Sketch(f"{name}-lr0_{lr0:g}", f"{title} at lr0 {lr0:g}", alt, f"plot_{name}", rows, figure)


def _heatmaps(tables: StudyTables) -> Iterator[_Sketch]:
    readings = {r.spec.run_id: r for r in tables.reading.readings}
    for run_id, frame in tables.layers.items():
        spec = readings[run_id].spec
        figure = _figure(6.4, 5.4, dpi=100)
        FIGURES["plot_layer_heatmap"](frame, figure.subplots())
        title = f"{spec.arm}, lr0 {spec.lr0:g}, seed {spec.seed}: {readings[run_id].diagnosis.outcome}"
        figure.suptitle(f"{title} (n = 1 run)", fontsize=10)
        alt = f"Gradient norm of every layer at every step of {run_id}"
        yield _Sketch(f"layers-{run_id}", title, alt, "plot_layer_heatmap", frame, figure)


def _decades(rows: pd.DataFrame, quantities: Sequence[str]) -> float:
    """How many decades quantities span from their least ``low`` to their largest ``high``."""
    values = rows[[f"{quantity}_{end}" for quantity in quantities for end in ("low", "high")]].to_numpy(dtype="float64")
    decades = np.log10(values[values > 0])
    return float(np.ptp(decades)) if len(decades) else 0.0


def _panels(
    title: str,
    frame: pd.DataFrame,
    arms: Sequence[str],
    plot: Callable[..., None],
    shared: bool,
    with_control: bool = True,
) -> Figure:
    """A panel an arm and one legend; with the control in each for comparison, or in one of its own."""
    present = [arm for arm in arms if (frame["arm"] == arm).any()]
    shown = ([arm for arm in present if arm != CONTROL] or present) if with_control else present
    across = min(_PANELS_ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    one_below = with_control or _are_same_places(frame)  # else each panel has names of blocks of its own
    height = 2.5 * down + 1.1 if with_control else 2.5 * down + 2.0 if one_below else 3.4 * down + 1.1
    figure = _figure(max(3.3 * across, _NARROWEST), height)
    axes = figure.subplots(down, across, squeeze=False, sharex=one_below, sharey=shared)
    handles: dict[str, Any] = {}
    for place, ax in enumerate(axes.flat):
        if place >= len(shown):
            ax.set_axis_off()
            continue
        drawn = [shown[place], *([CONTROL] if with_control else [])]
        plot(frame[frame["arm"].isin(drawn)], ax)
        n = frame.loc[frame["arm"] == shown[place], "n"].max()
        told = "" if with_control else f"\n{_moments(frame[frame['arm'] == shown[place]])}"
        heading = f"{shown[place]} (n = {n})"
        ax.set_title(f"{heading}{told}", fontsize=9 * min(1.0, _TITLE_LETTERS / len(heading)))
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            name = _without_own_arm(label, shown[place]).split(" (step")[0]  # panels may differ in their steps
            if name:
                handles.setdefault(name, handle)
        ax.set_ylabel("") if place % across else None
        last_of_column = place + across >= len(shown)
        ax.tick_params(labelbottom=last_of_column or not one_below)
        ax.set_xlabel(ax.get_xlabel() if last_of_column else "")
    for ax in axes.flat:
        low, high = ax.get_ylim()
        if ax.get_yscale() == "log" and high > _MINOR_TICKS * low:
            ax.yaxis.set_minor_locator(NullLocator())
    _legend(figure, handles, title)
    return figure


def _are_same_places(frame: pd.DataFrame) -> bool:
    """Whether tensors or modules are the same in all arms, so that panels can share their names."""
    name = "tensor" if "tensor" in frame else "module"
    return len({tuple(dict.fromkeys(rows[name])) for _, rows in frame.groupby("arm")}) == 1


def _moments(rows: pd.DataFrame) -> str:
    """The steps of one arm's moments, as ``steps 1, 24, 48 and 96``."""
    ends = [(group["step_low"].min(), group["step_high"].max()) for _, group in rows.groupby("moment", sort=False)]
    told = [f"{low}" if low == high else f"{low}–{high}" for low, high in ends]
    return f"steps {', '.join(told[:-1])} and {told[-1]}" if len(told) > 1 else f"step {told[0]}"


def _without_own_arm(label: str, arm: str) -> str:
    """A label without n, and without the arm that stands in the panel's title; empty where nothing is left."""
    name = label.split(" (n = ")[0]
    if arm == CONTROL:
        return name
    return "" if name == arm else name.removesuffix(f", {arm}")


def _legend(figure: Figure, handles: Mapping[str, Any], title: str) -> None:
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=min(len(handles), 4), fontsize=8,
        frameon=False, title=title, title_fontsize=10.5,
    )  # fmt: skip


def _figure(width: float, height: float, dpi: int = 120) -> Figure:
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _saved(sketch: _Sketch, caption: Mapping[str, str]) -> Drawing:
    figure = sketch.figure
    write_caption(figure, caption)
    drawn, png, svg = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    # 256 colours are enough for a chart, and less than half the bytes: a page holds dozens of them.
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(png, format="png", optimize=True)
    figure.set_layout_engine("none")  # the layout stands; reckoning it again would take as long as drawing
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return Drawing(sketch.name, sketch.title, sketch.alt, sketch.plot, sketch.data, png.getvalue(), svg.getvalue())
