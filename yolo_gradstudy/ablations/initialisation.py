# SPDX-License-Identifier: AGPL-3.0-or-later
"""Initial weights drawn anew, scaled, or set by data; the head's initial biases.

Every parameter has its own generator, seeded by the seed and the parameter's name. Its values depend neither on the
order of the layers, nor on other ablations, nor on the global generator, which is left as it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from ultralytics.nn.modules.block import DFL, ABlock
from ultralytics.nn.modules.head import Detect, RTDETRDecoder, WorldDetect, YOLOEDetect

from yolo_gradstudy.ablations.spec import AblationSpec, Number

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
Weighted = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
Draw = Callable[[Tensor, Weighted, torch.Generator], None]
"""``(weight, module, generator)``: fills the module's weight, given as a float32 tensor on the CPU."""


def replace_init_by_xavier(model: nn.Module, seed: int = 0) -> list[str]:
    """Draws weights from U(−a, a) with a² = 6 / (fan_in + fan_out), a variance of 2 / (fan_in + fan_out).

    Fans and what is kept: see :func:`fans` and :func:`redraw`.

    Args:
        model: Changed in place.
        seed: With the parameter's name, decides each weight.

    Returns:
        Names of the modules with new weights.

    References:
        Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 16.
    """

    def draw(weight: Tensor, module: Weighted, generator: torch.Generator) -> None:
        bound = math.sqrt(6.0 / sum(fans(module)))
        weight.uniform_(-bound, bound, generator=generator)

    return redraw(model, seed, draw)


def replace_init_by_xavier_normal(model: nn.Module, seed: int = 0) -> list[str]:
    """Draws weights from N(0, 2 / (fan_in + fan_out)).

    Fans and what is kept: see :func:`fans` and :func:`redraw`.

    Args:
        model: Changed in place.
        seed: With the parameter's name, decides each weight.

    Returns:
        Names of the modules with new weights.

    References:
        Glorot and Bengio 2010, as :func:`replace_init_by_xavier`, eq. 12; the normal distribution is that of
        ``torch.nn.init.xavier_normal_``.
    """

    def draw(weight: Tensor, module: Weighted, generator: torch.Generator) -> None:
        weight.normal_(0.0, math.sqrt(2.0 / sum(fans(module))), generator=generator)

    return redraw(model, seed, draw)


def replace_init_by_he(model: nn.Module, seed: int = 0) -> list[str]:
    """Draws weights from N(0, 2 / fan_in), the gain of √2 that He et al. derive for ReLU.

    The gain stays √2 though YOLO's activation is SiLU: it is the published initialisation, and what people get from
    ``kaiming_normal_``. For SiLU it is a little small: E[silu(z)²] = 0.3557 for z ~ N(0, 1), so that a layer
    multiplies the second moment of a unit-variance signal by 2 · 0.3557 = 0.71; a gain of √(1/0.3557) = 1.677
    would keep it.

    Fans and what is kept: see :func:`fans` and :func:`redraw`.

    Args:
        model: Changed in place.
        seed: With the parameter's name, decides each weight.

    Returns:
        Names of the modules with new weights.

    References:
        He et al. 2015, "Delving Deep into Rectifiers", arXiv:1502.01852, eq. 10.
    """

    def draw(weight: Tensor, module: Weighted, generator: torch.Generator) -> None:
        weight.normal_(0.0, math.sqrt(2.0 / fans(module)[0]), generator=generator)

    return redraw(model, seed, draw)


def replace_init_by_orthogonal(model: nn.Module, seed: int = 0) -> list[str]:
    """Draws weights that are orthogonal matrices, group by group: the Q of the QR decomposition of a normal matrix.

    A group's weight is taken as a matrix, first dimension × all others, as ``torch.nn.init.orthogonal_`` takes a whole
    weight. Its rows are orthonormal where it has no more rows than columns, its columns otherwise. A channel of a
    depth-wise convolution is a row of length one. The gain is 1.

    What is kept: see :func:`redraw`.

    Args:
        model: Changed in place.
        seed: With the parameter's name, decides each weight.

    Returns:
        Names of the modules with new weights.

    References:
        Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        arXiv:1312.6120; Mezzadri 2007, "How to generate random matrices from the classical compact groups",
        arXiv:math-ph/0609050, for the signs.
    """
    return redraw(model, seed, _draw_orthogonal)


