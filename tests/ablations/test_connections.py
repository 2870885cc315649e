# SPDX-License-Identifier: AGPL-3.0-or-later
"""Residuals removed, scaled, begun at zero; models made deeper. Blocks against what is computed by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from ultralytics.nn.modules.block import (
    C1,
    C2,
    C2PSA,
    C3,
    C3TR,
    CIB,
    PSA,
    SPPF,
    A2C2f,
    ABlock,
    Bottleneck,
    BottleneckCSP,
    C2f,
    C2fAttn,
    C2fCIB,
    C2fPSA,
    C3f,
    C3Ghost,
    C3k2,
    C3x,
    GhostBottleneck,
    HGBlock,
    PSABlock,
    RepC3,
    Residual,
    ResNetBlock,
    ResNetLayer,
    SwiGLUFFN,
)
from ultralytics.nn.modules.transformer import AIFI, DeformableTransformerDecoderLayer, TransformerLayer
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from yolo_gradstudy.ablations import apply_ablation, apply_ablations, kept_residuals
from yolo_gradstudy.ablations.connections import deepen, scale_residuals, unscaled_residuals

from .cases import MODELS
from .models import RTDETR_SMALL, control, count, generator_states, images, same

HALF = 2**-0.5


def flowing(block):
    """A block in float64, its normalisations unlike new ones, in evaluation: what it computes can be written down."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2, generator=generator)
                module.bias.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return block.double().eval()


def inputs_of(block, batch=2):
    return torch.randn(batch, 32, 8, 8, generator=torch.Generator().manual_seed(1)).double()


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
    for model_name in MODELS[:4]:
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


# scale_residuals and zero_init_residuals

BRANCHED = {
    "Bottleneck": (lambda: Bottleneck(32, 32), lambda m, x, s: x + s * m.cv2(m.cv1(x)), ["cv2"]),
    "PSABlock": (
        lambda: PSABlock(32, num_heads=1),
        lambda m, x, s: (y := x + s * m.attn(x)) + s * m.ffn(y),
        ["attn.proj", "ffn.1"],
    ),
    "ABlock": (
        lambda: ABlock(32, 1),
        lambda m, x, s: (y := x + s * m.attn(x)) + s * m.mlp(y),
        ["attn.proj", "mlp.1"],
    ),
    "SPPF": (
        lambda: SPPF(32, 32, shortcut=True),
        lambda m, x, s: x + s * m.cv2(torch.cat((a := m.cv1(x), b := m.m(a), c := m.m(b), m.m(c)), 1)),
        ["cv2"],
    ),
    "HGBlock": (
        lambda: HGBlock(32, 8, 32, n=2, shortcut=True),
        lambda m, x, s: x + s * m.ec(m.sc(torch.cat((x, a := m.m[0](x), m.m[1](a)), 1))),
        ["ec"],
    ),
    "CIB": (lambda: CIB(32, 32, lk=True), lambda m, x, s: x + s * m.cv1(x), ["cv1.4"]),
    "C1": (lambda: C1(32, 32, 2), lambda m, x, s: (y := m.cv1(x)) + s * m.m(y), ["m.1"]),
    "GhostBottleneck": (lambda: GhostBottleneck(32, 32), lambda m, x, s: x + s * m.conv(x), ["conv.2"]),
    "GhostBottleneck, projected": (
        lambda: GhostBottleneck(32, 32, s=2),
        lambda m, x, s: m.shortcut(x) + s * m.conv(x),
        ["conv.2"],
    ),
    "ResNetBlock": (
        lambda: ResNetBlock(32, 8),
        lambda m, x, s: torch.relu(x + s * m.cv3(m.cv2(m.cv1(x)))),
        ["cv3"],
    ),
    "PSA": (
        lambda: PSA(32, 32, e=1.0),
        lambda m, x, s: m.cv2(torch.cat(((ab := m.cv1(x))[:, :32], two_branches(m, ab[:, 32:], s)), 1)),
        ["attn.proj", "ffn.1"],
    ),
    "A2C2f": (
        lambda: A2C2f(32, 32, 1, False, residual=True, e=1.0),
        lambda m, x, s: x + m.gamma.view(1, -1, 1, 1) * s * m.cv2(torch.cat((y := m.cv1(x), m.m[0](y)), 1)),
        ["cv2"],
    ),
}
"""Blocks that add: what they compute with branches scaled by s, and where their branches end."""


