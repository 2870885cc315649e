# SPDX-License-Identifier: AGPL-3.0-or-later
"""How gradient norms and target scores go over the steps of a training, by arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from yolo_gradstudy.figures.marks import draw_band, finish, mark_ends, numbers, one_of
from yolo_gradstudy.figures.palette import BLACK, GREY, ArmStyle, arm_styles

_DEAD = 0.01
"""Share of their largest median below which target scores are as good as none."""


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
    one_of(trajectories, "lr0")
    norms = {name: trajectories[f"grad_norm_{name}"].astype("float64") for name in ("median", "low", "high")}
    floor = least_positive(trajectories, "grad_norm")
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


def least_positive(frame: pd.DataFrame, quantity: str) -> float:
    """The least number above 0 of a quantity's median, low and high; 1 where there is none."""
    found = np.concatenate([numbers(frame, f"{quantity}_{end}") for end in ("median", "low", "high")])
    return float(found[found > 0].min()) if (found > 0).any() else 1.0


def plot_gradient_norms(
    trajectories: pd.DataFrame,
    ax: Axes,
    *,
    arms: Sequence[str] | None = None,
    clip_norm: float | None = None,
    legend: bool = True,
) -> None:
    """Draw the gradient norm before clipping: the median over seeds, and a band from least to largest.

    Runs that did not stay healthy are marked where they end.

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
    floor = least_positive(trajectories, "grad_norm")
    edge = ax.get_xaxis_transform()  # x in steps, y in shares of the height
    drawn = []
    for arm, rows in lines.groupby("arm", sort=False):
        style, own = styles[str(arm)], trajectories.loc[rows.index]
        drawn.append((own, draw_band(ax, own, "grad_norm", style, floor=floor), style))
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
    mark_ends(ax, drawn)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("gradient norm before clipping")
    finish(ax, trajectories.empty, legend)


def plot_target_scores(
    trajectories: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None, legend: bool = True
) -> None:
    """Draw the target scores a ground-truth box of the branch that inference uses; at 0 the detector is dead.

    Runs that did not stay healthy are marked where they end.

    Args:
        trajectories: ``trajectories_table`` at one learning rate.
        ax: Where to draw: the median over seeds, and a band from least to largest.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several learning rates.
    """
    one_of(trajectories, "lr0")
    styles = arm_styles(arms if arms is not None else trajectories["arm"])
    groups = [(rows, styles[str(arm)]) for arm, rows in trajectories.groupby("arm", sort=False)]
    mark_ends(ax, [(rows, draw_band(ax, rows, "target_scores", style), style) for rows, style in groups])
    dead = ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    dead.sticky_edges.y.append(0)  # the axis begins at 0, and its top stays free to grow
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("target scores a ground-truth box")
    finish(ax, trajectories.empty, legend)


def plot_loss_and_scores(
    trajectories: pd.DataFrame, ax: Axes, *, arms: Sequence[str] | None = None, legend: bool = True
) -> None:
    """Draw training loss and target scores, each over its median at its first step: the collapse that the loss hides.

    A loss that falls looks like learning. Where target scores have all but vanished (below 1% of their largest median)
    nothing is left to learn from, and the background is hatched.

    Args:
        trajectories: ``trajectories_table`` at one learning rate.
        ax: Where to draw: medians over seeds, the loss as full lines and the scores as dashed ones, with bands.
        arms: All arms of the study in order, which decides their colours; those of the frame if left out. Of several
            arms the control's lines are thin, and its background is not hatched.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several learning rates.
    """
    one_of(trajectories, "lr0")
    styles = arm_styles(arms if arms is not None else trajectories["arm"])
    groups = list(trajectories.groupby("arm", sort=False))
    drawn = []
    for arm, rows in groups:
        style = styles[str(arm)]
        for quantity, line, word in (("loss", "-", "training loss"), ("target_scores", (0, (3, 1.5)), "target scores")):
            own = _from_the_start(rows, quantity)
            label = f"{word}, {arm} (n = {rows['n'].max()})"
            heights = draw_band(ax, own, quantity, ArmStyle(style.colour, line, style.marker), label=label)
            if style.colour == BLACK and len(groups) > 1:
                ax.lines[-1].set_linewidth(0.8)
            drawn += [(rows, heights, style)] if quantity == "target_scores" else []
        if style.colour != BLACK or len(groups) == 1:
            _hatch_dead(ax, rows)
    if any(patch.get_hatch() for patch in ax.patches):
        ax.fill_between(
            [], [], facecolor="white", hatch="////", edgecolor=GREY, linewidth=0, label="hardly a target score left"
        )
    mark_ends(ax, drawn)
    ax.axhline(1, color=GREY, linewidth=0.6, zorder=1)
    ax.set_yscale("log")
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(f"times the start ({_FLOOR:g}: or less)")
    finish(ax, trajectories.empty, legend)


_FLOOR = 0.01
"""Times the value at the start below which all stand there: a logarithmic axis has no 0."""


def _from_the_start(rows: pd.DataFrame, quantity: str) -> pd.DataFrame:
    names = [f"{quantity}_{end}" for end in ("median", "low", "high")]
    values = rows[names].astype("float64")
    known = values[names[0]][values[names[0]] > 0]
    shares = (values / (known.iloc[0] if len(known) else np.nan)).clip(lower=_FLOOR)
    return rows.assign(**{name: shares[name] for name in names})


def _hatch_dead(ax: Axes, rows: pd.DataFrame) -> None:
    """Hatch the steps at which there are hardly target scores left, having been there."""
    scores, steps = numbers(rows, "target_scores_median"), rows["step"].to_numpy(dtype="int64")
    if not np.nanmax(np.append(scores, 0)):
        return
    with np.errstate(invalid="ignore"):
        dead = (scores < _DEAD * np.nanmax(scores)) & (np.arange(len(scores)) > np.nanargmax(scores))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dead.astype(int), [0]])))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        ax.axvspan(
            steps[start], steps[min(end, len(steps) - 1)], facecolor="none", hatch="////", edgecolor=GREY, alpha=0.5,
            linewidth=0, zorder=0,
        )  # fmt: skip
