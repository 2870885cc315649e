# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gradients and gains by their depth in the network, at a few moments of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from yolo_gradstudy.figures.layers import layer_blocks
from yolo_gradstudy.figures.marks import finish, numbers, one_of
from yolo_gradstudy.figures.palette import BLUE, GREY, NONFINITE, VERMILLION

_MAP = "viridis"
_SHADES = (0.0, 0.3, 0.55, 0.78)
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), "-.", ":")
_NARROWEST = 1 / 24
"""Least share of the axis between two names of blocks."""

_LONGEST = 18
"""Characters of a block's name; ``23.one2one_cv3`` has 14."""

_LARGE = 20
"""A numbered layer with more weight tensors than this is split by its children."""


@dataclass(frozen=True)
class MomentStyle:
    """How a moment is drawn: later is lighter, and has another line."""

    colour: Any
    line: Any


def moment_styles(frame: pd.DataFrame) -> dict[str, MomentStyle]:
    """The style of each moment of a frame, in the order in which they come."""
    moments = list(dict.fromkeys(frame["moment"]))
    shades = matplotlib.colormaps[_MAP](list(_SHADES))
    return {
        str(moment): MomentStyle(shades[i % len(_SHADES)], _LINES[i % len(_LINES)]) for i, moment in enumerate(moments)
    }


def plot_gradient_depth(depth: pd.DataFrame, ax: Axes, *, legend: bool = True) -> None:
    """Draw the gradient norm of weight tensors from the input on, a line a moment, with a band over seeds.

    Args:
        depth: ``gradient_depth_table`` of one arm at one learning rate.
        ax: Where to draw. A tensor whose gradient was NaN or infinite in a seed has a cross at the upper edge, one
            whose gradient was exactly 0 a triangle at the lower one.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several arms or learning rates.
    """
    one_of(depth, "arm", "lr0")
    for moment, style in moment_styles(depth).items():
        rows = depth[depth["moment"] == moment]
        _draw(ax, rows, "grad_norm", style, _told(moment, rows))
        for mark, height, colour, wanted in (
            ("x", 0.98, NONFINITE, rows["nonfinite"] > 0), ("v", 0.02, style.colour, rows["grad_norm_low"] == 0)
        ):  # fmt: skip
            at = rows.loc[wanted, "place"].to_numpy(dtype="int64")
            marks = ax.plot(
                at, np.full(len(at), height), linestyle="none", marker=mark, markersize=3, color=colour,
                transform=ax.get_xaxis_transform(), label=f"_{mark} {moment}", zorder=3,
            )  # fmt: skip
            marks[0].set_in_layout(False)
    if (depth["nonfinite"] > 0).any():
        ax.plot([], [], linestyle="none", marker="x", color=NONFINITE, label="a seed's gradient is NaN or infinite")
    if (depth["grad_norm_low"] == 0).any():
        ax.plot([], [], linestyle="none", marker="v", color=GREY, label="a seed's gradient is exactly 0")
    ax.set_yscale("log")
    name_blocks(ax, depth.drop_duplicates("place").sort_values("place")["tensor"].tolist())
    ax.set_xlabel("weight tensors by block, from the input")
    ax.set_ylabel("gradient norm")
    finish(ax, depth.empty, legend)


def plot_gains(gains: pd.DataFrame, ax: Axes, *, legend: bool = True) -> None:
    """Draw forward and backward gains of modules from the input on; a gain of 1 keeps the size of a signal.

    Full lines are forward gains, from the first of the sampled steps and the last; dashed ones are backward gains.
    Of an Ultralytics model the numbered layers are drawn, whose gains are those of all that they hold.

    Args:
        gains: ``gains_table`` of one arm at one learning rate.
        ax: Where to draw: the median over seeds, and a band from least to largest, on a log axis.
        legend: Whether to draw the legend in the Axes.

    Raises:
        ValueError: The frame holds several arms or learning rates.
    """
    one_of(gains, "arm", "lr0")
    moments = list(dict.fromkeys(gains["moment"]))
    names = drawn_modules(gains)
    places = {name: place for place, name in enumerate(names)}
    rows = gains[gains["module"].isin(names)]
    rows = rows.assign(place=rows["module"].map(places))
    for quantity, colour, line in (("forward_gain", BLUE, "-"), ("backward_gain", VERMILLION, (0, (4, 1.5)))):
        for moment in dict.fromkeys([*moments[:1], *moments[-1:]]):
            late = moment == moments[-1] and len(moments) > 1
            own = rows[rows["moment"] == moment]
            label = f"{quantity.replace('_', ' ')}, {_told(str(moment), own)}"
            _draw(ax, own, quantity, MomentStyle(colour, line), label, "o" if late else "none", 1.4 if late else 0.8)
    ax.set_yscale("log")
    ax.axhline(1, color=GREY, linewidth=1, label="1: the size is kept", zorder=1)
    name_blocks(ax, names)
    ax.set_xlabel("layers from the input")
    ax.set_ylabel("gain (mean square)")
    finish(ax, gains.empty, legend)


def drawn_modules(gains: pd.DataFrame) -> list[str]:
    """The modules whose gains are drawn: the numbered layers where two have one, else all that have one."""
    known = gains[gains["forward_gain_median"].notna() | gains["backward_gain_median"].notna()]
    names = [str(name) for name in known.sort_values("place", kind="stable")["module"].drop_duplicates()]
    numbered = [name for name in names if name.split(".")[-2:-1] == ["model"] and name.split(".")[-1].isdigit()]
    return numbered if len(numbered) > 1 else names


def _told(moment: str, rows: pd.DataFrame) -> str:
    least, most = rows["step_low"].min(), rows["step_high"].max()
    return f"{moment} (step {least})" if least == most else f"{moment} (steps {least} to {most})"


def _draw(
    ax: Axes,
    rows: pd.DataFrame,
    quantity: str,
    style: MomentStyle,
    label: str,
    marker: str = "none",
    width: float = 1.3,
) -> None:
    x = rows["place"].to_numpy(dtype="int64")
    median, low, high = (numbers(rows, f"{quantity}_{end}") for end in ("median", "low", "high"))
    with np.errstate(invalid="ignore"):
        median, low, high = (np.where(values > 0, values, np.nan) for values in (median, low, high))
    ax.fill_between(x, low, high, color=style.colour, alpha=0.15, linewidth=0)
    ax.plot(
        x, median, color=style.colour, linestyle=style.line, linewidth=width, label=label, marker=marker, markersize=2.5
    )


def shorten(name: str) -> str:
    """A name that leaves the figure its room."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def name_blocks(ax: Axes, names: list[str]) -> None:
    """Name the blocks of tensors or modules at their first, leaving out those too close to the last one named."""
    blocks = layer_blocks(names, _LARGE)
    ticks: list[int] = []
    for place, block in enumerate(blocks):
        is_first = place == 0 or blocks[place - 1] != block
        if is_first and (not ticks or place - ticks[-1] >= _NARROWEST * len(blocks)):
            ticks.append(place)
    labels = [shorten(blocks[place].removeprefix("model.")) for place in ticks]
    ax.set_xticks(ticks, labels, fontsize=6.5, rotation=90)
