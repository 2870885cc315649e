# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of ablations, and what a set of them may be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from yolo_gradstudy.ablations.clipping import NO_CLIP
from yolo_gradstudy.ablations.connections import NO_RESIDUALS
from yolo_gradstudy.ablations.initialisation import REPLACE_INIT_BY_HE, REPLACE_INIT_BY_XAVIER
from yolo_gradstudy.ablations.normalisation import NO_BATCHNORM
from yolo_gradstudy.ablations.schedule import NO_WARMUP
from yolo_gradstudy.ablations.spec import AblationSpec

ABLATIONS: dict[str, AblationSpec] = {
    spec.name: spec
    for spec in (
        NO_BATCHNORM,
        NO_RESIDUALS,
        REPLACE_INIT_BY_XAVIER,
        REPLACE_INIT_BY_HE,
        NO_CLIP,
        NO_WARMUP,
    )
}
"""Every ablation, in the order in which surgeries apply: modules first, then how they connect, then their weights."""


def find_ablation(name: str) -> AblationSpec:
    """The ablation of this name.

    Raises:
        ValueError: There is none; the nearest name is named.
    """
    if name in ABLATIONS:
        return ABLATIONS[name]
    nearest = difflib.get_close_matches(str(name), ABLATIONS, n=1, cutoff=0.0)[0]
    raise ValueError(f"ablations: {name!r} is not an ablation; the nearest is {nearest!r}.")


def ordered(names: Sequence[str]) -> list[AblationSpec]:
    """The ablations of these names, in the table's order.

    Raises:
        ValueError: A name is unknown or given twice, or two ablations contradict each other.
    """
    if isinstance(names, str):
        raise ValueError(f"ablations: {names!r} is one string; write a list of names, [{names!r}].")
    specs = [find_ablation(name) for name in names]
    for position, spec in enumerate(specs):
        for other in specs[:position]:
            if other is spec:
                raise ValueError(f"ablations: {spec.name!r} is given twice; give it once.")
            shared = sorted(
                (spec.arguments.keys() & other.arguments.keys()) | (spec.trainer.keys() & other.trainer.keys())
            )
            what = spec.target if spec.target is not None and spec.target == other.target else ", ".join(shared)
            if what:
                raise ValueError(
                    f"ablations: {other.name!r} and {spec.name!r} contradict each other, both change {what}; "
                    "keep one of them."
                )
    order = list(ABLATIONS)
    return sorted(specs, key=lambda spec: order.index(spec.name))


def check_ablations(names: Sequence[str]) -> None:
    """Refuses a set of ablations that cannot be applied; needs no model.

    Raises:
        ValueError: A name is unknown or given twice, or two ablations contradict each other.
    """
    ordered(names)


def combined_arguments(names: Sequence[str]) -> dict[str, Any]:
    """Ultralytics training arguments that these ablations set."""
    return {key: value for spec in ordered(names) for key, value in spec.arguments.items()}


def combined_trainer_options(names: Sequence[str]) -> dict[str, Any]:
    """Options of ``GradStudyTrainer.using`` that these ablations set."""
    return {key: value for spec in ordered(names) for key, value in spec.trainer.items()}
