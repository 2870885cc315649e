# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables over seeds: comparisons, medians, sensitivity, what was saved."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from tables.cases import frame_of
from yolo_gradstudy.tables import (
    accuracy_table,
    comparisons_table,
    medians_table,
    over_rates_table,
    saved_table,
    sensitivity_curves_table,
    sensitivity_table,
)
from yolo_gradstudy.tables.intervals import paired_difference_interval
from yolo_gradstudy.tables.paired import PairedDifference, mcnemar_p

NAN = math.nan


def test_a_pair_takes_the_same_seed_at_the_same_rate_and_two_verdicts():
    runs = [
        *(("control", 0.1, s, o) for s, o in enumerate(("stable", "failed", "stable", "collapsed"))),
        ("control", 0.2, 4, "stable"),
        *(("x", 0.1, s, o) for s, o in enumerate(("stuck", "collapsed", "unknown", "collapsed", "collapsed"))),
    ]
    frame = comparisons_table(frame_of(runs))
    (row,) = frame.to_dict("records")
    assert (row["n"], row["n_excluded"]) == (2, 3)
    assert (row["both"], row["only_arm"], row["only_control"], row["neither"], row["discordant"]) == (1, 1, 0, 0, 1)
    assert (row["p"], row["needs"]) == (1.0, 6)


def test_an_arm_without_a_control_is_in_no_family():
    frame = comparisons_table(
        frame_of([("x", 0.1, 0, "stable"), ("x", 0.2, 0, "stable"), ("control", 0.2, 0, "stable")])
    )
    assert frame["n"].tolist() == [0, 1]
    assert frame["family"].tolist() == [1, 1]
    assert frame["p_holm"].isna().tolist() == [True, False]


def test_six_discordant_pairs_are_significant_alone_and_not_among_two():
    runs = [(arm, 0.1, s, "stable" if arm == "control" else "collapsed") for arm in ("control", "x") for s in range(6)]
    (row,) = comparisons_table(frame_of(runs)).to_dict("records")
    assert row["p"] == row["p_holm"] == pytest.approx(2 / 64)
    assert row["difference_low"] > 0
    more = comparisons_table(frame_of([*runs, *(("y", 0.1, s, "stable") for s in range(6))])).set_index("arm")
    assert more.loc["x", "p_holm"] == pytest.approx(4 / 64)


def coins(signs, discordant):
    """Pairs of which a seed decides, by its sign, on which side those lie that are discordant."""
    by_seed = zip(signs, discordant, strict=True)
    return PairedDifference([[sign * int(rate) for rate in rates] for sign, rates in by_seed])


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seeds", [2, 3, 5, 6])
def test_rates_of_one_seed_are_not_so_many_experiments(seeds, share):
    """Where a coin a seed is all there is, McNemar's test over pairs refuses in up to half of the studies.

    Five seeds lie on one side in 2 of 32, so that a test that can refuse at all does so in more than 5%.
    """
    random = np.random.default_rng(seeds)
    found = [coins(random.choice([-1, 1], seeds), random.random((seeds, 5)) < share) for _ in range(500)]
    assert sum(one.p < 0.05 for one in found) / 500 < 0.1
    for one in found[:20]:
        low, high = one.interval()
        assert (low <= 0 <= high) == (one.p >= 0.05)
    if share == 1.0 and seeds > 2:
        assert sum(mcnemar_p(one.only_first, one.only_second) < 0.05 for one in found) / 500 > 0.2


@given(st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=5), min_size=2, max_size=6), st.data())
def test_more_evidence_is_no_larger_p_where_all_of_it_points_one_way(gaps, data):
    """One pair more of which only the arm's run is unhealthy, where no pair speaks for the arm."""
    less = [[abs(gap) for gap in of_seed] for of_seed in gaps]
    seed = data.draw(st.integers(0, len(less) - 1))
    assume(0 in less[seed])
    more = [list(of_seed) for of_seed in less]
    more[seed][more[seed].index(0)] = 1
    before, after = PairedDifference(less), PairedDifference(more)
    if after._error == math.sqrt(after.only_first) / after.n:  # else the seed stands out by what it got
        assert after.p <= before.p + 1e-12


