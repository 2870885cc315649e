# SPDX-License-Identifier: AGPL-3.0-or-later
"""Faults that the corpus plants into a training, as ablations of one's own (``corpus_faults:dead_head``).

Each is a pre-hook on the whole model that counts batches of training and acts once; a class, since a checkpoint keeps
the model with its hooks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

AT = 60
"""Batch at which a fault is planted, counted from 1."""

LATE = 100
"""The same of one that training must not have the time to mend."""


class Fault:
    """Acts on a model before a batch of training.

    Args:
        kind: ``dead_head``, ``kick``, ``blow_up`` or ``error``.
        at: The batch, counted from 1.
    """

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at, self.batches = kind, at, 0

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Count, and act."""
        if not module.training or not torch.is_grad_enabled():
            return
        self.batches += 1
        if self.batches == self.at:
            getattr(self, self.kind)(module)

    @torch.no_grad()
    def dead_head(self, module: Any) -> None:
        """The class outputs of every branch go far below 0, where no gradient brings them back."""
        for name, parameter in module.named_parameters():
            if "cv3" in name and name.endswith(".2.bias"):
                parameter.fill_(-40.0)
            elif "cv3" in name and name.endswith(".2.weight"):
                parameter.zero_()

    @torch.no_grad()
    def kick(self, module: Any) -> None:
        """One weight of the head's last box layers is scaled, for a spike that training comes back from."""
        for name, parameter in module.named_parameters():
            if "cv2" in name and name.endswith(".2.bias"):
                parameter.add_(6.0)

    @torch.no_grad()
    def blow_up(self, module: Any) -> None:
        """Every class is predicted everywhere: losses are finite, and absurd to the end."""
        for name, parameter in module.named_parameters():
            if "cv3" in name and name.endswith(".2.bias"):
                parameter.add_(200.0)

    def error(self, module: Any) -> None:
        """An error that has nothing to do with gradients.

        Raises:
            OSError: Always.
        """
        raise OSError("image file is truncated (planted)")


def _plant(model: nn.Module, kind: str, at: int = AT) -> list[str]:
    model.register_forward_pre_hook(Fault(kind, at))
    return [""]


def dead_head(model: nn.Module) -> list[str]:
    """A head whose class outputs die in the middle of training."""
    return _plant(model, "dead_head")


def kick(model: nn.Module) -> list[str]:
    """A spike in the middle of training."""
    return _plant(model, "kick")


def blow_up(model: nn.Module) -> list[str]:
    """Class outputs that are absurdly large near the end of training."""
    return _plant(model, "blow_up", LATE)


def error(model: nn.Module) -> list[str]:
    """An error in the middle of training."""
    return _plant(model, "error")
