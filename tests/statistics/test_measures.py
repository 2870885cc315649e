# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every measured quantity has a case, agrees with Python's own arithmetic, and changes nothing."""

import math

import pytest
import torch
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolo_gradstudy import statistics
from yolo_gradstudy.statistics.norms import unseen_norms

each = pytest.mark.parametrize("name", CASES)

values = st.floats(-100, 100, width=16)
gradients = st.lists(st.lists(values, min_size=1, max_size=7), min_size=1, max_size=4)


def numbers(result):
    if isinstance(result, torch.Tensor):
        return result.double().reshape(-1).tolist()
    return [float(value) for value in (result if isinstance(result, list) else [result])]


def test_every_public_name_has_a_case():
    assert sorted(CASES) == sorted(statistics.__all__)


@each
@given(values=gradients)
@settings(max_examples=40)
def test_agrees_with_plain_arithmetic(name, values):
    case = CASES[name]
    tensors = [torch.tensor(v, dtype=torch.float32) for v in values]
    before = [t.clone() for t in tensors]
    found = numbers(case.measure(tensors))
    assert found == pytest.approx(numbers(case.expected(values)), rel=1e-5, abs=1e-6, nan_ok=True)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True)), "what is measured stays as it was"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.on_device])
def test_stays_on_the_device(name):
    """Meta tensors have a device and no values, so that nothing can be read of them."""
    result = CASES[name].measure([torch.ones(3, device="meta"), torch.ones(2, 2, device="meta")])
    for tensor in result if isinstance(result, list) else [result]:
        assert tensor.device.type == "meta"


def test_clip_coefficient_is_that_of_torch():
    for size in (0.1, 1.0, 5.0, 1e10, 1e30, math.inf, math.nan):
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.ones(1)
        norm = torch.tensor(size)
        torch.nn.utils.clip_grads_with_norm_([parameter], 2.0, norm)
        torch.testing.assert_close(
            statistics.clip_coefficient(norm, 2.0), parameter.grad[0], rtol=0, atol=0, equal_nan=True
        )


class Block(nn.Module):
    def __init__(self, activation) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 1, 1), activation


def test_followed_modules_are_leaves_numbered_layers_and_holders_of_shared_ones():
    activation = nn.SiLU()
    model = nn.Module()
    model.model = nn.Sequential(Block(activation), nn.Sequential(Block(activation), nn.Identity()))
    assert list(statistics.followed_modules(model)) == [
        "model.0", "model.0.conv", "model.1", "model.1.0", "model.1.0.conv", "model.1.1"
    ]  # fmt: skip
    assert list(statistics.followed_modules(model, ["*.conv", "model"])) == ["model", "model.0.conv", "model.1.0.conv"]
    assert list(statistics.followed_modules(model, ["*.act"])) == []


def test_assignments_of_a_validation_are_not_counted():
    sums = statistics.AssignmentSums()
    hook = sums.hook("one2one", counts_boxes=False)
    ones = torch.ones(2, 3)
    with torch.no_grad():
        hook(nn.Identity(), [None] * 5 + [ones], (None, None, ones, ones))
    assert sums.take() == {}
    hook(nn.Identity(), [None] * 5 + [ones], (None, None, ones, ones))
    assert {name: float(v) for name, v in sums.take().items()} == {"target_scores_one2one": 6, "positives_one2one": 6}


@pytest.mark.parametrize("whole", [True, False])
def test_where_the_host_must_not_look_norms_neither_overflow_nor_vanish(whole):
    """What an accelerator computes, on a CPU: each is summed again, and chosen where float32 failed."""
    tensors = [torch.full((4,), size) for size in (1e38, 1e-25, 3.0, 0.0, math.inf, math.nan)]
    norms = statistics.tensor_norms(tensors)
    assert math.isinf(norms[0])
    assert norms[1] == 0
    found = unseen_norms(tensors, norms, whole, 1e-15)
    oracle = [float(t.double().norm()) for t in tensors]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(oracle, rel=1e-6, abs=0, nan_ok=True)
    assert found.tolist() == pytest.approx(statistics.exact_norms(tensors, norms, whole).tolist(), abs=0, nan_ok=True)


def test_where_the_host_must_not_look_the_kernel_of_clipping_is_believed_where_it_is_sure():
    norms = torch.tensor([7.0, 0.0])
    found = unseen_norms([torch.full((4,), 3.0), torch.full((4,), 1e-25)], norms, True, 1e-15)
    assert found.tolist() == pytest.approx([7.0, 2e-25], rel=1e-6, abs=0)
    assert unseen_norms([torch.ones(4, dtype=torch.half)], torch.ones(1), False, 1e-15).tolist() == [2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_parameters_small_and_large_of_any_dtype_have_their_norms_and_distances(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (statistics.SMALL + 1,), (2, 5), (0,), ()]
    parameters = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    parameters.append(parameters[2].t())  # not contiguous, and another's memory
    followed = statistics.ParameterNorms(parameters)
    before = [p.double().clone() for p in parameters]
    assert followed.take().tolist() == pytest.approx([float(p.double().norm()) for p in parameters], rel=1e-6)
    followed.keep()
    for parameter in parameters[:5]:
        parameter.mul_(3)
    moved = [float((p.double() - b).norm()) for p, b in zip(parameters, before, strict=True)]
    assert followed.distances().tolist() == pytest.approx(moved, rel=1e-3 if dtype.itemsize == 2 else 1e-6)


def test_flat_tensors_follow_data_that_is_replaced():
    parameter = nn.Parameter(torch.ones(3))
    flat = statistics.FlatTensors([parameter], "float64")
    assert flat.norms().tolist() == pytest.approx([math.sqrt(3)])
    parameter.data = torch.full((4,), 2.0, dtype=torch.bfloat16)
    assert flat.norms().tolist() == [4.0]
    assert statistics.FlatTensors([], "float32").largest().shape == (0,)


def test_a_parameter_that_is_not_finite_has_a_norm_that_is_not():
    for bad in (math.inf, math.nan):
        norms = statistics.ParameterNorms([torch.tensor([1.0, bad]), torch.ones(2)]).take().tolist()
        assert norms == pytest.approx([bad, math.sqrt(2)], nan_ok=True)
    assert statistics.FlatTensors([torch.tensor([1.0, math.nan, 3.0])], "float32").largest().tolist() == pytest.approx(
        [math.nan], nan_ok=True
    )


def test_sums_of_huge_norms_are_no_alarm():
    """Norms of float64 tensors whose sum is infinite, though each is finite."""
    norms = torch.tensor([1.7e308, 1.7e308], dtype=torch.float64)
    assert float(statistics.nonfinite_count([torch.ones(1), torch.ones(1)], norms)) == 0


def test_the_total_of_norms_that_are_each_sure_does_not_overflow():
    tensors = [torch.full((1,), 1e19) for _ in range(20)]
    norms = statistics.tensor_norms(tensors)
    total = statistics.exact_total(statistics.total_norm(norms), statistics.exact_norms(tensors, norms), True)
    assert float(total) == pytest.approx(1e19 * math.sqrt(20))