@given(st.lists(st.lists(st.integers(-1, 1), min_size=1, max_size=5), min_size=2, max_size=6))
def test_the_interval_of_a_paired_difference(gaps):
    """No narrower than Tango's, antisymmetric, around the difference, and 0 is in it unless both tests refuse it."""
    one, turned = PairedDifference(gaps), PairedDifference([[-gap for gap in of_seed] for of_seed in gaps])
    low, high = one.interval()
    tango = paired_difference_interval(one.only_first, one.only_second, one.n)
    assert -1 <= low <= min(tango[0], one.point) <= max(tango[1], one.point) <= high <= 1
    assert turned.interval() == pytest.approx((-high, -low), abs=1e-6)
    assert one.p >= mcnemar_p(one.only_first, one.only_second)
    assert one.p < 0.05 or low <= 0 <= high


def test_seeds_that_agree_are_not_sure_of_themselves():
    """One of five rates in each of four seeds: 4 coins of 20 pairs, whose error √4/20 is Student's at 3 degrees."""
    runs = [("control", rate, seed, "stable") for rate in (1, 2, 3, 4, 5) for seed in range(4)]
    runs += [("x", rate, seed, "collapsed" if rate == 5 else "stable") for rate in (1, 2, 3, 4, 5) for seed in range(4)]
    (row,) = over_rates_table(frame_of(runs)).to_dict("records")
    error = 2 / 20
    assert row["p"] == pytest.approx(max(2 / 16, 2 * stats.t.sf(0.2 / error, 3)))
    assert row["difference_low"] == pytest.approx(0.2 - stats.t.ppf(0.975, 3) * error)
    assert row["difference_high"] == pytest.approx(0.2 + stats.t.ppf(0.975, 3) * error)
    assert (row["rates"], row["seeds"], row["n"], row["only_arm"], row["neither"]) == (5, 4, 20, 4, 16)


def test_one_seed_at_several_rates_decides_nothing():
    runs = [
        (arm, rate, 0, "stable" if arm == "control" else "collapsed") for arm in ("control", "x") for rate in (1, 2)
    ]
    (row,) = over_rates_table(frame_of(runs)).to_dict("records")
    assert (row["n"], row["seeds"], row["difference"], row["family"]) == (2, 1, 1.0, 0)
    assert all(math.isnan(row[name]) for name in ("p", "p_holm", "difference_low", "difference_high"))


def test_an_arm_at_one_rate_is_not_over_rates():
    runs = [(arm, 0.1, seed, "stable") for arm in ("control", "x") for seed in range(3)]
    assert over_rates_table(frame_of(runs)).empty


@given(st.lists(st.floats(0.1, 100) | st.just(NAN) | st.just(math.inf), min_size=1, max_size=9))
def test_medians_are_of_finite_values_and_the_others_are_counted(values):
    frame = frame_of([("control", 0.1, s, "stable") for s in range(len(values))], grad_norm_median=values)
    row = medians_table(frame).set_index("quantity").loc["grad_norm_median"]
    finite = [v for v in values if math.isfinite(v)]
    assert row["n"] + row["n_missing"] == len(values)
    assert row["n"] == len(finite)
    assert row["median"] == pytest.approx(np.median(finite) if finite else NAN, nan_ok=True)
    if len(finite) > 1:
        assert min(finite) <= row["low"] <= row["median"] <= row["high"] <= max(finite)


def test_medians_leave_out_runs_that_say_nothing():
    runs = [("control", 0.1, s, o) for s, o in enumerate(("stable", "failed", "interrupted", "unknown", "collapsed"))]
    frame = medians_table(frame_of(runs, loss_last=[1.0, 50.0, 50.0, 50.0, 3.0])).set_index("quantity")
    assert frame.loc["loss_last", ["n", "n_excluded", "median"]].tolist() == [2, 3, 2.0]


