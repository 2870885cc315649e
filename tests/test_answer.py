# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sentences that answer a study, and its claims, against studies whose answer is known."""

import pytest
from synthetic import make_reading

from yolo_gradstudy.report.answer import answer, describe_control, percent, signed
from yolo_gradstudy.tables import (
    accuracy_table,
    comparisons_table,
    limit_ratios_table,
    limits_table,
    over_rates_table,
    results_table,
)

S, N, C, U = "stable", "nonfinite", "collapsed", "unknown"


def make_results(arms):
    """Outcomes by arm and rate, a seed each."""
    return results_table(
        [
            make_reading(arm, lr0, seed, outcome)
            for arm, rates in arms.items()
            for lr0, outcomes in rates.items()
            for seed, outcome in enumerate(outcomes)
        ]
    )


def grid(arms):
    results = make_results(arms)
    return results, tables(results)


def tables(results):
    return {
        "comparisons": comparisons_table(results),
        "over_rates": over_rates_table(results),
        "accuracy": accuracy_table(results),
    }


def search(arms):
    results = make_results(arms)
    limits = limits_table(results, 2.0)
    return results, {"limits": limits, "limit_ratios": limit_ratios_table(limits)}


def ladder(*edges):
    """Outcomes at 0.01 to 1.28 of seeds that stay alive up to the edges given."""
    rates = [0.01 * 2**n for n in range(8)]
    return {rate: [S if rate <= edge * 1.01 else C for edge in edges] for rate in rates}


def test_a_grid_that_decides_names_the_arm_its_counts_interval_p_and_n():
    told = answer(*grid({"control": {0.1: [S] * 8}, "no_clip": {0.1: [N] * 8}, "no_warmup": {0.1: [S] * 8}}))
    first, second = told.sentences
    assert first == (
        "One arm changes the share of unhealthy runs beyond chance: no_clip at lr0 0.1: unhealthy in 8 of 8 runs, the "
        "control in 0 of 8, a difference of +100% (95% interval +35% to +100%, Tango; McNemar’s exact p = 0.0078, "
        "0.016 after Holm over 2 comparisons; n = 8 pairs)."
    )
    assert second == "Not decided at this n: no_warmup."
    assert told.control == "Control: unhealthy in 0 of 8 runs, at lr0 0.1."
    assert (told.source, told.caveats) == ("comparisons", ())


def test_a_grid_that_cannot_decide_says_so_and_why():
    told = answer(*grid({"control": {0.1: [S] * 3, 1.0: [C, S, S]}, "no_clip": {0.1: [N, N, U], 1.0: [C, S, S]}}))
    assert told.sentences[0] == "Over all 2 learning rates together no arm differs from the control beyond chance."
    assert told.sentences[1] == (
        "The largest difference is that of no_clip: unhealthy in 3 of 5 runs, the control in 1 of 5, a difference of "
        "+40% (95% interval −82% to +100%; p = 0.5; n = 5 pairs of 3 seeds)."
    )
    assert told.sentences[2] == (
        "At a single learning rate no arm differs from the control beyond chance at this n: a p below 0.05 takes 6 "
        "pairs that differ, and no comparison has more than 3."
    )
    assert told.sentences[3].startswith(
        "The largest difference there is that of no_clip at lr0 0.1: unhealthy in 2 of 2 runs"
    )
    assert told.control == "Control: unhealthy in 1 of 6 runs: 0 of 3 at lr0 0.1, 1 of 3 at lr0 1."
    assert told.caveats[0].startswith("Over all learning rates pairs of one seed are not taken for independent")
    assert told.caveats[1].startswith("1 run is left out of the comparisons")