def two_branches(m, b, s):
    b = b + s * m.attn(b)
    return b + s * m.ffn(b)


def branched(kind):
    """A block, itself and a copy that stays, and its inputs."""
    torch.manual_seed(0)
    build, formula, ends = BRANCHED[kind]
    block = build()
    if kind == "A2C2f":  # without attention Ultralytics gives no gamma; its inner blocks would be scaled, too
        block.gamma = nn.Parameter(torch.rand(32))
        for inner in block.m[0].m:
            inner.add = False
    model = nn.Sequential(flowing(block))
    return model, copy.deepcopy(model[0]), inputs_of(block), formula, [f"0.{end}" for end in ends]


@pytest.mark.parametrize("factor", [HALF, 0.1, 3.0])
@pytest.mark.parametrize("kind", BRANCHED)
def test_scaled_block_is_x_plus_s_times_f(kind, factor):
    model, block, x, formula, ends = branched(kind)
    before = dict(model.named_parameters())
    with torch.no_grad():
        assert torch.allclose(model(x), formula(block, x, 1.0), rtol=1e-12)  # the formula is the block's
        changed = scale_residuals(model, factor=factor)
        assert changed == ends
        assert torch.allclose(model(x), formula(block, x, factor), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(model(x), formula(block, x, 1.0), rtol=1e-3)
    same(before, dict(model.named_parameters()))


@pytest.mark.parametrize(
    "norm", [None, "no_batchnorm", "replace_batchnorm_by_groupnorm", "replace_batchnorm_by_layernorm2d"]
)
@pytest.mark.parametrize("kind", BRANCHED)
def test_block_begun_at_zero_is_its_shortcut(kind, norm):
    model, block, x, formula, ends = branched(kind)
    if norm:
        apply_ablation(model, norm)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("conv.bias"):
                    parameter.fill_(0.3)  # of a convolution that has lost its normalisation
        block = copy.deepcopy(model[0])
    with torch.no_grad():  # shifts behind a scale of zero are no branch of ours
        for module in (*model.modules(), *block.modules()):
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm) or type(module).__name__ == "LayerNorm2d":
                module.bias.zero_()
        assert apply_ablation(model, "zero_init_residuals") == ends
        assert torch.allclose(model(x), formula(block, x, 0.0), rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match="found nothing to change"):
            apply_ablation(model, "zero_init_residuals")


@pytest.mark.parametrize("norm", [None, "no_batchnorm", "replace_batchnorm_by_groupnorm"])
def test_branches_begun_at_zero_can_leave_it(norm):
    """The zeroed weights of a new model have a gradient, so that training reaches the branch."""
    torch.manual_seed(0)
    model = nn.Sequential(Bottleneck(32, 32), PSABlock(32, num_heads=1))
    if norm:
        apply_ablations(model, [norm, "replace_init_by_he"])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    apply_ablation(model, "zero_init_residuals")
    model(inputs_of(model).float()).square().sum().backward()
    zeroed = [name for name, p in model.named_parameters() if not p.any() and before[name].any()]
    assert len(zeroed) == 3
    assert all(bool(model.get_parameter(name).grad.any()) for name in zeroed)


