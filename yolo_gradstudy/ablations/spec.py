# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an ablation is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

FAMILIES = (
    *("connections", "normalisation", "activation", "initialisation", "clipping", "optimisation", "schedule", "loss"),
    *("everything", "own"),
)
"""Families of ablations, for people to read; ``own`` is a person's."""

Surgery = Callable[..., list[str]]
"""``(model, seed) -> names of the changed modules``, with the ablation's number as third argument where it takes one.
It changes the model in place, before the optimizer, the EMA and DDP exist, and draws from no random generator but
its own."""


class Builtin(StrEnum):
    """What Ultralytics' trainer does of itself and no argument switches off; the trainer of this package can."""

    RATE_WARMUP = "rate_warmup"
    MOMENTUM_WARMUP = "momentum_warmup"
    BIAS_RATE_WARMUP = "bias_rate_warmup"
    EMA = "ema"
    NAN_RECOVERY = "nan_recovery"
    AMP_SCALING = "amp_scaling"
    TARGET_SCORE_NORMALISER = "target_score_normaliser"
    BATCHNORM_STATISTICS = "batchnorm_statistics"


@dataclass(frozen=True)
class SameAs:
    """The value of an argument that takes that of another: ``nbs`` the same as ``batch``."""

    argument: str

    def __repr__(self) -> str:
        return self.argument


@dataclass(frozen=True)
class Number:
    """The number that an ablation takes, written behind its name: ``deepen(3)``.

    Attributes:
        meaning: What it is, in a few words.
        default: The number where none is written.
        least: Smallest number that is valid.
        most: Largest number that is valid.
        whole: Whether only whole numbers are.
    """

    meaning: str
    default: float
    least: float
    most: float = float("inf")
    whole: bool = False

    def problem(self, value: float) -> str | None:
        """What is wrong with a number, and the nearest valid one; None for a valid one."""
        kind = "whole number" if self.whole else "number"
        if self.least <= value <= self.most and math.isfinite(value) and (value == int(value) or not self.whole):
            return None
        near = min(max(value, self.least), self.most) if math.isfinite(value) else self.default
        near = float(round(near)) if self.whole else near
        span = f"of at least {self.least:g}" if self.most == float("inf") else f"from {self.least:g} to {self.most:g}"
        return f"its number, {self.meaning}, is a {kind} {span}; the nearest valid is {near:g}"


@dataclass(frozen=True)
class AblationSpec:
    """One stabiliser removed, replaced or set.

    Attributes:
        name: Key of the table; for a surgery, the function's name.
        family: One of ``FAMILIES``.
        summary: One sentence on what changes.
        source: The paper or the Ultralytics source that it rests on.
        surgery: Changes the model, where the ablation does.
        calibration: ``(model, images)``: sets what depends on data, on a training's first batch, after the surgery.
            ``images`` has shape (batch, 3, height, width), as the model takes them.
        arguments: Ultralytics training arguments that it sets; a value may be :class:`SameAs` another's.
        trainer: Options of ``GradStudyTrainer.using`` that it sets; a class is called with the ablation's number.
        switches_off: What Ultralytics' trainer does of itself and this ablation ends.
        acts_on: ``model -> names``: the modules that an ablation of training concerns, where there are such.
        number: The number that it takes.
        value: The number that was given; the default where none was.
        targets: The things that it removes or replaces; two ablations of one target contradict each other.
        parts: The ablations that this one stands for. Those that find nothing to change are passed over.
    """

    name: str
    family: str
    summary: str
    source: str
    surgery: Surgery | None = None
    calibration: Callable[[nn.Module, Tensor], None] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    switches_off: Builtin | None = None
    acts_on: Callable[[nn.Module], list[str]] | None = None
    number: Number | None = None
    value: float | None = None
    targets: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.surgery or self.arguments or self.trainer or self.switches_off or self.parts, self.name
        if self.number is not None and self.value is None:
            object.__setattr__(self, "value", self.number.default)

    @property
    def label(self) -> str:
        """The name as a study writes it: with the number, where it is not the default."""
        if self.number is None or self.value == self.number.default:
            return self.name
        return f"{self.name}({self.value:g})"

    def with_value(self, value: float) -> AblationSpec:
        """The ablation with another number.

        Raises:
            ValueError: It takes none, or not this one.
        """
        if self.number is None:
            raise ValueError(f"ablations: {self.name!r} takes no number; the nearest valid is {self.name!r}.")
        if (problem := self.number.problem(value)) is not None:
            raise ValueError(f"ablations: {self.name}({value:g}): {problem}.")
        return dataclasses.replace(self, value=value)

    def operate(self, model: nn.Module, seed: int) -> list[str]:
        """Do the surgery; names of the changed modules."""
        assert self.surgery is not None
        return self.surgery(model, seed) if self.number is None else self.surgery(model, seed, self.value)

    def resolved_arguments(self, current: Mapping[str, Any]) -> dict[str, Any]:
        """Training arguments that it sets.

        Args:
            current: The arguments that it finds.
        """
        return {
            key: current[value.argument] if isinstance(value, SameAs) else value
            for key, value in self.arguments.items()
        }

    def trainer_options(self) -> dict[str, Any]:
        """Options of ``GradStudyTrainer.using`` that it sets."""
        return {key: v(self.value) if isinstance(v, type) else v for key, v in self.trainer.items()}

    @property
    def settings(self) -> str:
        """What it sets, as ``warmup_epochs=0.0``; empty where it sets nothing."""
        pairs = [f"{key}={value!r}" for key, value in {**self.arguments, **self.trainer_options()}.items()]
        return ", ".join(pairs + ([f"{self.switches_off} off"] if self.switches_off else []))
