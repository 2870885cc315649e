# SPDX-License-Identifier: AGPL-3.0-or-later
"""Residual connections removed, their branches scaled or begun at zero; models made deeper."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

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
    C3f,
    GhostBottleneck,
    HGBlock,
    PSABlock,
    RepC3,
    Residual,
    ResNetBlock,
    ResNetLayer,
)
from ultralytics.nn.modules.conv import Conv, GhostConv
from ultralytics.nn.modules.transformer import (
    DeformableTransformerDecoderLayer,
    TransformerEncoderLayer,
    TransformerLayer,
)

from yolo_gradstudy.ablations.initialisation import draw_as_built, fill, torch_bound
from yolo_gradstudy.ablations.normalisation import take_place
from yolo_gradstudy.ablations.spec import AblationSpec, Number

_TARGETS = ("residual connections",)

_CHAINS: dict[type[nn.Module], tuple[str, ...]] = {
    ABlock: ("attn", "mlp"),
    C1: ("cv1", "m"),
    GhostBottleneck: ("conv",),
}
"""Modules that add their input whatever their settings, and the children that, one after another, are the rest."""

_FIXED = (PSA, ResNetBlock, Residual, TransformerEncoderLayer, TransformerLayer, DeformableTransformerDecoderLayer)
"""Modules that add their input whatever their settings, and whose rest is no plain chain of their children."""

_BRANCHES: dict[type[nn.Module], tuple[str, ...]] = {
    Bottleneck: ("cv2",),
    CIB: ("cv1",),
    SPPF: ("cv2",),
    HGBlock: ("ec",),
    A2C2f: ("cv2",),
    C1: ("m",),
    GhostBottleneck: ("conv",),
    ResNetBlock: ("cv3",),
    PSABlock: ("attn.proj", "ffn"),
    PSA: ("attn.proj", "ffn"),
    ABlock: ("attn.proj", "mlp"),
    TransformerEncoderLayer: ("ma.out_proj", "fc2"),
    TransformerLayer: ("ma.out_proj", "fc2"),
    DeformableTransformerDecoderLayer: ("self_attn.out_proj", "cross_attn.output_proj", "linear2"),
    Residual: ("m.w3",),
}
"""Modules that add a branch to their input, and where each branch ends: the layer, or the chain whose last it is."""

_REPEATED: dict[type[nn.Module], tuple[str, str]] = {
    C1: ("m", ""),
    C2: ("m", ""),
    C3TR: ("m.tr", ""),
    C3: ("m", ""),
    RepC3: ("m", ""),
    C2PSA: ("m", ""),
    BottleneckCSP: ("m", ""),
    ResNetLayer: ("layer", ""),
    C2f: ("m", "cv2"),
    C2fAttn: ("m", "cv2"),
    C3f: ("m", "cv3"),
    A2C2f: ("m", "cv2"),
    HGBlock: ("m", "sc"),
}
"""Layers that repeat a block, the child that has the blocks, and the ``Conv`` that reads what all of them put out."""


# Without ----------------------------------------------------------------------------------------------


def no_residuals(model: nn.Module, seed: int = 0) -> list[str]:
    """Removes the shortcuts around blocks: their output is the branch alone.

    * Blocks with a switch (``Bottleneck``, ``PSABlock``, ``SPPF``, ``HGBlock``, ``CIB`` and their kin): ``add``
      becomes False.
    * ``A2C2f`` of YOLO12 l and x, ``x + gamma * y``: ``gamma`` becomes None, so that the output is ``y``. The
      scale (0.01 at first) goes with the shortcut that it belongs to.
    * Blocks that always add (``ABlock`` of YOLO12, ``C1``, ``GhostBottleneck`` where the shortcut is the identity):
      an ``nn.Sequential`` of the same children under the same names takes their place.

    Concatenations (C2f, C3, the neck) are no residuals and stay, as does the positional term inside the attention
    (``Attention``, ``AAttn``: ``x + pe(v)``). What cannot be removed is told by :func:`kept_residuals`.

    Args:
        model: A model built of Ultralytics' modules, changed in place.
        seed: Not used; nothing is drawn.

    Returns:
        Names of the blocks that lost their shortcut (a ``PSABlock`` and an ``ABlock`` lose two).

    References:
        He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
    """
    changed: list[str] = []
    modules: dict[str, Any] = dict(model.named_modules())
    for name, module in modules.items():
        if getattr(module, "add", None) is True:
            module.add = False
        elif isinstance(module, A2C2f) and module.gamma is not None:
            module.gamma = None
        elif _is_chain(module) and name:
            owner_name, _, attribute = name.rpartition(".")
            take_place(modules[owner_name], attribute, _chain(module))
        else:
            continue
        changed.append(name)
    return changed


def kept_residuals(model: nn.Module) -> list[str]:
    """Names of the blocks whose residuals :func:`no_residuals` cannot remove.

    They add their input inside a ``forward`` that no setting changes, and are no chain of their children: ``PSA``
    (YOLOv10), the transformer layers (RT-DETR), ``ResNetBlock``, ``Residual`` (YOLOE).
    """
    return [name for name, module in model.named_modules() if isinstance(module, _FIXED)]


def _is_chain(module: nn.Module) -> bool:
    """Whether the block always adds its input, unchanged, to a chain of its children."""
    if isinstance(module, GhostBottleneck):
        return isinstance(module.shortcut, nn.Identity)
    return type(module) in _CHAINS


def _chain(module: nn.Module) -> nn.Sequential:
    """The block without its addition: the same children, with the same names."""
    kind = next(kind for kind in _CHAINS if isinstance(module, kind))
    return nn.Sequential(OrderedDict((child, getattr(module, child)) for child in _CHAINS[kind]))


# Scaled -----------------------------------------------------------------------------------------------


def scale_residuals(model: nn.Module, seed: int = 0, factor: float = 2**-0.5) -> list[str]:
    """Scales what a block adds to its input: x + s·f(x) with a fixed s.

    At the end of each branch, behind its activation, stands a depth-wise 1×1 ``nn.Conv2d`` whose weights are s and
    buffers: it neither trains nor is drawn, and loads where this package is not installed. Where the shortcut is a
    projection, s scales the branch beside it. ``A2C2f`` of YOLO12 l and x, ``x + gamma * y``, becomes x + gamma·s·y,
    with its own ``gamma`` as it was. What cannot be scaled is told by :func:`unscaled_residuals`.

    Args:
        model: A model built of Ultralytics' modules, changed in place.
        seed: Not used; nothing is drawn.
        factor: s; 1 changes nothing. The default keeps the variance of x + s·f(x) from doubling with each block to
            growing by half.

    Returns:
        Names of the last layers of the scaled branches.

    References:
        Szegedy et al. 2017, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
        arXiv:1602.07261, §3.3; Zhang et al. 2019, "Fixup Initialization", arXiv:1901.09321.
    """
    if factor == 1:
        return []
    scaled = [(name, owner, end) for name, owner, end in _branch_ends(model) if not isinstance(end, nn.Linear)]
    for _, owner, end in scaled:
        if isinstance(end, GhostConv):  # its first half feeds its second: scale both behind it
            owner.conv.append(_scale(factor, 2 * end.cv2.conv.out_channels, end.cv2))
        else:
            take_place(end, "act", nn.Sequential(end.act, _scale(factor, end.conv.out_channels, end)))
    return [name for name, _, _ in scaled]


def unscaled_residuals(model: nn.Module) -> list[str]:
    """Names of the blocks whose residuals :func:`scale_residuals` cannot scale.

    Their branches end in linear layers on tokens: the transformer layers (RT-DETR), ``Residual`` (YOLOE).
    """
    kinds = (TransformerEncoderLayer, TransformerLayer, DeformableTransformerDecoderLayer, Residual)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def _scale(factor: float, channels: int, last: Conv) -> nn.Conv2d:
    """A layer that multiplies what a ``Conv`` puts out, and has no parameter; nothing is drawn to build it."""
    layer = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device="meta")
    del layer.weight
    layer.register_buffer("weight", last.conv.weight.detach().new_full((channels, 1, 1, 1), factor))
    return layer.train(last.training)


# Begun at zero ----------------------------------------------------------------------------------------


@torch.no_grad()
def zero_init_residuals(model: nn.Module, seed: int = 0) -> list[str]:
    """Begins each residual branch at zero, so that at first a block is its shortcut.

    The weight of the branch's last normalisation becomes 0. Where there is none, weight and bias of its last
    convolution or linear layer do: in transformer layers, whose normalisation follows the addition, and after
    ``no_batchnorm``. It applies behind every ablation that draws or scales weights.

    With an activation behind the branch that is not 0 at 0 (``replace_silu_by_sigmoid``), the branch begins as a
    constant instead.

    Args:
        model: A model built of Ultralytics' modules, changed in place.
        seed: Not used; nothing is drawn.

    Returns:
        Names of the last layers of the branches that were not at zero before.

    References:
        Goyal et al. 2017, "Accurate, Large Minibatch SGD", arXiv:1706.02677, §5.1; without normalisation as Zhang et
        al. 2019, "Fixup Initialization", arXiv:1901.09321.
    """
    changed = []
    for name, _, end in _branch_ends(model):
        ends = [end.cv1, end.cv2] if isinstance(end, GhostConv) else [end]
        parameters = [parameter for layer in ends for parameter in _last_parameters(layer)]
        if any(bool(parameter.any()) for parameter in parameters):
            for parameter in parameters:
                parameter.zero_()
            changed.append(name)
    return changed


def _last_parameters(layer: Any) -> list[nn.Parameter]:
    """What must be zero for a layer at the end of a branch to put out zero."""
    if isinstance(layer, Conv):
        inner = layer.act[0] if isinstance(layer.act, nn.Sequential) else None  # where a BatchNorm was replaced
        for norm in (getattr(layer, "bn", None), inner):
            if isinstance(norm, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)) and norm.weight is not None:
                return [norm.weight]
        layer = layer.conv
    return [parameter for parameter in (layer.weight, layer.bias) if isinstance(parameter, nn.Parameter)]


def _branch_ends(model: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Of each residual branch: the name of its last layer, the block, and the layer."""
    for name, module in model.named_modules():
        paths = next((paths for kind, paths in _BRANCHES.items() if isinstance(module, kind)), ())
        if isinstance(module, A2C2f):
            adds = module.gamma is not None
        else:
            adds = getattr(module, "add", not isinstance(module, SPPF))  # an SPPF of an old checkpoint has no switch
        for path in paths if adds else ():
            end = module.get_submodule(path)
            while isinstance(end, nn.Sequential):
                path, end = f"{path}.{len(end) - 1}", end[-1]
            yield f"{name}.{path}" if name else path, module, end


