# SPDX-License-Identifier: AGPL-3.0-or-later
"""Networks and problems whose gradients are known exactly, recorded as a person would.

Gains are squared norms, from a layer's output to its input.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from yolo_gradstudy import GradRecorder, RecordConfig, load_run

from .loop import convnet, everything, images, record_step, sgd

# Norms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_norm_is_the_slope_along_the_gradient(tmp_path, seed):
    """d/dh L(θ + h·g/‖g‖) = ‖g‖, by a central difference of fourth order."""
    model = convnet(seed=seed).double()
    x = images(seed=seed).double()

    def loss_of(m):
        return m(x).square().mean().log()

    total, run = record_step(tmp_path, model, loss_of, lr=0.0)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    directions = {n: p.grad / total for n, p in model.named_parameters()}

    def shifted(h):
        moved = {n: p + h * directions[n] for n, p in parameters.items()}
        return float(functional_call(model, moved, (x,)).square().mean().log())

    h = 1e-4
    slope = (8 * (shifted(h) - shifted(-h)) - (shifted(2 * h) - shifted(-2 * h))) / (12 * h)
    assert float(total) == pytest.approx(slope, rel=1e-6)
    assert run.steps.grad_norm[1] == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_root_of_the_sum_of_squares_is_what_clipping_returns(tmp_path, dtype):
    model = convnet().to(dtype)
    x = images().to(dtype)
    total, run = record_step(tmp_path, model, lambda m: m(x).square().mean())
    returned = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert torch.equal(total, returned)
    assert run.steps.grad_norm[1] == np.float32(returned.item()), "exact, as far as the disk's float32 goes"
    norms = run.layers("grad_norm").loc[1].astype(float)
    assert math.sqrt((norms**2).sum()) == pytest.approx(returned.item(), rel=1e-6)


# Depth ----------------------------------------------------------------------------------------------------

WIDTH, DEPTH = 512, 20


def deep_relu(weight_variance: float, batchnorm: bool, seed: int) -> nn.Sequential:
    """Blocks of Linear (weight variance σ_w²/fan_in, no bias), perhaps BatchNorm, and ReLU."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(DEPTH):
        linear = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.normal_(linear.weight, 0.0, math.sqrt(weight_variance / WIDTH), generator=generator)
        blocks.append(nn.Sequential(linear, *([nn.BatchNorm1d(WIDTH)] if batchnorm else []), nn.ReLU()))
    return nn.Sequential(*blocks)


