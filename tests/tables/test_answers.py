# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the tables answer, against closed forms, SciPy and models whose coefficients are known."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from tables.cases import frame_of
from yolo_gradstudy.tables import (
    comparisons_table,
    effects_table,
    incidence_table,
    limit_ratios_table,
    limits_table,
    lr50_table,
    saved_table,
    sensitivity_table,
    survival_table,
)

DEAD = ("collapsed", "exploded", "nonfinite")


def followed(steps, causes):
    """A results table of one arm and rate: run i is followed for ``steps[i]`` steps; an empty cause is healthy."""
    frame = frame_of([("control", 0.1, i, cause or "stable") for i, cause in enumerate(causes)])
    onset = [step if cause else None for step, cause in zip(steps, causes, strict=True)]
    return frame.assign(steps=pd.array(steps, dtype="Int64"), onset_step=pd.array(onset, dtype="Int64"))


def kaplan_meier(steps, causes):
    censored = [s for s, c in zip(steps, causes, strict=True) if not c]
    events = [s for s, c in zip(steps, causes, strict=True) if c]
    return stats.ecdf(stats.CensoredData(uncensored=events, right=censored)).sf


@pytest.mark.parametrize(
    ("arm", "control"), [((1, 1, 1, 1, 1, 1, 0), (0, 0, 0, 0, 0, 0, 0)), ((1, 1, 0, 0), (0, 1, 1, 0)), ((1,), (0,))]
)
def test_mcnemar_is_a_coin_over_discordant_pairs(arm, control):
    runs = [("control", 0.1, i, "collapsed" if bad else "stable") for i, bad in enumerate(control)]
    runs += [("no_clip", 0.1, i, "nonfinite" if bad else "stable") for i, bad in enumerate(arm)]
    (row,) = comparisons_table(frame_of(runs)).to_dict("records")
    worse = sum(a and not c for a, c in zip(arm, control, strict=True))
    better = sum(c and not a for a, c in zip(arm, control, strict=True))
    few = min(worse, better)
    tail = sum(math.comb(worse + better, k) for k in range(few + 1)) / 2 ** (worse + better)
    assert row["p"] == pytest.approx(min(1.0, 2 * tail))
    assert (row["only_arm"], row["only_control"], row["n"]) == (worse, better, len(arm))
    assert row["difference"] == pytest.approx((worse - better) / len(arm))
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]


def test_holm_by_hand():
    """Three arms with 6, 7 and 0 discordant pairs of 7: p = 2/64, 2/128 and 1, so 2·2/64, 3·2/128 and 1."""
    runs = [("control", 0.1, i, "stable") for i in range(7)]
    for arm, bad in (("a", 6), ("b", 7), ("c", 0)):
        runs += [(arm, 0.1, i, "collapsed" if i < bad else "stable") for i in range(7)]
    table = comparisons_table(frame_of(runs)).set_index("arm")
    assert table["p_holm"].to_dict() == pytest.approx({"a": 4 / 64, "b": 6 / 128, "c": 1.0})
    assert (table["family"] == 3).all()


def test_one_cause_is_kaplan_and_meier():
    steps, causes = [3, 5, 5, 8, 13, 20, 20], ["collapsed", "", "collapsed", "collapsed", "", "collapsed", ""]
    table = incidence_table(followed(steps, causes))
    dead = table[(table["cause"] == "collapsed") & (table["step"] > 0)]
    reference = kaplan_meier(steps, causes)
    assert dead["incidence"].to_numpy() == pytest.approx(1 - reference.evaluate(dead["step"].to_numpy(dtype=float)))


