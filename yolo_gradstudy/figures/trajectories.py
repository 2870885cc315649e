# SPDX-License-Identifier: AGPL-3.0-or-later
"""How gradient norms and target scores go over the steps of a training, by arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from yolo_gradstudy.figures.palette import GREY, arm_styles


def gradient_norm_lines(trajectories: pd.DataFrame) -> pd.DataFrame:
    """What a logarithmic axis can draw of the norms, and what it can only mark.

    Args:
        trajectories: ``trajectories_table`` at one learning rate.

    Returns:
        ``arm``, ``step``, ``n``, ``median``, ``low``, ``high`` (missing where not above 0; a band that
        reaches 0 ends at the least positive norm of the frame), ``nonfinite`` (a seed's norm was NaN or
        infinite there) and ``zero`` (a seed's norm was exactly 0 there).

    Raises:
        ValueError: The frame holds several learning rates.
    """
    _one_rate(trajectories)
    norms = {name: trajectories[f"grad_norm_{name}"].astype("float64") for name in ("median", "low", "high")}
    positive = pd.concat([v[v > 0] for v in norms.values()])
    floor = float(positive.min()) if len(positive) else 1.0
    high = norms["high"].where(norms["high"] > 0)
    return pd.DataFrame(
        {
            "arm": trajectories["arm"],
            "step": trajectories["step"].astype("int64"),
            "n": trajectories["n"].astype("int64"),
            "median": norms["median"].where(norms["median"] > 0),
            "low": norms["low"].clip(lower=floor).where(high.notna()),
            "high": high,
            "nonfinite": trajectories["nonfinite"].astype("int64") > 0,
            "zero": norms["low"] == 0,
        }
    )


def plot_gradient_norms(
    trajectories: pd.DataFrame,
    ax: Axes,
    *,
    arms: Sequence[str] | None = None,
    clip_norm: float | None = None,
    legend: bool = True,
) -> None:
    """Draw the gradient norm before clipping: the median over seeds, and a band from least to largest.

    Args:
        trajectories: ``trajectories_table`` at one learning rate.
        ax: Where to draw.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
        clip_norm: Norm at which gradients are clipped, drawn as a line.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several learning rates.
    """
    lines = gradient_norm_lines(trajectories)
    styles = arm_styles(arms if arms is not None else lines["arm"])
    edge = ax.get_xaxis_transform()  # x in steps, y in shares of the height
    for arm, rows in lines.groupby("arm", sort=False):
        style = styles[str(arm)]
        x = rows["step"].to_numpy()
        ax.fill_between(x, rows["low"].to_numpy(), rows["high"].to_numpy(), color=style.colour, alpha=0.18, linewidth=0)
        ax.plot(
            x, rows["median"].to_numpy(), color=style.colour, linestyle=style.line, linewidth=1.4,
            label=f"{arm} (n = {rows['n'].max()})", marker="." if len(rows) == 1 else "none",
        )  # fmt: skip
        ends = {"nonfinite": ("x", 0.98), "zero": ("v", 0.02)}
        for mark, (marker, height) in ends.items():
            at = rows.loc[rows[mark], "step"].to_numpy()
            marks = ax.plot(
                at, np.full(len(at), height), linestyle="none", marker=marker, markersize=5, color=style.colour,
                transform=edge, clip_on=False, label=f"_{mark} {arm}", zorder=3,
            )  # fmt: skip
            marks[0].set_in_layout(False)
    ax.set_yscale("log")
    if clip_norm is not None:
        ax.axhline(clip_norm, color=GREY, linestyle=(0, (4, 2)), linewidth=1, label=f"clip at {clip_norm:g}", zorder=1)
    if lines["nonfinite"].any():
        ax.plot([], [], linestyle="none", marker="x", color=GREY, label="a seed's norm is NaN or infinite")
    if lines["zero"].any():
        ax.plot([], [], linestyle="none", marker="v", color=GREY, label="a seed's norm is exactly 0")
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("gradient norm before clipping")
    _finish(ax, trajectories, legend)


def plot_target_scores(
    trajectories: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None, legend: bool = True
) -> None:
    """Draw the target scores a ground-truth box of the branch that inference uses; at 0 the detector is dead.

    Args:
        trajectories: ``trajectories_table`` at one learning rate.
        ax: Where to draw: the median over seeds, and a band from least to largest.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several learning rates.
    """
    _one_rate(trajectories)
    styles = arm_styles(arms if arms is not None else trajectories["arm"])
    for arm, rows in trajectories.groupby("arm", sort=False):
        style = styles[str(arm)]
        x = rows["step"].to_numpy(dtype="int64")
        low, high = (rows[f"target_scores_{end}"].to_numpy(dtype="float64") for end in ("low", "high"))
        ax.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
        ax.plot(
            x, rows["target_scores_median"].to_numpy(dtype="float64"), color=style.colour, linestyle=style.line,
            linewidth=1.4, label=f"{arm} (n = {rows['n'].max()})",
        )  # fmt: skip
    dead = ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    dead.sticky_edges.y.append(0)  # the axis begins at 0, and its top stays free to grow
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("target scores a ground-truth box")
    _finish(ax, trajectories, legend)


def _one_rate(trajectories: pd.DataFrame) -> None:
    rates = sorted(trajectories["lr0"].unique())
    if len(rates) > 1:
        raise ValueError(f"trajectories holds learning rates {', '.join(f'{r:g}' for r in rates)}; draw one at a time.")


def _finish(ax: Axes, trajectories: pd.DataFrame, legend: bool) -> None:
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    if trajectories.empty:
        ax.text(0.5, 0.5, "nothing recorded", transform=ax.transAxes, ha="center", va="center", color=GREY)
    elif legend:
        ax.legend(fontsize=8, framealpha=0.8)