def recorded_depth(folder, weight_variance, batchnorm, seed, batch):
    """Backward gain of each block, and the squared norm of each block's weight gradient."""
    model = deep_relu(weight_variance, batchnorm, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    x = torch.randn(batch, WIDTH, generator=generator).requires_grad_()
    readout = torch.randn(batch, WIDTH, generator=generator)
    config = RecordConfig(flow_every=1, flow_modules=tuple(str(i) for i in range(DEPTH)))
    _, run = record_step(folder, model, lambda m: (m(x) * readout).sum(), config)
    gains = run.flow("backward_gain").loc[1]
    assert list(gains.index) == [str(i) for i in range(DEPTH)]
    weights = run.layers("grad_norm").loc[1, [f"{i}.0.weight" for i in range(DEPTH)]]
    return gains.to_numpy(float), weights.to_numpy(float) ** 2


@pytest.mark.parametrize("weight_variance", [1.0, 2.0, 4.0])
def test_gain_of_a_relu_network(tmp_path, weight_variance):
    """He et al. 2015: σ_w²/2 a layer; the weights' gradients don't show it, which is why flow is measured."""
    results = [recorded_depth(tmp_path / str(s), weight_variance, False, s, batch=16) for s in range(5)]
    gain = math.exp(np.mean([np.log(gains).mean() for gains, _ in results]))
    print(f"ReLU, variance {weight_variance}: gain {gain:.4f}, theory {weight_variance / 2}")
    assert gain == pytest.approx(weight_variance / 2, rel=0.03)
    logs = np.mean([np.log(weights) for _, weights in results], axis=0)
    slope = np.polyfit(np.arange(DEPTH), logs, 1)[0]
    assert abs(slope) < 0.05, "the squared weight gradients are flat, 5% a layer"
    forward = [load_run(tmp_path / str(s)).flow("forward_gain").loc[1] for s in range(5)]
    assert math.exp(np.mean([np.log(f).mean() for f in forward])) == pytest.approx(weight_variance / 2, rel=0.05)


@pytest.mark.parametrize("weight_variance", [0.5, 2.0, 8.0])
def test_gain_of_a_relu_network_with_batchnorm(tmp_path, weight_variance):
    """Yang et al. 2019: π/(π − 1) whatever the weights; the first and last blocks are not stationary yet."""
    gains, _ = recorded_depth(tmp_path, weight_variance, True, seed=0, batch=256)
    gain = math.exp(np.log(gains[3:-3]).mean())
    print(f"BN-ReLU, variance {weight_variance}: gain {gain:.4f}, theory {math.pi / (math.pi - 1):.4f}")
    assert gain == pytest.approx(math.pi / (math.pi - 1), rel=0.02)


# BatchNorm ------------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """A convolution before a BatchNorm; ``scale`` multiplies the weight by its exponential."""

    def __init__(self, trained: str, factor: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(factor * torch.randn(4, 3, 3, 3, generator=generator).double())
        self.bias = nn.Parameter(torch.randn(4, generator=generator).double())
        self.scale = nn.Parameter(torch.zeros(4, 1, 1, 1).double())
        self.norm = nn.BatchNorm2d(4, eps=1e-12).double()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name == trained)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(nn.functional.conv2d(x, self.weight * self.scale.exp(), self.bias))


def normalised_total(folder, trained, factor=1.0) -> float:
    """The global norm, where only one parameter is trained; float64, as ``observe`` returns it."""
    x = images(8).double()
    target = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(3)).double()
    total, run = record_step(folder, Normalised(trained, factor), lambda m: (m(x) - target).square().sum())
    assert list(run.layers("grad_norm")) == [trained]
    assert run.layers("grad_norm").loc[1, trained] == pytest.approx(float(total), rel=1e-6)
    return float(total)


def test_batchnorm_makes_a_weight_orthogonal_to_its_gradient(tmp_path):
    """The gradient with respect to the logarithm of a filter's size is the dot product of filter and gradient."""
    along = normalised_total(tmp_path / "scale", "scale")
    whole = normalised_total(tmp_path / "weight", "weight")
    assert whole > 1
    assert along / (whole * Normalised("weight").weight.norm().item()) < 1e-8


def test_batchnorm_divides_the_gradient_by_the_weights_factor(tmp_path):
    once, thrice = (normalised_total(tmp_path / str(f), "weight", f) for f in (1.0, 3.0))
    assert once / thrice == pytest.approx(3.0, rel=1e-8)


def test_a_bias_before_batchnorm_has_no_gradient(tmp_path):
    assert normalised_total(tmp_path / "bias", "bias") / normalised_total(tmp_path / "weight", "weight") < 1e-8


def test_an_orthogonal_step_adds_its_square_to_the_weight(tmp_path):
    """Pythagoras with the numbers on disk: ‖w − ηg‖² = ‖w‖² + η²‖g‖², so a normalised weight can only grow."""
    x = images(8).double()
    model = Normalised("weight")
    optimizer = sgd(model, lr=1.0)
    with GradRecorder(model, optimizer, tmp_path, everything()) as recorder:
        for _ in range(5):
            optimizer.zero_grad()
            (model(x) * torch.linspace(-1, 1, 36).reshape(6, 6)).sigmoid().sum().backward()
            recorder.observe()
            optimizer.step()
            recorder.stepped()
    run = load_run(tmp_path)
    weight, step = run.layers("param_norm")["weight"].to_numpy(float), run.steps.update_norm.to_numpy(float)
    assert (step / weight).max() > 0.1
    assert np.diff(weight**2) == pytest.approx(step[:-1] ** 2, rel=1e-4)


# Time -----------------------------------------------------------------------------------------------------


