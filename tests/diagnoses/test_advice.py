# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice does not say what can't help: what was found when it was tried (``test_advice_is_tried``)."""

import numpy as np
import pytest

from tests.diagnoses.cases import (
    DEAD,
    FINISHED,
    RAMP,
    SPIKING,
    STEPS,
    depth_run,
    from_step,
    make_run,
    rich_run,
    validations,
    vector,
    warmed_run,
    with_,
)
from yolo_gradstudy.arguments import check_words
from yolo_gradstudy.diagnoses import EXPLANATIONS, RULES, Evidence

RULE = {rule.__name__: rule for rule in (*EXPLANATIONS, *(rule for _, rule in RULES))}


def advice(rule, run):
    finding = RULE[rule](Evidence(run, FINISHED))
    assert finding.state == "matched", finding.evidence
    return finding.advice


def test_a_loss_that_is_not_finite_before_the_first_update_blames_no_learning_rate():
    first, later = (
        advice("is_nonfinite", make_run(loss=from_step(step, np.nan, 150.0), grad_nonfinite=from_step(step, 1.0, 0.0)))
        for step in (1, 2)
    )
    assert not first.arguments
    assert "initial weights" in first.text
    assert "lr0" in later.arguments


def test_the_peak_of_the_rate_is_not_to_blame_before_the_first_update():
    spiked = make_run(grad_norm=from_step(1, 1e9, 30.0), loss=from_step(1, np.nan, 150.0))
    finding = RULE["is_at_rate_peak"](Evidence(spiked, FINISHED, trouble=1))
    assert (finding.state, finding.step, finding.advice) == ("matched", 1, None)


@pytest.mark.parametrize(("set_to", "advised"), [(None, 3.0), (0.0, 3.0), (3.0, 3.0), (8.0, None)])
def test_a_warm_up_that_is_longer_already_is_not_shortened(set_to, advised):
    arguments = {} if set_to is None else {"warmup_epochs": set_to}
    found = advice("is_collapsed", with_(make_run(target_scores_one2many=DEAD), arguments=arguments))
    assert found.arguments.get("warmup_epochs") == advised


@pytest.mark.parametrize("factor", [2.9, 3.1])
def test_a_rate_of_biases_that_was_several_times_the_weights_comes_down_too(factor):
    run = warmed_run(RAMP, RAMP * factor, **SPIKING, loss=from_step(40, 1e5, 150.0))
    arguments = dict(advice("is_exploded", run).arguments)
    assert arguments.pop("warmup_bias_lr", None) == (arguments["lr0"] if factor > 3 else None)
    assert list(arguments) == ["lr0"]


@pytest.mark.parametrize(("ratio", "divided"), [(0.11, 3), (0.2, 3), (1.0, 15), (8.0, 120), (1e5, 200)])
def test_the_rate_falls_by_as_much_as_an_update_was_too_large(ratio, divided):
    run = rich_run("update_ratio", [[0.01] * 5] * 9 + [[ratio] * 5])
    run.steps["lr_pg0"] = 0.6
    assert advice("is_update_too_large", run).arguments["lr0"] == pytest.approx(0.6 / divided, rel=0.1)


@pytest.mark.parametrize(
    ("rate", "ratio", "advised"),
    [
        (1e-5, 5e-7, 0.002),  # to a tenth of the usual ratio
        (1e-5, 1e-9, 0.01),  # no further than the default at once
        (0.01, 1e-8, 0.1),  # but tenfold
        (0.5, 1e-8, 1.0),  # Ultralytics takes none above 1
    ],
)
def test_a_rate_is_raised_by_as_much_as_updates_are_too_small(rate, ratio, advised):
    run = with_(rich_run("update_ratio", [[ratio] * 5] * 9), arguments={"lr0": rate, "optimizer": "SGD"})
    found = advice("is_update_too_small", run)
    check_words(dict(found.arguments))
    assert found.arguments["lr0"] == pytest.approx(advised)


def test_a_rate_is_not_raised_for_one_group_where_another_moves_as_is_usual():
    run = rich_run("update_ratio", [[2e-4, 1e-8, 2e-4, 1e-8, 1e-8]] * 9)
    found = RULE["is_update_too_small"](Evidence(with_(run, arguments={"lr0": 0.01, "optimizer": "SGD"})))
    assert found.state == "matched"
    assert found.advice is None


def test_a_stuck_run_is_advised_no_rate_that_ultralytics_refuses():
    norms = {"update_norm": np.full(STEPS, 1e-9), "param_norm": np.full(STEPS, 1.0)}
    run = with_(make_run(**norms), validations=validations([9.3] * 20), arguments={"lr0": 0.2, "optimizer": "SGD"})
    found = advice("is_stuck", run)
    check_words(dict(found.arguments))
    assert dict(found.arguments) == {"lr0": 1.0}


def test_what_explodes_or_is_dead_before_the_first_update_blames_no_learning_rate():
    exploding = depth_run(1e6)
    flow = exploding.flow("output_grad_rms").copy()
    flow.iloc[0] = 1.0
    assert not advice("is_exploding_with_depth", exploding).arguments
    later = with_(make_run(), vectors={"output_grad_rms": flow})
    assert "lr0" in advice("is_exploding_with_depth", later).arguments
    dead = with_(make_run(), vectors={"dead_share": vector([[0, 0.2, 0.9]] * 3, 20)})
    assert not advice("is_activation_dead", dead).arguments
    assert "replace_init_by_he" in advice("is_activation_dead", dead).text


@pytest.mark.parametrize(("precision", "advised"), [(None, {"amp": False}), ("fp16", {"precision": "fp32"})])
def test_a_precision_that_overrules_amp_is_what_is_advised(precision, advised):
    run = make_run(amp_scale=np.full(STEPS, 64.0), skipped=(np.arange(1, STEPS + 1) % 10 == 0) * 1.0)
    run.meta["precision"] = precision
    assert dict(advice("is_scaler_skipping", run).arguments) == advised