@pytest.mark.parametrize(
    ("norm", "zeroed"),
    [
        (None, "bn.weight"),
        ("replace_batchnorm_by_groupnorm", "act.0.weight"),
        ("replace_batchnorm_by_layernorm2d", "act.0.weight"),
        ("no_batchnorm", "conv.weight"),
    ],
)
def test_zero_init_touches_the_last_normalisations_alone(norm, zeroed):
    before, model = (control("yolo12n.yaml") for _ in range(2))
    for each in (before, model) if norm else ():
        apply_ablation(each, norm)
    changed = apply_ablation(model, "zero_init_residuals")
    other = [n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert other == [f"{name}.{zeroed}" for name in changed]
    assert not any(bool(model.get_parameter(name).any()) for name in other)


def test_zero_init_follows_every_draw():
    model = control("tiny")
    names = ["zero_init_residuals", "no_batchnorm", "scale_init", "replace_init_by_he"]
    for name in apply_ablations(model, names)["zero_init_residuals"]:
        assert not model.get_submodule(name).conv.weight.any()


@pytest.mark.parametrize(
    ("layer", "ends"),
    [
        (lambda: AIFI(32, 64, 4), ["ma.out_proj", "fc2"]),
        (lambda: TransformerLayer(32, 4), ["ma.out_proj", "fc2"]),
        (
            lambda: DeformableTransformerDecoderLayer(32, 4, 64, n_levels=1),
            ["self_attn.out_proj", "cross_attn.output_proj", "linear2"],
        ),
    ],
    ids=["AIFI", "TransformerLayer", "DeformableTransformerDecoderLayer"],
)
def test_transformer_layer_begun_at_zero_is_its_normalisations(layer, ends):
    torch.manual_seed(0)
    model = layer().double().eval()
    assert unscaled_residuals(model) == [""]
    assert scale_residuals(model) == []
    assert apply_ablation(model, "zero_init_residuals") == ends
    if isinstance(model, AIFI):
        x = inputs_of(model)
        tokens = x.flatten(2).transpose(1, 2)
        want = model.norm2(model.norm1(tokens)).transpose(1, 2).reshape(x.shape)
        assert torch.allclose(model(x), want, rtol=1e-9)
        return
    tokens = torch.randn(5, 2, 32).double()
    if isinstance(model, TransformerLayer):
        assert torch.equal(model(tokens), tokens)
    else:
        boxes, feats = torch.rand(5, 2, 4).double(), torch.randn(5, 16, 32).double()
        want = model.norm3(model.norm2(model.norm1(tokens)))
        assert torch.allclose(model(tokens, boxes, feats, [(4, 4)]), want, rtol=1e-9)


def test_what_cannot_be_scaled_is_named():
    torch.manual_seed(0)
    model = nn.ModuleList([TransformerLayer(8, 2), Bottleneck(8, 8), Residual(SwiGLUFFN(8, 8)), PSA(64, 64)])
    assert unscaled_residuals(model) == ["0", "2"]
    assert scale_residuals(model) == ["1.cv2", "3.attn.proj", "3.ffn.1"]
    decoder = control(RTDETR_SMALL)
    layers = [name for name, module in decoder.named_modules() if "norm1" in module._modules]
    assert unscaled_residuals(decoder) == layers
    assert len(layers) == 3


def test_blocks_that_do_not_add_stay():
    torch.manual_seed(0)
    blocks = [Bottleneck(32, 32, shortcut=False), Bottleneck(32, 16), SPPF(32, 32), HGBlock(32, 8, 32, n=2)]
    blocks += [A2C2f(32, 32, 1, False, e=1.0), PSABlock(32, num_heads=1, shortcut=False), CIB(32, 32, False)]
    model = nn.Sequential(*blocks)
    for inner in model[4].m[0].m:
        inner.add = False
    del model[2].add  # as in a checkpoint from before there was a switch
    assert scale_residuals(model) == []
    with pytest.raises(ValueError, match="found nothing to change"):
        apply_ablation(model, "zero_init_residuals")


def test_a_factor_is_no_weight():
    """It has no gradient and no optimizer, survives a draw of all weights, and goes where the model goes."""
    model = control("tiny")
    parameters = set(dict(model.named_parameters()))
    changed = apply_ablation(model, "scale_residuals(0.25)")
    assert set(dict(model.named_parameters())) == parameters
    factors = [model.get_submodule(f"{name}.act.1") for name in changed]
    assert not any(name.endswith("act.1") for name in apply_ablation(model, "replace_init_by_he"))
    assert not any(name.endswith("act.1") for name in apply_ablation(model, "scale_init"))
    apply_ablation(model, "replace_init_by_orthogonal")
    for factor in factors:
        assert factor.weight.unique().tolist() == [0.25]
        assert not factor.weight.requires_grad
        assert factor.weight.shape == (factor.out_channels, 1, 1, 1)
        assert factor.bias is None
    keys = [key for key in model.state_dict() if key.endswith("act.1.weight")]
    assert keys == [f"{name}.act.1.weight" for name in changed]
    assert {model.half().state_dict()[key].dtype for key in keys} == {torch.float16}


def test_a_factor_of_one_changes_nothing():
    with pytest.raises(ValueError, match=r"'scale_residuals' found nothing to change"):
        apply_ablation(control("tiny"), "scale_residuals(1)")


def test_variance_in_the_docstring():
    """With a branch of the input's variance, x + f(x) doubles it and x + f(x)/√2 adds a half."""
    x, f = torch.randn(2, 1_000_000, generator=torch.Generator().manual_seed(0)).double()
    assert (x + f).var().item() == pytest.approx(2, rel=0.01)
    assert (x + HALF * f).var().item() == pytest.approx(1.5, rel=0.01)


# deepen

LAYERS = {
    "C1": lambda n: C1(32, 32, n),
    "C2": lambda n: C2(32, 32, n),
    "C3": lambda n: C3(32, 32, n),
    "C3x": lambda n: C3x(32, 32, n),
    "C3TR": lambda n: C3TR(32, 32, n),
    "C3Ghost": lambda n: C3Ghost(32, 32, n),
    "RepC3": lambda n: RepC3(32, 32, n),
    "C2PSA": lambda n: C2PSA(128, 128, n),
    "BottleneckCSP": lambda n: BottleneckCSP(32, 32, n),
    "C2f": lambda n: C2f(32, 32, n, True),
    "C3f": lambda n: C3f(32, 32, n),
    "C3k2": lambda n: C3k2(32, 32, n),
    "C3k2 of C3k": lambda n: C3k2(32, 32, n, True),
    "C3k2 of attention": lambda n: C3k2(128, 128, n, attn=True),
    "C2fCIB": lambda n: C2fCIB(32, 32, n, True, lk=True),
    "C2fPSA": lambda n: C2fPSA(128, 128, n),
    "C2fAttn": lambda n: C2fAttn(32, 32, n, 16, 1, 8),
    "A2C2f": lambda n: A2C2f(64, 64, n, True, 1, True),
    "A2C2f of C3k": lambda n: A2C2f(64, 64, n, False),
    "HGBlock": lambda n: HGBlock(32, 16, 64, n=n),
    "HGBlock of LightConv": lambda n: HGBlock(32, 16, 64, k=5, n=n, lightconv=True),
    "ResNetLayer": lambda n: ResNetLayer(32, 8, 2, n=n),
}


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_deeper_layer_is_as_ultralytics_builds_one_of_so_many_blocks(kind, factor):
    """Same names and shapes, and, with the same weights, the same function."""
    torch.manual_seed(0)
    model, truth = LAYERS[kind](2), LAYERS[kind](2 * factor)
    before = copy.deepcopy(model.state_dict())
    states = generator_states()
    assert apply_ablation(model, f"deepen({factor})") == [""]
    assert generator_states() == states
    shapes = {key: value.shape for key, value in truth.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    for key, value in before.items():
        if value.shape == shapes[key]:
            assert torch.equal(model.state_dict()[key], value), key
    truth.load_state_dict(model.state_dict())
    channels = next(parameter for parameter in model.parameters() if parameter.ndim == 4).shape[1]
    inputs = [torch.randn(1, channels, 8, 8)]
    if kind == "C2fAttn":
        inputs.append(torch.randn(1, 5, 8))
    assert torch.equal(model.eval()(*inputs), truth.eval()(*inputs))


@pytest.mark.parametrize(
    ("model_name", "depth"), [("yolov8n.yaml", 0.67), ("yolo11n.yaml", 1.0), ("yolo12n.yaml", 1.0)]
)
def test_deeper_model_is_as_ultralytics_builds_one_of_twice_the_depth(model_name, depth):
    configuration = yaml_model_load(model_name)
    configuration["scales"]["n"][0] = depth
    truth, model = DetectionModel(configuration, verbose=False), control(model_name)
    apply_ablation(model, "deepen")
    assert count(model) == count(truth) > count(control(model_name))
    truth.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(images())[0], truth.eval()(images())[0])
    assert len({id(m) for m in model.modules() if isinstance(m, nn.SiLU)}) == 1  # as Ultralytics shares it


@pytest.mark.parametrize("model_name", [*MODELS[:4], RTDETR_SMALL, "yolov9t.yaml", "yolov6n.yaml"])
def test_blocks_are_counted(model_name):
    shallow, model = control(model_name), control(model_name)
    changed = apply_ablation(model, "deepen(3)")
    for name in changed:
        old, new = shallow.get_submodule(name), model.get_submodule(name)
        if not isinstance(old, nn.Sequential):
            old, new = old.m, new.m
        assert len(new) == 3 * len(old), name
        assert len({type(block) for block in new}) == 1, name
    assert len(changed) >= 6
    with torch.no_grad():
        one, other = shallow.eval()(images())[0], model.eval()(images())[0]
    assert one.shape == other.shape


def test_numbered_rows_that_a_yaml_repeats_are_repeated_more():
    model = control("yolov6n.yaml")
    rows = [layer for layer in model.model if type(layer) is nn.Sequential]
    lengths = [len(row) for row in rows]
    apply_ablation(model, "deepen")
    assert [len(row) for row in rows] == [2 * length for length in lengths]
    assert len(rows) == 8


def test_repeats_inside_a_block_stay():
    model = control("yolo11n.yaml")
    apply_ablation(model, "deepen")
    assert [len(block.m) for block in model.model[6].m] == [2, 2]  # C3k, two bottlenecks each
    assert len(model.model[23].cv2) == 3


def test_new_weights_are_drawn_as_torch_and_ultralytics_draw_them():
    shallow, model = control("yolo12n.yaml"), control("yolo12n.yaml")
    apply_ablation(model, "deepen(3)", seed=4)
    old, blocks = dict(shallow.named_parameters()), []
    for name, module in model.named_modules():
        was = old.get(f"{name}.weight")
        if isinstance(module, nn.Conv2d) and (was is None or module.weight.shape != was.shape):
            blocks.append((name, module.weight.detach()))
    attention = [w for name, w in blocks if ".attn." in name or ".mlp." in name]
    others = [w for name, w in blocks if ".attn." not in name and ".mlp." not in name]
    assert len(attention) > 20
    assert len(others) > 40
    for w in attention:  # ABlock: a normal distribution of deviation 0.02
        assert abs((w / 0.02).square().mean().item() - 1) < 5 * math.sqrt(2 / w.numel())
    scaled = [w.flatten() * math.sqrt(w[0].numel()) for w in others]
    for w in scaled:  # torch: U(−1/√fan_in, 1/√fan_in), of kurtosis 1.8
        assert w.abs().max() <= 1 + 1e-6
        assert abs(3 * w.square().mean().item() - 1) < 5 * math.sqrt(0.8 / w.numel())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-3, 0.03)
            assert not module.running_mean.any()
            assert module.running_var.unique().tolist() == module.weight.unique().tolist() == [1.0]