def replace_init_by_lsuv(model: nn.Module, seed: int = 0) -> list[str]:
    """Layer-sequential unit variance: orthogonal weights now, and scaled by the first batch, see :func:`calibrate`.

    Args:
        model: Changed in place.
        seed: With the parameter's name, decides each weight.

    Returns:
        Names of the modules with new weights.

    References:
        Mishkin and Matas 2016, "All you need is a good init", arXiv:1511.06422, algorithm 1.
    """
    return redraw(model, seed, _draw_orthogonal)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Scales weights so that each layer puts out unit variance on a batch, layer after layer: the second half of LSUV.

    In one forward pass in training mode, each layer that :func:`redraw` draws has its weight divided by the standard
    deviation of what it puts out, its bias left out of account, and the pass goes on with the scaled output. The paper
    repeats that until the variance is close enough to 1; for a linear layer, once is exact.

    A layer that is called twice is scaled at its first call. One that puts out a constant stays as it is, as does one
    that is not called as a module (``out_proj`` of ``nn.MultiheadAttention``, whose weight torch reads itself).

    Args:
        model: Changed in place. Modes, buffers and the random generators are left as they were.
        images: Float, of shape (batch, 3, height, width), as the model takes them, on its device.

    References:
        Mishkin and Matas 2016, "All you need is a good init", arXiv:1511.06422, algorithm 1.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def scale(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        hooks.pop(module).remove()  # its first call only
        return _to_unit_variance(module, output)

    hooks: dict[nn.Module, Any] = {m: m.register_forward_hook(scale) for _, m in weighted(model)}
    try:
        if not model.training:  # in training, some modules may be in evaluation mode on purpose
            model.train()
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            model(images)
    finally:
        for hook in hooks.values():
            hook.remove()
        for module, training in modes.items():
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)


def scale_init(model: nn.Module, seed: int = 0, gain: float = 2.0) -> list[str]:
    """Multiplies the initial weights of the layers that :func:`redraw` draws, whatever drew them.

    Args:
        model: Changed in place.
        seed: Not used; nothing is drawn.
        gain: Factor; 1 changes nothing.

    Returns:
        Names of the modules with scaled weights.

    References:
        The gain of ``torch.nn.init``; Schoenholz et al. 2017, "Deep Information Propagation", arXiv:1611.01232, on
        where a signal dies or explodes as σ_w grows.
    """
    if gain == 1:
        return []
    layers = list(weighted(model))
    with torch.no_grad():
        for _, module in layers:
            module.weight.mul_(gain)
    return [name for name, _ in layers]


def no_head_bias_init(model: nn.Module, seed: int = 0) -> list[str]:
    """Gives the detection head's last biases what torch draws by default, U(−1/√fan_in, 1/√fan_in).

    Ultralytics sets them when it builds a model: in ``Detect.bias_init`` box biases of 2 and class biases at the
    logit of few objects in an image, as Lin et al. do to keep the many negatives from swamping the first steps; in
    ``RTDETRDecoder._reset_parameters`` class biases likewise, and box biases of 0. Twin heads (YOLO26, YOLOv10) stay
    twins. The heads of YOLO-World have such box biases only, and those of YOLOE, whose prior is one number for all
    classes, are left as they are.

    Args:
        model: Changed in place.
        seed: With the parameter's name, decides each bias.

    Returns:
        Names of the layers with new biases.

    References:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002, §3.3;
        ``ultralytics.nn.modules.head.Detect.bias_init``.
    """
    changed = []
    for name, layer in _head_layers(model):
        assert layer.bias is not None
        fill(layer.bias, torch_bound(layer), f"{name}.bias", seed)
        changed.append(name)
    return changed


_WEIGHTS = ("weight initialisation",)

REPLACE_INIT_BY_XAVIER = AblationSpec(
    name="replace_init_by_xavier",
    family="initialisation",
    summary="Draws the weights of convolutions and linear layers from Xavier's uniform distribution.",
    source="Glorot and Bengio 2010, eq. 16",
    surgery=replace_init_by_xavier,
    targets=_WEIGHTS,
)

REPLACE_INIT_BY_XAVIER_NORMAL = AblationSpec(
    name="replace_init_by_xavier_normal",
    family="initialisation",
    summary="Draws the weights of convolutions and linear layers from Xavier's normal distribution.",
    source="Glorot and Bengio 2010, eq. 12; torch.nn.init.xavier_normal_",
    surgery=replace_init_by_xavier_normal,
    targets=_WEIGHTS,
)

