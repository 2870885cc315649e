# SPDX-License-Identifier: AGPL-3.0-or-later
"""Normalisation layers removed or replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules.block import BottleneckCSP, RepVGGDW
from ultralytics.nn.modules.conv import Conv, Conv2, ConvTranspose, RepConv

from yolo_gradstudy.ablations.spec import AblationSpec, Builtin

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_FUSING = ("fuse", "fuse_convs", "forward_fuse")
_LAYER_MARKS = ("i", "f", "type", "np")
"""What ``parse_model`` writes on a numbered layer."""

GROUP_SIZE = 16
"""Channels in a group, where they divide: of the sizes in table 3 of Wu and He 2018, the one with the least error."""

MakeNorm = Callable[[Any], nn.Module]
"""``BatchNorm -> normalisation``: what takes its place, with its weight, bias and eps."""


def no_batchnorm(model: nn.Module, seed: int = 0) -> list[str]:
    """Removes every BatchNorm; the convolution before it gets a bias of zero where it had none.

    A ``Conv`` is left as Ultralytics' own ``BaseModel.fuse`` leaves it: ``bn`` deleted and ``forward`` bound to
    ``forward_fuse``, so that the model still fuses for inference, and loads where this package is not installed.
    Nothing is folded: scales, shifts and statistics of pre-trained BatchNorms are dropped.

    Where parallel branches each had a BatchNorm that Ultralytics merges when it fuses (``Conv2``, ``RepConv``,
    ``RepVGGDW``), the branches are merged now into the one convolution that computes their sum: without
    BatchNorm they are the same linear map. Those weights have other shapes than the control's.

    Args:
        model: A model built of Ultralytics' modules, changed in place.
        seed: Not used; nothing is drawn.

    Returns:
        Names of the removed BatchNorms.

    Raises:
        ValueError: A BatchNorm stands in a module that reads it when Ultralytics fuses, and that is not known
            here; the model is unchanged then.

    References:
        Ioffe and Szegedy 2015, "Batch Normalization", arXiv:1502.03167.
    """
    return _exchange(model, "no_batchnorm", None)


def replace_batchnorm_by_groupnorm(model: nn.Module, seed: int = 0) -> list[str]:
    """Puts a GroupNorm where each BatchNorm was: what an image's activations become no longer depends on its batch.

    A ``Conv`` loses its ``bn`` as in :func:`no_batchnorm`, and its activation becomes ``nn.Sequential(GroupNorm,
    activation)``, which Ultralytics' ``fuse`` leaves alone. Weight, bias and eps are the BatchNorm's; its running
    statistics are dropped, as a GroupNorm has none. Branches are merged as in :func:`no_batchnorm`, and one new
    GroupNorm follows. How channels are grouped: see :func:`groups_of`; no group of a layer with two channels or more is
    a single channel, so that a map of 1×1 has something to normalise.

    Args:
        model: A model built of Ultralytics' modules, changed in place.
        seed: Not used; nothing is drawn.

    Returns:
        Names of the replaced BatchNorms.

    Raises:
        ValueError: As :func:`no_batchnorm`.

    References:
        Wu and He 2018, "Group Normalization", arXiv:1803.08494.
    """
    return _exchange(model, "replace_batchnorm_by_groupnorm", _groupnorm)


def replace_batchnorm_by_layernorm2d(model: nn.Module, seed: int = 0) -> list[str]:
    """Puts a LayerNorm2d where each BatchNorm was: it normalises across the channels of each position.

    Everything else is as in :func:`replace_batchnorm_by_groupnorm`. The class is torchvision's, a ``nn.LayerNorm``:
    Ultralytics' own can't be exported to ONNX, and is no normalisation to Ultralytics' ``build_optimizer``, which would
    decay its weights. Ultralytics' restricted loading (``ULTRALYTICS_SAFE_LOAD``) does not know torchvision's.

    Args:
        model: A model built of Ultralytics' modules, changed in place.
        seed: Not used; nothing is drawn.

    Returns:
        Names of the replaced BatchNorms.

    Raises:
        ValueError: As :func:`no_batchnorm`, or a BatchNorm is not one of images.

    References:
        Ba et al. 2016, "Layer Normalization", arXiv:1607.06450; across channels alone as Liu et al. 2022, "A ConvNet
        for the 2020s", arXiv:2201.03545; ``torchvision.models.convnext.LayerNorm2d``.
    """
    return _exchange(model, "replace_batchnorm_by_layernorm2d", _layernorm2d)


NO_BATCHNORM = AblationSpec(
    name="no_batchnorm",
    family="normalisation",
    summary="Removes every BatchNorm; the convolution before it gets a bias of zero.",
    source="Ioffe and Szegedy 2015, arXiv:1502.03167; ultralytics.nn.modules.conv.Conv",
    surgery=no_batchnorm,
    targets=("BatchNorm",),
)

REPLACE_BATCHNORM_BY_GROUPNORM = AblationSpec(
    name="replace_batchnorm_by_groupnorm",
    family="normalisation",
    summary="Normalises over groups of 16 channels of each image instead of over the batch.",
    source="Wu and He 2018, arXiv:1803.08494",
    surgery=replace_batchnorm_by_groupnorm,
    targets=("BatchNorm",),
)

REPLACE_BATCHNORM_BY_LAYERNORM2D = AblationSpec(
    name="replace_batchnorm_by_layernorm2d",
    family="normalisation",
    summary="Normalises over the channels of each position instead of over the batch.",
    source="Ba et al. 2016, arXiv:1607.06450; Liu et al. 2022, arXiv:2201.03545",
    surgery=replace_batchnorm_by_layernorm2d,
    targets=("BatchNorm",),
)


def groups_of(channels: int) -> int:
    """Groups of a GroupNorm: as many as divide the channels with at least ``GROUP_SIZE`` of them in each; else one.

    80 channels make 5 groups of 16, and 100 make 5 of 20.
    """
    return next(groups for groups in range(max(channels // GROUP_SIZE, 1), 0, -1) if channels % groups == 0)


def take_place(owner: Any, attribute: str, new: nn.Module) -> None:
    """Puts a module where another was, in its mode, and with what ``parse_model`` wrote on it.

    Args:
        owner: The module that has the other as a child.
        attribute: The child's name.
        new: The module that takes its place.
    """
    old = getattr(owner, attribute)
    new.train(old.training)
    new.__dict__.update({mark: old.__dict__[mark] for mark in _LAYER_MARKS if mark in old.__dict__})
    setattr(owner, attribute, new)


def _groupnorm(old: Any) -> nn.Module:
    return _like(old, nn.GroupNorm(groups_of(old.num_features), old.num_features, eps=old.eps))


def _layernorm2d(old: Any) -> nn.Module:
    from torchvision.models.convnext import LayerNorm2d  # a second or more, that nobody else needs to wait for

    if isinstance(old, (nn.BatchNorm1d, nn.BatchNorm3d)):
        raise ValueError(f"it is a {type(old).__name__}, and LayerNorm2d normalises images")
    return _like(old, LayerNorm2d(old.num_features, eps=old.eps))


def _like(old: Any, new: Any) -> nn.Module:
    """The normalisation with weight and bias as a BatchNorm has them: values, dtype, device, frozen or not."""
    for key in ("weight", "bias"):
        parameter = getattr(old, key)
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        setattr(new, key, parameter)
    assert isinstance(new, nn.Module)
    return new.train(old.training)


def _exchange(model: nn.Module, ablation: str, make: MakeNorm | None) -> list[str]:
    """Puts another normalisation, or none, where each BatchNorm was; all is planned before anything is changed."""
    modules: dict[str, Any] = dict(model.named_modules())
    found = [name for name, module in modules.items() if isinstance(module, _BATCHNORMS)]
    changes: list[Callable[[], None]] = []
    merged: list[str] = []
    for name, module in modules.items():
        prefix = f"{name}." if name else ""
        inside = [bn for bn in found if bn.startswith(prefix)]
        if isinstance(module, (RepConv, RepVGGDW)) and inside:
            merged.append(prefix)
            norm = _made(modules, inside[0], ablation, make)
            changes.append(partial(_merge_branches, module, norm))
    for name in found:
        if not name.startswith(tuple(merged)):
            changes.append(_change(modules, name, ablation, make))
    for change in changes:
        change()
    return found


def _made(modules: Mapping[str, Any], name: str, ablation: str, make: MakeNorm | None) -> nn.Module | None:
    try:
        return make(modules[name]) if make else None
    except ValueError as error:
        raise ValueError(f"{ablation} cannot replace {name or 'the model itself'}: {error}.") from None


def _change(modules: Mapping[str, Any], name: str, ablation: str, make: MakeNorm | None) -> Callable[[], None]:
    """The change that removes or replaces the BatchNorm ``name``; nothing is changed yet."""
    owner_name, _, attribute = name.rpartition(".")
    owner: Any = modules.get(owner_name)
    norm = _made(modules, name, ablation, make)
    if attribute == "bn" and isinstance(owner, (Conv, ConvTranspose)):
        if isinstance(owner, Conv2) or type(owner).forward in (Conv.forward, ConvTranspose.forward):
            return partial(_strip, owner, norm)
    elif attribute and not any(hasattr(owner, method) for method in _FUSING):
        return partial(_replace, owner, attribute, norm)
    raise ValueError(
        f"{ablation} cannot {'replace' if make else 'remove'} {name or 'the model itself'}: its module "
        f"{type(owner or modules[name]).__name__} is not one whose BatchNorm this ablation knows how to take out; the "
        "nearest known is Conv."
    )


def _strip(owner: Any, norm: nn.Module | None) -> None:
    """Leaves a ``Conv``, ``DWConv``, ``Conv2`` or ``ConvTranspose`` as Ultralytics' ``fuse`` does, but trainable."""
    if isinstance(owner, Conv2):
        owner.fuse_convs()
    if norm is None:
        _give_bias(owner.conv if isinstance(owner, Conv) else owner.conv_transpose)
    del owner.bn
    owner.forward = owner.forward_fuse
    _normalise(owner, norm)


