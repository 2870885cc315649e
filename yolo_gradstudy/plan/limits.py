# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which learning rates to try next, so that few runs find the largest at which training stays alive.

The rates form a geometric grid that is anchored at a study's smallest learning rate, so that a wider search has the
rates of a narrower one among its own. A search is a function of what the probed rates came to: started again, it takes
the same way and asks only for what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

SIDE_PROBES = 3
"""Rates probed on either side of the edge besides the two that it lies between, since survival need not be monotone."""


class Probe(Enum):
    """What a probed learning rate came to."""

    ALIVE = "alive"
    BROKEN = "broken"
    UNTOLD = "untold"


@dataclass(frozen=True)
class RateGrid:
    """Learning rates ``anchor · factor^k`` for ``-below <= k <= above``.

    Attributes:
        anchor: The rate at index 0.
        factor: From one rate to the next, above 1: the resolution of a search.
        below: Rates under the anchor.
        above: Rates over it.
    """

    anchor: float
    factor: float
    below: int
    above: int

    @classmethod
    def between(cls, anchor: float, factor: float, lowest: float, highest: float) -> RateGrid:
        """The grid of all rates from ``lowest`` to ``highest``; an end that is on it but for rounding belongs to it."""
        octaves = math.log(factor)
        below = math.floor(math.log(anchor / lowest) / octaves + 1e-3)
        above = math.floor(math.log(highest / anchor) / octaves + 1e-3)
        return cls(anchor, factor, max(below, 0), max(above, 0))

    @property
    def indices(self) -> range:
        """Every index, in the order of rates."""
        return range(-self.below, self.above + 1)

    def rate(self, index: int) -> float:
        """The learning rate at an index, to four significant digits, which is what a person reads; the anchor exact."""
        return self.anchor if index == 0 else float(f"{self.anchor * self.factor**index:.4g}")

    def index(self, rate: float) -> int:
        """The index of the nearest rate of the grid."""
        return round(math.log(rate / self.anchor) / math.log(self.factor))


def next_probes(grid: RateGrid, found: Mapping[int, Probe]) -> list[int]:
    """The rates to try next, none when the search is over.

    Bisection between "every rate survives" and "none does" finds two neighbouring rates of which the lower survived
    and the upper broke; then :data:`SIDE_PROBES` more rates on either side are probed. A rate that can't be told gives
    way to the nearest that can.

    Args:
        grid: The rates.
        found: What was found, by index.

    Returns:
        Indices that are not in ``found``: one while bisecting, up to six at the end.
    """
    low, high = edge_of(grid, found)
    middle = _middle(low, high, found)
    if middle is not None and middle not in found:
        return [middle]
    sides = (*range(low - SIDE_PROBES, low + 1), *range(high, high + SIDE_PROBES + 1))
    return [index for index in sides if index in grid.indices and index not in found]


def edge_of(grid: RateGrid, found: Mapping[int, Probe]) -> tuple[int, int]:
    """How far bisection has come: every rate up to the first index counts as alive, from the second on as broken.

    Either may lie one beyond the grid.
    """
    low, high = -grid.below - 1, grid.above + 1
    while (middle := _middle(low, high, found)) is not None and middle in found:
        if found[middle] is Probe.BROKEN:
            high = middle
        else:
            low = middle
    return low, high


def _middle(low: int, high: int, found: Mapping[int, Probe]) -> int | None:
    """The index nearest to the middle of an open interval that is not known to be untold, if any; the lower of two."""
    inside = [index for index in range(low + 1, high) if found.get(index) is not Probe.UNTOLD]
    return min(inside, key=lambda index: (abs(2 * index - low - high), index), default=None)


def most_runs(grid: RateGrid) -> int:
    """The most runs that a search of one arm and seed needs where every run can be told."""
    return math.ceil(math.log2(len(grid.indices) + 1)) + 2 * SIDE_PROBES