def test_rates_that_decide_nothing_alone_may_decide_together():
    """Five pairs that differ at a rate are never told from chance; twenty over all rates are, eight if not adjusted."""
    healthy = {rate: [S] * 6 for rate in (1, 2, 3, 4)}
    arms = {
        "control": healthy,
        "worse": {1: [N] * 5 + [S], 2: [S] + [N] * 5, 3: [N] * 5 + [S], 4: [S] + [N] * 5},
        "perhaps": {1: [C, C, S, S, S, S], 2: [S, S, C, C, S, S], 3: [S, S, S, S, N, N], 4: [N, S, N, S, S, S]},
        "same": healthy,
        "alike": healthy,
    }
    told = answer(*grid(arms))
    assert told.source == "over_rates"
    assert told.sentences[0].startswith(
        "Over all 4 learning rates together 1 arm changes the share of unhealthy runs beyond chance: worse: unhealthy "
        "in 20 of 24 runs, the control in 0 of 24, a difference of +83% (95% interval"
    )
    assert told.sentences[0].endswith(" after Holm over 4 arms; n = 24 pairs of 6 seeds).")
    assert told.sentences[1].startswith("Not adjusted for their number, 1 arm more would: perhaps: unhealthy in 8 of")
    assert "p = 0.037; n = 24 pairs" in told.sentences[1]
    assert told.sentences[2].startswith("At a single learning rate no arm differs from the control beyond chance")
    arms["worse"] = healthy
    assert answer(*grid(arms)).sentences[:2] == (
        "Over all 4 learning rates together no arm differs from the control beyond chance after Holm over 4 arms.",
        told.sentences[1].replace("1 arm more would", "1 arm would"),
    )


def test_a_rate_that_decides_alone_is_told_besides_all():
    outcomes = {1: [S] * 10, 2: [N] * 10}
    told = answer(*grid({"control": {1: [S] * 10, 2: [S] * 10}, "a": outcomes, "b": outcomes}))
    assert told.sentences[0].startswith("Over all 2 learning rates together 2 arms change the share")
    assert told.sentences[1].startswith("At single learning rates arms change the share of unhealthy runs")
    assert len(told.sentences) == 2


def detecting(accuracies):
    """A control and an arm, healthy, with these mAP50-95 by rate."""
    results, _ = grid({arm: {rate: [S] * len(v) for rate, v in rates.items()} for arm, rates in accuracies.items()})
    results["map50_95"] = [value for rates in accuracies.values() for found in rates.values() for value in found]
    return results, tables(results)


def test_map_is_told_where_it_is_an_endpoint():
    control, worse = {0.1: [0.5, 0.6, 0.55], 1.0: [0.3, 0.3, 0.4]}, {0.1: [0.31, 0.4, 0.36], 1.0: [0.3, 0.4, 0.3]}
    told = answer(*detecting({"control": control, "worse": worse}))
    assert told.sentences[-1] == (
        "mAP50-95 differs from the control’s at the same rate: worse at lr0 0.1 −0.19 (−0.21 to −0.18, n = 3 pairs)."
    )
    assert told.control.endswith(
        "Its mAP50-95 at the end is 0.55 (95% interval 0.43 to 0.67) at the best of its rates, 0.1; n = 3 runs."
    )
    caveat = "Intervals of mAP50-95 are Student’s 95%, not adjusted for 2 comparisons."
    assert told.caveats == (caveat,)
    near = answer(*detecting({"control": control, "near": {0.1: [0.5, 0.6, 0.5], 1.0: [0.3, 0.31, 0.45]}}))
    assert near.sentences[-1].startswith(
        "No difference of mAP50-95 is decided at this n; the largest of 2 comparisons is near at lr0 1 +0.02 (−0.05 to"
    )
    assert near.caveats == (caveat,)
    assert "mAP" not in "".join(answer(*detecting({"control": control, "same": control})).sentences), "no interval"


def test_a_control_that_broke_beside_one_that_tells_nothing_has_not_learned():
    results = make_results({"control": {0.01: [U], 0.1: [S], 1.0: [C]}, "a": {0.01: [S], 0.1: [S], 1.0: [S]}})
    results["map50_95"] = [0.001, 0.001, 0.2, 0.5, 0.5, 0.5]
    assert any("mAP is no endpoint here" in caveat for caveat in answer(results, tables(results)).caveats)


def test_map_of_a_control_that_has_not_learned_is_no_endpoint():
    told = answer(*detecting({"control": {0.1: [0.001] * 3}, "a": {0.1: [0.5] * 3}}))
    assert told.caveats == (
        "mAP is no endpoint here: the mean mAP50-95 of the control is 0.001 at best, below 0.1: it has not learned to "
        "detect.",
    )
    assert "mAP" not in "".join((*told.sentences, told.control))


def test_an_arm_that_helps_is_a_negative_difference():
    told = answer(*grid({"control": {0.1: [N] * 8}, "gentle": {0.1: [S] * 8}}))
    assert "a difference of −100% (95% interval −100% to −35%" in told.sentences[0]
    assert "Holm" not in told.sentences[0], "one comparison needs no adjustment"


