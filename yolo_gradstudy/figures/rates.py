# SPDX-License-Identifier: AGPL-3.0-or-later
"""How often training broke, and how well the detector detects, against the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter
from numpy.typing import NDArray

from yolo_gradstudy.figures.palette import GREY, ArmStyle, arm_styles


def unhealthy_points(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Where the shares stand.

    Args:
        outcomes: ``outcomes_table``; its rows ``unhealthy`` that have a share are used.

    Returns:
        ``arm``, ``lr0``, ``x`` (the learning rate moved aside by arm, so that bars do not overlap), ``n``,
        ``share``, and the Wilson interval ``low``, ``high``.
    """
    rows = outcomes[(outcomes["outcome"] == "unhealthy") & outcomes["share"].notna()]
    return pd.DataFrame(
        {
            "arm": rows["arm"].to_numpy(),
            "lr0": rows["lr0"].to_numpy(),
            "x": _aside(rows, outcomes),
            "n": rows["n"].to_numpy(dtype="int64"),
            "share": rows["share"].to_numpy(),
            "low": rows["wilson_low"].to_numpy(),
            "high": rows["wilson_high"].to_numpy(),
        }
    )


def _aside(rows: pd.DataFrame, whole: pd.DataFrame) -> NDArray[np.float64]:
    """The learning rates of rows, each arm's moved by its place among the arms of the whole frame."""
    arms, rates = list(dict.fromkeys(whole["arm"])), np.sort(np.log10(whole["lr0"].unique()))
    gap = float(np.diff(rates).min()) if len(rates) > 1 else 1.0
    places = np.array([arms.index(arm) for arm in rows["arm"]], dtype="float64")
    aside = (places - (len(arms) - 1) / 2) * 0.6 * gap / max(len(arms), 1)
    moved: NDArray[np.float64] = 10 ** (np.log10(rows["lr0"].to_numpy(dtype="float64")) + aside)
    return moved


def plot_unhealthy_rate(outcomes: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None) -> None:
    """Draw the share of runs that ended unhealthy against the learning rate, with Wilson 95% intervals.

    Args:
        outcomes: ``outcomes_table``.
        ax: Where to draw.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
    """
    points = unhealthy_points(outcomes)
    styles = arm_styles(arms if arms is not None else outcomes["arm"])
    _draw_points(ax, points, "share", styles, sorted(outcomes["lr0"].unique()))
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_ylabel("share of unhealthy runs")
    title = "Nonfinite, exploded, collapsed or stuck ({} a point, Wilson 95%)"
    _finish(ax, points, title, "no run has an outcome yet")


def plot_accuracy(accuracy: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None) -> None:
    """Draw mAP50-95 at the end of training against the learning rate, with Student's 95% intervals.

    Args:
        accuracy: ``accuracy_table``.
        ax: Where to draw; a mark is hollow where some run broke, which counts as 0.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
    """
    points = accuracy[accuracy["map50_95"].notna()]
    points = points.assign(x=_aside(points, accuracy))
    styles = arm_styles(arms if arms is not None else accuracy["arm"])
    _draw_points(ax, points, "map50_95", styles, sorted(accuracy["lr0"].unique()))
    broken = points[points["n_broken"] > 0]
    for arm, rows in broken.groupby("arm", sort=False):
        style = styles[str(arm)]
        ax.plot(
            rows["x"], rows["map50_95"], marker=style.marker, markersize=5, color=style.colour, markerfacecolor="white",
            linestyle="none", zorder=3,
        )  # fmt: skip
    if len(broken):
        ax.plot(
            [],
            [],
            linestyle="none",
            marker="o",
            color=GREY,
            markerfacecolor="white",
            label="a run broke and counts as 0",
        )
    ax.set_ylim(bottom=min(-0.01, ax.get_ylim()[0]))
    ax.set_ylabel("mAP50-95 at the end")
    title = "Detection accuracy: mean over seeds ({} a point, Student’s 95%)"
    _finish(ax, points, title, "no run was validated")


def _draw_points(
    ax: Axes, points: pd.DataFrame, value: str, styles: Mapping[str, ArmStyle], rates: Sequence[float]
) -> None:
    """Marks with their intervals, ``low`` to ``high``, at ``x``; the points of a rate between two lines."""
    for arm, rows in points.groupby("arm", sort=False):
        style = styles[str(arm)]
        error = [rows[value] - rows["low"], rows["high"] - rows[value]]
        ax.errorbar(
            rows["x"].to_numpy(), rows[value].to_numpy(), yerr=np.array(error), color=style.colour,
            linestyle="none", marker=style.marker, markersize=5, elinewidth=1.2, capsize=2, label=str(arm),
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.xaxis.set_minor_locator(NullLocator())
    for left, right in pairwise(rates):
        ax.axvline((left * right) ** 0.5, color=GREY, alpha=0.3, linewidth=0.6)
    if rates:
        half = (min(right / left for left, right in pairwise(rates)) if len(rates) > 1 else 10.0) ** 0.5
        ax.set_xlim(rates[0] / half, rates[-1] * half)
    ax.set_xlabel("learning rate lr0 (points of one rate stand side by side)")
    ax.grid(axis="y", alpha=0.25, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)


def _finish(ax: Axes, points: pd.DataFrame, title: str, empty: str) -> None:
    """Title, with n at ``{}``, and legend; what is said where there is no point."""
    if points.empty:
        ax.text(0.5, 0.5, empty, transform=ax.transAxes, ha="center", va="center", color=GREY)
        return
    least, most = points["n"].min(), points["n"].max()
    ax.set_title(title.format(f"n = {most}" if least == most else f"n = {least} to {most}"), fontsize=10)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