REPLACE_INIT_BY_HE = AblationSpec(
    name="replace_init_by_he",
    family="initialisation",
    summary="Draws the weights of convolutions and linear layers from He's normal distribution, gain √2.",
    source="He et al. 2015, arXiv:1502.01852, eq. 10",
    surgery=replace_init_by_he,
    targets=_WEIGHTS,
)

REPLACE_INIT_BY_ORTHOGONAL = AblationSpec(
    name="replace_init_by_orthogonal",
    family="initialisation",
    summary="Draws orthogonal weights, group by group.",
    source="Saxe et al. 2014, arXiv:1312.6120; torch.nn.init.orthogonal_",
    surgery=replace_init_by_orthogonal,
    targets=_WEIGHTS,
)

REPLACE_INIT_BY_LSUV = AblationSpec(
    name="replace_init_by_lsuv",
    family="initialisation",
    summary="Draws orthogonal weights, and scales each layer to unit variance on the training's first batch.",
    source="Mishkin and Matas 2016, arXiv:1511.06422, algorithm 1",
    surgery=replace_init_by_lsuv,
    calibration=calibrate,
    targets=(*_WEIGHTS, "the scale of initial weights"),  # the first batch would undo a gain
)

SCALE_INIT = AblationSpec(
    name="scale_init",
    family="initialisation",
    summary="Multiplies the initial weights of convolutions and linear layers by a gain.",
    source="torch.nn.init.calculate_gain; Schoenholz et al. 2017, arXiv:1611.01232",
    surgery=scale_init,
    number=Number("the gain", default=2.0, least=1e-6, most=1e6),
    targets=("the scale of initial weights",),
)

NO_HEAD_BIAS_INIT = AblationSpec(
    name="no_head_bias_init",
    family="initialisation",
    summary="Draws the detection head's last biases as torch does, where Ultralytics sets them to few objects.",
    source="Lin et al. 2017, arXiv:1708.02002, §3.3; ultralytics.nn.modules.head.Detect.bias_init",
    surgery=no_head_bias_init,
    targets=("head bias initialisation",),
)


# Drawing ----------------------------------------------------------------------------------------------


@torch.no_grad()
def redraw(model: nn.Module, seed: int, draw: Draw) -> list[str]:
    """Draws the weight of every Conv2d, ConvTranspose2d and Linear anew.

    Kept: every bias, the detection head's among them, whose initial values are a stabiliser of their own; the frozen
    projection of ``DFL``; the factors of ``scale_residuals``; and weights that the model starts at zero on purpose
    (the last layers of RT-DETR's box heads). A head of YOLO26 or YOLOv10 that starts as a copy of its twin
    (``one2one_cv2`` of ``cv2``) still does.

    Args:
        model: Changed in place.
        seed: With the parameter's name, decides each weight.
        draw: Fills one weight.

    Returns:
        Names of the modules with new weights.
    """
    changed = []
    for name, module in weighted(model):
        values = torch.empty(module.weight.shape, dtype=torch.float32)
        draw(values, module, generator_of(seed, f"{name}.weight" if name else "weight"))
        module.weight.copy_(values)
        changed.append(name)
    return changed


def weighted(model: nn.Module) -> Iterator[tuple[str, Weighted]]:
    """The layers whose weights an initialisation draws, with their names; see :func:`redraw`."""
    frozen = {id(child) for module in model.modules() if isinstance(module, DFL) for child in module.modules()}
    for name, module in model.named_modules():
        if not isinstance(module, _WEIGHTED) or id(module) in frozen:
            continue
        if isinstance(module.weight, nn.Parameter) and bool(module.weight.any()):  # a buffer is no weight to train
            yield name, module


def fans(module: Weighted) -> tuple[float, float]:
    """Number of inputs that reach an output, and of outputs that an input reaches.

    Groups count: a depth-wise 3×3 convolution has 9 and 9, where ``torch.nn.init`` takes 9 and 9 · channels. The
    stride does not, as in ``torch.nn.init``.
    """
    if isinstance(module, nn.Linear):
        return float(module.in_features), float(module.out_features)
    area = math.prod(module.kernel_size) / module.groups
    return module.in_channels * area, module.out_channels * area


def generator_of(seed: int, parameter: str) -> torch.Generator:
    """The generator of one parameter; ``one2one_`` is left out of its name, as that head is built as a copy."""
    key = f"{seed}:{parameter.replace('one2one_', '')}".encode()
    digest = hashlib.sha256(key).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@torch.no_grad()
