# SPDX-License-Identifier: AGPL-3.0-or-later
"""How often training broke, against the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter

from yolo_gradstudy.figures.palette import GREY, arm_styles


def unhealthy_points(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Where the shares stand.

    Args:
        outcomes: ``outcomes_table``; its rows ``unhealthy`` that have a share are used.

    Returns:
        ``arm``, ``lr0``, ``x`` (the learning rate moved aside by arm, so that bars do not overlap), ``n``,
        ``share``, and the Wilson interval ``low``, ``high``.
    """
    rows = outcomes[(outcomes["outcome"] == "unhealthy") & outcomes["share"].notna()]
    arms, rates = list(dict.fromkeys(outcomes["arm"])), np.sort(np.log10(outcomes["lr0"].unique()))
    gap = float(np.diff(rates).min()) if len(rates) > 1 else 1.0
    places = np.array([arms.index(arm) for arm in rows["arm"]], dtype="float64")
    aside = (places - (len(arms) - 1) / 2) * 0.6 * gap / max(len(arms), 1)
    return pd.DataFrame(
        {
            "arm": rows["arm"].to_numpy(),
            "lr0": rows["lr0"].to_numpy(),
            "x": 10 ** (np.log10(rows["lr0"].to_numpy(dtype="float64")) + aside),
            "n": rows["n"].to_numpy(dtype="int64"),
            "share": rows["share"].to_numpy(),
            "low": rows["wilson_low"].to_numpy(),
            "high": rows["wilson_high"].to_numpy(),
        }
    )


def plot_unhealthy_rate(outcomes: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None) -> None:
    """Draw the share of runs that ended unhealthy against the learning rate, with Wilson 95% intervals.

    Args:
        outcomes: ``outcomes_table``.
        ax: Where to draw.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
    """
    points = unhealthy_points(outcomes)
    styles = arm_styles(arms if arms is not None else outcomes["arm"])
    for arm, rows in points.groupby("arm", sort=False):
        style = styles[str(arm)]
        error = [rows["share"] - rows["low"], rows["high"] - rows["share"]]
        ax.errorbar(
            rows["x"].to_numpy(), rows["share"].to_numpy(), yerr=np.array(error), color=style.colour,
            linestyle="none", marker=style.marker, markersize=5, elinewidth=1.2, capsize=2, label=str(arm),
        )  # fmt: skip
    ax.set_xscale("log")
    rates = sorted(outcomes["lr0"].unique())
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.xaxis.set_minor_locator(NullLocator())
    for left, right in pairwise(rates):
        ax.axvline((left * right) ** 0.5, color=GREY, alpha=0.3, linewidth=0.6)
    if rates:
        half = (min(right / left for left, right in pairwise(rates)) if len(rates) > 1 else 10.0) ** 0.5
        ax.set_xlim(rates[0] / half, rates[-1] * half)
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("learning rate lr0 (points of one rate stand side by side)")
    ax.set_ylabel("share of unhealthy runs")
    ax.grid(axis="y", alpha=0.25, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    if points.empty:
        ax.text(0.5, 0.5, "no run has an outcome yet", transform=ax.transAxes, ha="center", va="center", color=GREY)
        return
    least, most = points["n"].min(), points["n"].max()
    count = f"n = {most}" if least == most else f"n = {least} to {most}"
    ax.set_title(f"Nonfinite, exploded, collapsed or stuck ({count} a point, Wilson 95%)", fontsize=10)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