# Deeper -----------------------------------------------------------------------------------------------


def deepen(model: nn.Module, seed: int = 0, factor: float = 2.0) -> list[str]:
    """Multiplies the repeats of every layer that repeats a block.

    The blocks of ``C2f``, ``C3``, ``C3k2``, ``A2C2f``, ``C2PSA``, ``RepC3``, ``HGBlock``, ``ResNetLayer`` and their
    kin, and of a row of a YAML that stands several times. New blocks are built as the last one that is there, and
    follow it. Their weights are drawn as building them would draw them: torch's defaults, and in an ``ABlock`` N(0,
    0.02²). A convolution that reads what all blocks put out gets more input channels and is drawn anew, and its
    BatchNorm has no statistics yet; everything else stays, so that all parameters of unchanged shape pair. The repeats
    inside a block (the two bottlenecks of a ``C3k``) stay, as does the head.

    Args:
        model: A model built of Ultralytics' modules, changed in place.
        seed: With the parameter's name, decides each new weight.
        factor: By how much, a whole number.

    Returns:
        Names of the deeper layers.

    Raises:
        ValueError: A block cannot follow itself, or has parameters whose initial values are not known; the model is
            unchanged then.

    References:
        He et al. 2016, arXiv:1512.03385, §1, on what depth does without shortcuts; Zagoruyko and Komodakis 2016,
        "Wide Residual Networks", arXiv:1605.07146, on the deepening factor.
    """
    layers = _repeating(model)
    shared = _shared(model)
    new: list[list[nn.Module]] = []
    for name, path, layer, blocks in layers:
        _check_repeatable(name, layer, blocks)
        new.append([copy.deepcopy(blocks[-1], dict(shared)) for _ in range(len(blocks) * (round(factor) - 1))])
        for index, block in enumerate(new[-1], start=len(blocks)):
            try:
                draw_as_built(block, f"{path}.{index}", seed)
            except ValueError as error:
                raise _unrepeatable(name, f"{error}.") from None
    for (name, _, layer, blocks), more in zip(layers, new, strict=True):
        _widen(layer, len(more), name, seed)
        blocks.extend(more)
    return [name for name, *_ in layers]


