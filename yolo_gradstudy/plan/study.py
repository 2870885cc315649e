# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a study is: its arms, its runs in their order, and the ids of runs, which must stay.

Every value is checked here as far as that needs nothing beside it; ``checks`` does the rest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from yolo_gradstudy.plan.limits import RateGrid
from yolo_gradstudy.records import RecordConfig, RunSpec

CONTROL = "control"
"""The arm that changes nothing; every study has it, since the other arms are compared with it."""

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,79}")
_LARGEST_SEED = 2**31 - 1
LARGEST_LR0 = 1.0
"""Ultralytics refuses a larger learning rate, so that a search ends there."""


def check_lr0(value: object) -> float:
    """One learning rate as a float.

    Raises:
        ValueError: It is no number above 0; the sentence has neither a place nor a full stop.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number; a learning rate is a number above 0, such as 0.01")
    try:
        rate = float(value)
    except OverflowError:
        rate = math.inf
    if not math.isfinite(rate) or rate <= 0:
        raise ValueError(f"{value!r} is no learning rate; it must be a finite number above 0, such as 0.01")
    return rate


def _check_seed(value: object) -> int:
    """One seed, or a ValueError that says what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_SEED:
        raise ValueError(f"{value!r} is no seed; it must be a whole number from 0 to {_LARGEST_SEED}, such as 0")
    return value


def _check_name(value: object) -> str:
    """A name that can be a folder's, or a ValueError that says what is wrong with it."""
    if not isinstance(value, str) or not _PLAIN_NAME.fullmatch(value):
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(value)).lstrip(".-")[:79] or "x"
        plain = plain if _PLAIN_NAME.fullmatch(plain) else f"_{plain}"
        raise ValueError(
            f"{value!r} is not a plain name (letters, digits, '_', '.' and '-', starting with a letter or '_', "
            f"at most 80), which a folder's name needs; the nearest valid is {plain!r}"
        )
    return value


def _listed(value: object) -> object:
    """A single value as a list of one."""
    return [value] if isinstance(value, str | int | float) else value


Name = Annotated[str, BeforeValidator(_check_name)]
LearningRate = Annotated[float, BeforeValidator(check_lr0)]
Seed = Annotated[int, BeforeValidator(_check_seed)]
Text = Annotated[str, StringConstraints(min_length=1)]


class Arm(BaseModel):
    """A named set of ablations and argument changes.

    Attributes:
        ablations: Names from the table of ablations, applied in this order.
        arguments: Ultralytics training arguments that differ from the study's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ablations: tuple[str, ...] = ()
    arguments: dict[str, Any] = Field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what is empty."""
        data: dict[str, Any] = {}
        if self.ablations:
            data["ablations"] = list(self.ablations)
        if self.arguments:
            data["arguments"] = dict(self.arguments)
        return data


def _check_factor(value: object) -> float:
    """The step of a search for the largest stable rate."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1.01 <= value <= 100:
        raise ValueError(f"{value!r} is no factor from one rate to the next; it must be from 1.01 to 100, such as 1.41")
    return float(value)


class Limit(BaseModel):
    """Where ``gradstudy limit`` looks for the largest learning rate at which training stays alive.

    Attributes:
        factor: From one rate of the grid to the next.
        lowest: Lowest rate; a sixteenth of the study's smallest ``lr0`` where None.
        highest: Highest rate; 256 times the study's smallest ``lr0``, at most 1, where None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: Annotated[float, BeforeValidator(_check_factor)] = math.sqrt(2)
    lowest: LearningRate | None = None
    highest: LearningRate | None = None


