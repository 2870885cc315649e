# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers with intervals: cumulative incidence, the largest stable rate, learning-rate sensitivity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from yolo_gradstudy.figures.marks import finish, numbers, one_of
from yolo_gradstudy.figures.palette import BLACK, GREY, OUTCOMES, arm_styles
from yolo_gradstudy.records import Outcome

_ALL = "unhealthy"
_CAUSE_LINES: dict[Outcome, Any] = {
    Outcome.NONFINITE: (0, (1, 1)),
    Outcome.EXPLODED: (0, (4, 1, 1, 1)),
    Outcome.COLLAPSED: (0, (4, 1.5)),
    Outcome.STUCK: (0, (8, 2)),
}


def plot_incidence(incidence: pd.DataFrame, ax: Axes, *, last_step: int | None = None, legend: bool = True) -> None:
    """Draw the share of runs that have gone wrong by a step, all causes together and each of those that compete.

    Args:
        incidence: ``incidence_table`` of one arm at one learning rate (Aalen–Johansen).
        ax: Where to draw. The band is the 95% interval of all causes together.
        last_step: Where lines end; the frame's last step if left out.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several arms or learning rates.
    """
    one_of(incidence, "arm", "lr0")
    end = last_step if last_step is not None else int(incidence["step"].max()) if len(incidence) else 1
    edge = end * 1.04  # what happens at the last step is seen
    for cause, rows in incidence.groupby("cause", sort=False):
        x = np.append(rows["step"].to_numpy(dtype="float64"), edge)
        share, low, high = (np.append(v, v[-1]) for v in (numbers(rows, n) for n in ("incidence", "low", "high")))
        if cause == _ALL:
            ax.fill_between(x, low, high, step="post", color=BLACK, alpha=0.12, linewidth=0)
            ax.step(x, share, where="post", color=BLACK, linewidth=1.0, label="any of them, 95% band", zorder=2)
        elif share.any():
            outcome = Outcome(str(cause))
            ax.step(
                x, share, where="post", color=OUTCOMES[outcome].colour, linestyle=_CAUSE_LINES[outcome], linewidth=2.2,
                label=f"{OUTCOMES[outcome].letter}  {cause}", zorder=3, solid_capstyle="butt", dash_capstyle="butt",
                path_effects=[patheffects.Stroke(linewidth=3.0, foreground=BLACK), patheffects.Normal()],
            )  # fmt: skip
    ax.set_xlim(0, edge)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.set_ylim(-0.04, 1.04)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("share gone wrong")
    finish(ax, incidence.empty, legend, "no run has an outcome yet")


def plot_sensitivity(curves: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None) -> None:
    """Draw the loss that arms end with against the learning rate: the flatter, the less a wrong rate costs.

    Args:
        curves: ``sensitivity_curves_table``.
        ax: Where to draw: the median over seeds with bars from least to largest. Hollow marks are of rates at which
            some seed counts as the initial loss, since it broke or ended above it.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
    """
    styles = arm_styles(arms if arms is not None else curves["arm"])
    known = curves[curves["loss_median"].notna()]
    names = list(dict.fromkeys(known["arm"]))
    for place, (arm, rows) in enumerate(known.groupby("arm", sort=False)):
        style = styles[str(arm)]
        # Bars of one rate stand side by side.
        x = numbers(rows, "lr0") * 1.035 ** (place - (len(names) - 1) / 2)
        middle, low, high = (numbers(rows, f"loss_{end}") for end in ("median", "low", "high"))
        ax.errorbar(
            x, middle, yerr=np.array([middle - low, high - middle]), color=style.colour, linestyle=style.line,
            linewidth=1.3, elinewidth=0.9, capsize=2, marker="none", zorder=2,
        )  # fmt: skip
        ax.plot([], [], color=style.colour, linestyle=style.line, marker=style.marker, markersize=5,
                label=f"{arm} (n = {rows['n'].max()})")  # fmt: skip
        for at, height, capped in zip(x, middle, rows["n_capped"] > 0, strict=True):
            ax.plot(at, height, marker=style.marker, markersize=5, color=style.colour, linestyle="none",
                    markerfacecolor="white" if capped else style.colour, zorder=3)  # fmt: skip
    if len(known):
        initial = float(known["initial_loss"].median())
        ax.axhline(initial, color=GREY, linestyle=(0, (4, 2)), linewidth=1, label=f"untrained: {initial:.3g}", zorder=1)
    if (known["n_capped"] > 0).any():
        ax.plot([], [], linestyle="none", marker="o", color=GREY, markerfacecolor="white",
                label="a seed counts as untrained")  # fmt: skip
    ax.set_xscale("log")
    rates = sorted(curves["lr0"].unique())
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("learning rate lr0 (bars of one rate stand side by side)")
    ax.set_ylabel("fixed-assignment loss, nats an object")
    finish(ax, known.empty, False, "no seed has a verdict and a loss at every rate")
    if len(known):
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)


