# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an ablation is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Surgery = Callable[[nn.Module, int], list[str]]
"""``(model, seed) -> names of the changed modules``. It changes the model in place, before the optimizer, the EMA and
DDP exist, and draws from no random generator but its own."""


@dataclass(frozen=True)
class AblationSpec:
    """One stabiliser removed, replaced or set.

    Attributes:
        name: Key of the table; for a surgery, the function's name.
        family: ``normalisation``, ``connections``, ``initialisation``, ``clipping`` or ``schedule``.
        summary: One sentence on what changes.
        source: The paper or the Ultralytics source that it rests on.
        surgery: Changes the model, where the ablation does.
        arguments: Ultralytics training arguments that it sets.
        trainer: Options of ``GradStudyTrainer.using`` that it sets.
        target: The one thing that it removes or replaces; two ablations of one target contradict each other.
    """

    name: str
    family: str
    summary: str
    source: str
    surgery: Surgery | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None

    def __post_init__(self) -> None:
        assert self.surgery or self.arguments or self.trainer, f"{self.name} changes nothing"

    @property
    def settings(self) -> str:
        """The arguments and trainer options that it sets, as ``warmup_epochs=0.0``; empty where it sets none."""
        return ", ".join(f"{key}={value!r}" for key, value in {**self.arguments, **self.trainer}.items())