# ---- accuracy


def test_accuracy_is_the_mean_with_students_interval_and_is_paired_by_seed():
    runs = [(arm, 0.1, seed, "stable") for arm in ("control", "x") for seed in range(3)]
    frame = accuracy_table(frame_of(runs, map50_95=[0.5, 0.6, 0.4, 0.4, 0.6, 0.2])).set_index("arm")
    assert frame.loc["control", ["n", "n_broken", "map50_95"]].tolist() == [3, 0, pytest.approx(0.5)]
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # the 97.5% point of Student's t with two degrees of freedom
    assert frame.loc["control", ["low", "high"]].tolist() == pytest.approx([0.5 - half, 0.5 + half])
    gaps = [-0.1, 0.0, -0.2]
    assert frame.loc["x", ["n_pairs", "difference"]].tolist() == [3, pytest.approx(np.mean(gaps))]
    assert frame.loc["x", "difference_high"] == pytest.approx(-0.1 + half)
    assert frame["reason"].tolist() == ["", ""]
    assert math.isnan(frame.loc["control", "difference"])


@pytest.mark.parametrize("outcome", ["nonfinite", "exploded", "collapsed"])
def test_a_run_that_broke_counts_as_0_whatever_its_ema_detects(outcome):
    runs = [("control", 0.1, 0, "stable"), ("x", 0.1, 0, outcome), ("x", 0.1, 1, "unknown"), ("x", 0.1, 2, "stuck")]
    row = accuracy_table(frame_of(runs, map50_95=[0.5, 0.4, 0.4, 0.1])).set_index("arm").loc["x"]
    assert row[["n", "n_excluded", "n_broken", "map50_95", "n_pairs"]].tolist() == [2, 1, 1, 0.05, 1]
    assert row["difference"] == -0.5


def test_where_a_healthy_run_was_not_validated_those_that_broke_do_not_stand_for_all():
    runs = [("control", 0.1, s, "stable") for s in range(3)]
    runs += [("x", 0.1, 0, "collapsed"), ("x", 0.1, 1, "stable"), ("x", 0.1, 2, "recovered")]
    row = accuracy_table(frame_of(runs, map50_95=[0.5, 0.5, 0.6, 0.0, NAN, 0.4])).set_index("arm").loc["x"]
    assert row[["n", "n_excluded", "n_broken", "n_pairs"]].tolist() == [0, 3, 0, 0]
    assert math.isnan(row["map50_95"])


def test_values_that_do_not_vary_have_no_interval_and_one_ends_at_0():
    runs = [(arm, 0.1, s, "collapsed" if arm == "x" else "stable") for arm in ("control", "x", "y") for s in range(3)]
    values = [0.5, 0.6, 0.4, 0.0, 0.0, 0.0, 0.01, 0.3, 0.02]
    frame = accuracy_table(frame_of(runs, map50_95=values)).set_index("arm")
    assert frame.loc["x", ["low", "high"]].isna().all()
    assert frame.loc["x", "difference_low"] < -0.5 < frame.loc["x", "difference_high"], "the control's values vary"
    assert frame.loc["y", "low"] == 0.0


def test_a_study_without_a_control_has_accuracies_and_no_differences():
    (row,) = accuracy_table(frame_of([("x", 0.1, 0, "stable")], map50_95=0.5)).to_dict("records")
    assert (row["map50_95"], row["n_pairs"], row["reason"]) == (0.5, 0, "there is no control")


