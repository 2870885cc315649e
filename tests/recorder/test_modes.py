# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mixed precision, accumulation, frozen and tied parameters, compiled models."""

import math
import subprocess
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from yolo_gradstudy import GradRecorder, load_run
from yolo_gradstudy.recorder import parameter_name

from .loop import convnet, everything, images, record_step, sgd, summed_norm

HUGE_SCALE = 2.0**40


def found_inf(scaler, optimizer) -> torch.Tensor:
    return torch.stack(list(scaler._found_inf_per_device(optimizer).values())).amax()


def train_scaled(folder, dtype, init_scale, steps=30):
    """A real mixed-precision training; returns the run, and what a bystander saw in each step."""
    model = convnet()
    optimizer = sgd(model, lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=5)
    seen = []
    with GradRecorder(model, optimizer, folder, everything(flush_every=8)) as recorder:
        for seed in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = model(images(8, seed)).float().square().mean()
            scaler.scale(loss).backward()
            bad_scaled = sum(int((~p.grad.isfinite()).sum()) for p in model.parameters())
            scaler.unscale_(optimizer)
            gradients = [p.grad.clone() for p in model.parameters()]
            before = [p.detach().clone() for p in model.parameters()]
            recorder.observe(
                loss=loss, images=8, amp_scale=scaler._scale, skipped=found_inf(scaler, optimizer), clip_norm=10.0
            )
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            recorder.stepped()
            seen.append(
                {
                    "amp_scale": scale,
                    "skipped": float(all(torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True))),
                    "grad_nonfinite": bad_scaled,
                    "grad_norm": summed_norm(gradients),
                    "loss": loss.item(),
                }
            )
    return load_run(folder), seen


def test_fp16_overflow_and_skipped_steps(tmp_path):
    run, seen = train_scaled(tmp_path, torch.float16, HUGE_SCALE)
    steps = run.steps
    assert steps.index.tolist() == list(range(1, 31))
    for name in seen[0]:
        expected = [row[name] for row in seen]
        assert steps[name].tolist() == pytest.approx(expected, rel=1e-5, nan_ok=True), name
    skipped = steps.skipped == 1
    assert 3 <= skipped.sum() <= 27, "both kinds of steps must occur, or this shows nothing"
    assert (steps.grad_nonfinite[skipped] > 0).all()
    assert (steps.grad_nonfinite[~skipped] == 0).all()
    assert not np.isfinite(steps.grad_norm[skipped]).any()
    assert np.isfinite(steps.grad_norm[~skipped]).all()
    assert (steps.update_norm[skipped] == 0).all()
    assert (steps.update_norm[~skipped] > 0).all()
    assert steps.amp_scale[1] == HUGE_SCALE
    halved = steps.amp_scale.shift(-1)[skipped].dropna() / steps.amp_scale[skipped][: len(steps) - 1]
    assert halved.dropna().eq(0.5).all()
    rms = run.flow("output_grad_rms")
    last = steps.index[~skipped][-1]
    assert 1e-6 < rms.loc[last, "7"] < 10, "the scale is divided out"


def test_fp16_names_the_layers_that_overflowed(tmp_path):
    run, _ = train_scaled(tmp_path, torch.float16, 2.0**16, steps=3)
    assert (run.steps.skipped == 0).all()
    model = convnet()
    model(images(8)).square().mean().backward()
    model[3].weight.grad[0, 0, 0, 0] = math.inf
    with GradRecorder(model, sgd(model), tmp_path / "one") as recorder:
        recorder.observe()
    norms = load_run(tmp_path / "one").layers("grad_norm").loc[1]
    assert norms.index[~np.isfinite(norms)].tolist() == ["3.weight"]


def test_bf16(tmp_path):
    model = convnet()

    def loss_of(m):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m(images()).float().square().mean()

    _, run = record_step(tmp_path, model, loss_of, everything())
    oracle = summed_norm([p.grad for p in model.parameters()])
    assert run.steps.grad_norm[1] == pytest.approx(oracle, rel=1e-6)
    assert run.steps.amp_scale[1] == 1
    assert run.steps.skipped[1] == run.steps.grad_nonfinite[1] == 0
    assert run.flow("backward_gain").loc[1].notna().sum() == 7


def test_parameters_of_bf16(tmp_path):
    model = convnet().bfloat16()
    x = images().bfloat16()
    before = [p.detach().clone() for p in model.parameters()]
    _, run = record_step(tmp_path, model, lambda m: m(x).float().square().mean(), everything())
    assert run.steps.grad_norm[1] == pytest.approx(summed_norm([p.grad for p in model.parameters()]), rel=1e-6)
    moved = [p.detach().double() - b.double() for p, b in zip(model.parameters(), before, strict=True)]
    assert run.steps.update_norm[1] == pytest.approx(summed_norm(moved), rel=1e-3)
    assert run.layers("update_ratio").loc[1, "0.weight"] == pytest.approx(
        summed_norm(moved[:1]) / summed_norm(before[:1]), rel=1e-3
    )


# Accumulation ---------------------------------------------------------------------------------------------


