# SPDX-License-Identifier: AGPL-3.0-or-later
"""BatchNorm removed or replaced: what is computed, against torch's own functions."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torchvision.models.convnext import LayerNorm2d
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.modules.block import BottleneckCSP, RepVGGDW
from ultralytics.nn.modules.conv import Conv, Conv2, ConvTranspose, DWConv, RepConv
from ultralytics.nn.tasks import DetectionModel

from yolo_gradstudy.ablations import apply_ablation
from yolo_gradstudy.ablations.normalisation import GROUP_SIZE, groups_of

from .cases import MODELS
from .models import RTDETR_SMALL, batchnorms, control, generator_states, images, same

GROUPNORM, LAYERNORM = "replace_batchnorm_by_groupnorm", "replace_batchnorm_by_layernorm2d"
each_norm = pytest.mark.parametrize("name", [GROUPNORM, LAYERNORM])
each_exchange = pytest.mark.parametrize("name", ["no_batchnorm", GROUPNORM, LAYERNORM])
KINDS = {GROUPNORM: nn.GroupNorm, LAYERNORM: LayerNorm2d}


# no_batchnorm


def neutral(model):
    """The model with every BatchNorm made the identity: what it computes without them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
            module.eps = 0.0
    return model.eval()


@pytest.mark.parametrize(
    "model_name",
    [*MODELS, "yolov9t.yaml", "yolov10n.yaml", "yolov6n.yaml"],
)
def test_no_batchnorm_computes_what_the_model_does_with_neutral_batchnorms(model_name):
    before, model = control(model_name), control(model_name)
    for ours in (before, model):  # weights at which the signal reaches the head, in layers that keep their shape
        with torch.no_grad():
            for module in ours.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.mul_(2.0)
    assert apply_ablation(model, "no_batchnorm") == batchnorms(before)
    assert batchnorms(model) == []
    inputs = images(1, seed=1).double()
    with torch.no_grad():  # in float64: processors round differently, and RT-DETR picks its queries by it
        expected, got = neutral(before).double()(inputs)[0], model.eval().double()(inputs)[0]
    assert expected.isfinite().all()
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-8)


BLOCKS = {
    "Conv": (lambda: Conv(3, 40, 3), lambda m, x: functional.conv2d(x, m.conv.weight, None, 1, 1)),
    "DWConv": (lambda: DWConv(3, 6, 3), lambda m, x: functional.conv2d(x, m.conv.weight, None, 1, 1, 1, 3)),
    "Conv2": (lambda: Conv2(3, 40, 3), lambda m, x: m.conv(x) + m.cv2(x)),
    "ConvTranspose": (lambda: ConvTranspose(3, 40), lambda m, x: m.conv_transpose(x)),
    "RepConv with identity": (lambda: RepConv(4, 4, bn=True), lambda m, x: m.conv1.conv(x) + m.conv2.conv(x) + x),
    "RepConv": (lambda: RepConv(3, 40), lambda m, x: m.conv1.conv(x) + m.conv2.conv(x)),
    "RepVGGDW": (lambda: RepVGGDW(3), lambda m, x: m.conv.conv(x) + m.conv1.conv(x)),
}
"""Blocks, and what they compute before their normalisation."""


@pytest.mark.parametrize(
    ("block", "expected"),
    [(block, lambda m, x, linear=linear: m.act(linear(m, x))) for block, linear in BLOCKS.values()]
    + [
        (
            lambda: BottleneckCSP(3, 4),
            lambda m, x: m.cv4(m.act(torch.cat((m.cv3(m.m(m.cv1(x))), m.cv2(x)), 1))),
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)), lambda m, x: m[0](x)),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.SiLU()), lambda m, x: m[1](x)),
    ],
    ids=[*BLOCKS, "BottleneckCSP", "Sequential", "first"],
)
def test_no_batchnorm_on_a_block(block, expected):
    torch.manual_seed(0)
    model = block()
    inputs = torch.randn(2, 4 if isinstance(model, RepConv) and model.bn is not None else 3, 8, 8)
    if isinstance(model, BottleneckCSP):
        neutral(model)  # its inner Convs keep their BatchNorm in the expectation
    want = expected(copy.deepcopy(model), inputs).detach()
    states = generator_states()
    apply_ablation(model, "no_batchnorm")
    assert generator_states() == states
    assert torch.allclose(model(inputs), want, atol=1e-6)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            assert module.bias is not None
            assert not module.bias.any()
            assert module.bias.requires_grad
            assert module.weight.requires_grad


