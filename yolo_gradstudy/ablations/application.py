# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ablations applied to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from ultralytics.nn.tasks import BaseModel

from yolo_gradstudy.ablations.spec import AblationSpec
from yolo_gradstudy.ablations.table import find_ablation, ordered


def apply_ablation(model: nn.Module, name: str, seed: int = 0) -> list[str]:
    """Applies one ablation to a model, in place, before it has an optimizer.

    With the same seed, every parameter whose shape is unchanged, and that the ablation does not draw anew, keeps its
    value bit by bit; the global random generators are left as they were.

    Args:
        model: A model built of Ultralytics' modules, as ``DetectionModel("yolo26n.yaml")`` or ``YOLO(...).model``.
        name: An ablation that changes the model.
        seed: Seed of what the ablation draws.

    Returns:
        Names of the modules that it changed; never empty.

    Raises:
        ValueError: The ablation is unknown, changes training and not the model, or found nothing to change.
    """
    spec = find_ablation(name)
    if spec.surgery is None:
        where = "the training arguments" if spec.arguments else "GradStudyTrainer.using"
        raise ValueError(
            f"ablations: {spec.name!r} changes training and not the model; set {spec.settings} in {where} instead."
        )
    return _operate(model, spec, seed)


def apply_ablations(model: nn.Module, names: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """Applies a set of ablations in the table's order, whatever order they are given in.

    Ablations that change training and not the model are passed over here; see ``combined_arguments`` and
    ``combined_trainer_options``. After an error throw the model away: an ablation before may have changed it.

    Args:
        model: As in :func:`apply_ablation`.
        names: Ablations.
        seed: Seed of what they draw.

    Returns:
        For each ablation that changes the model, in the table's order, names of the modules that it changed.

    Raises:
        ValueError: A name is unknown or given twice, two ablations contradict each other, or one of them found
            nothing to change.
    """
    return {spec.name: _operate(model, spec, seed) for spec in ordered(names) if spec.surgery is not None}


def _operate(model: nn.Module, spec: AblationSpec, seed: int) -> list[str]:
    assert spec.surgery is not None
    if isinstance(getattr(model, "model", None), BaseModel):
        raise ValueError(
            f"ablations: {spec.name!r} got a {type(model).__name__} object, whose train() builds its model anew; pass "
            f"its .model, or train with GradStudyTrainer.using(ablations=[{spec.name!r}])."
        )
    changed = spec.surgery(model, seed)
    if not changed:
        raise ValueError(f"ablations: {spec.name!r} found nothing to change in {_name_of(model)}.")
    return changed


def _name_of(model: nn.Module) -> str:
    """The model's class, and its YAML file where it has one."""
    configuration = getattr(model, "yaml", None)
    file = configuration.get("yaml_file") if isinstance(configuration, Mapping) else None
    return f"{type(model).__name__} ({file})" if file else type(model).__name__