def test_new_attention_of_rtdetr_is_drawn_as_torch_draws_it():
    torch.manual_seed(0)
    model = C3TR(64, 64, 1)
    apply_ablation(model, "deepen(4)")
    for layer in list(model.m.tr)[1:]:
        bound = math.sqrt(6 / (4 * layer.ma.embed_dim))
        weight = layer.ma.in_proj_weight
        assert weight.abs().max() <= bound
        assert abs(3 * (weight / bound).square().mean().item() - 1) < 5 * math.sqrt(0.8 / weight.numel())
        assert not layer.ma.in_proj_bias.any()
        assert not layer.ma.out_proj.bias.any()
        assert layer.fc1.weight.abs().max() <= 1 / math.sqrt(layer.fc1.in_features)


def test_new_blocks_differ_and_depend_on_seed_and_name_alone():
    models = [control("tiny") for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(seed + 17)
        apply_ablation(model, "deepen(3)", seed=seed)
    same(models[0].state_dict(), models[1].state_dict())
    new = models[0].state_dict().keys() - control("tiny").state_dict().keys()
    new = [key for key in new if models[0].state_dict()[key].ndim == 4]
    assert len(new) > 20
    assert not any(torch.equal(models[0].state_dict()[key], models[2].state_dict()[key]) for key in new)
    one, other = (models[0].model[2].m[i].cv1.conv.weight for i in (1, 2))
    assert not torch.equal(one, other)
    deeper = control("tiny")
    apply_ablation(deeper, "deepen(4)", seed=0)
    kept = {key: value for key, value in deeper.state_dict().items() if key in new and "cv2.conv" not in key}
    same(kept, {key: models[0].state_dict()[key] for key in kept})


def test_statistics_of_a_reader_that_is_drawn_anew_are_forgotten():
    torch.manual_seed(0)
    model = C2f(8, 8, 1, True)
    model.train()(torch.randn(4, 8, 8, 8))
    assert model.cv2.bn.running_mean.any()
    kept = model.cv1.bn.running_mean.clone()
    apply_ablation(model, "deepen")
    assert not model.cv2.bn.running_mean.any()
    assert torch.equal(model.cv1.bn.running_mean, kept)
    assert not model.m[1].cv1.bn.running_mean.any()
    assert model.m[0].cv1.bn.running_mean.any()


def test_the_shared_activation_stays_one():
    model = control()
    before = {id(module) for module in model.modules() if isinstance(module, nn.SiLU)}
    apply_ablation(model, "deepen(3)")
    assert {id(module) for module in model.modules() if isinstance(module, nn.SiLU)} == before


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: HGBlock(32, 16, 64, n=1), "what it puts out is no input of its own shape"),
        (lambda: ResNetLayer(32, 8, 2, n=1), "what it puts out is no input of its own shape"),
        (lambda: odd(), "1.m.1 is a Odd, whose initial weights are not known"),
    ],
)
def test_deepen_refuses_a_block_that_cannot_follow_itself_and_leaves_the_model(layer, reason):
    torch.manual_seed(0)
    model = nn.Sequential(C2f(32, 32, 1), layer())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"deepen cannot repeat the last block of 1: {reason}"):
        apply_ablation(model, "deepen")
    same(before, model.state_dict())


def odd():
    layer = C2(8, 8)
    layer.m = nn.Sequential(Odd())
    return layer


def test_a_stem_is_not_repeated():
    assert deepen(nn.Sequential(ResNetLayer(3, 8, 1, True))) == []


def test_depth_composes_with_what_acts_on_blocks():
    """New blocks lose their normalisation, their shortcut and their activation as the others do."""
    model = control()
    before = len(apply_ablation(control(), "no_residuals"))
    changed = apply_ablations(model, ["no_residuals", "deepen", "no_batchnorm", "replace_silu_by_relu"])
    assert len(changed["no_residuals"]) > 1.5 * before
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.SiLU) or getattr(m, "add", False)]
    model.train()(images())