def test_images_of_a_step_and_norms_per_image(tmp_path):
    model = convnet()
    model[1] = nn.Identity()
    optimizer = sgd(model, lr=0.0)
    x = images(12)
    counts = [4, 8, 12]
    with GradRecorder(model, optimizer, tmp_path) as recorder:
        for count in counts:  # as the number of accumulated batches ramps in Ultralytics' warm-up
            optimizer.zero_grad()
            for part in x[:count].split(4):
                model(part).square().sum().backward()
            recorder.observe(images=count)
            recorder.stepped()
    steps = load_run(tmp_path).steps
    assert steps.images.tolist() == counts
    for count, (_, row) in zip(counts, steps.iterrows(), strict=True):
        optimizer.zero_grad()
        model(x[:count]).square().sum().backward()
        assert row.grad_norm == pytest.approx(summed_norm([p.grad for p in model.parameters()]), rel=1e-4)
        assert row.grad_norm_per_image == pytest.approx(row.grad_norm / count, rel=1e-5)


# Parameters without gradient ------------------------------------------------------------------------------


def test_frozen_parameters_are_missing_from_gradients_only(tmp_path):
    model = convnet()
    frozen = ["0.weight", "1.bias", "3.bias"]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    _, run = record_step(tmp_path, model, lambda m: m(images()).square().mean(), everything())
    every = [n for n, _ in model.named_parameters()]
    assert list(run.layers("grad_norm")) == [n for n in every if n not in frozen]
    assert list(run.layers("param_norm")) == every
    ratios = run.layers("update_ratio").loc[1]
    assert (ratios[["0.weight", "3.bias"]] == 0).all()
    assert (run.layers("update_ratio").loc[1, ["3.weight", "7.weight"]] > 0).all()
    oracle = summed_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert run.steps.grad_norm[1] == pytest.approx(oracle, rel=1e-6)


def test_a_layer_that_thaws_appears_when_it_does(tmp_path):
    model = convnet()
    model[0].requires_grad_(False)
    optimizer = sgd(model)
    with GradRecorder(model, optimizer, tmp_path) as recorder:
        for step in range(3):
            if step == 2:
                model[0].requires_grad_(True)
            optimizer.zero_grad()
            model(images(seed=step)).square().mean().backward()
            recorder.observe()
            recorder.stepped()
    norms = load_run(tmp_path).layers("grad_norm")
    assert norms["0.weight"].isna().tolist() == [True, True, False]
    assert norms["7.weight"].notna().all()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode = nn.Linear(6, 6, bias=False)
        self.decode = nn.Linear(6, 6, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x).tanh())


def test_a_tied_parameter_counts_once(tmp_path):
    model = Tied()
    total, run = record_step(tmp_path, model, lambda m: m(torch.ones(2, 6)).square().sum(), everything())
    assert list(run.layers("grad_norm")) == list(run.layers("param_norm")) == ["encode.weight"]
    assert float(total) == pytest.approx(summed_norm([model.encode.weight.grad]), rel=1e-6)
    assert set(run.flow("activation_rms")) == {"encode", "decode"}


# Names, and torch.compile ---------------------------------------------------------------------------------


def has_compiler() -> bool:
    """Whether a C++ compiler works, which the default backend needs."""
    try:
        command = ["g++", "-x", "c++", "-fsyntax-only", "-include", "cmath", "-"]
        return subprocess.run(command, input=b"int main() {}", capture_output=True).returncode == 0
    except OSError:
        return False


BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param("inductor", marks=pytest.mark.skipif(not has_compiler(), reason="no C++ compiler works here")),
]


NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_models(tmp_path, backend):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    plain_total, plain = record_step(tmp_path / "plain", small_net(), lambda m: m(x).square().sum(), everything())
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(small_net(), backend=backend)
        total, run = record_step(tmp_path / "compiled", compiled, lambda m: m(x).square().sum(), everything())
    assert list(run.layers("grad_norm")) == list(plain.layers("grad_norm")) == NAMES
    assert float(total) == pytest.approx(float(plain_total), rel=1e-5)
    for quantity in ("grad_norm", "param_norm", "update_ratio"):
        np.testing.assert_allclose(run.layers(quantity), plain.layers(quantity), rtol=1e-4)
    assert [e["event"] for e in run.events] == ["started", "flow_off", "finished"]
    assert "torch.compile" in run.events[1]["reason"]
    assert run.flow("activation_rms").empty
    assert [p["name"] for p in run.meta["parameters"]] == NAMES


def test_models_compiled_in_place_or_in_part(tmp_path):
    in_place, in_part = small_net(), small_net()
    in_place.compile(backend="eager")
    in_part[0] = torch.compile(in_part[0], backend="eager")
    for name, model in {"place": in_place, "part": in_part}.items():
        torch._dynamo.reset()
        _, run = record_step(tmp_path / name, model, lambda m: m(torch.ones(3, 4)).sum(), everything())
        assert list(run.layers("grad_norm")) == NAMES
        assert "flow_off" in [e["event"] for e in run.events], name


def test_a_models_own_names_stay(tmp_path):
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2, bias=False)
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x) * self.weight

    _, run = record_step(tmp_path, Holder(), lambda m: m(torch.ones(1, 2)).sum())
    assert sorted(run.layers("grad_norm")) == ["module.weight", "weight"]
    assert parameter_name("body._orig_mod.conv.weight") == "body.conv.weight"


def test_a_model_without_parameters_is_refused(tmp_path):
    model = nn.ReLU()
    with pytest.raises(ValueError, match="ReLU has no floating-point parameters"):
        GradRecorder(model, torch.optim.SGD([nn.Parameter(torch.ones(1))]), tmp_path)
