# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study's tables → its figures, as PNG and SVG: which there are, their order, their sizes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
from yolo_gradstudy.readings import StudyTables
from yolo_gradstudy.tables import CONTROL, arm_order

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
