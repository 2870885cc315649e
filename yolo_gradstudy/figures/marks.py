# SPDX-License-Identifier: AGPL-3.0-or-later
"""What figures over the steps have in common: median and band, and where runs end that did not stay healthy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from yolo_gradstudy.figures.palette import BLACK, GREY, OUTCOMES, ArmStyle
from yolo_gradstudy.records import Outcome

_NEAR = 0.06
"""Marks less than this share of the steps apart stand on top of each other."""


def one_of(frame: pd.DataFrame, *names: str) -> None:
    """Raise a ValueError where a frame holds several learning rates, or arms, and one is to be drawn."""
    words = {"lr0": "learning rates", "arm": "arms"}
    for name in names:
        found = list(dict.fromkeys(frame[name]))
        if len(found) > 1:
            told = ", ".join(f"{one:g}" if name == "lr0" else str(one) for one in sorted(found))
            raise ValueError(f"the frame holds {words[name]} {told}; draw one at a time.")


def numbers(rows: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """A column as float64."""
    found: NDArray[np.float64] = rows[name].to_numpy(dtype="float64", na_value=np.nan)
    return found


def draw_band(
    ax: Axes, rows: pd.DataFrame, quantity: str, style: ArmStyle, *, floor: float | None = None, label: str = ""
) -> NDArray[np.float64]:
    """Draw ``<quantity>_median`` over the steps, and a band from ``_low`` to ``_high``; rows without one are left out.

    Args:
        ax: Where to draw.
        rows: One arm's rows of ``trajectories_table``.
        quantity: The columns' first part.
        style: The arm's.
        floor: On a logarithmic axis: where a band ends that reaches 0.
        label: What the line is called; the arm and n where empty.

    Returns:
        The median of each row, missing where nothing was drawn.
    """
    x = rows["step"].to_numpy(dtype="int64")
    median, low, high = (numbers(rows, f"{quantity}_{end}") for end in ("median", "low", "high"))
    if floor is not None:
        with np.errstate(invalid="ignore"):
            median, high = np.where(median > 0, median, np.nan), np.where(high > 0, high, np.nan)
            low = np.where(np.isnan(high), np.nan, np.maximum(low, floor))
    known = ~np.isnan(high)
    ax.fill_between(x[known], low[known], high[known], color=style.colour, alpha=0.18, linewidth=0)
    text = label or f"{rows['arm'].iloc[0]} (n = {rows['n'].max()})"
    marker = "." if known.sum() == 1 else "none"
    ax.plot(x[known], median[known], color=style.colour, linestyle=style.line, linewidth=1.4, label=text, marker=marker)
    return median


def mark_ends(ax: Axes, arms: Sequence[tuple[pd.DataFrame, NDArray[np.float64], ArmStyle]]) -> None:
    """Mark where runs end that did not stay healthy, with the letter of their outcome and how many they are.

    Args:
        ax: Where to draw.
        arms: Of each arm its rows of ``trajectories_table``, the heights of its line, and its style.
    """
    steps = [int(step) for rows, _, _ in arms for step in rows["step"]]
    width = max(steps, default=1) - min(steps, default=0) or 1
    marks: list[tuple[float, int, Outcome, int, str]] = []
    for rows, heights, style in arms:
        last = pd.Series(heights).ffill().bfill().to_numpy()  # a norm that is NaN has no height of its own
        told = ["" if pd.isna(text) else str(text) for text in rows["ended_as"]]  # a CSV file has nothing for no text
        for step, text, height in zip(rows["step"].astype("int64"), told, last, strict=True):
            for count, _, name in (part.partition(" ") for part in text.split(", ") if part):
                marks.append((float(height), step, Outcome(name), int(count), style.colour))
    placed: list[int] = []
    for mark in sorted(marks, key=lambda mark: mark[0]):  # the lowest stands lowest
        _write_letter(ax, *mark, place=sum(abs(mark[1] - other) < _NEAR * width for other in placed))
        placed.append(mark[1])
    seen = {outcome for _, _, outcome, _, _ in marks}
    for outcome in OUTCOMES:
        if outcome in seen:
            # A letter alone as marker: the legend's key looks as what stands in the figure.
            ax.plot(
                [], [], linestyle="none", marker=f"${OUTCOMES[outcome].letter}$", color=BLACK, markersize=6,
                label=f"end of {outcome} runs (2{OUTCOMES[outcome].letter}: of two)",
            )  # fmt: skip


def _write_letter(ax: Axes, height: float, step: int, outcome: Outcome, count: int, edge: str, place: int) -> None:
    style, known = OUTCOMES[outcome], np.isfinite(height)
    if known:
        ax.plot([step], [height], linestyle="none", marker="none")  # the axes reach as far as the letter
    note = ax.annotate(
        f"{count if count > 1 else ''}{style.letter}", (step, height if known else 0.5),
        xycoords="data" if known else ax.get_xaxis_transform(), xytext=(0, 6 + 11 * place),
        textcoords="offset points", ha="center", va="center", fontsize=6.5, color=style.ink, zorder=5,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": style.colour, "edgecolor": edge, "linewidth": 0.8},
        annotation_clip=False,
    )  # fmt: skip
    note.set_in_layout(False)


def finish(ax: Axes, empty: bool, legend: bool, nothing: str = "nothing recorded") -> None:
    """Grid, spines, and the legend or what is said where there is nothing to draw."""
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    if empty:
        ax.text(0.5, 0.5, nothing, transform=ax.transAxes, ha="center", va="center", color=GREY)
    elif legend:
        ax.legend(fontsize=8, framealpha=0.8)
