# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gradients and gains by depth, against numbers that are known."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import FakeRun, make_reading

from tables.cases import mixed_precision
from yolo_gradstudy.tables import MOST_SEEDS, depths_of, gains_table, gradient_depth_table, significant

NAN, INF = math.nan, math.inf


def layered(values, norms=None, first=1, **meta):
    length = len(next(iter(values.values())))
    index = pd.RangeIndex(first, first + length, name="step")
    steps = pd.DataFrame({"grad_norm": norms or [1.0] * length}, index=index)
    return FakeRun(steps, pd.DataFrame(values, index=index), {"inference_branch": "one2one", **meta})


def by_moment(frame, name="grad_norm_median", tensor="model.0.conv.weight"):
    return dict(frame[frame["tensor"] == tensor].set_index("moment")[name])


def test_moments_are_the_first_a_quarter_half_and_last_of_the_steps_recorded():
    frame = gradient_depth_table([make_reading(run=layered({"model.0.conv.weight": np.arange(13.0)}, first=10))])
    assert by_moment(frame) == {"first": 0.0, "quarter": 3.0, "half": 6.0, "last": 12.0}
    assert by_moment(frame, "step_low") == {"first": 10, "quarter": 13, "half": 16, "last": 22}
    frame = gradient_depth_table([make_reading(run=layered({"model.0.conv.weight": [3.0]}))])
    assert set(by_moment(frame).values()) == {3.0}


def test_seeds_give_a_median_and_a_range_and_moments_are_each_runs_own():
    runs = [
        layered({"model.0.conv.weight": np.full(length, value)}) for length, value in ((9, 1.0), (5, 2.0), (9, 9.0))
    ]
    frame = gradient_depth_table([make_reading(seed=i, run=run) for i, run in enumerate(runs)])
    last = frame[frame["moment"] == "last"].iloc[0]
    assert last[["n", "grad_norm_median", "grad_norm_low", "grad_norm_high"]].tolist() == [3, 2.0, 1.0, 9.0]
    assert last[["step_low", "step_high"]].tolist() == [5, 9]


def test_weights_stand_in_the_order_of_the_network_without_biases_and_norms():
    names = ["model.0.conv.weight", "model.0.bn.weight", "model.0.conv.bias", "model.2.norm1.weight", "model.1.weight"]
    frame = gradient_depth_table([make_reading(run=layered({name: [1.0, 1.0] for name in names}))])
    first = frame[frame["moment"] == "first"]
    assert first["tensor"].tolist() == ["model.0.conv.weight", "model.1.weight"]
    assert first["place"].tolist() == [0, 1]
    shapes = [{"name": "model.1.weight", "shape": [8]}, {"name": "model.0.conv.bias", "shape": [8, 8]}]
    frame = gradient_depth_table([make_reading(run=layered({n: [1.0] for n in names}, parameters=shapes))])
    assert set(frame["tensor"]) == {"model.0.conv.weight", "model.0.conv.bias"}


def test_nan_and_infinity_are_counted_and_a_tensor_without_a_gradient_is_not():
    runs = [
        layered({"model.0.conv.weight": [1.0, NAN], "model.1.weight": [NAN, 1.0]}, [1.0, NAN]),
        layered({"model.0.conv.weight": [3.0, INF], "model.1.weight": [5.0, 1.0]}, [3.0, INF]),
    ]
    frame = gradient_depth_table([make_reading(seed=i, run=run) for i, run in enumerate(runs)])
    told = frame.set_index(["tensor", "moment"])[["n", "nonfinite", "grad_norm_median"]]
    assert told.loc[("model.0.conv.weight", "first")].tolist() == [2, 0, 2.0]
    assert told.loc[("model.0.conv.weight", "last")].tolist()[:2] == [0, 2]
    assert told.loc[("model.1.weight", "first")].tolist() == [1, 0, 5.0]


def test_the_first_five_seeds_are_looked_at():
    runs = [layered({"model.0.conv.weight": [float(i)]}) for i in range(8)]
    frame = gradient_depth_table([make_reading(seed=i, run=run) for i, run in enumerate(runs)])
    assert MOST_SEEDS == 5
    assert frame.iloc[0][["n", "grad_norm_low", "grad_norm_high"]].tolist() == [5, 0.0, 4.0]


def test_what_was_kept_of_runs_says_the_same_as_the_runs():
    readings = mixed_precision()
    kept = {reading.spec.run_id: depths_of(reading.run) for reading in readings}
    for reading in readings:
        reading.run._layers = None  # forgotten
    for table in (gradient_depth_table, gains_table):
        pd.testing.assert_frame_equal(table(readings, kept), table(mixed_precision()))
    assert len(gains_table(readings, {})) == 0


def test_gains_are_those_of_the_sampled_steps_and_missing_stays_missing():
    frame = gains_table(mixed_precision()).set_index(["module", "moment"])
    row = frame.loc[("model.1", "last")]
    assert row[["n", "step_low", "step_high"]].tolist() == [2, 11, 11]
    numbers = [f"forward_gain_{end}" for end in ("median", "low", "high")] + ["activation_rms_high"]
    assert row[numbers].tolist() == [3.0, 2.0, 4.0, 12.0]
    assert math.isnan(frame.loc[("model.0", "last"), "backward_gain_median"])
    assert list(dict.fromkeys(frame.index.get_level_values(0))) == ["model.0", "model.0.conv", "model.1", "model.2"]


def test_without_flow_there_are_no_gains():
    assert len(gains_table([make_reading(run=layered({"model.0.conv.weight": [1.0]}))])) == 0


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(1, 6))
def test_rounding_keeps_so_many_digits_and_a_csv_shows_no_more(value, digits):
    found = float(significant(np.array([value]), digits)[0])
    if not math.isfinite(value) or value == 0:
        assert found == value or math.isnan(value)
        return
    assert found == pytest.approx(value, rel=0.51 * 10 ** (1 - digits), abs=5e-324)
    assert float(f"{found:.{digits}g}") == found