class Study(BaseModel):
    """A validated study. :func:`load_study` makes one; its attributes are the YAML's keys.

    Attributes:
        name: The study's name; two studies of one name are taken for versions of the same.
        description: What the study is for.
        model: An Ultralytics model name or path.
        data: A data set's name or the path of an Ultralytics data YAML, as given.
        arguments: Ultralytics training arguments of every run.
        lr0: Initial learning rates.
        seeds: Seeds of weights, data order and augmentation.
        record: What the recorder stores: keys of :class:`~yolo_gradstudy.records.RecordConfig`.
        limit: Where a search for the largest stable learning rate looks.
        cross: Factors and the ablations that are their levels; every combination is one of the arms.
        arms: The arms by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    description: str = ""
    model: Text
    data: Text
    arguments: dict[str, Any] = Field(default_factory=dict)
    lr0: Annotated[tuple[LearningRate, ...], BeforeValidator(_listed), Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_listed), Field(min_length=1)]
    record: dict[str, Any] = Field(default_factory=dict)
    limit: Limit | None = None
    cross: dict[Name, Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]] = Field(
        default_factory=dict
    )
    arms: dict[Name, Arm]

    @property
    def anchor(self) -> float:
        """The smallest learning rate, at which the control is compared with, and around which a search looks."""
        return min(self.lr0)

    def grid(self) -> RateGrid:
        """The rates of a search.

        Raises:
            ValueError: The study's smallest learning rate is not between the lowest and the highest.
        """
        limit = self.limit or Limit()
        lowest, highest = limit.lowest or self.anchor / 16, limit.highest or min(self.anchor * 256, LARGEST_LR0)
        if highest > LARGEST_LR0:
            raise ValueError(
                f"limit.highest {highest:g} is more than Ultralytics takes; the nearest valid is {LARGEST_LR0:g}."
            )
        for word, rate, wrong in (
            ("lowest", lowest, lowest > self.anchor),
            ("highest", highest, highest < self.anchor),
        ):
            if wrong:
                raise ValueError(
                    f"limit.{word} {rate:g} leaves out the study's smallest lr0, {self.anchor:g}, from which the "
                    f"search starts; the nearest valid is {self.anchor:g}."
                )
        return RateGrid.between(self.anchor, limit.factor, lowest, highest)

    def to_dict(self) -> dict[str, Any]:
        """Plain data as resolved: what ``study.yaml`` in a study's folder holds."""
        return {
            "name": self.name,
            "description": self.description,
            "model": self.model,
            "data": self.data,
            "arguments": dict(self.arguments),
            "lr0": list(self.lr0),
            "seeds": list(self.seeds),
            "record": dict(self.record),
            **({"limit": self.limit.model_dump(exclude_none=True)} if self.limit is not None else {}),
            **({"cross": {factor: list(levels) for factor, levels in self.cross.items()}} if self.cross else {}),
            "arms": {name: arm.to_dict() for name, arm in self.arms.items()},
        }

    def runs(self) -> list[RunSpec]:
        """Every run, by seed, then learning rate, then arm: a study cut short has its first seeds whole."""
        return [self.run(name, lr0, seed) for seed in self.seeds for lr0 in self.lr0 for name in self.arms]

    def run(self, arm_name: str, lr0: float, seed: int) -> RunSpec:
        """One run, at a rate that need not be one of the study's."""
        arm = self.arms[arm_name]
        spec = RunSpec(
            run_id="",
            study=self.name,
            arm=arm_name,
            ablations=arm.ablations,
            model=self.model,
            data=self.data,
            lr0=lr0,
            seed=seed,
            arguments={**self.arguments, **arm.arguments},
            record=dict(self.record),
        )
        return dataclasses.replace(spec, run_id=make_run_id(spec))


def make_run_id(spec: RunSpec) -> str:
    """A run's id: ``<arm>-lr<lr0>-s<seed>-<hash>``.

    The hash is over all that decides the run's numbers: model, data set as given, arguments, ablations in
    their order, learning rate and seed; and over what is recorded. Recording never changes a number of the
    training, but it decides what the run's folder holds: a run recorded more sparsely is not the run that
    was asked for, so it must not be skipped as done. Left out are the names of study and arm, which
    decide nothing, and recording settings that equal their defaults, so that a setting which a newer
    version adds leaves the ids of old runs as they are.

    Args:
        spec: A spec, whatever its ``run_id``.

    Returns:
        The id, the same for any order of keys, in any process, on any Python version.
    """
    defaults = RecordConfig()
    record = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in spec.record.items()
        if (tuple(value) if isinstance(value, list) else value) != getattr(defaults, key)
    }
    decisive = {
        "model": spec.model,
        "data": spec.data,
        "arguments": spec.arguments,
        "ablations": list(spec.ablations),
        "lr0": spec.lr0,
        "seed": spec.seed,
        "record": record,
    }
    text = json.dumps(canonical(decisive), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{spec.arm}-lr{spec.lr0:g}-s{spec.seed}-{digest}"


def canonical(value: Any) -> Any:
    """The same data with whole floats as integers, since ``1`` and ``1.0`` train alike."""
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def counted(number: int, word: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def describe_plan(study: Study) -> str:
    """How many runs of how many epochs, as ``7 arms × 3 learning rates × 3 seeds = 63 runs of 12 epochs``."""
    runs = len(study.arms) * len(study.lr0) * len(study.seeds)
    text = (
        f"{counted(len(study.arms), 'arm')} × {counted(len(study.lr0), 'learning rate')} × "
        f"{counted(len(study.seeds), 'seed')} = {counted(runs, 'run')}"
    )
    lengths = sorted({arm.arguments.get("epochs", study.arguments.get("epochs")) or 0 for arm in study.arms.values()})
    if 0 in lengths:
        return text
    return f"{text} of {' or '.join(f'{n:g}' for n in lengths)} epoch{'' if lengths == [1] else 's'}"
