# SPDX-License-Identifier: AGPL-3.0-or-later
"""The search for the largest stable learning rate: few runs, the right edge, and on from where it was."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_gradstudy.plan import Probe, RateGrid, edge_of, most_runs, next_probes

GRID = RateGrid.between(0.01, math.sqrt(2), 0.01 / 16, 1.0)


def search(grid, alive):
    found = {}
    while wanted := next_probes(grid, found):
        assert not set(wanted) & found.keys()
        assert set(wanted) <= set(grid.indices)
        for index in wanted:
            found[index] = alive(index)
    return found


@pytest.mark.parametrize("edge", range(GRID.indices[0] - 1, GRID.indices[-1] + 1))
def test_every_edge_is_found_with_half_of_the_grid(edge):
    found = search(GRID, lambda index: Probe.ALIVE if index <= edge else Probe.BROKEN)
    assert edge_of(GRID, found) == (edge, edge + 1)
    assert len(found) <= min(most_runs(GRID), len(GRID.indices) / 2)
    sides = range(edge - 3, edge + 5)
    assert {index for index in sides if index in GRID.indices} <= found.keys()


@settings(max_examples=200)
@given(st.lists(st.sampled_from(list(Probe)), min_size=len(GRID.indices), max_size=len(GRID.indices)))
def test_it_ends_whatever_is_found(outcomes):
    by_index = dict(zip(GRID.indices, outcomes, strict=True))
    low, high = edge_of(GRID, search(GRID, by_index.get))
    assert low < high
    assert by_index.get(low, Probe.ALIVE) is Probe.ALIVE
    assert by_index.get(high, Probe.BROKEN) is Probe.BROKEN
    assert all(by_index[index] is Probe.UNTOLD for index in range(low + 1, high))


@settings(max_examples=100)
@given(st.integers(GRID.indices[0] - 1, GRID.indices[-1]), st.data())
def test_what_is_known_is_not_asked_again(edge, data):
    def alive(index):
        return Probe.ALIVE if index <= edge else Probe.BROKEN

    whole = search(GRID, alive)
    kept = data.draw(st.sets(st.sampled_from(sorted(whole))))
    found = {index: alive(index) for index in kept}
    while wanted := next_probes(GRID, found):
        found |= {index: alive(index) for index in wanted}
    assert edge_of(GRID, found) == (edge, edge + 1)
    assert found.keys() == whole.keys()


def test_rates_are_a_persons_and_the_wider_grid_has_those_of_the_narrower():
    assert [GRID.rate(index) for index in (-1, 0, 1, 2)] == [0.007071, 0.01, 0.01414, 0.02]
    assert GRID.rate(GRID.indices[-1]) <= 1.0 < 0.01 * math.sqrt(2) ** (GRID.indices[-1] + 1)
    narrow = RateGrid.between(0.01, math.sqrt(2), 0.005, 0.04)
    assert [narrow.rate(i) for i in narrow.indices] == [0.005, 0.007071, 0.01, 0.01414, 0.02, 0.02828, 0.04]
    assert {narrow.rate(i) for i in narrow.indices} <= {GRID.rate(i) for i in GRID.indices}
    assert all(GRID.index(GRID.rate(i)) == i for i in GRID.indices)