class LinearRNN(nn.Module):
    """h ← ρQh with an orthogonal Q; the first state is the only parameter."""

    def __init__(self, rho: float, width: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        orthogonal, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        self.register_buffer("recurrence", rho * orthogonal)
        self.state = nn.Parameter(torch.randn(width, generator=generator, dtype=torch.float64))
        self.readout = nn.functional.normalize(torch.randn(width, generator=generator, dtype=torch.float64), dim=0)

    def forward(self, length: int) -> torch.Tensor:
        state = self.state
        for _ in range(length):
            state = self.recurrence @ state
        return state @ self.readout


@pytest.mark.parametrize("rho", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_gradient_of_a_linear_rnn_goes_as_a_power_of_its_radius(tmp_path, rho):
    model = LinearRNN(rho)
    lengths = [1, 10, 50, 200]
    with GradRecorder(model, sgd(model), tmp_path) as recorder:
        for length in lengths:
            model.zero_grad()
            model(length).backward()
            assert float(recorder.observe()) == pytest.approx(rho**length, rel=1e-9, abs=0)
    run = load_run(tmp_path)
    powers = [rho**length for length in lengths]
    assert run.layers("grad_norm")["state"].tolist() == pytest.approx(powers, rel=1e-6, abs=0), (
        "0.5²⁰⁰ is not 0 on disk"
    )
    assert run.steps.grad_norm.tolist() == pytest.approx(powers, rel=1e-6, abs=0)


# Stability of the optimizer -------------------------------------------------------------------------------


def recorded_descent(folder, gradient_of, start, optimizer_of, steps, clip_norm=None):
    """Gradient norms on disk of a descent in one dimension, in float64."""
    model = nn.ParameterList([nn.Parameter(torch.tensor([start], dtype=torch.float64))])
    optimizer = optimizer_of(model.parameters())
    config = RecordConfig(extremes_every=0, parameter_every=0, update_every=0, flush_every=1000)
    with GradRecorder(model, optimizer, folder, config) as recorder:
        for _ in range(steps):
            model[0].grad = gradient_of(model[0].detach())
            total = recorder.observe(clip_norm=clip_norm)
            if clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, total)
            optimizer.step()
            recorder.stepped()
    return load_run(folder).steps


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_edge_of_stability_of_a_quadratic(tmp_path, momentum):
    """SGD on λx²/2 diverges just above lr·λ = 2(1 + β)."""
    curvature = 7.0
    edge = 2 * (1 + momentum) / curvature

    def last_over_first(name, lr):
        norms = recorded_descent(
            tmp_path / name,
            lambda x: curvature * x,
            1.0,
            lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum),
            steps=1200,
        ).grad_norm
        return norms.iloc[-10:].max() / norms.iloc[:10].max()

    assert last_over_first("below", edge * 0.999) < 0.3
    assert last_over_first("above", edge * 1.001) > 3


@pytest.mark.parametrize("start", [1.0, 3.0])
def test_clipping_holds_a_quartic(tmp_path, start):
    """SGD on x⁴ diverges iff lr > 1/(2·x0²); clipped it never does."""
    edge = 1 / (2 * start**2)

    def norms(name, lr, clip_norm=None):
        steps = recorded_descent(
            tmp_path / name, lambda x: 4 * x**3, start, lambda p: torch.optim.SGD(p, lr=lr), 1200, clip_norm
        )
        return steps.grad_norm, steps.grad_norm_clipped, steps.grad_nonfinite

    below, _, bad = norms("below", edge * 0.999)
    assert below.is_monotonic_decreasing
    assert below.iloc[-1] < 0.5 * below.iloc[0]
    assert bad.sum() == 0
    above, _, bad = norms("above", edge * 1.001)
    assert not np.isfinite(above.iloc[-1])
    assert bad.iloc[-1] == 1
    assert above[np.isfinite(above)].is_monotonic_increasing
    for name, factor in {"just": 1.001, "far": 100.0}.items():
        before, after, bad = norms(name, edge * factor, clip_norm=1.0)
        assert bad.sum() == 0
        assert before.max() <= 4 * max(start, edge * factor) ** 3 * (1 + 1e-6), "no further than one clipped step"
        assert after.max() <= 1 + 1e-6