@each_exchange
def test_dtype_freezing_and_layer_marks_stay(name):
    model = control().half()
    model.model[0].requires_grad_(False)
    apply_ablation(model, name)
    new = [model.model[i].conv.bias if name == "no_batchnorm" else model.model[i].act[0].bias for i in (0, 1)]
    assert new[0].dtype == torch.float16
    assert not new[0].requires_grad
    assert new[1].requires_grad
    layers = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "nn.BatchNorm2d", []]], "head": []}
    layers["head"] = [[[1], 1, "Detect", ["nc"]]]
    model = DetectionModel(layers, verbose=False).eval()
    assert "model.1" in apply_ablation(model, name)
    assert not any(module.training for module in model.modules())
    model(torch.rand(1, 3, 32, 32))


class NormalisedConv(Conv):
    def forward(self, x):
        return self.act(self.bn(self.conv(x)) * 2)


class Fusing(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def fuse(self):
        del self.norm


@each_exchange
@pytest.mark.parametrize(
    ("model", "culprit"),
    [
        (nn.Sequential(Conv(3, 3), RepConv(3, 3), NormalisedConv(3, 3)), "2.bn.*NormalisedConv"),
        (nn.Sequential(Conv(3, 3), Fusing()), "1.norm.*Fusing"),
        (nn.BatchNorm2d(3), "the model itself.*BatchNorm2d"),
    ],
)
def test_what_it_would_break_is_refused_and_the_model_is_left(name, model, culprit):
    before = copy.deepcopy(model)
    verb = "remove" if name == "no_batchnorm" else "replace"
    with pytest.raises(ValueError, match=f"{name} cannot {verb} {culprit}"):
        apply_ablation(model, name)
    assert batchnorms(model) == batchnorms(before)
    same(before.state_dict(), model.state_dict())


@each_exchange
def test_fused_model_has_no_batchnorm_to_exchange(name):
    with pytest.raises(ValueError, match="found nothing to change"):
        apply_ablation(control().fuse(verbose=False), name)


# Replaced


def normalised(name, x, weight, bias, eps):
    """What the replacement computes, by torch's functions."""
    if name == GROUPNORM:
        return functional.group_norm(x, groups_of(x.shape[1]), weight, bias, eps)
    across = functional.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], weight, bias, eps)
    return across.permute(0, 3, 1, 2)


