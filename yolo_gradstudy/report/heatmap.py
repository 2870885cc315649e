# SPDX-License-Identifier: AGPL-3.0-or-later
"""What runs did, layer by layer and step by step → little text for a page to draw.

A run's numbers are one block of bytes, deflated and in base64. Little-endian, without gaps:

==================  ==========  =============================================================================
first steps         b × uint32  of the bins, each less the one before
layers              m × uint16  places among the names of all runs
high, then low      m·b bytes   halves of 16-bit codes, layer by layer, each less the one before in its layer
first steps         p × uint32  of the points of the lines, each less the one before
lines               3·p float32 loss, gradient norm, target scores a box
==================  ==========  =============================================================================

A code is ``MISSING`` where the tensor had no gradient, ``ZERO`` where it was exactly 0, ``BROKEN`` where NaN or
infinite, and else ``FIRST`` plus the value's place on a logarithmic scale from ``low`` in steps of ``step``: fine
enough for three digits.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from yolo_gradstudy.figures.layers import layer_blocks
from yolo_gradstudy.readings import RunCourse
from yolo_gradstudy.tables.trajectories import bins

MISSING, ZERO, BROKEN, FIRST = 0, 1, 2, 3

FINEST = 2e-3
"""Step of the scale, in decades: a value is told to a quarter of a percent."""

FEWEST_BINS = 24
"""Bins below which runs are left out instead: fewer don't tell when a run went wrong."""

_SAMPLED = 10
"""One of so many runs tells how much all will take."""

LOWEST = 0.02
"""Share of the finite values that have the lowest colour, as in the figures."""

DARKEST = 6.0
"""Decades below the median at which colours end: gradients of 1e-27 in a dying detector must not flatten the rest."""


@dataclass(frozen=True)
class Packed:
    """Courses of runs for a page.

    Attributes:
        names: Parameter tensors of all runs.
        blocks: The block of the network that each is of.
        runs: What the page's script reads, by run id.
        bins: Most time bins of a run.
    """

    names: tuple[str, ...]
    blocks: tuple[str, ...]
    runs: Mapping[str, Mapping[str, Any]]
    bins: int

    @property
    def size(self) -> int:
        """Bytes of the runs' numbers in the page."""
        return sum(len(run["data"]) for run in self.runs.values())


def pack_courses(courses: Mapping[str, RunCourse], budget: int) -> Packed:
    """Pack what fits into a budget: fewer time bins for all first, then fewer runs.

    Args:
        courses: By run id, those that are most worth a look first.
        budget: Most bytes of the runs' numbers in the page.
    """
    names = list(dict.fromkeys(name for course in courses.values() for name in _names(course.layers)))
    places = {name: place for place, name in enumerate(names)}
    most = max((len(course.layers) for course in courses.values()), default=0)
    sample = list(courses.values())[::_SAMPLED]
    guess = sum(len(_pack(course, places, most)["data"]) for course in sample) * len(courses) / max(len(sample), 1)
    if guess > budget:  # packing all in vain would take as long as packing them
        most = max(FEWEST_BINS, math.floor(most * budget / guess))
    runs = {run_id: _pack(course, places, most) for run_id, course in courses.items()}
    while (size := sum(len(run["data"]) for run in runs.values())) > budget and most > FEWEST_BINS:
        most = max(FEWEST_BINS, min(most - 1, math.floor(most * budget / size)))
        runs = {run_id: _pack(course, places, most) for run_id, course in courses.items()}
    kept, size = {}, 0
    for run_id, run in runs.items():
        size += len(run["data"])
        if size > budget:
            break
        kept[run_id] = run
    return Packed(tuple(names), tuple(layer_blocks(names)), kept, most)


def _names(layers: pd.DataFrame) -> list[str]:
    return [str(name) for name in layers.columns if name != "step"]


def _pack(course: RunCourse, places: Mapping[str, int], most: int) -> dict[str, Any]:
    names = _names(course.layers)
    values = course.layers[names].to_numpy(dtype="float64")
    steps = course.layers["step"].to_numpy(dtype="int64")
    if len(values):
        starts = np.unique(bins(len(values), most), return_index=True)[1]
        values, steps = np.fmax.reduceat(values, starts, axis=0), steps[starts]
    codes, scale = encode(values)
    # Neighbours differ little, and small differences pack well.
    turned = np.ascontiguousarray(codes.T)
    changes = np.diff(turned, axis=1, prepend=np.zeros((len(turned), 1), np.uint16))
    lines = course.lines[["loss", "grad_norm", "target_scores"]].to_numpy(dtype="float64").T
    parts = [
        _deltas(steps),
        np.array([places[name] for name in names], "<u2"),
        (changes >> 8).astype(np.uint8),
        (changes & 255).astype(np.uint8),
        _deltas(course.lines["step"].to_numpy(dtype="int64")),
        _finite_float32(lines),
    ]
    block = zlib.compress(b"".join(part.tobytes() for part in parts), 9)
    return {
        "b": len(values),
        "m": len(names),
        "p": len(course.lines),
        **scale,
        "last": course.last_step,
        "clip": course.clip_norm,
        "incidents": [dict(incident) for incident in course.incidents],
        "data": base64.b64encode(block).decode("ascii"),
    }


def encode(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.uint16], dict[str, float]]:
    """Codes of values of at least 0, and their scale: ``low`` and ``step``, and the ends of the colours.

    Args:
        values: Any shape; infinite where not finite, NaN where missing.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log10 = np.log10(np.abs(values))
    finite = log10[np.isfinite(log10)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    step = max(FINEST, (high - low) / (2**16 - 1 - FIRST))
    placed = np.round((np.where(np.isfinite(log10), log10, low) - low) / step) + FIRST
    codes = np.select(
        [np.isnan(log10), np.isneginf(log10), np.isposinf(log10)], [MISSING, ZERO, BROKEN], placed
    ).astype(np.uint16)
    dark = max(float(np.quantile(finite, LOWEST)), float(np.median(finite)) - DARKEST) if finite.size else 0.0
    scale = {"low": low, "step": step, "dark": round(dark, 4), "bright": round(max(high, dark + 1e-3), 4)}
    return codes, scale


def _deltas(steps: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    return np.diff(np.asarray(steps, dtype="int64"), prepend=0).astype("<u4")


def _finite_float32(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """As float32; a finite number beyond its range becomes its largest, not infinity."""
    most = float(np.finfo(np.float32).max)
    return np.where(np.isfinite(values), np.clip(values, -most, most), values).astype("<f4")
