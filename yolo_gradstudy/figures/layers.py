# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every layer of one run did at every step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from yolo_gradstudy.figures.palette import NONFINITE

_NUMBERED = re.compile(r"^(?:.*?\.)?model\.(\d+)(?:\.(.*))?$")
_LARGE = 80
"""A numbered layer with more parameter tensors than this (a head) is split by its children."""

_LOWEST = 0.02
"""Share of the finite values that have the lowest colour: a few gradients of 1e-18 must not flatten the rest."""

_ZERO = "#FFFFFF"
_MISSING = "#BDBDBD"
_MAP = "viridis"


@dataclass(frozen=True)
class LayerCells:
    """What the heatmap draws.

    Attributes:
        log10: Steps × parameters: log10 of the value; -inf where it is exactly 0, inf where it is not finite,
            NaN where the tensor had no gradient.
        step_edges: Left edges of the columns and the right edge of the last, in steps.
        height_edges: Edges of the parameters' rows from the input on. A block's height goes as the cube
            root of its number of tensors, so that small layers stay legible beside the head.
        blocks: Names of the blocks.
        block_edges: Edges of the blocks.
    """

    log10: npt.NDArray[np.float64]
    step_edges: npt.NDArray[np.float64]
    height_edges: npt.NDArray[np.float64]
    blocks: tuple[str, ...]
    block_edges: npt.NDArray[np.float64]


def layer_blocks(parameters: list[str], large: int = _LARGE) -> list[str]:
    """The block of each parameter tensor: ``model.<number>`` in an Ultralytics model, else the first name.

    A numbered layer of more than ``large`` tensors, such as a head, is split by its children (``model.23.cv2``).
    """
    blocks, children = [], []
    for name in parameters:
        match = _NUMBERED.match(name)
        block = f"model.{match[1]}" if match else name.split(".")[0]
        child = (match[2] if match else name.partition(".")[2]) or ""
        blocks.append(block)
        children.append(f"{block}.{child.split('.')[0]}")
    return [child if blocks.count(block) > large else block for block, child in zip(blocks, children, strict=True)]


def layer_cells(layers: pd.DataFrame) -> LayerCells:
    """Prepare a heatmap.

    Args:
        layers: ``layer_table``: ``step``, then a column a parameter tensor in the model's order; infinite where
            not finite, missing where the tensor had no gradient.
    """
    parameters = [str(name) for name in layers.columns if name != "step"]
    values = layers[parameters].to_numpy(dtype="float64")
    steps = layers["step"].to_numpy(dtype="float64")
    with np.errstate(divide="ignore", invalid="ignore"):
        log10 = np.log10(np.abs(values))
    last = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    step_edges = np.append(steps, steps[-1] + last) if len(steps) else np.zeros(1)
    names: list[str] = []
    counts: list[int] = []
    for block in layer_blocks(parameters):  # consecutive parameters of the same block
        if names and names[-1] == block:
            counts[-1] += 1
        else:
            names.append(block)
            counts.append(1)
    heights = [np.full(count, count ** (-2 / 3)) for count in counts]
    height_edges = np.concatenate([[0.0], np.cumsum(np.concatenate(heights))]) if heights else np.zeros(1)
    block_edges = height_edges[np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])]
    return LayerCells(log10, step_edges, height_edges, tuple(names), block_edges)


def plot_layer_heatmap(
    layers: pd.DataFrame, ax: Axes, *, label: str = "gradient norm", limits: tuple[float, float] | None = None
) -> None:
    """Draw step × parameter tensor, the input at the top, with the logarithm as colour.

    Values that are not finite are hatched in the colour of ``nonfinite``, values of exactly 0 are white, and
    tensors without a gradient are grey; the legend says so. The colours span the finite values but the
    least 2%, which have the lowest colour.

    Args:
        layers: ``layer_table``.
        ax: Where to draw; its figure gets a colour bar.
        label: The quantity's name, for the colour bar.
        limits: Ends of the colours as log10, to compare runs; those of this run if left out.
    """
    cells = layer_cells(layers)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("layer, input at the top")
    if not cells.log10.size:
        ax.text(0.5, 0.5, "nothing recorded", transform=ax.transAxes, ha="center", va="center")
        return
    drawn = cells.log10[np.isfinite(cells.log10)]
    low, high = limits or ((float(np.quantile(drawn, _LOWEST)), float(drawn.max())) if drawn.size else (-1.0, 1.0))
    high = max(high, low + 1e-6)
    zero, broken, missing = np.isneginf(cells.log10), np.isposinf(cells.log10), np.isnan(cells.log10)
    colours = matplotlib.colormaps[_MAP].with_extremes(under=_ZERO, over=_MISSING, bad=(0, 0, 0, 0))
    # Cells that are not finite stay clear, and the hatched background shows.
    values = np.clip(cells.log10, low, high)
    shown = np.ma.masked_where(broken, np.select([zero, missing, broken], [low - 1, high + 1, low], values))
    ax.patch.set(facecolor=NONFINITE, hatch="////", edgecolor="black", linewidth=0)
    mesh = ax.pcolormesh(
        cells.step_edges, cells.height_edges, shown.T, cmap=colours, vmin=low, vmax=high, shading="flat",
        rasterized=True, edgecolors="none", linewidth=0, antialiased=False,
    )  # fmt: skip
    ax.set_ylim(cells.height_edges[-1], 0)
    for edge in cells.block_edges[1:-1]:
        ax.axhline(float(edge), color="white", linewidth=0.4, alpha=0.7)
    _tick_blocks(ax, cells)
    figure: Any = ax.figure
    figure.colorbar(mesh, ax=ax, label=f"log10 of {label}", pad=0.02, fraction=0.05)
    handles = []
    if broken.any():
        handles.append(
            Patch(facecolor=NONFINITE, hatch="////", edgecolor="black", linewidth=0, label="NaN or infinite")
        )
    if zero.any():
        handles.append(Patch(facecolor=_ZERO, edgecolor="#999999", linewidth=0.5, label="exactly 0"))
    if missing.any():
        handles.append(Patch(facecolor=_MISSING, label="no gradient"))
    if handles:
        ax.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(handles), fontsize=8,
            frameon=False, borderaxespad=0.2,
        )  # fmt: skip


def _tick_blocks(ax: Axes, cells: LayerCells) -> None:
    """Name the blocks in their middle, leaving out those too close to the last one named."""
    middles = (cells.block_edges[:-1] + cells.block_edges[1:]) / 2
    least = float(cells.block_edges[-1]) / 45
    ticks: list[float] = []
    labels: list[str] = []
    for middle, name in zip(middles.tolist(), cells.blocks, strict=True):
        if not ticks or middle - ticks[-1] >= least:
            ticks.append(middle)
            labels.append(name)
    ax.set_yticks(ticks, labels, fontsize=6.5)
    ax.tick_params(axis="y", length=0)