@torch.no_grad()
def unlike_new(model):
    """Scales, shifts and an eps that no layer begins with."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 2)
            module.bias.normal_()
            module.eps = 1e-3
    return model


@each_norm
@pytest.mark.parametrize("kind", BLOCKS)
def test_replacement_on_a_block(name, kind):
    torch.manual_seed(0)
    block, linear = BLOCKS[kind]
    model = unlike_new(block()).double()
    inputs = torch.randn(2, 4 if isinstance(model, RepConv) and model.bn is not None else 3, 8, 8).double()
    old = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    weight, bias = old.weight, old.bias
    if kind.startswith("Rep"):  # what follows a sum of branches begins anew
        weight, bias = torch.ones_like(weight), torch.zeros_like(bias)
    want = model.act(normalised(name, linear(copy.deepcopy(model), inputs), weight, bias, 1e-3)).detach()
    states = generator_states()
    apply_ablation(model, name)
    assert generator_states() == states
    assert torch.allclose(model(inputs), want, rtol=1e-9)
    assert [type(module) for module in model.modules() if "Norm" in type(module).__name__] == [KINDS[name]]
    assert all(parameter.requires_grad for parameter in model.parameters())
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [convolution.bias for convolution in convolutions] == [None]


@each_norm
def test_a_batchnorm_that_ultralytics_does_not_fuse_is_exchanged_in_place(name):
    torch.manual_seed(0)
    model = unlike_new(nn.Sequential(nn.Conv2d(3, 32, 1, bias=False), nn.BatchNorm2d(32))).double()
    old, inputs = model[1], torch.randn(2, 3, 4, 4).double()
    want = normalised(name, model[0](inputs), old.weight, old.bias, 1e-3)
    assert apply_ablation(model, name) == ["1"]
    assert torch.allclose(model(inputs), want, rtol=1e-9)
    csp = BottleneckCSP(4, 64)
    assert "bn" in apply_ablation(csp, name)
    assert isinstance(csp.bn, KINDS[name])
    assert csp.cv2.bias is None


@given(st.integers(1, 4096))
def test_groups_of_channels(channels):
    groups = groups_of(channels)
    assert channels % groups == 0
    assert groups == 1 or channels // groups >= GROUP_SIZE
    if channels % GROUP_SIZE == 0:
        assert groups == channels // GROUP_SIZE
    more = [g for g in range(groups + 1, channels + 1) if channels % g == 0 and channels // g >= GROUP_SIZE]
    assert more == []


def test_groups_in_the_docstrings():
    assert [groups_of(channels) for channels in (16, 64, 80, 100, 24, 8, 1)] == [1, 4, 5, 5, 1, 1, 1]


@each_norm
@pytest.mark.parametrize("model_name", ["yolo26n.yaml", "yolo12n.yaml"])
def test_an_image_no_longer_depends_on_its_batch(name, model_name):
    """The property that group and layer normalisation have, and batch normalisation in training has not."""
    inputs = images(3).double()
    for ablated in (False, True):
        model = control(model_name).double().train()
        if ablated:
            apply_ablation(model, name)
        with torch.no_grad():
            together, alone = (scores(model(batch))[0] for batch in (inputs, inputs[:1]))
        assert torch.allclose(together, alone, rtol=1e-9) == ablated


def scores(output):
    return output.get("one2one", output)["scores"]


@each_norm
def test_a_map_of_one_position_has_something_to_normalise(name):
    """A group of one value would put out its bias whatever comes in, and torch refuses to train it."""
    torch.manual_seed(0)
    model = nn.Sequential(Conv(3, 24), Conv(24, 2)).train()
    apply_ablation(model, name)
    outputs = [model(torch.randn(1, 3, 1, 1)) for _ in range(2)]
    assert not torch.allclose(*outputs)


@each_norm
def test_values_are_carried_over(name):
    before, model = unlike_new(control()), unlike_new(control())
    with torch.no_grad():
        for one, other in zip(before.parameters(), model.parameters(), strict=True):
            other.copy_(one)
    for key in apply_ablation(model, name):
        old, new = before.get_submodule(key), model.get_submodule(key.removesuffix("bn") + "act.0")
        assert torch.equal(old.weight, new.weight)
        assert torch.equal(old.bias, new.bias)
        assert old.eps == new.eps


def test_weight_decay_of_the_replacements():
    """Ultralytics' optimizer knows both as normalisations: their weights are not decayed, as a BatchNorm's are not."""
    for name, decayed in ((GROUPNORM, False), (LAYERNORM, False)):
        model = control()
        apply_ablation(model, name)
        trainer = SimpleNamespace(args=SimpleNamespace(lr0=0.01, warmup_bias_lr=0.1), data={"nc": 80})
        optimizer = BaseTrainer.build_optimizer(trainer, model, name="SGD", lr=0.01, momentum=0.9, decay=1e-3)
        groups = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        norms = [module for module in model.modules() if isinstance(module, KINDS[name])]
        assert {groups[id(norm.weight)] > 0 for norm in norms} == {decayed}
        assert {groups[id(norm.bias)] for norm in norms} == {0.0}


def test_layernorm2d_is_one_of_images():
    model = nn.Sequential(Conv(3, 3), nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=f"{LAYERNORM} cannot replace 2: it is a BatchNorm1d, and LayerNorm2d norm"):
        apply_ablation(model, LAYERNORM)
    same(before.state_dict(), model.state_dict())
    assert apply_ablation(model, GROUPNORM) == ["0.bn", "2"]


@each_norm
def test_rtdetr_keeps_its_layer_normalisations(name):
    before, model = control(RTDETR_SMALL), control(RTDETR_SMALL)
    apply_ablation(model, name)
    kept = [key for key, module in before.named_modules() if type(module) is nn.LayerNorm]
    assert kept == [key for key, module in model.named_modules() if type(module) is nn.LayerNorm]
    assert len(kept) > 5
    assert batchnorms(model) == []
