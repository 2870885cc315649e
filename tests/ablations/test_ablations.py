# SPDX-License-Identifier: AGPL-3.0-or-later
"""One suite over the whole table of ablations: it fails where cases.py lacks a row."""

import copy
import itertools
import math
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.nn.modules.block import (
    C1,
    PSA,
    A2C2f,
    ABlock,
    Bottleneck,
    BottleneckCSP,
    GhostBottleneck,
    PSABlock,
    RepVGGDW,
    ResNetBlock,
)
from ultralytics.nn.modules.conv import Conv, Conv2, ConvTranspose, DWConv, RepConv
from ultralytics.nn.tasks import DetectionModel

from yolo_gradstudy.ablations import (
    ABLATIONS,
    apply_ablation,
    apply_ablations,
    check_ablations,
    combined_arguments,
    combined_trainer_options,
    describe_ablations,
    kept_residuals,
)
from yolo_gradstudy.ablations.initialisation import fans

from .cases import CASES

torch.set_num_threads(1)

NAMES = list(ABLATIONS)
ARGUMENTS = {**DEFAULT_CFG_DICT, "optimizer": "NAdam", "batch": 16}
SURGERIES = [name for name, spec in ABLATIONS.items() if spec.surgery is not None]
TRAINING_ONLY = [name for name in NAMES if name not in SURGERIES]
MODELS = ["yolo26n.yaml", "yolo11n.yaml", "yolov8n.yaml", "yolo12n.yaml"]
COMPATIBLE = [
    set(names)
    for size in range(1, len(NAMES) + 1)
    for names in itertools.combinations(NAMES, size)
    if not {"replace_init_by_xavier", "replace_init_by_he"} <= set(names)
]
TINY = {
    "nc": 3,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C3k2", [32, True]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 1, "A2C2f", [128, True, 1, True]],
        [-1, 1, "C2PSA", [128]],
    ],
    "head": [[[2, 5], 1, "Detect", ["nc"]]],
}
_BUILT: dict[str, nn.Module] = {}


def control(name="yolo26n.yaml"):
    """A fresh copy of the model as a training with seed 0 builds it."""
    if name not in _BUILT:
        _BUILT[name] = build(name)
    return copy.deepcopy(_BUILT[name])


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "tiny":
            return DetectionModel(copy.deepcopy(TINY), verbose=False)
        return (RTDETR if "rtdetr" in name else YOLO)(name).model


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def batchnorms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def generator_states():
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


# The table


