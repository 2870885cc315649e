# SPDX-License-Identifier: AGPL-3.0-or-later
"""Outcomes of the runs of a study, arm by learning rate."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from yolo_gradstudy.figures.palette import OUTCOMES
from yolo_gradstudy.records import Outcome

_GAP = 0.06
"""Space between cells, of a cell's side."""

_ROW = 6
"""Most seeds side by side in a cell; more of them make a second row."""


def outcome_cells(results: pd.DataFrame) -> pd.DataFrame:
    """Where each run stands in the grid.

    Args:
        results: ``results_table``: ``arm``, ``lr0``, ``seed`` and ``outcome`` are used.

    Returns:
        A row a run: ``arm``, ``lr0``, ``seed``, ``outcome``, ``letter``, and the rectangle ``x``, ``y``,
        ``width``, ``height`` of its part of the cell. Cell centres are whole numbers: x counts learning
        rates upwards, y counts arms in the order in which they come. Within a cell seeds ascend.
    """
    arms, rates = list(dict.fromkeys(results["arm"])), sorted(results["lr0"].unique())
    rows = []
    for (arm, lr0), cell in results.groupby(["arm", "lr0"], sort=False):
        lines = math.ceil(len(cell) / _ROW)
        across = math.ceil(len(cell) / lines)
        width, height = (1 - _GAP) / across, (1 - 2 * _GAP) / lines
        ordered = cell.sort_values("seed")
        for place, (seed, outcome) in enumerate(zip(ordered["seed"], ordered["outcome"], strict=True)):
            rows.append(
                {
                    "arm": arm, "lr0": lr0, "seed": seed, "outcome": outcome,
                    "letter": OUTCOMES[Outcome(outcome)].letter,
                    "x": rates.index(lr0) - (1 - _GAP) / 2 + place % across * width,
                    "y": arms.index(arm) - (1 - 2 * _GAP) / 2 + place // across * height,
                    "width": width, "height": height,
                }
            )  # fmt: skip
    columns = ["arm", "lr0", "seed", "outcome", "letter", "x", "y", "width", "height"]
    return pd.DataFrame(rows, columns=columns)


def plot_outcome_grid(results: pd.DataFrame, ax: Axes) -> None:
    """Draw arms × learning rates; each cell has a part a seed with the colour and letter of its outcome.

    Args:
        results: ``results_table``.
        ax: Where to draw.
    """
    cells = outcome_cells(results)
    places = cells[["x", "y", "width", "height"]].to_numpy(dtype="float64").tolist()
    for outcome, (x, y, width, height) in zip(cells["outcome"], places, strict=True):
        style = OUTCOMES[Outcome(outcome)]
        ax.add_patch(Rectangle((x, y), width, height, facecolor=style.colour, edgecolor="white", linewidth=1))
        ax.text(x + width / 2, y + height / 2, style.letter, ha="center", va="center", fontsize=9, color=style.ink)
    arms, rates = list(dict.fromkeys(cells["arm"])), sorted(cells["lr0"].unique())
    ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    ax.set_yticks(range(len(arms)), arms)
    ax.set_xlim(-0.5, max(len(rates), 1) - 0.5)
    ax.set_ylim(max(len(arms), 1) - 0.5, -0.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("learning rate lr0")
    seeds = sorted({int(seed) for seed in cells["seed"]})
    ax.set_title(f"Outcome of each run (n = {len(cells)} runs; a letter a seed, seeds {_listed(seeds)})", fontsize=10)
    handles = [
        Patch(facecolor=style.colour, edgecolor="#999999", linewidth=0.5, label=f"{style.letter}  {outcome}")
        for outcome, style in OUTCOMES.items()
        if (cells["outcome"] == str(outcome)).any()
    ]
    if handles:
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)


def _listed(seeds: list[int]) -> str:
    if len(seeds) > 3 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) or "none"
