# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two runs side by side, and the nearest run of a study."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.diagnoses.cases import STEPS, from_step, make_run, vector, with_
from yolo_gradstudy.diagnoses import compare_runs, differences_of_specs, nearest_first
from yolo_gradstudy.records import RunSpec

SPEC = RunSpec("a", "s", "control", (), "yolo26n.yaml", "coco128.yaml", 0.01, 0, {"epochs": 3, "batch": 16})


@given(st.integers(2, STEPS - 1), st.floats(2e-3, 0.3), st.sampled_from(["loss", "grad_norm"]))
def test_runs_part_where_they_differ_by_more_than_rounding(step, share, quantity):
    other = make_run()
    other.steps.loc[step:, quantity] *= 1 + share
    other.steps.loc[: step - 1, quantity] *= 1 + 5e-4
    found = compare_runs(make_run(), other)
    assert (found.parted.step, found.parted.quantity) == (step, quantity)
    assert found.far_apart is None
    assert compare_runs(make_run(), make_run()).parted is None


@given(st.integers(2, 30), st.integers(31, STEPS))
def test_runs_are_far_apart_where_one_has_more_than_twice_the_other(step, far):
    other = make_run()
    other.steps.loc[step:, "loss"] *= 1.9
    other.steps.loc[far:, "loss"] *= 2.1 / 1.9
    found = compare_runs(make_run(), other)
    assert (found.parted.step, found.far_apart.step) == (step, far)
    assert found.far_apart.values[1] / found.far_apart.values[0] == pytest.approx(2.1)
    assert compare_runs(other, make_run()).far_apart.step == far


def test_nan_on_one_side_is_a_difference_and_on_both_none():
    bad, worse = make_run(loss=from_step(20, math.nan, 150.0)), make_run(loss=from_step(9, math.inf, 150.0))
    good = make_run(loss=np.full(STEPS, 150.0))
    assert compare_runs(bad, good).parted.step == 20
    assert compare_runs(bad, good).far_apart.step == 20
    assert compare_runs(bad, bad).parted is None
    assert compare_runs(bad, worse).parted.step == 9
    assert json.loads(json.dumps(compare_runs(good, bad).to_dict(), allow_nan=False))["parted"]["values"] == [
        150,
        "nan",
    ]


def test_layers_part_by_how_far_they_differ():
    other = make_run()
    other.norms = other.norms.copy()
    other.norms.loc[7:, "model.1.weight"] = 3.0
    other.norms.loc[7:, "model.2.weight"] = 1.01
    other.norms.loc[6, "model.0.weight"] = 1.0005  # rounding
    found = compare_runs(make_run(), other)
    assert (found.layers_step, found.layers) == (7, ("model.1.weight", "model.2.weight"))
    strange = with_(make_run(), norms=vector(np.ones((STEPS, 1)), names=["backbone.weight"]))
    assert compare_runs(make_run(), strange).layers == ()
    later = make_run()
    later.steps = later.steps.set_index(later.steps.index + 1000)
    found = compare_runs(make_run(), later)
    assert (found.common_steps, found.parted) == (0, None)


def test_arguments_that_differ():
    one = with_(make_run(), arguments={"lr0": 0.1, "batch": 16, "name": "a", "save_dir": "x", "mosaic": 1.0})
    other = with_(make_run(), arguments={"lr0": 0.3, "batch": 16, "name": "b", "save_dir": "y"})
    assert compare_runs(one, other).arguments == {"lr0": (0.1, 0.3), "mosaic": (1.0, None)}
    one.meta |= {"clip_norm": 10.0, "ablations": []}
    other.meta |= {"clip_norm": None, "ablations": ["no_clip"]}
    found = compare_runs(one, other)
    assert found.arguments["clip_norm"] == (10.0, None)
    assert found.ablations == ((), ("no_clip",))


def test_what_only_one_has_on_record_is_not_known_to_differ():
    whole = with_(make_run(), arguments={"lr0": 0.01, "mosaic": 1.0, "epochs": 3, "batch": 8, "seed": 0})
    planned = with_(make_run(), spec=SPEC)
    assert compare_runs(whole, planned).arguments == {"batch": (8, 16)}


def test_nearest_run_has_the_same_seed_then_the_fewest_changes():
    others = [
        replace(SPEC, run_id="far", lr0=1.0),
        replace(SPEC, run_id="seed", seed=1),
        replace(SPEC, run_id="near", lr0=0.03),
        replace(SPEC, run_id="ablated", ablations=("no_clip",)),
        replace(SPEC, run_id="argument", arguments={**SPEC.arguments, "batch": 8}),
        SPEC,
    ]
    assert [s.run_id for s in nearest_first(SPEC, others)] == ["near", "far", "argument", "ablated", "seed"]
    assert differences_of_specs(SPEC, others[3]) == {"ablations": ([], ["no_clip"])}
    assert differences_of_specs(SPEC, others[4]) == {"batch": (16, 8)}
    assert differences_of_specs(SPEC, others[0]) == {"lr0": (0.01, 1.0)}