def plot_limits(limits: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None) -> None:
    """Draw between which learning rates each seed's training breaks, by arm, with what it comes to against the control.

    Args:
        limits: ``limits_table`` joined with its arm's row of ``limit_ratios_table``: ``arm``, ``seed``,
            ``largest_stable``, ``first_broken``, ``bound``, ``limit_median``, ``median_bound``, ``pairs``,
            ``log2_ratio``, ``t_low`` and ``t_high`` are used.
        ax: Where to draw. A seed is a bar from its largest stable rate (dot) to the first that breaks (cross); an
            arrow where only one of the two is known. The long tick is the arm's median.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
    """
    styles = arm_styles(arms if arms is not None else limits["arm"])
    names = list(dict.fromkeys(limits["arm"]))
    for place, arm in enumerate(names):
        rows = limits[limits["arm"] == arm]
        heights = place + np.linspace(-0.28, 0.28, len(rows)) * (len(rows) > 1)
        for height, (_, seed) in zip(heights, rows.iterrows(), strict=True):
            _draw_edge(ax, float(height), seed, styles[str(arm)].colour)
        _draw_answer(ax, place, rows.iloc[0], styles[str(arm)].colour)
    ax.set_xscale("log", base=2)
    rates = pd.concat([limits["largest_stable"], limits["first_broken"]]).dropna()
    if len(rates):
        ax.set_xlim(rates.min() / 1.7, rates.max() * 1.7)
        ticks = 2.0 ** np.arange(math.floor(math.log2(rates.min())), math.ceil(math.log2(rates.max())) + 1)
        ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], fontsize=8)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.set_xlabel("learning rate lr0, an octave a tick")
    for marker, face, text in (("o", BLACK, "largest stable rate of a seed"), ("x", BLACK, "smallest that breaks it")):
        ax.plot([], [], linestyle="none", marker=marker, color=face, markersize=4, label=text)
    ax.plot(
        [], [], linestyle="none", marker="|", color=BLACK, markersize=12, markeredgewidth=2, label="median of seeds"
    )
    finish(ax, limits.empty, False, "no run has an outcome yet")
    ax.grid(axis="y", visible=False)
    if len(limits):
        ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=8, borderaxespad=0.2)


def _draw_edge(ax: Axes, height: float, seed: pd.Series[Any], colour: str) -> None:
    """One seed's bar, or an arrow where one end is not known."""
    stable, broken = float(seed["largest_stable"]), float(seed["first_broken"])
    if not math.isnan(stable) and not math.isnan(broken):
        ax.plot([stable, broken], [height, height], color=colour, linewidth=1.6, solid_capstyle="butt")
    for rate, other, factor in ((stable, broken, 1.35), (broken, stable, 1 / 1.35)):
        if not math.isnan(rate) and math.isnan(other):
            arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (rate * factor, height), xytext=(rate, height), arrowprops=arrow)
    ax.plot(stable, height, marker="o", markersize=4, color=colour, linestyle="none")
    ax.plot(broken, height, marker="x", markersize=4, color=colour, linestyle="none")


def _draw_answer(ax: Axes, place: int, row: pd.Series[Any], colour: str) -> None:
    """The median as a long tick, and at the right the octaves against the control with Student's interval."""
    median, bound = float(row["limit_median"]), row["median_bound"]
    if not math.isnan(median):
        ax.plot([median, median], [place - 0.4, place + 0.4], color=colour, linewidth=2.2, alpha=0.6, zorder=1)
    told = f"{'' if pd.isna(bound) or not bound else f'{bound} '}{median:.3g}" if not math.isnan(median) else "no limit"
    if not pd.isna(row["log2_ratio"]):
        told += f"\n{_signed(row['log2_ratio'])} octaves"
        if not pd.isna(row["t_low"]):
            told += f" [{_signed(row['t_low'])}, {_signed(row['t_high'])}]"
        told += f", n = {row['pairs']}"
    else:
        told += f", n = {row['pairs']}"
    ax.text(1.01, place, told, transform=ax.get_yaxis_transform(), va="center", fontsize=8)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