def test_where_the_control_has_not_learned_map_is_no_endpoint():
    runs = [(arm, lr0, 0, "stable") for arm in ("control", "x") for lr0 in (0.1, 0.2)]
    frame = accuracy_table(frame_of(runs, map50_95=[0.01, 0.02, 0.5, 0.5]))
    assert set(frame["reason"]) == {
        "the mean mAP50-95 of the control is 0.02 at best, below 0.1: it has not learned to detect"
    }
    assert frame["difference"].isna().all()
    assert frame["n_pairs"].tolist() == [0] * 4
    learned = accuracy_table(frame_of(runs, map50_95=[0.01, 0.2, 0.5, 0.5]))
    assert learned["difference"].tolist() == pytest.approx([NAN, NAN, 0.49, 0.3], nan_ok=True)


def test_a_study_without_validation_says_nothing_of_accuracy():
    frame = accuracy_table(frame_of([("control", 0.1, 0, "recovered"), ("x", 0.1, 0, "stable")], map50_95=NAN))
    assert frame["n"].tolist() == [0, 0]
    assert frame["map50_95"].isna().all()
    assert set(frame["reason"]) == {"the control was not validated"}


# ---- sensitivity


def rates(losses, outcomes=None, arm="control", seed=0, **columns):
    outcomes = outcomes or ["stable"] * len(losses)
    told = {"fixed_loss_last": losses, "fixed_loss_chance": 9.0, "fixed_step_first": 8, **columns}
    return frame_of([(arm, 0.01 * 10**i, seed, o) for i, o in enumerate(outcomes)], **told)


def sensitivity(*frames):
    return sensitivity_table(pd.concat(frames, ignore_index=True)).set_index("arm")


@given(st.lists(st.floats(1, 20), min_size=2, max_size=5))
def test_sensitivity_is_its_definition(losses):
    row = sensitivity(rates(losses)).iloc[0]
    capped = np.minimum(losses, 9.0)
    if capped.min() < 9:
        assert row["sensitivity"] == pytest.approx(capped.mean() - capped.min())
        assert (row["n"], row["n_unlearned"], row["reason"]) == (1, 0, "")
    else:
        assert (row["n"], row["n_unlearned"], row["reason"]) == (0, 1, "no seed has learned at any rate")


@pytest.mark.parametrize("outcome", ["nonfinite", "exploded", "collapsed"])
@pytest.mark.parametrize("loss", [0.5, 40.0, NAN, math.inf])
def test_a_run_that_went_wrong_counts_as_untrained_whatever_its_loss(outcome, loss):
    row = sensitivity(rates([5.0, loss], ["stable", outcome])).iloc[0]
    assert row[["sensitivity", "best_loss"]].tolist() == [2.0, 5.0]


def test_a_stuck_run_counts_by_its_loss():
    assert sensitivity(rates([5.0, 8.5], ["stable", "stuck"])).iloc[0]["sensitivity"] == pytest.approx(1.75)


def test_the_untrained_models_loss_is_the_initial_one_where_it_was_validated():
    row = sensitivity(rates([5.0, 40.0], fixed_step_first=0, fixed_loss_first=13.0)).iloc[0]
    assert row["sensitivity"] == pytest.approx(4.0)
    row = sensitivity(rates([5.0, 40.0], fixed_step_first=8, fixed_loss_first=13.0)).iloc[0]
    assert row["sensitivity"] == pytest.approx(2.0)


def test_a_loss_that_is_not_finite_is_the_initial_one_and_one_that_is_missing_is_not():
    assert sensitivity(rates([5.0, NAN])).iloc[0]["sensitivity"] == pytest.approx(2.0)
    row = sensitivity(rates([5.0, NAN], fixed_step_first=[8, None])).iloc[0]
    assert (row["n"], row["n_excluded"], row["reason"]) == (0, 1, "no seed has a verdict and a loss at every rate")
    # A run that broke before it was validated has no loss, and needs none.
    row = sensitivity(
        rates([5.0, NAN], ["stable", "nonfinite"], fixed_step_first=[8, None], fixed_loss_chance=[9.0, NAN])
    ).iloc[0]
    assert row["sensitivity"] == pytest.approx(2.0)