def test_every_ablation_has_a_case():
    assert list(CASES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_row_of_the_table(name):
    spec, case = ABLATIONS[name], CASES[name]
    assert spec.name == name
    assert spec.family in ("normalisation", "connections", "initialisation", "clipping", "schedule")
    assert spec.summary.endswith(".")
    assert spec.source
    assert dict(spec.arguments) == case.arguments
    assert dict(spec.trainer) == case.trainer
    assert bool(spec.surgery) == bool(case.changed)
    assert pickle.loads(pickle.dumps(spec)) == spec
    if spec.surgery is not None:
        assert spec.surgery.__name__ == name
    get_cfg(overrides=dict(spec.arguments))  # Ultralytics knows the arguments and takes the values


def test_order_of_the_table():
    families = [spec.family for spec in ABLATIONS.values()]
    assert families == sorted(
        families, key=["normalisation", "connections", "initialisation", "clipping", "schedule"].index
    )


# Every surgery on every family of models


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", SURGERIES)
def test_surgery_changes_what_the_case_says(name, model_name):
    case, model = CASES[name], control(model_name)
    modules = dict(model.named_modules())
    changed = apply_ablation(model, name)
    assert len(changed) == len(set(changed)) == case.changed[model_name]
    assert set(changed) <= modules.keys()
    assert count(model) - count(control(model_name)) == case.grows.get(model_name, 0)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", SURGERIES)
def test_surgery_keeps_what_pairs(name, model_name):
    before, model = control(model_name), build(model_name)
    same(before.state_dict(), model.state_dict())
    changed = apply_ablation(model, name, seed=3)
    redrawn = {f"{module}.weight" for module in changed} if CASES[name].redraws else set()
    old, new = dict(before.named_parameters()), dict(model.named_parameters())
    kept = [key for key in new if key in old and new[key].shape == old[key].shape]
    assert {key for key in old if ".bn." not in key} <= set(kept)
    for key in kept:
        assert torch.equal(old[key], new[key]) == (key not in redrawn), key
        assert new[key].requires_grad == old[key].requires_grad, key
    for key in new.keys() - old.keys():
        assert not new[key].any(), key  # what is new is a bias of zero


@pytest.mark.parametrize("name", SURGERIES)
def test_surgery_leaves_the_global_generators_alone(name):
    for model in (control(), control("yolov9t.yaml"), control("yolov10n.yaml")):
        states = generator_states()
        apply_ablation(model, name, seed=5)
        assert generator_states() == states


@pytest.mark.parametrize("name", SURGERIES)
def test_surgery_refuses_to_do_nothing(name):
    model = CASES[name].inert()
    with pytest.raises(ValueError, match=f"'{name}' found nothing to change in {type(model).__name__}"):
        apply_ablation(model, name)
    with pytest.raises(ValueError, match="found nothing to change"):
        apply_ablations(model, [name])


@pytest.mark.parametrize("name", ["no_batchnorm", "no_residuals"])
def test_a_removal_applied_twice_is_refused(name):
    model = control()
    apply_ablation(model, name)
    with pytest.raises(ValueError, match=rf"'{name}' found nothing to change in DetectionModel \(yolo26n.yaml\)"):
        apply_ablation(model, name)


@pytest.mark.parametrize("name", SURGERIES)
def test_ablated_model_trains_copies_and_fuses(name):
    model = control()
    apply_ablation(model, name)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.args = get_cfg()
    labels = {
        "img": images,
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[3.0], [7.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.6, 0.4], [0.4, 0.5, 0.3, 0.5]]),
    }
    model.train()
    model(labels)[0].sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        model.eval()
        expected = model(images)[0]
        twin = copy.deepcopy(model)
        for parameter in model.parameters():  # a copy that still reads the original's weights would show
            parameter.zero_()
        assert torch.equal(twin(images)[0], expected)
        assert torch.allclose(twin.fuse(verbose=False)(images)[0], expected, rtol=1e-4, atol=1e-4)
        assert twin.is_fused()


FRESH = """
import sys
import numpy as np
from ultralytics import YOLO
from ultralytics.nn.tasks import torch_safe_load
image = (np.random.default_rng(0).random((64, 96, 3)) * 255).astype("uint8")
for path in sys.argv[1:]:
    model = YOLO(path)
    assert all(type(m).__module__.startswith(("ultralytics.", "torch.")) for m in model.model.modules()), path
    result = model.predict(image, imgsz=64, verbose=False, conf=0.0)[0]
    assert result.orig_shape == (64, 96), path
    torch_safe_load(path, safe_only=True)
assert not [name for name in sys.modules if name.startswith("yolo_gradstudy")]
print("loaded", len(sys.argv) - 1)
"""


def test_saved_models_load_where_this_package_is_not(tmp_path):
    everything = ["no_batchnorm", "no_residuals", "replace_init_by_he"]
    saved = [("yolo26n.yaml", [name]) for name in SURGERIES]
    saved += [(model_name, everything) for model_name in [*MODELS, "yolov9t.yaml", "yolov10n.yaml"]]
    paths = []
    for model_name, names in saved:
        model = control(model_name)
        apply_ablations(model, names)
        paths.append(str(tmp_path / f"{model_name}-{'-'.join(names)}.pt"))
        torch.save({"model": copy.deepcopy(model).half(), "train_args": {}}, paths[-1])
        loaded = torch.load(paths[-1], weights_only=False)["model"].float()
        same(model.half().float().state_dict(), loaded.state_dict())
    script = tmp_path / "fresh.py"
    script.write_text(FRESH)
    done = subprocess.run([sys.executable, str(script), *paths], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"loaded {len(paths)}" in done.stdout


# Sets of ablations


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(COMPATIBLE).flatmap(lambda names: st.tuples(st.just(names), st.permutations(sorted(names)))))
def test_sets_apply_in_any_order_with_one_result(drawn):
    names, permutation = drawn
    reference, model = control("tiny"), control("tiny")
    expected = apply_ablations(reference, [name for name in NAMES if name in names], seed=1)
    states = generator_states()
    changed = apply_ablations(model, permutation, seed=1)
    assert generator_states() == states
    assert changed == expected
    assert list(changed) == [name for name in SURGERIES if name in names]
    same(reference.state_dict(), model.state_dict())
    for name, modules in changed.items():  # what a draw gives does not depend on what else is ablated
        if CASES[name].redraws:
            alone = control("tiny")
            apply_ablation(alone, name, seed=1)
            assert modules == [key for key in modules if torch.equal(weight(model, key), weight(alone, key))]
    model.train()(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))["scores"].sum().backward()
    assert combined_arguments(permutation, ARGUMENTS) == combined_arguments(sorted(names), ARGUMENTS)
    assert combined_trainer_options(permutation) == combined_trainer_options(sorted(names))


