# SPDX-License-Identifier: AGPL-3.0-or-later
"""SiLU replaced: each formula against plain numbers, and what must stay."""

import math

import pytest
import torch
from torch import nn
from ultralytics.nn.modules.block import BottleneckCSP, RepVGGDW
from ultralytics.nn.modules.conv import Conv, ConvTranspose, RepConv
from ultralytics.nn.tasks import DetectionModel

from yolo_gradstudy.ablations import ABLATIONS, apply_ablation, apply_ablations

from .models import RTDETR_SMALL, control, images

FORMULAS = {
    "replace_silu_by_relu": lambda x: max(x, 0.0),
    "replace_silu_by_leakyrelu": lambda x: x if x > 0 else x / 100,
    "replace_silu_by_tanh": math.tanh,
    "replace_silu_by_sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "replace_silu_by_identity": lambda x: x,
}
each = pytest.mark.parametrize("name", FORMULAS)


def silus(model):
    named = model.named_modules(remove_duplicate=False)
    return [name for name, module in named if isinstance(module, nn.SiLU)]


def test_every_activation_has_its_formula():
    assert list(FORMULAS) == [name for name, spec in ABLATIONS.items() if spec.family == "activation"]


@each
@pytest.mark.parametrize(
    "block", [lambda: Conv(3, 4, 3), lambda: ConvTranspose(3, 4), lambda: RepConv(3, 4), lambda: RepVGGDW(3)]
)
def test_formula_behind_a_block(name, block):
    torch.manual_seed(0)
    model = nn.Sequential(block()).eval()
    seen = []
    hook = model[0].act.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    inputs = 3 * torch.randn(2, 3, 5, 5)
    model(inputs)
    hook.remove()  # the activation is the class's, which other models have too
    assert apply_ablation(model, name) == ["0.act"]
    expected = torch.tensor([FORMULAS[name](value) for value in seen[0].flatten().tolist()])
    assert (seen[0] < -1).any()
    assert (seen[0] > 1).any()
    assert torch.allclose(model(inputs).flatten(), expected, atol=1e-6)


@each
@pytest.mark.parametrize("model_name", ["yolo26n.yaml", "yolov10n.yaml", RTDETR_SMALL])
def test_every_silu_is_replaced_and_nothing_else(name, model_name):
    model = control(model_name)
    found = silus(model)
    others = {n: type(m) for n, m in model.named_modules(remove_duplicate=False) if n not in found}
    assert apply_ablation(model, name) == found
    assert silus(model) == []
    after = dict(model.named_modules(remove_duplicate=False))
    assert {n: type(m) for n, m in after.items() if n not in found} == others
    assert len({id(after[n]) for n in found}) == 1  # one instance, as Ultralytics builds it


def test_the_class_attribute_that_other_models_are_built_with_stays():
    before = Conv.default_act, ConvTranspose.default_act, RepConv.default_act
    apply_ablation(control(), "replace_silu_by_relu")
    after = Conv.default_act, ConvTranspose.default_act, RepConv.default_act
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert type(Conv(3, 3).act) is nn.SiLU


def test_a_numbered_silu_keeps_its_marks_and_mode():
    layers = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "nn.SiLU", []]], "head": []}
    layers["head"] = [[[1], 1, "Detect", ["nc"]]]
    model = DetectionModel(layers, verbose=False).eval()
    marks = {key: model.model[1].__dict__[key] for key in ("i", "f", "type", "np")}
    assert "model.1" in apply_ablation(model, "replace_silu_by_tanh")
    assert marks.items() <= model.model[1].__dict__.items()
    assert not hasattr(model.model[0].act, "i")
    assert not any(module.training for module in model.modules())
    model(images())


def test_a_silu_of_ones_own_is_replaced_where_it_stands():
    torch.manual_seed(0)
    model = BottleneckCSP(4, 4)
    assert {"act", "cv1.act", "m.0.cv2.act"} <= set(apply_ablation(model, "replace_silu_by_identity"))


@pytest.mark.parametrize("norm", ["no_batchnorm", "replace_batchnorm_by_groupnorm"])
def test_it_finds_a_silu_behind_an_exchanged_normalisation(norm):
    one, other = control("tiny"), control("tiny")
    apply_ablations(one, [norm, "replace_silu_by_relu"])
    apply_ablation(other, norm)
    apply_ablation(other, "replace_silu_by_relu")
    with torch.no_grad():
        assert torch.equal(one.eval()(images())[0], other.eval()(images())[0])


def test_a_linear_network_is_linear():
    """With the identity, without bias and normalisation, a stack of Convs is homogeneous and additive."""
    torch.manual_seed(0)
    model = nn.Sequential(Conv(3, 8, 3), Conv(8, 8, 3, 2), Conv(8, 4)).double()
    apply_ablations(model, ["replace_silu_by_identity", "no_batchnorm"])
    a, b = (images(seed=seed).double() for seed in (0, 1))
    assert torch.allclose(model(2 * a - b), 2 * model(a) - model(b), rtol=1e-9, atol=1e-12)
