# SPDX-License-Identifier: AGPL-3.0-or-later
"""An incident is seen in its own step, kept in full, and read without this package."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from yolo_gradstudy import GradRecorder, RecordConfig, load_run
from yolo_gradstudy.recorder.incidents import KEPT, MOST

from .loop import convnet, images, sgd


def train(folder, fault=lambda step, model: None, steps=30, config=None, model=None):
    """Train a small CNN; ``fault(step, model)`` acts before a step's forward pass."""
    model = convnet() if model is None else model
    optimizer = sgd(model, lr=1e-3)
    with GradRecorder(model, optimizer, folder, config) as recorder:
        for step in range(1, steps + 1):
            fault(step, model)
            loss = model(images(seed=step)).square().mean()
            loss.backward()
            recorder.observe(loss=loss, images=4, epoch=0)
            optimizer.step()
            recorder.stepped()
            optimizer.zero_grad()
    return load_run(folder)


def at(step, act):
    def fault(now, model):
        if now == step:
            with torch.no_grad():
                act(model)

    return fault


def test_a_healthy_run_has_none(tmp_path):
    run = train(tmp_path, steps=60)
    assert run.incidents == []
    assert not (tmp_path / "incidents").exists()


@pytest.mark.parametrize("flush_every", [7, 50])
def test_a_weight_that_is_nan_is_named_in_its_own_step(tmp_path, flush_every):
    run = train(
        tmp_path,
        at(25, lambda m: m[3].weight.view(-1)[5:6].fill_(math.nan)),
        config=RecordConfig(flush_every=flush_every),
    )
    (incident,) = run.incidents
    assert (incident["step"], incident["kind"], incident["epoch"]) == (25, "nonfinite", 0)
    cause = incident["cause"]
    assert (cause["module"], cause["parameter"], cause["what"]) == ("3", "3.weight", "weight")
    assert (cause["found_by"], cause["certainty"]) == ("recorded", "certain")
    assert incident["rates"]["lr_pg0"] == 1e-3
    assert math.isnan(incident["scalars"]["loss"])


def test_the_last_steps_are_kept_in_full_and_open_with_pandas_alone(tmp_path):
    run = train(tmp_path, at(25, lambda m: m[3].weight.fill_(math.nan)))
    folder = tmp_path / "incidents" / "001"
    steps = pd.read_parquet(folder / "steps.parquet").set_index("step")
    assert steps.index.tolist() == list(range(25 - KEPT + 1, 26))
    pd.testing.assert_frame_equal(
        steps[["loss", "grad_norm"]], run.steps.loc[steps.index, ["loss", "grad_norm"]], check_dtype=False
    )
    norms = pd.read_parquet(folder / "grad_norm.parquet")
    assert norms.groupby("step", observed=True).size().tolist() == [8] * KEPT
    parameters = pd.read_parquet(folder / "param_norm.parquet")
    assert 25 in set(parameters["step"]), "everything is taken in a bad step, whatever the period"
    assert np.isnan(parameters.set_index(["step", "name"])["param_norm"][25, "3.weight"])
    assert {p.suffix for p in folder.iterdir()} == {".json", ".parquet"}


def test_what_a_batchnorm_scales_back_is_seen_by_its_variance(tmp_path):
    run = train(tmp_path, at(12, lambda m: m[0].weight.mul_(1e6)))
    (incident,) = run.incidents
    assert (incident["step"], incident["kind"]) == (12, "spike")
    assert incident["cause"]["parameter"] == "0.weight"
    assert [(o["quantity"], o["name"]) for o in incident["seen"]] == [
        *[("running_var", "1"), ("param_max_abs", "0.weight")]
    ]


def test_an_activation_is_placed_at_the_batchnorm_that_sees_it_first(tmp_path):
    model = convnet()
    calls = []

    def spoil(module, inputs, output):
        calls.append(0)
        return output * math.inf if len(calls) == 12 else None

    model[0].register_forward_hook(spoil)
    (incident,) = train(tmp_path, model=model).incidents
    assert (incident["step"], incident["kind"]) == (12, "nonfinite")
    assert {key: incident["cause"][key] for key in ("module", "what", "certainty")} == {
        **{"module": "1", "what": "output", "certainty": "likely"}
    }


@pytest.mark.parametrize(("factor", "kind"), [(math.nan, "nonfinite"), (1e6, "spike")])
def test_a_gradient_is_placed_at_the_parameter_that_the_backward_pass_reached_first(tmp_path, factor, kind):
    model = convnet()
    calls = []

    def spoil(module, inputs, output):
        calls.append(0)
        if len(calls) == 12:
            output.register_hook(lambda gradient: gradient * factor)

    model[3].register_forward_hook(spoil)
    incident = train(tmp_path, model=model).incidents[0]
    assert (incident["step"], incident["kind"]) == (12, kind)
    assert (incident["cause"]["parameter"], incident["cause"]["what"]) == ("3.bias", "gradient")


def test_a_broken_run_has_one_incident_and_a_resumed_one_goes_on_counting(tmp_path):
    train(tmp_path, at(5, lambda m: m[0].weight.fill_(math.nan)), steps=30)
    run = train(tmp_path, at(5, lambda m: m[0].weight.fill_(math.nan)), steps=30)
    assert [(i["incident"], i["step"]) for i in run.incidents] == [(1, 5), (2, 35)]


def test_incidents_are_few(tmp_path):
    def flicker(step, model):
        with torch.no_grad():
            model[3].bias.fill_(math.nan if step % 2 else 0.0)
            for parameter in model.parameters():
                parameter.nan_to_num_(0.1)
            if step % 2:
                model[3].bias.fill_(math.nan)

    assert len(train(tmp_path, flicker, steps=60).incidents) == MOST


def test_a_slow_blow_up_is_seen(tmp_path):
    def swell(step, model):
        if step > 15:
            with torch.no_grad():
                model[7].weight.mul_(1.5)

    incident = train(tmp_path, swell, steps=30).incidents[0]
    assert incident["kind"] == "spike"
    assert incident["step"] < 25


def test_a_skipped_step_is_none(tmp_path):
    model = nn.Linear(2, 2)
    with GradRecorder(model, sgd(model), tmp_path) as recorder:
        for skipped in (0.0, 1.0, 0.0):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.inf if skipped else 1.0)
            recorder.observe(skipped=torch.tensor(skipped))
            assert recorder.sighting is None
            recorder.stepped()
    assert load_run(tmp_path).incidents == []


def test_where_each_step_has_norms_a_scaled_weight_is_told_by_its_own(tmp_path):
    """Before a BatchNorm it changes neither loss nor gradients; small parameters are not read a second time."""
    config = RecordConfig(parameter_every=1)
    run = train(tmp_path / "scaled", at(20, lambda m: m[0].weight.mul_(1e6)), config=config)
    assert run.incidents[0]["step"] == 20
    assert run.incidents[0]["cause"]["parameter"] == "0.weight"
    assert ("param_norm", "0.weight") in {(o["quantity"], o["name"]) for o in run.incidents[0]["seen"]}
    assert train(tmp_path / "healthy", config=config, steps=60).incidents == []