def weight(model, module):
    return model.get_submodule(module).weight


def test_settings_of_a_set():
    assert combined_arguments(NAMES_WITHOUT_HE) == {"warmup_epochs": 0.0}
    assert combined_trainer_options(NAMES_WITHOUT_HE) == {"clip_norm": None}
    assert combined_arguments([]) == combined_trainer_options([]) == {}
    assert apply_ablations(control(), []) == {}
    assert apply_ablations(control(), ["no_clip", "no_warmup"]) == {}


NAMES_WITHOUT_HE = [name for name in reversed(NAMES) if name != "replace_init_by_he"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["no_batchnrom"], "'no_batchnrom' is not an ablation; the nearest is 'no_batchnorm'"),
        (["no_clip", "he"], "'he' is not an ablation; the nearest is"),
        (["no_clip", "no_warmup", "no_clip"], "'no_clip' is given twice"),
        (
            ["replace_init_by_he", "no_clip", "replace_init_by_xavier"],
            "'replace_init_by_he' and 'replace_init_by_xavier' contradict each other, both change weight init",
        ),
        ("no_clip", r"'no_clip' is one string; write a list of names, \['no_clip'\]"),
    ],
)
def test_sets_that_are_refused(names, sentence):
    model = control()
    for refuse in (
        check_ablations,
        combined_arguments,
        combined_trainer_options,
        lambda names: apply_ablations(model, names),
    ):
        with pytest.raises(ValueError, match=sentence):
            refuse(names)
    same(model.state_dict(), control().state_dict())


@pytest.mark.parametrize("name", TRAINING_ONLY)
def test_an_ablation_of_training_is_not_applied_to_a_model(name):
    setting = next(iter({**CASES[name].arguments, **CASES[name].trainer}.items()))
    with pytest.raises(ValueError, match=f"changes training and not the model; set {setting[0]}={setting[1]!r} in"):
        apply_ablation(control(), name)


def test_unknown_ablation_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'no_residual' is not an ablation; the nearest is 'no_residuals'"):
        apply_ablation(control(), "no_residual")


def test_a_yolo_object_is_refused_since_its_train_builds_anew():
    with pytest.raises(ValueError, match=r"pass its \.model"):
        apply_ablation(YOLO("yolo26n.yaml"), "no_batchnorm")


# no_batchnorm


