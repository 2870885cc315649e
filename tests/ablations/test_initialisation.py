# SPDX-License-Identifier: AGPL-3.0-or-later
"""Initial weights: drawn numbers against their formulas, LSUV on a batch, the head's biases."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.modules.conv import Conv
from ultralytics.nn.modules.head import Detect

from yolo_gradstudy.ablations import ABLATIONS, apply_ablation, apply_ablations, calibrate_ablations
from yolo_gradstudy.ablations.initialisation import calibrate, fans, weighted

from .cases import MODELS
from .models import RTDETR_SMALL, control, generator_states, images, same, weight

VARIANCES = {  # and the kurtosis of the distribution: 1.8 of a uniform one, 3 of a normal one
    "replace_init_by_xavier": (lambda fan_in, fan_out: 2 / (fan_in + fan_out), 1.8),
    "replace_init_by_xavier_normal": (lambda fan_in, fan_out: 2 / (fan_in + fan_out), 3.0),
    "replace_init_by_he": (lambda fan_in, fan_out: 2 / fan_in, 3.0),
}
ORTHOGONAL = ("replace_init_by_orthogonal", "replace_init_by_lsuv")
DRAWS = [*VARIANCES, *ORTHOGONAL]


def draw(model, name, seed=0):
    """The ablation without its second half, which waits for images."""
    return apply_ablations(model, [name], seed)[name]


def test_every_initialisation_has_its_formula():
    assert [name for name, spec in ABLATIONS.items() if "weight initialisation" in spec.targets] == DRAWS


@pytest.mark.parametrize("model_name", MODELS[:4])
@pytest.mark.parametrize("name", VARIANCES)
def test_variance_of_the_drawn_weights(name, model_name):
    """Second moments against the formula, five standard errors wide: Var[w²] = (kurtosis − 1)·variance²."""
    variance, kurtosis = VARIANCES[name]
    model = control(model_name)
    changed = apply_ablation(model, name)
    pooled = []
    for module in (model.get_submodule(key) for key in changed):
        out, fan_in = module.weight.shape[0], module.weight[0].numel()
        fan_out = out // module.groups * math.prod(module.kernel_size)
        pooled.append((module.weight.detach() ** 2 / variance(fan_in, fan_out)).flatten())
    heads = {key.replace("one2one_", "") for key in changed}  # twin heads draw the same numbers: count them once
    pooled = [values for key, values in zip(changed, pooled, strict=True) if key in heads]
    for values in (*pooled, torch.cat(pooled)):
        assert abs(values.mean().item() - 1) < 5 * math.sqrt((kurtosis - 1) / values.numel())
    if kurtosis == 1.8:
        assert torch.cat(pooled).max() <= 3 * (1 + 1e-6)  # the bound is √3 standard deviations
    else:
        assert torch.cat(pooled).max() > 9


@pytest.mark.parametrize("model_name", ["yolo26n.yaml", "yolo12n.yaml", RTDETR_SMALL])
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_drawn_weights_are_orthogonal_in_each_group(name, model_name):
    model = control(model_name)
    for key in draw(model, name):
        module = model.get_submodule(key)
        for matrix in module.weight.detach().flatten(1).chunk(getattr(module, "groups", 1)):
            gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5), key


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), (2, 3, 18)),
        (nn.Conv2d(4, 64, 1), (1, 64, 4)),
        (nn.Conv2d(6, 6, 3, groups=6), (6, 1, 9)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 2, 27)),
        (nn.Linear(5, 3), (1, 3, 5)),
    ],
)
def test_matrices_that_are_orthogonal(module, shape):
    apply_ablation(nn.Sequential(module), "replace_init_by_orthogonal")
    groups, rows, columns = shape
    assert module.weight.numel() == math.prod(shape)
    for matrix in module.weight.detach().reshape(shape):
        gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
        assert torch.allclose(gram, torch.eye(min(rows, columns)), atol=1e-5)
    assert groups == getattr(module, "groups", 1)


def test_orthogonal_weights_are_drawn_uniformly():
    """Each entry of a uniformly distributed orthogonal matrix has mean 0 and variance 1/n; LAPACK's Q alone has not."""
    model = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(2000)])
    apply_ablation(model, "replace_init_by_orthogonal")
    matrices = torch.stack([module.weight.detach() for module in model])
    assert matrices.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / 2000)
    assert (matrices.square().mean(0) - 1 / 3).abs().max() < 5 * math.sqrt(4 / 45 / 2000)
    assert abs(torch.linalg.det(matrices).mean().item()) < 5 / math.sqrt(2000)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, bias=False), (1, 4, 7, 7)),
        (nn.Conv2d(4, 6, (1, 3), padding=(0, 1), groups=2, bias=False), (1, 4, 7, 7)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (1, 4, 7, 7)),
        (nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2, bias=False), (1, 4, 7, 7)),
        (nn.Linear(5, 3, bias=False), (1, 5)),
    ],
)
def test_fans_count_the_connections(module, shape):
    nn.init.ones_(module.weight)
    inputs = torch.zeros(shape)
    jacobian = torch.autograd.functional.jacobian(module, inputs)
    links = jacobian.reshape(module(inputs).numel(), inputs.numel())
    middle_out, middle_in = (links != 0).sum(1).max().item(), (links != 0).sum(0).max().item()
    assert fans(module) == (middle_out, middle_in)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_depend_on_seed_and_name_alone(name):
    models = [control() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(seed + 17)
        changed = draw(model, name, seed=seed)
    same(models[0].state_dict(), models[1].state_dict())
    for key in changed:
        assert not torch.equal(weight(models[0], key), weight(models[2], key)), key


@pytest.mark.parametrize("name", DRAWS)
def test_what_an_initialisation_keeps(name):
    before, model = control(), control()
    changed = draw(model, name)
    for key, parameter in model.named_parameters():
        if key.endswith(".bias"):
            assert torch.equal(parameter, before.get_parameter(key)), key
    head = model.model[-1]
    same(head.cv2.state_dict(), head.one2one_cv2.state_dict())  # Ultralytics builds the twin as a copy
    same(head.cv3.state_dict(), head.one2one_cv3.state_dict())
    assert "model.23.one2one_cv2.0.2" in changed
    with_dfl = control("yolo11n.yaml")
    assert not [key for key in draw(with_dfl, name) if "dfl" in key]
    assert with_dfl.model[-1].dfl.conv.weight.flatten().tolist() == list(range(16))
    decoder = control(RTDETR_SMALL)
    assert "model.27.enc_bbox_head.layers.2" not in draw(decoder, name)
    assert not decoder.model[-1].enc_bbox_head.layers[2].weight.any()


def test_gain_of_silu_in_the_docstring():
    """E[silu(z)²] for z ~ N(0, 1) by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    moment = (weights * (nodes / (1 + np.exp(-nodes))) ** 2).sum() / math.sqrt(2 * math.pi)
    assert moment == pytest.approx(0.3557, abs=1e-4)
    assert 1 / math.sqrt(moment) == pytest.approx(1.677, abs=1e-3)


# LSUV


def variances(model, inputs):
    """Of each layer at its first call in a forward pass: the variance of what it puts out, its bias left out."""
    seen = {}

    def hook(name):
        def see(module, inputs, output):
            bias = module.bias if module.bias is not None else torch.zeros(1)
            linear = output - (bias if isinstance(module, nn.Linear) else bias.view(-1, 1, 1))
            seen.setdefault(name, linear.detach().double().var(correction=0).item())

        return see

    handles = [module.register_forward_hook(hook(name)) for name, module in weighted(model)]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("with_others", [(), ("no_batchnorm", "no_residuals"), ("replace_silu_by_tanh", "deepen")])
@pytest.mark.parametrize("model_name", ["yolov8n.yaml", "yolo26n.yaml", "yolo12n.yaml", RTDETR_SMALL])
def test_lsuv_gives_every_layer_unit_variance_on_the_batch(model_name, with_others):
    names = ["replace_init_by_lsuv", *with_others]
    model, inputs = control(model_name), images(4, 96)
    apply_ablations(model, names)
    assert not all(abs(v - 1) < 0.5 for v in variances(copy.deepcopy(model), inputs).values())
    calibrate_ablations(model, names, inputs)
    seen = variances(copy.deepcopy(model), inputs)
    assert len(seen) > 50
    assert [name for name, variance in seen.items() if abs(variance - 1) > 1e-3] == []


def test_lsuv_scales_weights_and_nothing_else():
    before, model = control(), control()
    for each in (before, model):
        draw(each, "replace_init_by_lsuv", seed=3)
        each.train()
        each.model[3].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    states = generator_states()
    calibrate_ablations(model, ["replace_init_by_lsuv"], images(4))
    assert generator_states() == states
    assert {name: module.training for name, module in model.named_modules()} == modes
    same(dict(before.named_buffers()), dict(model.named_buffers()))
    layers = {f"{name}.weight" for name, _ in weighted(before)}
    for key, parameter in model.named_parameters():
        old = before.get_parameter(key)
        if key not in layers:
            assert torch.equal(parameter, old), key
            continue
        factor = (parameter.norm() / old.norm()).item()
        assert not math.isclose(factor, 1), key
        assert torch.allclose(parameter, factor * old, rtol=1e-4, atol=1e-7), key
    assert not any(module._forward_hooks for module in model.modules())
    head = model.model[-1]
    same(head.cv2.state_dict(), head.one2one_cv2.state_dict())


def test_lsuv_in_one_call_is_both_halves():
    one, other = control("tiny"), control("tiny")
    apply_ablation(one, "replace_init_by_lsuv", seed=2, images=images())
    apply_ablations(other, ["replace_init_by_lsuv"], seed=2)
    calibrate_ablations(other, ["replace_init_by_lsuv"], images())
    same(one.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match="sets weights by a batch of images; pass it as images="):
        apply_ablation(control("tiny"), "replace_init_by_lsuv")


def test_calibration_of_others_does_nothing():
    model = control("tiny")
    calibrate_ablations(model, ["replace_init_by_he", "no_clip"], images())
    same(model.state_dict(), control("tiny").state_dict())


class Twice(nn.Module):
    """One layer called twice, one that gets nothing but zeros, one that is not called."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.silent = nn.Conv2d(3, 3, 1)
        self.idle = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        self.first = self.layer(x)
        self.second = self.layer(self.first)
        return self.second + self.silent(torch.zeros_like(x))


def test_a_layer_is_scaled_at_its_first_call_and_a_silent_one_never():
    torch.manual_seed(0)
    model = Twice().eval()
    before = copy.deepcopy(model)
    calibrate(model, images())
    assert not model.training
    model(images())
    linear = model.first - model.layer.bias.view(-1, 1, 1)
    assert linear.var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert model.second.var(correction=0).item() != pytest.approx(1, abs=1e-2)
    for name in ("silent", "idle"):
        assert torch.equal(model.get_submodule(name).weight, before.get_submodule(name).weight)
    assert torch.equal(model.layer.bias, before.layer.bias)


def test_calibration_cleans_up_after_an_error():
    model = control("tiny")
    with pytest.raises(RuntimeError):
        calibrate(model, torch.rand(2, 5, 64, 64))
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


@pytest.mark.parametrize("frozen", [False, True])
def test_calibration_sees_the_model_as_training_does(frozen):
    """In training mode, save for what a training has in evaluation mode, as ``freeze_batchnorm_statistics``."""
    torch.manual_seed(0)
    model = nn.Sequential(Conv(3, 8, 3), Conv(8, 8, 3)).train()
    if frozen:
        model[0].bn.eval()
    calibrate(model, images())
    assert model[0].bn.training is not frozen
    seen = variances(copy.deepcopy(model), images())
    assert max(abs(v - 1) for v in seen.values()) < 1e-3


# scale_init


@pytest.mark.parametrize("gain", [0.5, 2.0, 4.0])
def test_gain_multiplies_what_was_drawn(gain):
    before, model = control(), control()
    draw(before, "replace_init_by_he", seed=1)
    changed = apply_ablations(model, [f"scale_init({gain})", "replace_init_by_he"], seed=1)
    assert changed[f"scale_init({gain:g})" if gain != 2 else "scale_init"] == changed["replace_init_by_he"]
    layers = {f"{name}.weight" for name in changed["replace_init_by_he"]}
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before.get_parameter(key) * (gain if key in layers else 1)), key


