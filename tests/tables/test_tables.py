# SPDX-License-Identifier: AGPL-3.0-or-later
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import BRANCH, FakeRun, make_reading, make_result, make_spec

from tables.cases import CASES, DESIGN, fake_run, mixed_precision, readings
from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables import (
    TABLES,
    comparisons_table,
    effects_table,
    incidence_table,
    layer_table,
    limit_ratios_table,
    limits_table,
    lr50_table,
    medians_table,
    outcome_text_table,
    outcomes_table,
    over_rates_table,
    results_table,
    saved_table,
    sensitivity_table,
    survival_table,
    to_markdown,
    trajectories_table,
)
from yolo_gradstudy.tables.trajectories import spread

OUTCOMES = [str(o) for o in Outcome]


def of_outcomes(names, arm="control", lr0=0.01):
    return results_table([make_reading(arm, lr0, seed, name) for seed, name in enumerate(names)])


# ---- every table


def test_every_table_has_a_case_and_its_key_is_its_name():
    assert set(CASES) == set(TABLES)
    assert all(function.__name__ == name for name, function in TABLES.items())


@pytest.mark.parametrize("name", CASES)
def test_a_table_has_its_columns_and_rows_and_is_repeatable(name):
    call, columns, rows = CASES[name]
    frame = call()
    assert list(frame.columns[: len(columns)]) == columns
    assert len(frame) == rows
    pd.testing.assert_frame_equal(frame, call())


@pytest.mark.parametrize("name", CASES)
def test_a_table_is_written_and_read_as_csv(name, tmp_path):
    frame = CASES[name][0]()
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert list(pd.read_csv(tmp_path / "t.csv").columns) == list(frame.columns)


# ---- results


def test_numbers_of_a_run():
    row = results_table(readings()).iloc[0]
    steps = fake_run().steps
    assert row["grad_norm_first"] == pytest.approx(steps["grad_norm"].iloc[0])
    assert row["grad_norm_median"] == pytest.approx(steps["grad_norm"].median())
    assert row["grad_norm_max"] == pytest.approx(steps["grad_norm"].max())
    assert row["clipped_share"] == 1.0
    assert row["target_scores_last"] == pytest.approx(
        (steps[f"target_scores_{BRANCH}"] / steps["boxes"]).iloc[-1], rel=1e-6
    )
    assert row["positives_last"] == steps[f"positives_{BRANCH}"].iloc[-1]
    assert (row["map50"], row["map50_95"], row["status"], row["steps"]) == (0.31, 0.21, "finished", 60)


@pytest.mark.parametrize(("last", "told"), [(0.11, 0.11), (math.nan, 0.21)])
def test_map_is_of_the_last_epoch_before_the_checkpoint_was_halved(last, told):
    run = fake_run()
    run.epochs = pd.DataFrame({"metrics/mAP50-95(B)": [0.4, last]}, index=[1, 2])
    row = results_table([make_reading(run=run, result=make_result(make_spec()))]).iloc[0]
    assert (row["map50"], row["map50_95"]) == (0.31, told)
    unfinished = results_table([make_reading(run=run, result=make_result(make_spec(), metrics={}))]).iloc[0]
    assert math.isnan(unfinished["map50_95"])  # of an epoch that was not validated results.csv says 0


def test_missing_is_missing_and_counts_are_integers():
    frame = results_table(readings())
    nothing = frame.iloc[3]
    told = ["run_id", "arm", "lr0", "seed", "outcome", "evidence"]
    assert nothing.drop(told).isna().all()
    for name in (
        "seed",
        "onset_step",
        "steps",
        "nonfinite_steps",
        "positives_last",
        "threads",
        "stopped_at",
        "attempts",
    ):
        assert frame[name].dtype == "Int64"
    assert str(frame["weights_finite"].dtype) == "boolean"
    assert list(frame.columns[-2:]) == ["started", "duration_s"]


def test_a_run_without_a_clip_has_no_clipped_share():
    run = FakeRun(fake_run().steps, meta={"inference_branch": BRANCH, "clip_norm": None})
    assert math.isnan(results_table([make_reading(run=run)])["clipped_share"].iloc[0])
    run = FakeRun(fake_run().steps.drop(columns="clip_coefficient"), meta={"inference_branch": BRANCH})
    assert math.isnan(results_table([make_reading(run=run)])["clipped_share"].iloc[0])


def test_a_share_of_the_steps_is_clipped():
    run = fake_run(clip_coefficient=[0.5] * 5 + [1.0] * 15)
    assert results_table([make_reading(run=run)])["clipped_share"].iloc[0] == 0.25


