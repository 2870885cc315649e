# SPDX-License-Identifier: AGPL-3.0-or-later
"""Each clip against its paper's formula, in float64 and in plain numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from yolo_gradstudy.ablations import ABLATIONS, AdaptiveClip, Clip, PercentileClip, ValueClip, ZScoreClip, find_ablation
from yolo_gradstudy.ablations.clipping import unitwise_norms

CLIPS = [ValueClip(0.1), AdaptiveClip(0.01), PercentileClip(10.0), ZScoreClip(2.5, warmup_steps=3)]
each_clip = pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: type(clip).__name__)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).to(dtype)


def put_gradients(model, length=None, seed=0):
    """Random gradients, of a global norm where one is given; the norm."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    norm = total(model)
    if length is not None:
        for parameter in parameters:
            parameter.grad *= length / norm
        norm = total(model)
    return norm


def total(model):
    norms = [p.grad.double().norm() for p in model.parameters() if p.grad is not None]
    return torch.stack(norms).norm().to(next(model.parameters()).dtype)


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def test_every_clip_of_the_table_is_a_clip():
    options = [spec.trainer_options()["clip"] for spec in ABLATIONS.values() if "clip" in spec.trainer]
    assert {type(clip) for clip in options} == {type(clip) for clip in CLIPS}
    assert all(isinstance(clip, Clip) for clip in options)
    assert find_ablation("replace_clip_by_agc(0.16)").trainer_options() == {"clip": AdaptiveClip(0.16)}
    assert find_ablation("replace_clip_by_norm(0.5)").trainer_options() == {"clip_norm": 0.5}


# What holds for each


@each_clip
@pytest.mark.parametrize("length", [1e-6, 0.3, 1.0, 1e3])
def test_the_norm_it_returns_is_the_norm_it_leaves_and_no_gradient_grows(clip, length):
    model = network()
    clipper = clip.begin(list(model.parameters()))
    for step in range(6):
        norm = put_gradients(model, length * (1 + step), seed=step)
        before = gradients(model)
        left = clipper(norm)
        assert left.item() == pytest.approx(total(model).item(), rel=1e-6, abs=1e-12)
        for old, new in zip(before, gradients(model), strict=True):
            assert (new.abs() <= old.abs() * (1 + 1e-12)).all()
            assert (new * old >= 0).all()


@each_clip
def test_parameters_without_gradient_are_passed_over(clip):
    model = network()
    clipper = clip.begin(list(model.parameters()))
    norm = put_gradients(model, 5.0)
    model[3].weight.grad = None
    clipper(norm)
    assert model[3].weight.grad is None
    for parameter in model.parameters():
        parameter.grad = None
    clipper(torch.zeros((), dtype=torch.float64))


@each_clip
def test_two_trainings_share_no_history(clip):
    model = network()
    clip.begin(list(model.parameters()))(put_gradients(model, 1e-3))
    results = []
    for _ in range(2):
        clipper = clip.begin(list(model.parameters()))
        results.append([clipper(put_gradients(model, 10.0 * (i + 1))).item() for i in range(6)])
    assert results[0] == results[1]


