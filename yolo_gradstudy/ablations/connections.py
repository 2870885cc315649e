# SPDX-License-Identifier: AGPL-3.0-or-later
"""Residual connections removed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from ultralytics.nn.modules.block import (
    C1,
    PSA,
    A2C2f,
    ABlock,
    GhostBottleneck,
    Residual,
    ResNetBlock,
)
from ultralytics.nn.modules.transformer import (
    DeformableTransformerDecoderLayer,
    TransformerEncoderLayer,
    TransformerLayer,
)

from yolo_gradstudy.ablations.spec import AblationSpec

_CHAINS: dict[type[nn.Module], tuple[str, ...]] = {
    ABlock: ("attn", "mlp"),
    C1: ("cv1", "m"),
    GhostBottleneck: ("conv",),
}
"""Modules that add their input whatever their settings, and the children that, one after another, are the rest."""

_FIXED = (PSA, ResNetBlock, Residual, TransformerEncoderLayer, TransformerLayer, DeformableTransformerDecoderLayer)
"""Modules that add their input whatever their settings, and whose rest is no plain chain of their children."""

_LAYER_MARKS = ("i", "f", "type", "np")
"""What ``parse_model`` writes on a numbered layer."""


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
            setattr(modules[owner_name], attribute, _chain(module))
        else:
            continue
        changed.append(name)
    return changed


NO_RESIDUALS = AblationSpec(
    name="no_residuals",
    family="connections",
    summary="Removes the shortcuts around blocks; concatenations stay.",
    source="He et al. 2016, arXiv:1512.03385; ultralytics.nn.modules.block (Bottleneck.add and its kin)",
    surgery=no_residuals,
    targets=("residual connections",),
)


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
    chain = nn.Sequential(OrderedDict((child, getattr(module, child)) for child in _CHAINS[kind]))
    chain.train(module.training)
    chain.__dict__.update({mark: module.__dict__[mark] for mark in _LAYER_MARKS if mark in module.__dict__})
    return chain
