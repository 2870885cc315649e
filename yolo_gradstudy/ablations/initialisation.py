# SPDX-License-Identifier: AGPL-3.0-or-later
"""Initial weights drawn anew.

Every weight has its own generator, seeded by the seed and the parameter's name. Its values depend neither on the order
of the layers, nor on other ablations, nor on the global generator, which is left as it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import nn
from ultralytics.nn.modules.block import DFL

from yolo_gradstudy.ablations.spec import AblationSpec

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
Draw = Callable[[torch.Tensor, float, float, torch.Generator], None]
"""``(weight, fan_in, fan_out, generator)``: fills the weight, a float32 tensor on the CPU."""


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

    def draw(weight: torch.Tensor, fan_in: float, fan_out: float, generator: torch.Generator) -> None:
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        weight.uniform_(-bound, bound, generator=generator)

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

    def draw(weight: torch.Tensor, fan_in: float, fan_out: float, generator: torch.Generator) -> None:
        weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)

    return redraw(model, seed, draw)


REPLACE_INIT_BY_XAVIER = AblationSpec(
    name="replace_init_by_xavier",
    family="initialisation",
    summary="Draws the weights of convolutions and linear layers from Xavier's uniform distribution.",
    source="Glorot and Bengio 2010, eq. 16",
    surgery=replace_init_by_xavier,
    targets=("weight initialisation",),
)

REPLACE_INIT_BY_HE = AblationSpec(
    name="replace_init_by_he",
    family="initialisation",
    summary="Draws the weights of convolutions and linear layers from He's normal distribution, gain √2.",
    source="He et al. 2015, arXiv:1502.01852, eq. 10",
    surgery=replace_init_by_he,
    targets=("weight initialisation",),
)


@torch.no_grad()
def redraw(model: nn.Module, seed: int, draw: Draw) -> list[str]:
    """Draws the weight of every Conv2d, ConvTranspose2d and Linear anew.

    Kept: every bias, the detection head's among them, whose initial values are a stabiliser of their own; the frozen
    projection of ``DFL``; and weights that the model starts at zero on purpose (the last layers of RT-DETR's box
    heads). A head of YOLO26 or YOLOv10 that starts as a copy of its twin (``one2one_cv2`` of ``cv2``) still does.

    Args:
        model: Changed in place.
        seed: With the parameter's name, decides each weight.
        draw: Fills one weight.

    Returns:
        Names of the modules with new weights.
    """
    frozen = {id(child) for module in model.modules() if isinstance(module, DFL) for child in module.modules()}
    changed = []
    for name, module in model.named_modules():
        if not isinstance(module, _WEIGHTED) or id(module) in frozen or not bool(module.weight.any()):
            continue
        values = torch.empty(module.weight.shape, dtype=torch.float32)
        draw(values, *fans(module), generator_of(seed, f"{name}.weight" if name else "weight"))
        module.weight.copy_(values)
        changed.append(name)
    return changed


def fans(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> tuple[float, float]:
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