def test_without_censoring_it_counts():
    steps, causes = [3, 5, 5, 8], ["collapsed", "exploded", "collapsed", "nonfinite"]
    table = incidence_table(followed(steps, causes))
    last = table[table["step"] == 8].set_index("cause")["incidence"]
    assert last.to_dict() == pytest.approx({"collapsed": 0.5, "exploded": 0.25, "nonfinite": 0.25, "unhealthy": 1.0})


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["", *DEAD])), min_size=1, max_size=12))
def test_causes_and_the_healthy_share_make_one(runs):
    steps, causes = zip(*runs, strict=True)
    table = incidence_table(followed(list(steps), list(causes)))
    for _, at_step in table.groupby("step"):
        single = at_step[at_step["cause"] != "unhealthy"]
        healthy = at_step["healthy"].iloc[0]
        assert single["incidence"].sum() + healthy == pytest.approx(1.0)
        assert at_step.loc[at_step["cause"] == "unhealthy", "incidence"].iloc[0] == pytest.approx(1 - healthy)


def test_the_restricted_mean_is_an_area():
    steps, causes = [10, 4, 10, 7, 10], ["", "collapsed", "", "exploded", ""]
    (row,) = survival_table(followed(steps, causes).assign(steps=10)).to_dict("records")
    assert row["tau"] == 10
    assert row["mean_steps"] == pytest.approx(np.mean(steps))  # nothing is censored before tau
    assert row["se"] == pytest.approx(np.std(steps, ddof=1) / math.sqrt(5))
    assert (row["n"], row["unhealthy"]) == (5, 2)


def searched(limits, rates=(0.1, 0.2, 0.4, 0.8)):
    return frame_of(
        [
            (arm, rate, seed, "collapsed" if rate > limit else "stable")
            for arm, by_seed in limits.items()
            for seed, limit in enumerate(by_seed)
            for rate in rates
        ]
    )


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ("ssBB", (0.2, 0.4, "", 0)),
        ("ssss", (0.8, math.nan, "at least", 0)),
        ("BBBB", (math.nan, 0.1, "below", 0)),
        ("sBss", (0.8, math.nan, "at least", 1)),  # one accident below does not make the limit
        ("sBsB", (0.1, 0.2, "", 1)),  # two edges contradict one probe each: the lower
        ("uuuu", (math.nan, math.nan, "stuck", 0)),
        ("usBB", (0.2, 0.4, "", 0)),
        ("suBB", (0.1, 0.4, "", 0)),
        ("s?BB", (0.1, 0.4, "", 0)),
    ],
)
def test_the_limit_of_one_seed(outcomes, expected):
    words = {"s": "stable", "B": "exploded", "u": "stuck", "?": "failed"}
    runs = [("control", rate, 0, words[o]) for rate, o in zip((0.1, 0.2, 0.4, 0.8), outcomes, strict=True)]
    (row,) = limits_table(frame_of(runs), 2).to_dict("records")
    found = tuple(row[key] for key in ("largest_stable", "first_broken", "bound", "exceptions"))
    assert found == pytest.approx(expected, nan_ok=True)
    assert row["probes"] == 4 - outcomes.count("?")


def test_ratios_are_paired_octaves():
    limits = limits_table(searched({"control": (0.4, 0.4, 0.2), "no_clip": (0.1, 0.2, 0.1), "x": (0.8, 0.4, 0.2)}), 2)
    table = limit_ratios_table(limits).set_index("arm")
    values = np.array([-2.0, -1.0, -1.0])
    row = table.loc["no_clip"]
    assert row["log2_ratio"] == pytest.approx(values.mean())
    spread = stats.t.ppf(0.975, 2) * values.std(ddof=1) / math.sqrt(3)
    assert (row["t_low"], row["t_high"]) == pytest.approx((values.mean() - spread, values.mean() + spread))
    assert -2 <= row["low"] <= row["log2_ratio"] <= row["high"] <= -1
    assert (row["n"], row["losses"], row["wins"]) == (3, 3, 0)
    assert table.loc["x", "n_bounded"] == 1  # 0.8 is the largest probed rate
    assert table.loc["x", "n"] == 2


