# SPDX-License-Identifier: AGPL-3.0-or-later
"""Activation and gradient flow, against autograd with every tensor kept."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from yolo_gradstudy import GradRecorder, RecordConfig, load_run

from .loop import convnet, everything, images, record_step, sgd

QUANTITIES = ("activation_rms", "output_grad_rms", "forward_gain", "backward_gain", "dead_share")
FLOW = RecordConfig(flow_every=1)


def flow_of(run, step=1):
    """Quantity → module → value, of what was measured."""
    return {q: run.flow(q).loc[step].dropna().to_dict() if len(run.flow(q)) else {} for q in QUANTITIES}


def square(tensor) -> float:
    return float(tensor.detach().double().square().sum())


def rms(tensor) -> float:
    return math.sqrt(square(tensor) / tensor.numel())


def test_flow_of_a_convnet_is_what_autograd_says(tmp_path):
    """With an activation in place, whose input is gone once it has computed."""
    model = convnet()
    with torch.no_grad():
        model[3].bias[1] = -100.0  # this channel is dead after the ReLU
    x = images().requires_grad_()
    _, run = record_step(tmp_path, model, lambda m: m(x).square().mean(), FLOW)

    oracle = copy.deepcopy(model)  # a step does not change what BatchNorm computes in training
    for parameter, moved in zip(oracle.parameters(), model.parameters(), strict=True):
        parameter.data = moved.data + 0.01 * moved.grad
    oracle[2].inplace = False
    tensors = [images().requires_grad_()]
    for module in oracle:
        tensors.append(module(tensors[-1]))
        tensors[-1].retain_grad()
    tensors[-1].square().mean().backward()

    found = flow_of(run)
    names = [str(i) for i in range(8)]
    for i, name in enumerate(names):
        before, after = tensors[i], tensors[i + 1]
        if i == 5:  # dropout of 0 hands its input on, but as a tensor of its own
            assert torch.equal(before, after)
        expected = {
            "activation_rms": rms(after),
            "output_grad_rms": rms(after.grad),
            "forward_gain": (square(after) / after.numel()) / (square(before) / before.numel()),
            "backward_gain": square(before.grad) / square(after.grad),
            "dead_share": {4: 0.25, 5: 0.25}.get(i, found["dead_share"][name]),
        }
        for quantity, value in expected.items():
            assert found[quantity][name] == pytest.approx(value, rel=1e-4), (quantity, name)
    assert set(found["activation_rms"]) == set(names)
    assert found["dead_share"]["0"] == found["dead_share"]["2"] == 0


def test_a_gain_needs_the_gradient_of_the_input(tmp_path):
    _, run = record_step(tmp_path, convnet(), lambda m: m(images()).square().mean(), FLOW)
    found = flow_of(run)
    assert "0" not in found["backward_gain"], "images have no gradient"
    assert {"0", "1"} <= set(found["output_grad_rms"])
    assert "0" in found["forward_gain"]


class Residual(nn.Module):
    """One activation in two places, a module with two inputs, and a branch around a module."""

    def __init__(self) -> None:
        super().__init__()
        activation = nn.ReLU()
        self.first = nn.Sequential(nn.Linear(6, 6), activation)
        self.second = nn.Sequential(nn.Linear(6, 6), activation)
        self.join = nn.Bilinear(6, 6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        return self.join(first, self.second(first) + first)


def test_shared_modules_and_several_inputs(tmp_path):
    torch.manual_seed(0)
    model = Residual()
    x = torch.randn(5, 6)
    _, run = record_step(tmp_path, model, lambda m: m(x).square().mean(), FLOW, lr=0.0)
    found = flow_of(run)
    assert set(found["activation_rms"]) == {"first", "first.0", "second", "second.0", "join"}
    assert not {"join"} & set(found["backward_gain"]) | {"join"} & set(found["forward_gain"])
    assert "join" in found["output_grad_rms"]

    first = model.first(x)
    first.retain_grad()
    second = model.second(first)
    second.retain_grad()
    model.join(first, second + first).square().mean().backward()
    assert found["backward_gain"]["second"] == pytest.approx(square(first.grad) / square(second.grad), rel=1e-4)


def test_patterns_choose_modules(tmp_path):
    _, run = record_step(
        tmp_path, convnet(), lambda m: m(images()).mean(), RecordConfig(flow_every=1, flow_modules=("[03]", "nothing"))
    )
    assert list(run.flow("activation_rms")) == ["0", "3"]


def test_a_step_of_several_batches_is_measured_whole(tmp_path):
    x = images(8)

    def record(folder, parts):
        model = convnet()
        model[1] = nn.Identity()  # BatchNorm would tell the batches apart
        optimizer = sgd(model)
        with GradRecorder(model, optimizer, tmp_path / folder, FLOW) as recorder:
            for part in parts:
                model(part.clone().requires_grad_()).square().sum().backward()
            recorder.observe()
            recorder.stepped()
        return flow_of(load_run(tmp_path / folder))

    whole, halves = record("whole", [x]), record("halves", x.split(4))
    for quantity in QUANTITIES[:-1]:
        assert halves[quantity] == pytest.approx(whole[quantity], rel=1e-4), quantity
    assert set(halves["dead_share"]) == set(whole["dead_share"])


def test_the_scale_of_the_loss_is_divided_out(tmp_path):
    found = {}
    for scale in (1.0, 1024.0):
        model = convnet()
        optimizer = sgd(model)
        with GradRecorder(model, optimizer, tmp_path / str(scale), FLOW) as recorder:
            (model(images()).square().mean() * scale).backward()
            for parameter in model.parameters():
                parameter.grad /= scale
            recorder.observe(amp_scale=torch.tensor(scale))
        found[scale] = flow_of(load_run(tmp_path / str(scale)))
    for quantity in QUANTITIES:
        assert found[1024.0][quantity] == pytest.approx(found[1.0][quantity], rel=1e-5), quantity


def test_validation_is_not_counted(tmp_path):
    found = {}
    for validates in (False, True):
        model = convnet()
        with GradRecorder(model, sgd(model), tmp_path / str(validates), FLOW) as recorder:
            if validates:
                model.eval()
                for context in (torch.no_grad(), torch.inference_mode()):
                    with context:
                        model(images() * 100)
                model.train()
            model(images()).square().mean().backward()
            recorder.observe()
        found[validates] = flow_of(load_run(tmp_path / str(validates)))
    assert found[True] == found[False]


def hooks_on(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_hooks_are_there_for_a_sampled_step_only(tmp_path):
    model = convnet()
    optimizer = sgd(model)
    recorder = GradRecorder(model, optimizer, tmp_path, RecordConfig(flow_every=3))
    there = []
    for seed in range(7):
        there.append(hooks_on(model) > 0)
        model(images(seed=seed)).mean().backward()
        recorder.observe()
        assert hooks_on(model) == 0, "gone once the step is measured"
        optimizer.step()
        recorder.stepped()
    recorder.close()
    assert hooks_on(model) == 0
    assert there == [True, False, False, True, False, False, True]
    assert load_run(tmp_path).flow("forward_gain").index.tolist() == [1, 4, 7]


def test_hooks_can_wait_for_the_caller(tmp_path):
    model = convnet()
    recorder = GradRecorder(model, sgd(model), tmp_path, everything(), watch_ahead=False)
    copy.deepcopy(model)
    assert hooks_on(model) == 0
    recorder.watch()
    assert hooks_on(model) > 0
    recorder.forget()
    assert hooks_on(model) == 0
    recorder.watch()
    recorder.close()
    assert hooks_on(model) == 0


def test_a_step_that_failed_leaves_nothing_behind(tmp_path):
    found = {}
    for fails in (False, True):
        model = convnet()
        with GradRecorder(model, sgd(model), tmp_path / str(fails), FLOW) as recorder:
            if fails:
                model(images() * 100).sum().backward()
                model.zero_grad()
                recorder.forget()
                model[1].reset_running_stats()
                recorder.watch()
            model(images()).square().mean().backward()
            recorder.observe()
        found[fails] = flow_of(load_run(tmp_path / str(fails)))
    assert found[True] == found[False]


def test_a_graph_that_is_kept_does_not_count_twice(tmp_path):
    """Truncated backpropagation goes through an old graph again: that belongs to no later step."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = sgd(model, lr=0.0)
    with GradRecorder(model, optimizer, tmp_path, FLOW) as recorder:
        kept = model(x).square().sum()
        kept.backward(retain_graph=True)
        recorder.observe()
        recorder.stepped()
        kept.backward()  # between the steps
        fresh = model(x).square().sum()
        fresh.backward()
        recorder.observe()
        recorder.stepped()
    run = load_run(tmp_path)
    for quantity in QUANTITIES:
        frame = run.flow(quantity)
        np.testing.assert_allclose(frame.loc[2], frame.loc[1], rtol=1e-6, err_msg=quantity)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_measure_the_same(tmp_path, reentrant):
    found = {}
    for checkpoints in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

        def loss_of(m, x=x, checkpoints=checkpoints):
            y = checkpoint(m, x, use_reentrant=reentrant) if checkpoints else m(x)
            return y.square().sum()

        _, run = record_step(tmp_path / f"{checkpoints}", model, loss_of, FLOW)
        found[checkpoints] = flow_of(run)
    for quantity in QUANTITIES:
        assert found[True][quantity] == pytest.approx(found[False][quantity], rel=1e-5), quantity