def test_where_all_arms_are_the_same_nothing_differs():
    told = answer(*grid({"control": {0.1: [S, C]}, "a": {0.1: [S, C]}, "b": {0.1: [S, C]}}))
    assert told.sentences == (
        "No arm differs from the control: in each of the 4 pairs of runs (same seed and learning rate, 2 comparisons) "
        "both are healthy or both unhealthy.",
    )


def test_many_arms_are_counted_not_listed():
    arms = {f"arm{n}": {0.1: [N] * 10} for n in range(6)}
    told = answer(*grid({"control": {0.1: [S] * 10}, **arms}))
    assert told.sentences[0].startswith("Arms change")
    assert told.sentences[0].endswith(", and 3 more in the table.")
    assert len(told.sentences) == 1


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ({"control": {0.1: [U, "failed"]}, "a": {0.1: ["interrupted"] * 2}}, "No run has an outcome yet"),
        ({"a": {0.1: [S]}, "b": {0.1: [N]}}, "has no arm “control”"),
        ({"control": {0.1: [S, N]}}, "The control is the study’s only arm"),
        ({"control": {0.1: [S, N]}, "a": {0.1: [U, "failed"]}}, "can be paired with a run of the control yet"),
        ({"control": {0.1: [U]}, "a": {0.1: [N]}}, "can be paired"),
    ],
)
def test_what_cannot_be_answered_is_not(arms, words):
    told = answer(*grid(arms))
    assert words in told.sentences[0]
    assert len(told.sentences) == 1


def test_an_edge_with_a_probe_that_says_nothing_is_told():
    """The control of seed 0 has one at 0.64, no_clip none; a probe that is not made yet is no such thing."""
    arms = {"control": ladder(0.32, 0.32), "no_clip": ladder(0.04, 0.04)}
    arms["control"][0.64][0] = U
    assert answer(*search(arms)).caveats[0] == (
        "1 edge of 4 is wider than a step of the grid, with a probe that says nothing: between the largest stable and "
        "the first broken rate it counts as not alive."
    )
    del arms["control"][0.64]
    assert not [caveat for caveat in answer(*search(arms)).caveats if "wider" in caveat]


def test_a_search_says_how_many_times_smaller_the_limit_is():
    arms = {"control": ladder(0.32, 0.64, 0.64), "no_clip": ladder(0.04, 0.04, 0.08), "other": ladder(0.32, 0.16, 0.64)}
    results, tables = search(arms)
    told = answer(results, tables)
    row = tables["limit_ratios"].set_index("arm").loc["no_clip"]
    assert row["log2_ratio"] == pytest.approx(-10 / 3)
    assert told.sentences[0] == (
        "With no_clip the largest learning rate at which training stays alive is 10.1 times smaller than the control’s "
        f"(2^3.3; 95% interval {2 ** -row['t_high']:.3g} to {2 ** -row['t_low']:.3g} times, Student’s t; n = 3 seeds)."
    )
    words = "No difference from the control is decided for other (0.63 times the control’s, 95% interval"
    assert told.sentences[1].startswith(words)
    assert told.control == "Control: it stays alive up to a learning rate of 0.64 (median of n = 3 seeds)."
    assert "not adjusted for the 2 arms" in told.caveats[0]


def test_a_search_of_one_seed_has_no_interval_and_decides_nothing():
    told = answer(*search({"control": ladder(0.32), "no_clip": ladder(0.04)}))
    assert told.sentences == (
        "No arm’s largest stable learning rate differs from the control’s beyond chance at this n: no_clip (lower than "
        "the control’s in 1 and higher in 0 of 1 pair, too few for an interval).",
    )


def test_limits_that_are_only_bounds_are_told():
    told = answer(*search({"control": ladder(0.32, 9, 0.32), "no_clip": ladder(0.04, 0.08, 0.08)}))
    assert "1 pair of seeds is left out of the ratios, since a limit is only a bound." in told.caveats


def test_a_search_of_the_control_alone():
    assert "only arm" in answer(*search({"control": ladder(0.32)})).sentences[0]


def test_a_control_without_an_outcome():
    assert "none of its runs" in describe_control(make_results({"control": {0.1: [U]}}))
    assert describe_control(make_results({"control": {0.1: [U], 1.0: [N]}})).endswith("in 1 of 1 run, at lr0 1.")


def test_numbers_have_their_sign():
    assert [percent(x) for x in (0.125, -0.3, 0.0, -0.001)] == ["+12%", "−30%", "0%", "0%"]
    assert [signed(x) for x in (1.26, -1.26, -0.01)] == ["+1.3", "−1.3", "0.0"]