def test_nonfinite_norms_are_counted_and_not_averaged():
    row = results_table([make_reading(run=fake_run(grad_norm=[1.0, 3.0, math.inf, math.nan] + [math.nan] * 16))]).iloc[
        0
    ]
    assert (row["grad_norm_first"], row["grad_norm_median"], row["grad_norm_max"]) == (1.0, 2.0, 3.0)
    assert row["nonfinite_steps"] == 18


def test_a_step_without_boxes_says_nothing_of_target_scores():
    run = fake_run(boxes=[0.0] * 2 + [4.0] * 18, **{f"target_scores_{BRANCH}": [8.0] * 20})
    row = results_table([make_reading(run=run)]).iloc[0]
    assert (row["target_scores_first"], row["target_scores_last"]) == (2.0, 2.0)


def test_a_killed_run_counts_the_steps_it_recorded():
    assert results_table([make_reading(run=fake_run(steps=20))])["steps"].iloc[0] == 20


def test_a_run_that_recorded_other_scalars_has_a_row():
    run = FakeRun(pd.DataFrame({"loss": [1.0, 2.0]}, index=pd.Index([1, 2], name="step")), meta={})
    row = results_table([make_reading(run=run)]).iloc[0]
    assert row["loss_last"] == 2.0
    assert row[["grad_norm_first", "clipped_share", "target_scores_first", "nonfinite_steps"]].isna().all()


# ---- outcomes


def wilson(count, n, z=1.959963984540054):
    centre = (count + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(count * (n - count) / n + z * z / 4)
    return centre - half, centre + half


@settings(max_examples=30)
@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_its_closed_form(pair):
    count, n = pair
    frame = outcomes_table(of_outcomes(["collapsed"] * count + ["stable"] * (n - count)))
    row = frame[frame["outcome"] == "unhealthy"].iloc[0]
    assert (row["wilson_low"], row["wilson_high"]) == pytest.approx(wilson(count, n), abs=1e-9)


def test_never_in_ten_runs():
    row = outcomes_table(of_outcomes(["stable"] * 10)).set_index("outcome").loc["unhealthy"]
    assert (row["count"], row["n"], row["share"], row["cp_low"]) == (0, 10, 0.0, 0.0)
    assert row["cp_high"] == pytest.approx(0.3085, abs=5e-5)
    assert row["wilson_high"] == pytest.approx(0.2775, abs=5e-5)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=12))
def test_shares_sum_to_one_and_lie_in_their_intervals(names):
    frame = outcomes_table(of_outcomes(names)).set_index("outcome")
    total = frame.loc["unhealthy"]
    assert total["n"] + total["n_excluded"] == len(names)
    assert total["n_excluded"] == sum(name in ("failed", "interrupted", "unknown") for name in names)
    shares = frame.drop("unhealthy")["share"]
    if total["n"] == 0:
        assert frame["share"].isna().all()
        return
    assert shares.sum() == pytest.approx(1.0)
    assert frame["count"].drop("unhealthy").sum() == len(names)
    told = frame[frame["share"].notna()]
    for low, high in (("wilson_low", "wilson_high"), ("cp_low", "cp_high")):
        assert ((told[low] >= 0) & (told[low] <= told["share"]) & (told["share"] <= told[high])).all()
        assert (told[high] <= 1).all()


def test_excluded_runs_have_a_count_and_no_share():
    frame = outcomes_table(of_outcomes(["stable", "failed", "unknown", "collapsed"])).set_index("outcome")
    assert frame.loc["failed", "count"] == 1
    assert math.isnan(frame.loc["failed", "share"])
    assert frame.loc["unhealthy", ["count", "n", "n_excluded", "share"]].tolist() == [1, 2, 2, 0.5]


def test_every_outcome_that_occurs_has_a_row_everywhere_and_the_control_comes_first():
    results = pd.concat([of_outcomes(["nonfinite"], "no_clip"), of_outcomes(["stable"], "control", 0.1)])
    frame = outcomes_table(results)
    assert list(dict.fromkeys(frame["arm"])) == ["control", "no_clip"]
    assert all(list(rows["outcome"]) == ["nonfinite", "stable", "unhealthy"] for _, rows in frame.groupby("arm"))


def test_outcomes_in_words():
    results = pd.concat(
        [of_outcomes(["stable", "collapsed", "collapsed"], "no_clip"), of_outcomes(["stable"] * 3, "control", 0.1)]
    )
    frame = outcome_text_table(results)
    assert frame.to_dict("records") == [
        {"arm": "control", "lr0 0.01": "–", "lr0 0.1": "3 stable"},
        {"arm": "no_clip", "lr0 0.01": "2 collapsed, 1 stable", "lr0 0.1": "–"},
    ]