class Reads(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        assert operator.overloadpacket.__name__ not in ("_local_scalar_dense", "item", "_to_copy_host"), operator
        return operator(*args, **(kwargs or {}))


@each_clip
def test_no_value_is_read_from_a_cuda_device(clip):
    """A fake CUDA tensor has no value, and raises where the host would read one."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameters = [nn.Parameter(torch.empty(4, 3, 3, 3, device="cuda")), nn.Parameter(torch.empty(4, device="cuda"))]
        clipper = clip.begin(parameters)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            with Reads():
                left = clipper(torch.empty((), device="cuda"))
            assert left.device.type == "cuda"
            assert left.ndim == 0


# Value


def test_value_clip_is_an_elementwise_clamp():
    model = network()
    norm = put_gradients(model)
    before = gradients(model)
    ValueClip(0.1).begin(list(model.parameters()))(norm)
    for old, new in zip(before, gradients(model), strict=True):
        assert np.array_equal(new.numpy(), np.clip(old.numpy(), -0.1, 0.1))


# AGC


@settings(max_examples=40)
@given(
    st.floats(1e-3, 1.0), st.floats(1e-4, 1e-1), st.integers(0, 1000), st.sampled_from([1e-5, 1e-2, 1.0, 1e3])
)  # fmt: skip
def test_adaptive_clip_is_the_papers_formula(factor, eps, seed, length):
    """Brock et al. 2021, eq. 3, unit by unit in plain numbers."""
    model = network()
    norm = put_gradients(model, length, seed)
    before = gradients(model)
    AdaptiveClip(factor, eps).begin(list(model.parameters()))(norm)
    for parameter, old in zip(model.parameters(), before, strict=True):
        weights = parameter.detach().numpy()
        for weight, grad, new in (
            zip(weights, old.numpy(), parameter.grad.numpy(), strict=True)
            if parameter.ndim > 1
            else [(weights, old.numpy(), parameter.grad.numpy())]
        ):
            size, largest = math.sqrt((grad**2).sum()), max(math.sqrt((weight**2).sum()), eps)
            expected = factor * largest / max(size, 1e-6) * grad if size / largest > factor else grad
            assert new == pytest.approx(expected, rel=1e-9, abs=0)


def test_a_unit_is_what_an_output_reads():
    weight = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert unitwise_norms(weight).flatten().tolist() == pytest.approx(weight.flatten(1).norm(dim=1).tolist())
    assert unitwise_norms(weight).shape == (2, 1, 1, 1)
    assert unitwise_norms(torch.tensor([3.0, 4.0])).item() == 5.0


# AutoClip


@settings(max_examples=40)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30), st.floats(0.0, 100.0))
def test_percentile_clip_is_the_papers_algorithm(lengths, percentile):
    """Seetharaman et al. 2020, algorithm 1: the threshold is the percentile of all norms, the step's own among them."""
    model = network()
    clipper = PercentileClip(percentile).begin(list(model.parameters()))
    history = []
    for length in lengths:
        norm = put_gradients(model, length)
        history.append(norm.item())
        threshold = np.percentile(history, percentile)
        left = clipper(norm)
        assert left.item() == pytest.approx(norm.item() * min(1.0, threshold / (norm.item() + 1e-6)), rel=1e-9)


def test_percentile_clip_forgets_norms_that_are_not_finite_and_its_room_grows():
    model = network()
    clipper = PercentileClip(50.0).begin(list(model.parameters()))
    for length in (1.0, 3.0):
        clipper(put_gradients(model, length))
    put_gradients(model)
    assert not math.isfinite(clipper(torch.tensor(math.nan, dtype=torch.float64)).item())
    clipper(torch.tensor(math.inf, dtype=torch.float64))
    assert clipper(put_gradients(model, 5.0)).item() == pytest.approx(3.0, rel=1e-6)  # the median of 1, 3, 5
    for _ in range(1100):
        left = clipper(put_gradients(model, 3.0))
    assert left.item() == pytest.approx(3.0, rel=1e-6)


# ZClip


def zclip(norms, z_threshold, alpha, warmup_steps, eps):
    """Kumar et al. 2025, algorithm 1, in plain numbers; the norms that are left."""
    left, first, mean, variance = [], [], None, None
    for norm in norms:
        if mean is None:
            first.append(norm)
            left.append(norm)
            if len(first) == warmup_steps:
                mean, variance = float(np.mean(first)), float(np.var(first))
            continue
        deviation = math.sqrt(variance)
        z = (norm - mean) / (deviation + eps)
        kept = mean + z_threshold**2 / z * deviation if z > z_threshold else norm
        left.append(kept)
        mean = alpha * mean + (1 - alpha) * kept
        variance = alpha * variance + (1 - alpha) * (kept - mean) ** 2
    return left


@settings(max_examples=40)
@given(
    st.lists(st.floats(0.1, 100.0), min_size=3, max_size=40),
    st.floats(0.5, 4.0),
    st.floats(0.5, 0.99),
    st.integers(1, 6),
)
def test_zscore_clip_is_the_papers_algorithm(lengths, z_threshold, alpha, warmup_steps):
    model = network()
    clip = ZScoreClip(z_threshold, alpha, warmup_steps)
    clipper = clip.begin(list(model.parameters()))
    norms = [put_gradients(model, length).item() for length in lengths]
    expected = zclip(norms, z_threshold, alpha, warmup_steps, clip.eps)
    for norm, length, want in zip(norms, lengths, expected, strict=True):
        left = clipper(put_gradients(model, length)).item()
        assert left == pytest.approx(want, rel=1e-6, abs=1e-9)
        assert left <= norm * (1 + 1e-9)


def test_zscore_clip_brings_an_outlier_back_the_more_the_farther_out():
    model = network()
    left = []
    for outlier in (20.0, 200.0, 2000.0):
        clipper = ZScoreClip(2.5, warmup_steps=10).begin(list(model.parameters()))
        for i in range(10):
            clipper(put_gradients(model, 10.0 + (-1) ** i))
        left.append(clipper(put_gradients(model, outlier)).item())
    assert left[0] > left[1] > left[2] > 10.0  # σ = 1: towards the mean


def test_zscore_clip_goes_on_after_a_norm_that_is_not_finite():
    model = network()
    clipper = ZScoreClip(2.5, warmup_steps=4).begin(list(model.parameters()))
    for i in range(3):
        clipper(put_gradients(model, 10.0 + i))
    clipper(torch.tensor(math.nan, dtype=torch.float64))
    put_gradients(model)
    clipper(torch.tensor(math.inf, dtype=torch.float64))
    assert clipper(put_gradients(model, 11.0)).item() == pytest.approx(11.0)
    assert clipper(put_gradients(model, 1e4)).item() < 20.0


# Numbers in names


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "replace_clip_by_autoclip(101)",
            "its number, the percentile, is a number from 0 to 100; the nearest valid is 100",
        ),
        ("replace_clip_by_norm(-1)", "is a number of at least 1e-12; the nearest valid is 1e-12"),
        ("replace_clip_by_norm(nan)", "the nearest valid is 1"),
        ("replace_clip_by_norm(inf)", "the nearest valid is 1"),
        ("replace_clip_by_norm()", "has '' where its number stands; the nearest valid is 'replace_clip_by_norm.1.'"),
        ("replace_clip_by_norm(ten)", "has 'ten' where its number stands"),
        ("no_clip(3)", "'no_clip' takes no number; the nearest valid is 'no_clip'"),
        ("replace_clip_by_nrom(3)", "is not an ablation; the nearest is 'replace_clip_by_norm'"),
    ],
)
def test_numbers_that_are_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_ablation(name)


def test_a_default_number_is_not_written():
    assert find_ablation("replace_clip_by_agc(0.01)").label == "replace_clip_by_agc"
    assert find_ablation(" replace_clip_by_agc( 0.02 ) ").label == "replace_clip_by_agc(0.02)"
