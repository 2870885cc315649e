# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the clip, the optimizer and the loss scaler do over the steps of a training, by arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from yolo_gradstudy.figures.marks import draw_band, finish, mark_ends, one_of
from yolo_gradstudy.figures.palette import GREY, arm_styles
from yolo_gradstudy.figures.trajectories import least_positive

USUAL_RATIO = 1e-3
"""Update over weight that is usual in training (Karpathy 2015, CS231n, "Babysitting the learning process")."""


def plot_clip_share(
    trajectories: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None, legend: bool = True
) -> None:
    """Draw the share of steps at which the clip was at work, around each step: the median and range over seeds.

    Args:
        trajectories: ``trajectories_table`` at one learning rate. An arm that does not clip has no line.
        ax: Where to draw.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several learning rates.
    """
    drawn = _draw(trajectories, ax, "clipped_share", arms)
    silent = [arm for arm, rows in trajectories.groupby("arm", sort=False) if rows["clipped_share_median"].isna().all()]
    if drawn and silent:
        ax.text(0.02, 0.03, f"{', '.join(map(str, silent))}: nothing clips", transform=ax.transAxes, fontsize=7.5)
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("share of clipped steps")
    finish(ax, not drawn, legend, "nothing clips")


def plot_update_ratios(
    trajectories: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None, legend: bool = True
) -> None:
    """Draw the norm of the update over that of the parameters: the median and range over seeds, on a log axis.

    Args:
        trajectories: ``trajectories_table`` at one learning rate; steps without an update are left out.
        ax: Where to draw.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several learning rates.
    """
    drawn = _draw(trajectories, ax, "update_ratio", arms, least_positive(trajectories, "update_ratio"))
    ax.set_yscale("log")
    ax.axhline(USUAL_RATIO, color=GREY, linestyle=(0, (4, 2)), linewidth=1, label="0.001, a usual ratio", zorder=1)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("‖update‖ / ‖parameters‖")
    finish(ax, not drawn, legend)


def plot_amp_scale(
    trajectories: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None, legend: bool = True
) -> None:
    """Draw the scale of the loss in mixed precision over the steps, on an axis of powers of two.

    Ticks at the upper edge mark steps that the scaler skipped in a seed, since a gradient overflowed.

    Args:
        trajectories: ``trajectories_table`` at one learning rate.
        ax: Where to draw: the median over seeds, and a band from least to largest.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several learning rates.
    """
    drawn = _draw(trajectories, ax, "amp_scale", arms, least_positive(trajectories, "amp_scale"))
    ax.set_yscale("log", base=2)
    styles = arm_styles(arms if arms is not None else trajectories["arm"])
    skipped = trajectories[trajectories["skipped"] > 0]
    for arm, rows in skipped.groupby("arm", sort=False):
        at = rows["step"].to_numpy(dtype="int64")
        marks = ax.plot(
            at, np.full(len(at), 0.97), linestyle="none", marker="|", markersize=7, color=styles[str(arm)].colour,
            transform=ax.get_xaxis_transform(), label=f"_skipped {arm}", zorder=3,
        )  # fmt: skip
        marks[0].set_in_layout(False)
    if len(skipped):
        ax.plot([], [], linestyle="none", marker="|", color=GREY, label="a seed's step was skipped")
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("AMP loss scale")
    finish(ax, not drawn, legend)


def _draw(
    trajectories: pd.DataFrame, ax: Axes, quantity: str, arms: Sequence[str] | None, floor: float | None = None
) -> bool:
    """Median, band and ends of each arm that has the quantity; whether any has."""
    one_of(trajectories, "lr0")
    styles = arm_styles(arms if arms is not None else trajectories["arm"])
    known = trajectories[trajectories[f"{quantity}_median"].notna()]
    drawn = []
    for arm in dict.fromkeys(known["arm"]):
        rows, style = trajectories[trajectories["arm"] == arm], styles[str(arm)]
        drawn.append((rows, draw_band(ax, rows, quantity, style, floor=floor), style))
    mark_ends(ax, drawn)
    return bool(drawn)