def test_markdown():
    frame = pd.DataFrame({"a|b": ["x|y", None], "v": [0.123456, math.nan]})
    assert to_markdown(frame) == "| a\\|b | v |\n|---|---|\n| x\\|y | 0.1235 |\n| – | – |\n"


def test_a_study_without_runs_has_empty_tables():
    results = results_table([])
    assert len(results) == len(outcomes_table(results)) == len(outcome_text_table(results)) == 0
    assert len(trajectories_table([])) == 0
    of_results = (comparisons_table, incidence_table, survival_table, medians_table, sensitivity_table, saved_table)
    assert [len(table(results)) for table in (*of_results, lr50_table, over_rates_table)] == [0] * 8
    limits = limits_table(results, 2)
    assert len(limits) == len(limit_ratios_table(limits)) == 0
    assert effects_table(limits, DESIGN)["n"].tolist() == [0]


def test_runs_that_say_nothing_fill_no_table_with_numbers():
    results = of_outcomes(["failed", "interrupted", "unknown"] * 2)
    results = pd.concat([results, results.assign(arm="no_clip"), results.assign(lr0=0.1)], ignore_index=True)
    paired = (comparisons_table, over_rates_table)
    for table in (*paired, incidence_table, survival_table, medians_table, sensitivity_table, lr50_table):
        frame = table(results)
        numbers = frame.select_dtypes("float64").drop(columns="lr0", errors="ignore")
        assert numbers.isna().all(axis=None), table
        assert (frame["n"] == 0).all()
        assert (frame["n_excluded"] > 0).all()
    assert limits_table(results, 2)["probes"].sum() == saved_table(results)["n"].sum() == 0


# ---- trajectories


def test_a_trajectory_is_the_median_and_the_range_over_seeds():
    runs = [fake_run(grad_norm=np.full(20, value)) for value in (1.0, 2.0, 30.0)]
    frame = trajectories_table([make_reading(seed=i, run=run) for i, run in enumerate(runs)])
    row = frame.iloc[0]
    assert (row["n"], row["grad_norm_median"], row["grad_norm_low"], row["grad_norm_high"]) == (3, 2.0, 1.0, 30.0)


def test_a_run_that_ends_early_lowers_n():
    frame = trajectories_table([make_reading(run=fake_run(steps=20)), make_reading(seed=1, run=fake_run(steps=5))])
    assert list(frame["n"]) == [2] * 5 + [1] * 15
    assert (frame["nonfinite"] == 0).all()


def test_nonfinite_norms_are_told_and_the_rest_is_drawn():
    broken = fake_run(grad_norm=[1.0] * 10 + [math.inf] + [math.nan] * 9)
    frame = trajectories_table(
        [make_reading(run=broken), make_reading(seed=1, run=fake_run(grad_norm=np.full(20, 5.0)))]
    )
    assert list(frame["nonfinite"]) == [0] * 10 + [1] * 10
    assert list(frame["grad_norm_median"]) == [3.0] * 10 + [5.0] * 10
    alone = trajectories_table([make_reading(run=broken)])
    assert alone["grad_norm_median"].isna().sum() == 10


def test_the_clip_the_update_and_the_scaler_are_told_over_seeds():
    frame = trajectories_table(mixed_precision()).set_index("step")
    told = frame.loc[6, ["update_ratio_median", "update_ratio_low", "update_ratio_high"]].tolist()
    assert told == pytest.approx([0.0015, 0.001, 0.002])
    assert frame["update_ratio_median"].notna().sum() == 4
    assert frame.loc[[5, 6, 7], "amp_scale_median"].tolist() == [2.0**16, 1.5 * 2.0**15, 2.0**15]
    assert frame["skipped"].tolist() == [0] * 4 + [1, 1] + [0] * 14


def test_the_share_of_clipped_steps_is_that_of_each_run_around_the_step():
    halves = [0.5] * 10 + [1.0] * 10  # clipped in the first half; the window is ten steps
    runs = [fake_run(clip_coefficient=halves), fake_run(clip_coefficient=np.ones(20))]
    frame = trajectories_table([make_reading(seed=i, run=run) for i, run in enumerate(runs)]).set_index("step")
    shares = frame["clipped_share_high"]
    assert (shares.loc[1], shares.loc[11], shares.loc[20]) == (1.0, 0.5, 0.0)
    assert shares.is_monotonic_decreasing
    assert (frame["clipped_share_low"] == 0).all()
    assert frame.loc[1, ["clip_coefficient_low", "clip_coefficient_median"]].tolist() == [0.5, 0.75]
    free = fake_run(clip_coefficient=halves)
    free.meta = {**free.meta, "clip_norm": None}
    assert trajectories_table([make_reading(run=free)])["clipped_share_median"].isna().all()