def _repeating(model: nn.Module) -> list[tuple[str, str, Any, Any]]:
    """Layers that repeat a block and stand in no other: name, path of the blocks, the layer, its blocks."""
    found: list[tuple[str, str, Any, Any]] = []
    inside: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(inside)):
            continue
        if _is_repeated_row(module):
            child = ""
        elif (kind := _kind_of(module)) is not None:
            child = _REPEATED[kind][0]
        else:
            continue
        inside.append(f"{name}." if name else "")
        blocks: Any = module.get_submodule(child)
        if len(blocks):  # a YAML may have a layer without any
            found.append((name, ".".join(filter(None, (name, child))), module, blocks))
    return found


def _kind_of(module: nn.Module) -> type[nn.Module] | None:
    if isinstance(module, ResNetLayer) and module.is_first:  # a stem
        return None
    return next((kind for kind in _REPEATED if isinstance(module, kind)), None)


def _is_repeated_row(module: nn.Module) -> bool:
    """Whether ``parse_model`` built a row of a YAML several times, one after another."""
    if not isinstance(module, nn.Sequential) or not hasattr(module, "i"):
        return False
    return len(module) > 1 and len({type(block) for block in module}) == 1


def _shared(model: nn.Module) -> dict[int, nn.Module]:
    """Modules that several others hold, as Ultralytics' activation, by id."""
    held = [child for module in model.modules() for child in module._modules.values() if child is not None]
    counts = Counter(map(id, held))
    return {id(child): child for child in held if counts[id(child)] > 1}