def test_a_gain_of_one_changes_nothing():
    with pytest.raises(ValueError, match="'scale_init' found nothing to change"):
        apply_ablation(control("tiny"), "scale_init(1)")


# no_head_bias_init


def head_biases(model):
    """The biases that Ultralytics sets when it builds a head: those that it sets again."""
    head = model.model[-1]
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim == 1:
                parameter.fill_(7)
    head.bias_init() if isinstance(head, Detect) else head._reset_parameters()
    named = [(f"model.{head.i}.{key}", p) for key, p in head.named_parameters() if key.endswith("bias")]
    return {key.removesuffix(".bias") for key, parameter in named if not (parameter == 7).all()}


@pytest.mark.parametrize(
    "model_name",
    [*MODELS[:4], RTDETR_SMALL, "yolov10n.yaml", "yolov8s-world.yaml"]
    + [f"yolo26n-{task}.yaml" for task in ("seg", "pose", "obb")],
)
def test_the_biases_that_ultralytics_sets_are_drawn_as_torch_does(model_name):
    before, model = control(model_name), control(model_name)
    changed = apply_ablation(model, "no_head_bias_init", seed=1)
    assert set(changed) == head_biases(control(model_name))
    pooled = []
    for key, parameter in model.named_parameters():
        if key.removesuffix(".bias") not in changed:
            assert torch.equal(parameter, before.get_parameter(key)), key
            continue
        bound = 1 / math.sqrt(weight(model, key.removesuffix(".bias"))[0].numel())
        assert parameter.abs().max() <= bound, key
        if "one2one" not in key:
            pooled.append(parameter.detach() / bound)
    values = torch.cat(pooled)
    assert abs(3 * values.square().mean().item() - 1) < 5 * math.sqrt(0.8 / values.numel())
    assert abs(values.mean().item()) < 5 * math.sqrt(1 / 3 / values.numel())


def test_twin_heads_stay_twins():
    model = control()
    apply_ablation(model, "no_head_bias_init")
    head = model.model[-1]
    same(head.cv2.state_dict(), head.one2one_cv2.state_dict())
    same(head.cv3.state_dict(), head.one2one_cv3.state_dict())


def test_head_bias_depends_on_the_seed():
    one, other = control(), control()
    for model, seed in ((one, 0), (other, 1)):
        changed = apply_ablation(model, "no_head_bias_init", seed=seed)
    assert not any(torch.equal(one.get_submodule(n).bias, other.get_submodule(n).bias) for n in changed)


def test_a_fused_head_and_the_prompt_head_of_yoloe():
    fused = control().fuse(verbose=False)
    assert len(apply_ablation(fused, "no_head_bias_init")) == 6
    with pytest.raises(ValueError, match="found nothing to change"):
        apply_ablation(YOLO("yoloe-v8s.yaml").model, "no_head_bias_init")