def test_runs_that_did_not_stay_healthy_have_their_end_marked():
    outcomes = [("collapsed", 20), ("collapsed", 12), ("nonfinite", 12), ("stable", 7), ("unknown", 5), ("failed", 3)]
    found = [make_reading(seed=i, outcome=o, run=fake_run(steps=steps)) for i, (o, steps) in enumerate(outcomes)]
    frame = trajectories_table(found).set_index("step")
    told = frame.loc[frame["ended"] > 0, "ended_as"].to_dict()
    assert told == {3: "1 failed", 12: "1 nonfinite, 1 collapsed", 20: "1 collapsed"}
    assert frame["ended"].sum() == 4
    thinned = trajectories_table(found, points=2)
    assert thinned["ended_as"].tolist() == ["1 failed", "1 nonfinite, 2 collapsed"]
    assert thinned["ended"].tolist() == [1, 3]


@given(st.lists(st.floats(-1e30, 1e30) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=9))
def test_median_and_range_are_over_finite_values(values):
    finite = [value for value in values if math.isfinite(value)]
    found = [float(end[0]) for end in spread(np.array(values)[:, None])]
    expected = [np.median(finite), min(finite), max(finite)] if finite else [math.nan] * 3
    assert found == pytest.approx(expected, nan_ok=True)


norms = st.lists(st.floats(0, 1e30) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=80)


@given(norms, st.integers(1, 90))
def test_thinning_keeps_the_extremes(values, points):
    run = FakeRun(pd.DataFrame({"grad_norm": values}, index=pd.RangeIndex(1, len(values) + 1, name="step")))
    frame = trajectories_table([make_reading(run=run)], points=points)
    assert len(frame) == min(points, len(values))
    assert frame["step"].is_monotonic_increasing
    assert frame["step"].iloc[0] == 1
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        assert frame["grad_norm_high"].max() == max(finite)
        assert frame["grad_norm_low"].min() == min(finite)
    assert bool((frame["nonfinite"] > 0).any()) == (len(finite) < len(values))


@pytest.mark.parametrize("call", [lambda: trajectories_table([], points=0), lambda: layer_table(fake_run(), points=0)])
def test_too_few_points_are_refused(call):
    with pytest.raises(ValueError, match="points=0 is too few"):
        call()


# ---- layers


def layered(values, norms):
    index = pd.RangeIndex(1, len(norms) + 1, name="step")
    return FakeRun(pd.DataFrame({"grad_norm": norms}, index=index), pd.DataFrame(values, index=index))


def test_a_tensor_without_a_gradient_is_missing_and_a_nan_is_infinite():
    nan, inf = math.nan, math.inf
    run = layered(
        {"a": [1.0, 2.0, nan], "b": [nan, 3.0, nan], "c": [4.0, inf, 1.0], "never": [nan, nan, inf * 0]},
        [5.0, inf, nan],
    )
    frame = layer_table(run)
    assert frame["a"].tolist() == [1.0, 2.0, inf]
    assert math.isnan(frame["b"].iloc[0])
    assert frame["b"].tolist()[1:] == [3.0, inf]
    assert frame["c"].tolist() == [4.0, inf, 1.0]
    run = layered({"a": [1.0, 2.0], "never": [nan, nan]}, [1.0, 2.0])
    assert list(layer_table(run).columns) == ["step", "a"]


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=60), st.integers(1, 70))
def test_thinned_layers_keep_the_largest(values, points):
    frame = layer_table(layered({"w": values}, values), points=points)
    assert len(frame) == min(points, len(values))
    assert frame["w"].max() == max(values)


def test_a_run_without_layers_has_no_rows():
    run = FakeRun(fake_run().steps, pd.DataFrame(index=pd.Index([], name="step", dtype="int64")))
    assert len(layer_table(run)) == 0


def test_results_take_the_facts_of_the_process():
    spec = make_spec()
    result = make_result(spec, status="failed", error="RuntimeError: x.", metrics={}, weights_finite=None)
    row = results_table([make_reading(result=result, outcome="failed")]).iloc[0]
    assert (row["status"], row["error"], row["device"], row["threads"]) == ("failed", "RuntimeError: x.", "cpu", 1)
    assert pd.isna(row["weights_finite"])
    assert math.isnan(row["map50_95"])
