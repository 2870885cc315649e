# SPDX-License-Identifier: AGPL-3.0-or-later
"""SiLU replaced by another activation."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from yolo_gradstudy.ablations.normalisation import take_place
from yolo_gradstudy.ablations.spec import AblationSpec


def replace_silu_by_relu(model: nn.Module, seed: int = 0) -> list[str]:
    """Puts a ReLU where each SiLU was; see :func:`replace_silu`.

    References:
        Nair and Hinton 2010, "Rectified Linear Units Improve Restricted Boltzmann Machines", ICML.
    """
    return replace_silu(model, nn.ReLU)


def replace_silu_by_leakyrelu(model: nn.Module, seed: int = 0) -> list[str]:
    """Puts a LeakyReLU where each SiLU was, with torch's slope of 0.01; see :func:`replace_silu`.

    Darknet's YOLOs (v2 to v4) had a slope of 0.1.

    References:
        Maas et al. 2013, "Rectifier Nonlinearities Improve Neural Network Acoustic Models", ICML.
    """
    return replace_silu(model, nn.LeakyReLU)


def replace_silu_by_tanh(model: nn.Module, seed: int = 0) -> list[str]:
    """Puts a tanh where each SiLU was; see :func:`replace_silu`.

    References:
        LeCun et al. 1998, "Efficient BackProp", §4.4; Glorot and Bengio 2010, AISTATS.
    """
    return replace_silu(model, nn.Tanh)


def replace_silu_by_sigmoid(model: nn.Module, seed: int = 0) -> list[str]:
    """Puts a logistic sigmoid where each SiLU was, whose slope is 1/4 at most; see :func:`replace_silu`.

    References:
        Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", §3.1.
    """
    return replace_silu(model, nn.Sigmoid)


def replace_silu_by_identity(model: nn.Module, seed: int = 0) -> list[str]:
    """Takes each SiLU out: layers are linear between poolings and attention; see :func:`replace_silu`.

    References:
        Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        arXiv:1312.6120.
    """
    return replace_silu(model, nn.Identity)


def replace_silu(model: nn.Module, activation: Callable[[], nn.Module]) -> list[str]:
    """Puts another activation where each SiLU was.

    As Ultralytics builds it, most of a model's layers hold one and the same SiLU; they hold one and the same new
    activation afterwards. The class attribute ``Conv.default_act``, which other models are built with, is left alone.
    Other activations stay: ReLU and GELU of RT-DETR, the sigmoid of gates and heads, the softmax of attention, and a
    SiLU that is called as a function (``SwiGLUFFN`` of YOLOE).

    Args:
        model: Changed in place.
        activation: Makes the new activation.

    Returns:
        Where the SiLUs were: the holder's name and its attribute, as ``model.0.act``.
    """
    shared = activation()
    changed = []
    for name, owner in list(model.named_modules()):
        for attribute, child in list(owner._modules.items()):
            if isinstance(child, nn.SiLU):
                numbered = hasattr(child, "i")  # a layer of the YAML, with marks of its own
                take_place(owner, attribute, activation() if numbered else shared)
                changed.append(f"{name}.{attribute}" if name else attribute)
    return changed


def _spec(surgery: Callable[..., list[str]], summary: str, source: str) -> AblationSpec:
    return AblationSpec(
        name=surgery.__name__,
        family="activation",
        summary=summary,
        source=f"{source}; ultralytics.nn.modules.conv.Conv.default_act",
        surgery=surgery,
        targets=("activation",),
    )


REPLACE_SILU_BY_RELU = _spec(
    replace_silu_by_relu,
    "Puts max(x, 0) where SiLU, x·σ(x), was.",
    "Nair and Hinton 2010, ICML",
)
REPLACE_SILU_BY_LEAKYRELU = _spec(
    replace_silu_by_leakyrelu,
    "Puts max(x, x/100) where SiLU was.",
    "Maas et al. 2013, ICML",
)
REPLACE_SILU_BY_TANH = _spec(
    replace_silu_by_tanh,
    "Puts tanh(x) where SiLU was.",
    "LeCun et al. 1998, Efficient BackProp, §4.4",
)
REPLACE_SILU_BY_SIGMOID = _spec(
    replace_silu_by_sigmoid,
    "Puts the sigmoid σ(x) where SiLU was.",
    "Glorot and Bengio 2010, AISTATS, §3.1",
)
REPLACE_SILU_BY_IDENTITY = _spec(
    replace_silu_by_identity,
    "Puts x itself where SiLU was.",
    "Saxe et al. 2014, arXiv:1312.6120",
)
