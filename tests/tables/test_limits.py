# SPDX-License-Identifier: AGPL-3.0-or-later
"""Limits, their ratios, and effects on them, where the answers are known."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables.cases import frame_of
from yolo_gradstudy.tables import effects_table, limit_ratios_table, limits_table

NAN = math.nan
KINDS = {"s": "stable", "r": "recovered", "c": "collapsed", "n": "nonfinite", "u": "stuck", "f": "failed"}


def limit_of(letters, factor=2):
    runs = [("control", 0.1 * 2**i, 0, KINDS[letter]) for i, letter in enumerate(letters)]
    return limits_table(frame_of(runs), factor).iloc[0]


@settings(max_examples=60)
@given(st.text("srcnuf", min_size=1, max_size=9))
def test_no_other_edge_is_contradicted_by_fewer_probes(letters):
    row = limit_of(letters)
    broken, healthy = ([i for i, x in enumerate(letters) if x in kind] for kind in ("cn", "sr"))
    wrong = [sum(i < k for i in broken) + sum(i >= k for i in healthy) for k in range(len(letters) + 1)]
    assert row["probes"] + row["n_excluded"] == len(letters)
    assert row["n_excluded"] == letters.count("f")
    if not broken and not healthy:
        assert row["bound"] == ("stuck" if "u" in letters else "")
        assert math.isnan(row["largest_stable"])
        return
    edge = wrong.index(min(wrong))
    assert row["exceptions"] == min(wrong)
    below, above = [i for i in healthy if i < edge], [i for i in broken if i >= edge]
    assert row["bound"] == ("at least" if not above else "below" if not below else "")
    assert row["largest_stable"] == pytest.approx(0.1 * 2 ** max(below) if below else NAN, nan_ok=True)
    assert row["first_broken"] == pytest.approx(0.1 * 2 ** min(above) if above else NAN, nan_ok=True)


def test_a_limit_is_resolved_between_neighbours_only():
    assert limit_of("ssc")["resolved"]
    assert not limit_of("suc")["resolved"]
    assert limit_of("suc", factor=4)["resolved"]
    assert pd.isna(limit_of("sss")["resolved"])


@pytest.mark.parametrize("factor", [1, 0.5, NAN, math.inf])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(ValueError, match=f"factor={factor!r} is not the step of a geometric grid; the nearest valid"):
        limits_table(frame_of([("control", 0.1, 0, "stable")]), factor)


def limits(arms):
    """Arm → (largest_stable, first_broken, bound) of each seed."""
    rows = [(arm, seed, *limit) for arm, by_seed in arms.items() for seed, limit in enumerate(by_seed)]
    return pd.DataFrame(rows, columns=["arm", "seed", "largest_stable", "first_broken", "bound"])


def exact(value):
    return value, 2 * value, ""


def at_least(value):
    return value, NAN, "at least"


def below(value):
    return NAN, value, "below"


@pytest.mark.parametrize(
    ("seeds", "median"),
    [
        ([exact(0.1), exact(0.4), exact(0.2)], (0.2, "")),
        ([exact(0.1), exact(0.4)], (0.2, "")),
        ([exact(0.1), exact(0.2), at_least(0.4)], (0.2, "")),  # the bound is above the middle
        ([exact(0.1), at_least(0.4), at_least(0.4)], (0.4, "at least")),
        ([exact(0.1), exact(0.2), below(0.1)], (0.1, "")),
        ([exact(0.4), below(0.1), below(0.2)], (0.2, "below")),
        ([(NAN, NAN, "stuck")], (NAN, "")),
    ],
)
def test_the_median_limit_says_where_it_is_a_bound(seeds, median):
    row = limit_ratios_table(limits({"control": seeds})).iloc[0]
    assert row["limit_median"] == pytest.approx(median[0], nan_ok=True)
    assert row["median_bound"] == median[1]


def test_bounded_pairs_are_counted_and_decided_where_they_can_be():
    control = [exact(0.2), exact(0.2), exact(0.2), below(0.1), at_least(0.8), exact(0.2), exact(0.2)]
    arm = [exact(0.8), at_least(0.4), at_least(0.1), exact(0.1), exact(0.4), (NAN, NAN, "stuck"), below(0.2)]
    row = limit_ratios_table(limits({"control": control, "x": arm})).set_index("arm").loc["x"]
    assert row[["n", "n_bounded", "n_excluded"]].tolist() == [1, 5, 1]
    assert row["log2_ratio"] == pytest.approx(2.0)
    # Higher: 0.8 and at least 0.4 than 0.2, 0.1 than what breaks at 0.1. Lower: 0.4 than at least 0.8, and than 0.2
    # what breaks there.
    assert row[["wins", "losses"]].tolist() == [3, 2]
    assert row[["low", "high", "t_low", "t_high"]].isna().all()


def test_a_seed_without_the_control_has_no_ratio():
    frame = limits({"control": [exact(0.2)], "x": [exact(0.2), exact(0.4)]})
    row = limit_ratios_table(frame).set_index("arm").loc["x"]
    assert row[["n", "n_bounded", "n_excluded", "log2_ratio"]].tolist() == [1, 0, 1, 0.0]


# ---- effects


def crossed(levels):
    """A crossed design: an arm a combination."""
    found = {}
    for cell in product(*levels.values()):
        named = dict(zip(levels, cell, strict=True))
        found["-".join(v for v in cell if v) or "control"] = named
    return found


def of_octaves(octaves, seeds):
    return limits({arm: [exact(2.0 ** octaves[arm][seed]) for seed in range(seeds)] for arm in octaves})


def test_two_levels_three_times_are_least_squares():
    design = crossed({"a": (None, "A"), "b": (None, "B"), "c": (None, "C")})
    octaves = {arm: np.random.default_rng(i).normal(0, 2, 4) for i, arm in enumerate(design)}
    table = effects_table(of_octaves(octaves, 4), design).set_index("effect")
    coded = np.array([[1 if level else -1 for level in levels.values()] for levels in design.values()], dtype=float)
    for size, members in [(1, (0,)), (1, (1,)), (1, (2,)), (2, (0, 1)), (2, (0, 2)), (2, (1, 2)), (3, (0, 1, 2))]:
        columns = {s: coded[:, list(s)].prod(axis=1) for s in [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]}
        matrix = np.stack(list(columns.values()), axis=1)
        response = np.stack([octaves[arm] for arm in design])
        coefficient = np.linalg.lstsq(matrix, response, rcond=None)[0][list(columns).index(members)]
        name = " × ".join(f"{'abc'[i]}={'ABC'[i]}" for i in members)
        assert table.loc[name, "order"] == size
        assert table.loc[name, "log2_effect"] == pytest.approx((2**size * coefficient).mean(), abs=1e-9)
        assert table.loc[name, "t_low"] < table.loc[name, "log2_effect"] < table.loc[name, "t_high"]
    assert list(table["order"]) == [1, 1, 1, 2, 2, 2, 3]


def test_three_levels_of_a_linear_model():
    """y = −3 + u(norm) + v(init) + w(norm, init) + seed: effects are differences and differences of differences."""
    design = crossed({"norm": (None, "off", "group"), "init": (None, "he")})
    u, v = {None: 0.0, "off": -2.0, "group": 0.5}, {None: 0.0, "he": 1.5}
    octaves = {}
    for arm, cell in design.items():
        both = 0.75 if cell["norm"] == "off" and cell["init"] == "he" else 0.0
        octaves[arm] = [-3 + u[cell["norm"]] + v[cell["init"]] + both + seed for seed in range(3)]
    table = effects_table(of_octaves(octaves, 3), design).set_index("effect")
    expected = {
        "norm=off": -2.0 + 0.75 / 2,
        "norm=group": 0.5,
        "init=he": 1.5 + 0.75 / 3,
        "norm=off × init=he": 0.75,
        "norm=group × init=he": 0.0,
    }
    assert table["log2_effect"].to_dict() == pytest.approx(expected)
    assert table["n"].tolist() == [3] * 5
    # The seed shifts every arm, so that each seed has the same effects.
    assert table["t_low"].tolist() == pytest.approx(table["log2_effect"].tolist())


def test_a_seed_with_a_bound_or_without_a_limit_is_left_out():
    design = crossed({"clip": (None, "off")})
    frame = limits({"control": [exact(0.2)] * 4, "off": [exact(0.1), at_least(0.8), below(0.1), (NAN, NAN, "stuck")]})
    frame.loc[len(frame)] = ["control", 9, 0.2, 0.4, ""]
    row = effects_table(frame, design).iloc[0]
    assert row[["n", "n_bounded", "n_excluded"]].tolist() == [1, 3, 1]
    assert row["log2_effect"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("design", "problem"),
    [
        ({"control": {"a": None}, "x": {"b": "off"}}, "the arm 'x' has the factors b; the nearest valid are"),
        ({"control": {"a": None}, "x": {"a": "off"}, "y": {"a": "off"}}, "the arm 'y' has the same levels as 'x'"),
        (
            {"control": {"a": None, "b": None}, "x": {"a": "off", "b": None}, "y": {"a": None, "b": "on"}},
            "no arm of the design has a=off, b=on; the nearest is",
        ),
    ],
)
def test_a_design_that_is_not_crossed_is_refused(design, problem):
    with pytest.raises(ValueError, match=problem):
        effects_table(limits({"control": [exact(0.2)]}), design)