def test_flow_does_not_overflow(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1e25)
        model[1].weight.fill_(1e-25)
    _, run = record_step(tmp_path, model, lambda m: m(torch.ones(2, 4)).sum(), FLOW)
    found = flow_of(run)
    assert found["activation_rms"]["0"] == pytest.approx(4e25, rel=1e-5)
    assert found["forward_gain"]["0"] == pytest.approx(1.6e51, rel=1e-5)
    assert found["backward_gain"]["1"] == pytest.approx(1.6e-49, rel=1e-5, abs=0)


class Queried(nn.Module):
    """Hands a parameter of its own to a module, as learned queries are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Parameter(torch.randn(3, 4))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.query)) * x


def test_no_hook_stays_on_a_tensor_that_outlives_the_step(tmp_path):
    model = Queried()
    optimizer = sgd(model)
    x = torch.ones(3, 2, requires_grad=True)
    with GradRecorder(model, optimizer, tmp_path, FLOW) as recorder:
        for _ in range(3):
            model(x).square().sum().backward()
            assert model.query._backward_hooks
            recorder.observe()
            assert not model.query._backward_hooks
            assert not x._backward_hooks
            optimizer.step()
            recorder.stepped()
    assert load_run(tmp_path).flow("backward_gain")["norm"].notna().all()


def test_a_parameter_as_input_is_measured_once_a_batch(tmp_path):
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    model = Queried()
    with GradRecorder(model, sgd(model), tmp_path, FLOW) as recorder:
        for part in x:
            model(part).square().sum().backward()
        recorder.observe()
    inputs = outputs = 0.0
    for part in x:
        y = model.norm(model.query)
        to_query, to_output = torch.autograd.grad((model.head(y) * part).square().sum(), [model.query, y])
        inputs, outputs = inputs + square(to_query), outputs + square(to_output)
    assert flow_of(load_run(tmp_path))["backward_gain"]["norm"] == pytest.approx(inputs / outputs, rel=1e-5)


class Joined(nn.Module):
    """Joins two tensors, or passes on one; either may be given by name, alone or inside a dictionary."""

    def forward(self, x, other=None, more=None):
        return x + sum([other] if other is not None else (more or {}).values())


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.positional, self.named, self.inside, self.single = Joined(), Joined(), Joined(), Joined()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = self.positional(x, x * 2) + self.named(x, other=x * 2) + self.inside(x, more={"other": x * 2})
        return self.single(x=y)


def test_inputs_by_name_are_inputs(tmp_path):
    _, run = record_step(tmp_path, Calls(), lambda m: m(torch.ones(2, 4)).square().sum(), FLOW)
    found = flow_of(run)
    for quantity in ("forward_gain", "backward_gain"):
        assert not {"positional", "named", "inside"} & set(found[quantity])
        assert found[quantity]["single"] == pytest.approx(1)
    assert {"positional", "named", "inside"} <= set(found["output_grad_rms"])


def line() -> nn.Sequential:
    """Modules of (batch, channels, length); one channel of four is dead from the first on, and no position is."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 4, 1),
        nn.BatchNorm1d(4),
        nn.InstanceNorm1d(4, affine=True),
        nn.GroupNorm(4, 4),
        nn.MaxPool1d(2),
        nn.AdaptiveAvgPool1d(3),
        nn.ConvTranspose1d(4, 4, 1, groups=4),
    )
    with torch.no_grad():
        for module in (model[0], model[6]):
            module.weight[1] = 0
            module.bias[1] = 0
        for module in model[1:4]:
            module.bias[1] = 0
    return model


def test_dead_share_along_a_line(tmp_path):
    _, run = record_step(tmp_path, line(), lambda m: m(torch.randn(5, 3, 8)).square().sum(), FLOW, lr=0.0)
    assert flow_of(run)["dead_share"] == dict.fromkeys(map(str, range(7)), 0.25)


def test_dead_share_of_tokens(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU())
    with torch.no_grad():
        model[1].weight[1] = model[1].bias[1] = 0
    _, run = record_step(tmp_path, model, lambda m: m(torch.randn(5, 8, 4)).square().sum(), FLOW, lr=0.0)
    assert flow_of(run)["dead_share"] == {"0": 0, "1": 0.25, "2": 0.25}