def _check_repeatable(name: str, layer: nn.Module, blocks: Any) -> None:
    """Refuses a block that cannot follow itself: one that is the first of its kind, or changes the resolution."""
    convolutions = [m for m in blocks[-1].modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    if not convolutions:
        return
    alone = isinstance(layer, (HGBlock, ResNetLayer)) and len(blocks) == 1
    widens = alone and convolutions[0].in_channels != convolutions[-1].out_channels
    if widens or any(max(convolution.stride) > 1 for convolution in convolutions):
        raise _unrepeatable(
            name,
            "what it puts out is no input of its own shape; the nearest that can be is a layer of two blocks.",
        )


def _unrepeatable(name: str, reason: str) -> ValueError:
    return ValueError(f"deepen cannot repeat the last block of {name or 'the model itself'}: {reason}")


def _widen(layer: Any, count: int, name: str, seed: int) -> None:
    """Has the ``Conv`` that reads what all blocks put out read ``count`` blocks more."""
    kind = _kind_of(layer)
    child = _REPEATED[kind][1] if kind else ""
    if not child:
        return
    if isinstance(layer, HGBlock):
        width = [m for m in layer.m[-1].modules() if isinstance(m, nn.Conv2d)][-1].out_channels
    else:
        width = layer.cv1.conv.out_channels // (2 if isinstance(layer, (C2f, C2fAttn)) else 1)
    reader = getattr(layer, child)
    convolution, old = reader.conv, reader.conv.weight
    convolution.in_channels += count * width
    shape = (old.shape[0], convolution.in_channels, *old.shape[2:])
    convolution.weight = nn.Parameter(old.detach().new_empty(shape), requires_grad=old.requires_grad)
    fill(convolution.weight, torch_bound(convolution), ".".join(filter(None, (name, child, "conv.weight"))), seed)
    if isinstance(getattr(reader, "bn", None), nn.BatchNorm2d):
        reader.bn.reset_running_stats()


# The ablations ----------------------------------------------------------------------------------------

DEEPEN = AblationSpec(
    name="deepen",
    family="connections",
    summary="Multiplies the repeats of every layer that repeats a block.",
    source="He et al. 2016, arXiv:1512.03385, §1; Zagoruyko and Komodakis 2016, arXiv:1605.07146",
    surgery=deepen,
    number=Number("how many times as many blocks", default=2, least=2, most=16, whole=True),
    targets=("depth",),
)

NO_RESIDUALS = AblationSpec(
    name="no_residuals",
    family="connections",
    summary="Removes the shortcuts around blocks; concatenations stay.",
    source="He et al. 2016, arXiv:1512.03385; ultralytics.nn.modules.block (Bottleneck.add and its kin)",
    surgery=no_residuals,
    targets=_TARGETS,
)

SCALE_RESIDUALS = AblationSpec(
    name="scale_residuals",
    family="connections",
    summary="Scales what a block adds to its input by a fixed factor: x + s·f(x).",
    source="Szegedy et al. 2017, arXiv:1602.07261, §3.3",
    surgery=scale_residuals,
    number=Number("the factor s", default=2**-0.5, least=1e-6, most=1e3),
    targets=_TARGETS,
)

ZERO_INIT_RESIDUALS = AblationSpec(
    name="zero_init_residuals",
    family="initialisation",  # it sets initial weights, which pretrained ones are not
    summary="Begins what a block adds to its input at zero, by the weight of the branch's last normalisation.",
    source="Goyal et al. 2017, arXiv:1706.02677, §5.1",
    surgery=zero_init_residuals,
    targets=_TARGETS,
)