def neutral(model):
    """The model with every BatchNorm made the identity: what it computes without them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
            module.eps = 0.0
    return model.eval()


@pytest.mark.parametrize("model_name", [*MODELS, "yolov9t.yaml", "yolov10n.yaml", "yolov6n.yaml", "rtdetr-l.yaml"])
def test_no_batchnorm_computes_what_the_model_does_with_neutral_batchnorms(model_name):
    before, model = control(model_name), control(model_name)
    for ours in (before, model):  # weights at which the signal reaches the head, in layers that keep their shape
        with torch.no_grad():
            for module in ours.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.mul_(2.0)
    assert apply_ablation(model, "no_batchnorm") == batchnorms(before)
    assert batchnorms(model) == []
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():  # in float64: processors round differently, and RT-DETR picks its queries by it
        expected, got = neutral(before).double()(images)[0], model.eval().double()(images)[0]
    assert expected.isfinite().all()
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (lambda: Conv(3, 4, 3), lambda m, x: m.act(nn.functional.conv2d(x, m.conv.weight, None, 1, 1) + 0)),
        (lambda: DWConv(3, 6, 3), lambda m, x: m.act(nn.functional.conv2d(x, m.conv.weight, None, 1, 1, 1, 3) + 0)),
        (lambda: Conv2(3, 4, 3), lambda m, x: m.act(m.conv(x) + m.cv2(x))),
        (lambda: ConvTranspose(3, 4), lambda m, x: m.act(m.conv_transpose(x))),
        (lambda: RepConv(4, 4, bn=True), lambda m, x: m.act(m.conv1.conv(x) + m.conv2.conv(x) + x)),
        (lambda: RepConv(3, 4), lambda m, x: m.act(m.conv1.conv(x) + m.conv2.conv(x))),
        (lambda: RepVGGDW(3), lambda m, x: m.act(m.conv.conv(x) + m.conv1.conv(x))),
        (
            lambda: BottleneckCSP(3, 4),
            lambda m, x: m.cv4(m.act(torch.cat((m.cv3(m.m(m.cv1(x))), m.cv2(x)), 1))),
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)), lambda m, x: m[0](x)),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.SiLU()), lambda m, x: m[1](x)),
    ],
    ids=lambda value: None,
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


def test_no_batchnorm_keeps_dtype_freezing_and_layer_marks():
    model = control().half()
    model.model[0].requires_grad_(False)
    apply_ablation(model, "no_batchnorm")
    assert model.model[0].conv.bias.dtype == torch.float16
    assert not model.model[0].conv.bias.requires_grad
    assert model.model[1].conv.bias.requires_grad
    layers = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "nn.BatchNorm2d", []]], "head": []}
    layers["head"] = [[[1], 1, "Detect", ["nc"]]]
    model = DetectionModel(layers, verbose=False)
    assert "model.1" in apply_ablation(model, "no_batchnorm")
    model.eval()(torch.rand(1, 3, 32, 32))


class NormalisedConv(Conv):
    def forward(self, x):
        return self.act(self.bn(self.conv(x)) * 2)


class Fusing(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def fuse(self):
        del self.norm


@pytest.mark.parametrize(
    ("model", "culprit"),
    [
        (nn.Sequential(Conv(3, 3), NormalisedConv(3, 3)), "1.bn.*NormalisedConv"),
        (nn.Sequential(Conv(3, 3), Fusing()), "1.norm.*Fusing"),
        (nn.BatchNorm2d(3), "the model itself.*BatchNorm2d"),
    ],
)
def test_no_batchnorm_refuses_what_it_would_break_and_leaves_the_model(model, culprit):
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=f"no_batchnorm cannot remove {culprit}"):
        apply_ablation(model, "no_batchnorm")
    assert batchnorms(model) == batchnorms(before)
    same(before.state_dict(), model.state_dict())


def test_fused_model_has_no_batchnorm_to_remove():
    with pytest.raises(ValueError, match="found nothing to change"):
        apply_ablation(control().fuse(verbose=False), "no_batchnorm")


# no_residuals


@pytest.mark.parametrize(
    ("block", "without"),
    [
        (lambda: Bottleneck(32, 32), lambda m, x: m.cv2(m.cv1(x))),
        (lambda: PSABlock(32, num_heads=1), lambda m, x: m.ffn(m.attn(x))),
        (lambda: ABlock(32, 1), lambda m, x: m.mlp(m.attn(x))),
        (lambda: C1(32, 32), lambda m, x: m.m(m.cv1(x))),
        (lambda: GhostBottleneck(32, 32), lambda m, x: m.conv(x)),
        (
            lambda: A2C2f(32, 32, 1, residual=True, e=1.0),
            lambda m, x: m.cv2(torch.cat((y := m.cv1(x), without_attention(m, y)), 1)),
        ),
    ],
    ids=["Bottleneck", "PSABlock", "ABlock", "C1", "GhostBottleneck", "A2C2f"],
)
def test_no_residuals_leaves_the_branch_alone(block, without):
    torch.manual_seed(0)
    model = nn.Sequential(block()).eval()
    inputs = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        want = without(copy.deepcopy(model[0]), inputs)
        old = model(inputs)
        keys = set(model.state_dict())
        assert "0" in apply_ablation(model, "no_residuals")
        assert torch.equal(model(inputs), want)
    assert not torch.allclose(old, want)
    assert keys - set(model.state_dict()) <= {"0.gamma"}
    assert set(model.state_dict()) <= keys


def without_attention(a2c2f, y):
    for block in a2c2f.m[0]:
        y = block.mlp(block.attn(y))
    return y


def test_no_residuals_leaves_no_switch_on():
    for model_name in MODELS:
        model = control(model_name)
        apply_ablation(model, "no_residuals")
        assert not [name for name, module in model.named_modules() if getattr(module, "add", None) is True]
        assert not [name for name, module in model.named_modules() if isinstance(module, ABlock)]
        assert kept_residuals(model) == []


def test_kept_residuals_are_named():
    torch.manual_seed(0)
    model = nn.Sequential(PSA(64, 64), ResNetBlock(8, 2), Bottleneck(8, 8))
    assert kept_residuals(model) == ["0", "1"]
    assert apply_ablation(model, "no_residuals") == ["2"]


# Initialisations

VARIANCES = {
    "replace_init_by_xavier": (lambda fan_in, fan_out: 2 / (fan_in + fan_out), 1.8),  # kurtosis of a uniform
    "replace_init_by_he": (lambda fan_in, fan_out: 2 / fan_in, 3.0),  # of a normal
}


def test_every_initialisation_has_its_variance():
    assert list(VARIANCES) == [name for name in SURGERIES if CASES[name].redraws]


@pytest.mark.parametrize("model_name", MODELS)
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


@pytest.mark.parametrize("name", VARIANCES)
def test_draws_depend_on_seed_and_name_alone(name):
    models = [control() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(seed + 17)
        changed = apply_ablation(model, name, seed=seed)
    same(models[0].state_dict(), models[1].state_dict())
    for key in changed:
        assert not torch.equal(weight(models[0], key), weight(models[2], key)), key


@pytest.mark.parametrize("name", VARIANCES)
def test_what_an_initialisation_keeps(name):
    before, model = control(), control()
    changed = apply_ablation(model, name)
    for key, parameter in model.named_parameters():
        if key.endswith(".bias"):
            assert torch.equal(parameter, before.get_parameter(key)), key
    head = model.model[-1]
    same(head.cv2.state_dict(), head.one2one_cv2.state_dict())  # Ultralytics builds the twin as a copy
    same(head.cv3.state_dict(), head.one2one_cv3.state_dict())
    assert "model.23.one2one_cv2.0.2" in changed
    with_dfl = control("yolo11n.yaml")
    assert not [key for key in apply_ablation(with_dfl, name) if "dfl" in key]
    assert with_dfl.model[-1].dfl.conv.weight.flatten().tolist() == list(range(16))
    decoder = control("rtdetr-l.yaml")
    assert "model.28.enc_bbox_head.layers.2" not in apply_ablation(decoder, name)
    assert not decoder.model[-1].enc_bbox_head.layers[2].weight.any()


def test_gain_of_silu_in_the_docstring():
    """E[silu(z)²] for z ~ N(0, 1) by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    moment = (weights * (nodes / (1 + np.exp(-nodes))) ** 2).sum() / math.sqrt(2 * math.pi)
    assert moment == pytest.approx(0.3557, abs=1e-4)
    assert 1 / math.sqrt(moment) == pytest.approx(1.677, abs=1e-3)


