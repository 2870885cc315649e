# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of ablations, and what a set of them may be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from yolo_gradstudy.ablations.activation import (
    REPLACE_SILU_BY_IDENTITY,
    REPLACE_SILU_BY_LEAKYRELU,
    REPLACE_SILU_BY_RELU,
    REPLACE_SILU_BY_SIGMOID,
    REPLACE_SILU_BY_TANH,
)
from yolo_gradstudy.ablations.clipping import (
    NO_CLIP,
    REPLACE_CLIP_BY_AGC,
    REPLACE_CLIP_BY_AUTOCLIP,
    REPLACE_CLIP_BY_NORM,
    REPLACE_CLIP_BY_VALUE,
    REPLACE_CLIP_BY_ZCLIP,
)
from yolo_gradstudy.ablations.connections import DEEPEN, NO_RESIDUALS, SCALE_RESIDUALS, ZERO_INIT_RESIDUALS
from yolo_gradstudy.ablations.everything import remove_everything
from yolo_gradstudy.ablations.initialisation import (
    NO_HEAD_BIAS_INIT,
    REPLACE_INIT_BY_HE,
    REPLACE_INIT_BY_LSUV,
    REPLACE_INIT_BY_ORTHOGONAL,
    REPLACE_INIT_BY_XAVIER,
    REPLACE_INIT_BY_XAVIER_NORMAL,
    SCALE_INIT,
)
from yolo_gradstudy.ablations.normalisation import (
    FREEZE_BATCHNORM_STATISTICS,
    NO_BATCHNORM,
    REPLACE_BATCHNORM_BY_GROUPNORM,
    REPLACE_BATCHNORM_BY_LAYERNORM2D,
)
from yolo_gradstudy.ablations.optimisation import (
    NO_MOMENTUM,
    NO_WEIGHT_DECAY,
    REPLACE_OPTIMIZER_BY_ADAM,
    REPLACE_OPTIMIZER_BY_ADAMW,
    REPLACE_OPTIMIZER_BY_MUSGD,
    REPLACE_OPTIMIZER_BY_RMSPROP,
    REPLACE_OPTIMIZER_BY_SGD,
)
from yolo_gradstudy.ablations.own import is_own, own_ablation
from yolo_gradstudy.ablations.schedule import (
    NO_ACCUMULATION,
    NO_AMP_SCALING,
    NO_BIAS_RATE_WARMUP,
    NO_EMA,
    NO_MOMENTUM_WARMUP,
    NO_NAN_RECOVERY,
    NO_RATE_WARMUP,
    NO_TARGET_SCORE_NORMALISER,
    NO_WARMUP,
)
from yolo_gradstudy.ablations.spec import AblationSpec, Builtin

_SINGLE = (
    # How many blocks first,
    DEEPEN,
    # then what they are made of,
    REPLACE_SILU_BY_RELU,
    REPLACE_SILU_BY_LEAKYRELU,
    REPLACE_SILU_BY_TANH,
    REPLACE_SILU_BY_SIGMOID,
    REPLACE_SILU_BY_IDENTITY,
    NO_BATCHNORM,
    REPLACE_BATCHNORM_BY_GROUPNORM,
    REPLACE_BATCHNORM_BY_LAYERNORM2D,
    # then how they connect,
    NO_RESIDUALS,
    SCALE_RESIDUALS,
    # then their weights: drawn, scaled, set to zero,
    REPLACE_INIT_BY_XAVIER,
    REPLACE_INIT_BY_XAVIER_NORMAL,
    REPLACE_INIT_BY_HE,
    REPLACE_INIT_BY_ORTHOGONAL,
    REPLACE_INIT_BY_LSUV,
    SCALE_INIT,
    NO_HEAD_BIAS_INIT,
    ZERO_INIT_RESIDUALS,
    # then how they train.
    FREEZE_BATCHNORM_STATISTICS,
    NO_CLIP,
    REPLACE_CLIP_BY_NORM,
    REPLACE_CLIP_BY_VALUE,
    REPLACE_CLIP_BY_AGC,
    REPLACE_CLIP_BY_AUTOCLIP,
    REPLACE_CLIP_BY_ZCLIP,
    REPLACE_OPTIMIZER_BY_SGD,
    REPLACE_OPTIMIZER_BY_ADAM,
    REPLACE_OPTIMIZER_BY_ADAMW,
    REPLACE_OPTIMIZER_BY_RMSPROP,
    REPLACE_OPTIMIZER_BY_MUSGD,
    NO_MOMENTUM,
    NO_WEIGHT_DECAY,
    NO_WARMUP,
    NO_RATE_WARMUP,
    NO_MOMENTUM_WARMUP,
    NO_BIAS_RATE_WARMUP,
    NO_ACCUMULATION,
    NO_EMA,
    NO_NAN_RECOVERY,
    NO_AMP_SCALING,
    NO_TARGET_SCORE_NORMALISER,
)