def test_seeds_are_averaged_and_paired_with_the_control():
    frames = [rates([5.0, 5.0 + s], seed=s) for s in range(3)]  # 0, 0.5, 1
    frames += [rates([5.0, 6.0 + s], arm="x", seed=s) for s in range(3)]  # 0.5, 1, 1.5
    frames += [rates([9.5, 9.5], arm="x", seed=3)]
    table = sensitivity(*frames)
    assert table.loc["control", ["n", "sensitivity"]].tolist() == [3, 0.5]
    row = table.loc["x"]
    assert row[["n", "n_unlearned", "sensitivity", "n_pairs", "difference"]].tolist() == [3, 1, 1.0, 3, 0.5]
    assert (row["difference_low"], row["difference_high"]) == (0.5, 0.5)
    assert row["low"] < 1.0 < row["high"]


def test_the_grid_is_what_all_arms_have_and_takes_two_rates():
    table = sensitivity(rates([5.0, 6.0, 20.0]), rates([5.0, 6.0], arm="x"))
    assert table["rates"].tolist() == [2, 2]
    assert table["sensitivity"].tolist() == [0.5, 0.5]
    table = sensitivity(rates([5.0, 6.0]), rates([5.0], arm="x"))
    assert table["reason"].tolist() == ["every arm has 1 learning rates in common, it takes two"] * 2


def test_a_seed_that_lacks_a_verdict_is_left_out():
    row = sensitivity(rates([5.0, 6.0]), rates([5.0, 6.0], ["stable", "interrupted"], seed=1)).iloc[0]
    assert row[["n", "n_excluded"]].tolist() == [1, 1]


def test_the_curves_are_what_the_sensitivity_is_made_of():
    frames = [rates([5.0, 6.0, 20.0], ["stable", "collapsed", "stable"], seed=s) for s in (0, 1)]
    frames += [rates([4.0 + s, 6.0 + s, 7.0], arm="x", seed=s) for s in range(3)]
    frames += [rates([4.0, 6.0, 7.0], ["stable", "failed", "stable"], arm="x", seed=3)]
    results = pd.concat(frames, ignore_index=True)
    curves, table = sensitivity_curves_table(results), sensitivity_table(results).set_index("arm")
    control, x = (curves[curves["arm"] == arm] for arm in ("control", "x"))
    assert control["loss_median"].tolist() == [5.0, 9.0, 9.0]
    assert control["n_capped"].tolist() == [0, 2, 2]
    assert x[["loss_low", "loss_median", "loss_high"]].to_numpy().tolist() == [[4, 5, 6], [6, 7, 8], [7, 7, 7]]
    assert (x["n"] == 3).all()
    assert (x["n_excluded"] == 1).all()
    assert (curves["initial_loss"] == 9.0).all()
    losses = control["loss_median"]
    assert table.loc["control", "sensitivity"] == pytest.approx(losses.mean() - losses.min())
    assert len(sensitivity_curves_table(rates([5.0]))) == 0


# ---- saved


def test_saved_shares_are_of_what_was_planned():
    runs = [
        ("control", 0.1, 0, "stable"),
        ("x", 0.1, 0, "collapsed"),
        ("x", 0.1, 1, "failed"),
        ("x", 0.1, 2, "nonfinite"),
    ]
    frame = frame_of(
        runs, steps=[100, 25, 7, 9], stopped_at=[None, 25, None, None], planned_steps=[None, 100, None, None]
    )
    frame["status"] = ["finished", "finished", "failed", "failed"]  # Ultralytics gave up on the last
    table = saved_table(frame).set_index("arm")
    assert table.loc["control"].tolist() == [1, 0, 0, 100, 100, 0.0]
    assert table.loc["x"].tolist() == [1, 2, 1, 100, 25, 0.75]
    assert table.loc["all arms"].tolist() == [2, 2, 1, 200, 125, 0.375]