# Description


def test_description_without_a_model():
    rows = describe_ablations()
    assert [row.name for row in rows] == NAMES
    assert all(row.changed is None and row.parameters_before is None and row.note == "" for row in rows)
    assert {row.name: row.sets for row in rows if row.sets} == {
        "no_clip": "clip_norm=None",
        "no_warmup": "warmup_epochs=0.0",
    }


def test_description_of_a_model():
    states = generator_states()
    rows = {row.name: row for row in describe_ablations("yolo26n.yaml")}
    assert generator_states() == states
    for name in SURGERIES:
        assert rows[name].changed == CASES[name].changed["yolo26n.yaml"]
        assert rows[name].parameters_before == count(control())
        assert rows[name].parameters_after - rows[name].parameters_before == CASES[name].grows.get("yolo26n.yaml", 0)
    assert rows["no_clip"].changed is None


def test_description_says_what_cannot_be_changed():
    rows = {row.name: row for row in describe_ablations("yolov3-tiny.yaml")}
    assert rows["no_residuals"].changed == 0
    assert "found nothing to change" in rows["no_residuals"].note
    rows = {row.name: row for row in describe_ablations("yolov10n.yaml")}
    assert rows["no_residuals"].changed == 7
    assert rows["no_residuals"].note == "keeps the residuals of model.10"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("yolo62n.yaml", "yolo"),
        ("yolo26n", "yolo26n.yaml"),
        ("yolo26m.pt", "yolo26m.yaml"),
        ("yolov11n.yaml", "yolo11n"),
    ],
)
def test_description_of_a_model_that_is_not_there(name, nearest):
    with pytest.raises(ValueError, match=f"'{name}' .*; the nearest is '{nearest}"):
        describe_ablations(name)