ABLATIONS: dict[str, AblationSpec] = {spec.name: spec for spec in (*_SINGLE, remove_everything(_SINGLE))}
"""Every ablation, in the order in which surgeries apply: depth, modules, how they connect, then their weights."""

_WRITTEN = re.compile(r"(?P<name>[^()]+?)\s*\(\s*(?P<number>[^()]*?)\s*\)")


def find_ablation(name: str) -> AblationSpec:
    """The ablation that a name means: ``no_clip``, ``deepen(3)``, or ``my_module:no_attention``, a person's own.

    Raises:
        ValueError: There is none, and the nearest name is named; or its number is not one that it takes.
    """
    if is_own(name):
        return own_ablation(name)
    written = _WRITTEN.fullmatch(str(name).strip())
    bare = written["name"] if written else str(name).strip()
    if bare not in ABLATIONS:
        nearest = difflib.get_close_matches(bare, ABLATIONS, n=1, cutoff=0.0)[0]
        raise ValueError(f"ablations: {name!r} is not an ablation; the nearest is {nearest!r}.")
    spec = ABLATIONS[bare]
    if written is None:
        return spec
    try:
        value = float(written["number"])
    except ValueError:
        example = f"{bare}({spec.number.default:g})" if spec.number else bare
        raise ValueError(
            f"ablations: {name!r} has {written['number']!r} where its number stands; the nearest valid is {example!r}."
        ) from None
    return spec.with_value(value)


def ordered(names: Sequence[str]) -> list[AblationSpec]:
    """The ablations of these names, in the table's order, a person's own before them; parts in place of the whole.

    Raises:
        ValueError: A name is unknown or given twice, or two ablations contradict each other.
    """
    specs = _found(names)
    for position, spec in enumerate(specs):
        for other in specs[:position]:
            _check_pair(other, spec)
    single = [part for spec in specs for part in ([ABLATIONS[name] for name in spec.parts] or [spec])]
    order = list(ABLATIONS)
    return sorted(single, key=lambda s: (order.index(s.name), "") if s.name in ABLATIONS else (-1, s.name))


def _found(names: Sequence[str]) -> list[AblationSpec]:
    if isinstance(names, str):
        raise ValueError(f"ablations: {names!r} is one string; write a list of names, [{names!r}].")
    return [find_ablation(name) for name in names]


def _check_pair(one: AblationSpec, other: AblationSpec) -> None:
    if one.name == other.name:
        raise ValueError(f"ablations: {other.name!r} is given twice; give it once.")
    for whole, part in ((one, other), (other, one)):
        if part.name in whole.parts:
            raise ValueError(f"ablations: {part.name!r} is a part of {whole.name!r}; leave it out.")
    shared = [target for target in one.targets if target in other.targets]
    shared += sorted((one.arguments.keys() & other.arguments.keys()) | (one.trainer.keys() & other.trainer.keys()))
    if shared:
        raise ValueError(
            f"ablations: {one.name!r} and {other.name!r} contradict each other, both change {shared[0]}; "
            "keep one of them."
        )


def parts_of(names: Sequence[str]) -> set[str]:
    """Names of the ablations that stand in a set as parts of another."""
    return {part for spec in _found(names) for part in spec.parts}


def check_ablations(names: Sequence[str], arguments: Mapping[str, Any] | None = None) -> None:
    """Refuses a set of ablations that cannot be applied; needs no model.

    Args:
        names: Ablations.
        arguments: The training arguments that they would find, where they are known.

    Raises:
        ValueError: A name is unknown or given twice, two ablations contradict each other, or one of them sets
            arguments that have its values already.
    """
    if arguments is None:
        ordered(names)
    else:
        combined_arguments(names, arguments)


def combined_arguments(names: Sequence[str], current: Mapping[str, Any]) -> dict[str, Any]:
    """Ultralytics training arguments that these ablations set.

    Args:
        names: Ablations.
        current: The arguments that they find.

    Raises:
        ValueError: As :func:`check_ablations`.
    """
    combined: dict[str, Any] = {}
    optional = parts_of(names)
    for spec in ordered(names):
        resolved = spec.resolved_arguments(current)
        if resolved and all(_same(current.get(key), value) for key, value in resolved.items()):
            if spec.name in optional:
                continue
            have = ", ".join(f"{key}={current.get(key)!r}" for key in resolved)
            raise ValueError(f"ablations: {spec.label!r} changes nothing, since {have} already; leave it out.")
        combined |= resolved
    return combined


def _same(one: Any, other: Any) -> bool:
    return one.lower() == other.lower() if isinstance(one, str) and isinstance(other, str) else bool(one == other)


def combined_trainer_options(names: Sequence[str]) -> dict[str, Any]:
    """Options of ``GradStudyTrainer.using`` that these ablations set."""
    return {key: value for spec in ordered(names) for key, value in spec.trainer_options().items()}


def switched_off(names: Sequence[str]) -> dict[Builtin, str]:
    """What Ultralytics' trainer does of itself and these ablations end, and the ablation that ends it."""
    return {spec.switches_off: spec.name for spec in ordered(names) if spec.switches_off is not None}