def _normalise(owner: Any, norm: nn.Module | None) -> None:
    """Puts a normalisation before the activation of a module whose ``forward`` is ``forward_fuse``."""
    if norm is not None:
        take_place(owner, "act", nn.Sequential(norm, owner.act))


def _replace(owner: Any, attribute: str, norm: nn.Module | None) -> None:
    """Exchanges a BatchNorm that Ultralytics does not fuse; nothing is an ``nn.Identity``."""
    old = getattr(owner, attribute)
    before: list[Any] = []
    if norm is None and isinstance(owner, BottleneckCSP):
        before = [owner.cv2, owner.cv3]
    elif norm is None and isinstance(owner, nn.Sequential):
        children = list(owner)
        before = children[max(children.index(old) - 1, 0) : children.index(old)]
    for module in before:
        if isinstance(module, _CONVOLUTIONS):
            _give_bias(module)
    take_place(owner, attribute, nn.Identity() if norm is None else norm)


def _give_bias(convolution: Any) -> None:
    """Gives a convolution a bias of zero where it has none; draws nothing."""
    if convolution.bias is None:
        weight = convolution.weight
        convolution.bias = nn.Parameter(weight.new_zeros(convolution.out_channels), requires_grad=weight.requires_grad)


@torch.no_grad()
def _merge_branches(owner: Any, norm: Any) -> None:
    """Merges the branches of a ``RepConv`` or ``RepVGGDW`` with Ultralytics' own code, its BatchNorms made neutral.

    A normalisation that follows begins neutral too: those of the branches can't be one after their sum.
    """
    for module in owner.modules():
        if isinstance(module, _BATCHNORMS):
            module.reset_parameters()
            module.eps = 0.0
    with torch.random.fork_rng(devices=[]):  # RepConv.fuse_convs builds a Conv2d, whose default init draws
        owner.fuse_convs() if isinstance(owner, RepConv) else owner.fuse()
    owner.forward = owner.forward_fuse
    owner.requires_grad_(True)
    if norm is not None:
        owner.conv.bias = None  # the normalisation has one
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
        _normalise(owner, norm)


def batchnorms(model: nn.Module) -> list[str]:
    """Names of a model's BatchNorms."""
    return [name for name, module in model.named_modules() if isinstance(module, _BATCHNORMS)]


FREEZE_BATCHNORM_STATISTICS = AblationSpec(
    name="freeze_batchnorm_statistics",
    family="normalisation",
    summary="Normalises with the running statistics that the training begins with, in training too.",
    source="Ioffe and Szegedy 2015, arXiv:1502.03167, §3.1; torch.nn.BatchNorm2d.eval",
    switches_off=Builtin.BATCHNORM_STATISTICS,
    acts_on=batchnorms,
    targets=("BatchNorm",),
)