def draw_as_built(block: nn.Module, name: str, seed: int) -> None:
    """Draws all parameters of a block anew as building one would: torch's defaults, and ``ABlock``'s N(0, 0.02²).

    Normalisations begin anew, their statistics too. Buffers of other modules stay.

    Args:
        block: Changed in place.
        name: Its name in the model; with the seed, decides each parameter.
        seed: As above.

    Raises:
        ValueError: A module in it has parameters of its own and is of no known kind.
    """
    normal = {id(m) for a in block.modules() if isinstance(a, ABlock) for m in a.modules() if isinstance(m, nn.Conv2d)}
    for path, module in block.named_modules():
        full = f"{name}.{path}" if path else name
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        if isinstance(module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, _WEIGHTED):
            for key, parameter in own.items():
                if id(module) not in normal:
                    fill(parameter, torch_bound(module), f"{full}.{key}", seed)
                elif key == "weight":
                    fill(parameter, 0.0, f"{full}.{key}", seed, deviation=0.02)
                else:
                    parameter.zero_()
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            bound = math.sqrt(6.0 / sum(module.in_proj_weight.shape))
            fill(module.in_proj_weight, bound, f"{full}.in_proj_weight", seed)
        else:
            raise ValueError(f"{full} is a {type(module).__name__}, whose initial weights are not known")
    for module in block.modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_bias is not None:
            module.in_proj_bias.zero_()
            module.out_proj.bias.zero_()


def torch_bound(module: Weighted) -> float:
    """The bound of what ``reset_parameters`` draws weights and biases from: 1/√fan_in, the fan as torch counts it."""
    return 1.0 / math.sqrt(module.weight[0].numel())


@torch.no_grad()
def fill(parameter: Tensor, bound: float, name: str, seed: int, deviation: float = 0.0) -> None:
    """Fills a parameter from its generator: U(−bound, bound), or N(0, deviation²) where a deviation is given."""
    values = torch.empty(parameter.shape, dtype=torch.float32)
    generator = generator_of(seed, name)
    if deviation:
        values.normal_(0.0, deviation, generator=generator)
    else:
        values.uniform_(-bound, bound, generator=generator)
    parameter.copy_(values)


def _draw_orthogonal(weight: Tensor, module: Weighted, generator: torch.Generator) -> None:
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    rows, columns = weight.shape[0] // groups, weight[0].numel()
    normal = torch.empty(groups, max(rows, columns), min(rows, columns)).normal_(generator=generator)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # makes the distribution uniform
    weight.copy_((q.mT if rows < columns else q).reshape(weight.shape))


def _to_unit_variance(module: nn.Module, output: Tensor) -> Tensor | None:
    """Scales a linear layer's weight to unit variance; the output that it has then, None for the one it has."""
    assert isinstance(module, _WEIGHTED)
    bias = module.bias
    if bias is not None and not isinstance(module, nn.Linear):
        bias = bias.view(-1, 1, 1)
    linear = output if bias is None else output - bias
    deviation = linear.float().std(correction=0)
    if not (deviation.isfinite() and deviation > 0):
        return None
    module.weight.div_(deviation)
    scaled = linear / deviation
    return scaled if bias is None else scaled + bias


def _head_layers(model: nn.Module) -> Iterator[tuple[str, Weighted]]:
    """The last layers of detection heads whose biases Ultralytics sets."""
    for name, head in model.named_modules():
        prefix = f"{name}." if name else ""
        paths: list[str] = []
        if isinstance(head, Detect) and not isinstance(head, YOLOEDetect):
            kinds = ("cv2",) if isinstance(head, WorldDetect) else ("cv2", "cv3", "one2one_cv2", "one2one_cv3")
            branches = {kind: getattr(head, kind, None) for kind in kinds}  # fuse() makes some of them None
            paths = [f"{k}.{i}.{len(b) - 1}" for k, heads in branches.items() if heads for i, b in enumerate(heads)]
        elif isinstance(head, RTDETRDecoder):
            paths = ["enc_score_head", f"enc_bbox_head.layers.{len(head.enc_bbox_head.layers) - 1}"]
            paths += [f"dec_score_head.{i}" for i in range(len(head.dec_score_head))]
            paths += [f"dec_bbox_head.{i}.layers.{len(mlp.layers) - 1}" for i, mlp in enumerate(head.dec_bbox_head)]
        for path in paths:
            layer = head.get_submodule(path)
            assert isinstance(layer, _WEIGHTED)
            yield prefix + path, layer
