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
    modules: dict[str, Any] = dict(model.named_modules())
    found = [name for name, module in modules.items() if isinstance(module, _BATCHNORMS)]
    changes: list[Callable[[], None]] = []
    merged: list[str] = []
    for name, module in modules.items():
        prefix = f"{name}." if name else ""
        if isinstance(module, (RepConv, RepVGGDW)) and any(bn.startswith(prefix) for bn in found):
            merged.append(prefix)
            changes.append(partial(_merge_branches, module))
    for name in found:
        if not name.startswith(tuple(merged)):
            changes.append(_removal(modules, name))
    for change in changes:
        change()
    return found


NO_BATCHNORM = AblationSpec(
    name="no_batchnorm",
    family="normalisation",
    summary="Removes every BatchNorm; the convolution before it gets a bias of zero.",
    source="Ioffe and Szegedy 2015, arXiv:1502.03167; ultralytics.nn.modules.conv.Conv",
    surgery=no_batchnorm,
    targets=("BatchNorm",),
)


def _removal(modules: Mapping[str, Any], name: str) -> Callable[[], None]:
    """The change that removes the BatchNorm ``name``; nothing is changed yet."""
    owner_name, _, attribute = name.rpartition(".")
    owner: Any = modules.get(owner_name)
    if attribute == "bn" and isinstance(owner, (Conv, ConvTranspose)):
        if isinstance(owner, Conv2) or type(owner).forward in (Conv.forward, ConvTranspose.forward):
            return partial(_strip, owner)
    elif attribute and not any(hasattr(owner, method) for method in _FUSING):
        return partial(_replace_by_identity, owner, attribute)
    raise ValueError(
        f"no_batchnorm cannot remove {name or 'the model itself'}: its module {type(owner or modules[name]).__name__} "
        f"is not one whose BatchNorm this ablation knows how to take out; the nearest known is Conv."
    )


def _strip(owner: Any) -> None:
    """Leaves a ``Conv``, ``DWConv``, ``Conv2`` or ``ConvTranspose`` as Ultralytics' ``fuse`` does, but trainable."""
    if isinstance(owner, Conv2):
        owner.fuse_convs()
    _give_bias(owner.conv if isinstance(owner, Conv) else owner.conv_transpose)
    del owner.bn
    owner.forward = owner.forward_fuse


def _replace_by_identity(owner: Any, attribute: str) -> None:
    """Puts an ``nn.Identity`` where a BatchNorm was that Ultralytics does not fuse."""
    old = getattr(owner, attribute)
    identity = nn.Identity()
    identity.__dict__.update({mark: old.__dict__[mark] for mark in _LAYER_MARKS if mark in old.__dict__})
    if isinstance(owner, BottleneckCSP):
        before: list[Any] = [owner.cv2, owner.cv3]
    elif isinstance(owner, nn.Sequential):
        children = list(owner)
        before = children[max(children.index(old) - 1, 0) : children.index(old)]
    else:
        before = []
    for module in before:
        if isinstance(module, _CONVOLUTIONS):
            _give_bias(module)
    setattr(owner, attribute, identity)


def _give_bias(convolution: Any) -> None:
    """Gives a convolution a bias of zero where it has none; draws nothing."""
    if convolution.bias is None:
        weight = convolution.weight
        convolution.bias = nn.Parameter(weight.new_zeros(convolution.out_channels), requires_grad=weight.requires_grad)


@torch.no_grad()
def _merge_branches(owner: Any) -> None:
    """Merges the branches of a ``RepConv`` or ``RepVGGDW`` with Ultralytics' own code, its BatchNorms made neutral."""
    for module in owner.modules():
        if isinstance(module, _BATCHNORMS):
            module.reset_parameters()
            module.eps = 0.0
    with torch.random.fork_rng(devices=[]):  # RepConv.fuse_convs builds a Conv2d, whose default init draws
        owner.fuse_convs() if isinstance(owner, RepConv) else owner.fuse()
    owner.forward = owner.forward_fuse
    owner.requires_grad_(True)


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