def test_a_symmetric_search_has_its_lr50_in_the_middle():
    (row,) = lr50_table(searched({"control": (0.2, 0.2, 0.2)})).to_dict("records")
    assert row["lr50"] == pytest.approx(math.sqrt(0.2 * 0.4), rel=1e-4)
    assert row["low"] < row["lr50"] < row["high"]
    assert row["low"] * row["high"] == pytest.approx(row["lr50"] ** 2, rel=1e-3)
    assert (row["n"], row["broken"], row["reason"]) == (12, 6, "")


def test_with_many_runs_lr50_is_that_of_maximum_likelihood():
    generator = np.random.default_rng(0)
    octaves = np.repeat(np.linspace(-6, 2, 9), 60)
    broken = generator.random(len(octaves)) < special.expit(1.5 * (octaves + 2.3))
    runs = [
        ("control", 2.0**octave, seed, "collapsed" if bad else "stable")
        for seed, (octave, bad) in enumerate(zip(octaves, broken, strict=True))
    ]
    (row,) = lr50_table(frame_of(runs)).to_dict("records")

    def loss(both):
        eta = both[1] * (octaves - both[0])
        return np.logaddexp(0, eta).sum() - eta[broken].sum()

    centre, slope = optimize.minimize(loss, [-2.0, 1.0]).x
    assert math.log2(row["lr50"]) == pytest.approx(centre, abs=0.01)
    assert row["slope"] == pytest.approx(slope, rel=0.03)
    assert math.log2(row["low"]) < -2.3 < math.log2(row["high"])


def test_effects_are_those_of_the_model_that_made_the_limits():
    """y = 1 + 2·a − 3·b + 0.5·ab + seed, with a third factor that does nothing."""
    factors = {"a": (None, "off"), "b": (None, "off"), "c": (None, "he")}
    design, rows = {}, []
    for cell in product(*factors.values()):
        levels = dict(zip(factors, cell, strict=True))
        arm = ".".join(f"{f}_{v}" for f, v in levels.items() if v) or "control"
        design[arm] = levels
        a, b = levels["a"] is not None, levels["b"] is not None
        rows += [(arm, seed, 2.0 ** (1 + 2 * a - 3 * b + 0.5 * a * b + seed), "") for seed in range(3)]
    limits = pd.DataFrame(rows, columns=["arm", "seed", "largest_stable", "bound"])
    effects = effects_table(limits, design).set_index("effect")["log2_effect"]
    # A main effect is the mean over the other factor's levels, so that half of the interaction is in it.
    assert effects["a=off"] == pytest.approx(2.25)
    assert effects["b=off"] == pytest.approx(-2.75)
    assert effects["a=off × b=off"] == pytest.approx(0.5)
    assert effects["c=he"] == pytest.approx(0.0)
    assert effects["a=off × b=off × c=he"] == pytest.approx(0.0)
    assert len(effects) == 7


def test_sensitivity_by_hand():
    runs = [("control", rate, 0, outcome) for rate, outcome in ((0.01, "stable"), (0.1, "stable"), (1.0, "collapsed"))]
    frame = frame_of(runs, fixed_loss_last=[7.0, 5.0, 0.0], fixed_loss_chance=9.0, fixed_step_first=8)
    (row,) = sensitivity_table(frame).to_dict("records")
    assert row["sensitivity"] == pytest.approx((7 + 5 + 9) / 3 - 5)  # a dead run's loss of 0 counts as the initial
    assert row["best_loss"] == 5
    assert (row["rates"], row["n"]) == (3, 1)


def test_saved_steps_add_up():
    frame = frame_of([("control", 0.1, i, "stable") for i in range(3)])
    ended = pd.array([20, None, None], dtype="Int64")
    frame = frame.assign(
        steps=pd.array([20, 100, 100], dtype="Int64"),
        stopped_at=ended,
        planned_steps=pd.array([100, None, None], "Int64"),
    )
    (row, whole) = saved_table(frame).to_dict("records")
    assert (row["ended_early"], row["planned_steps"], row["trained_steps"]) == (1, 300, 220)
    assert row["saved_share"] == whole["saved_share"] == pytest.approx(80 / 300)
