# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ablations applied to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import BaseModel

from yolo_gradstudy.ablations.spec import AblationSpec
from yolo_gradstudy.ablations.table import find_ablation, ordered, parts_of


class NothingToChangeError(ValueError):
    """An ablation that found nothing to change."""


def apply_ablation(model: nn.Module, name: str, seed: int = 0, images: Tensor | None = None) -> list[str]:
    """Applies one ablation to a model, in place, before it has an optimizer.

    With the same seed, every parameter whose shape is unchanged, and that the ablation does not draw anew, keeps its
    value bit by bit; the global random generators are left as they were.

    Args:
        model: A model built of Ultralytics' modules, as ``DetectionModel("yolo26n.yaml")`` or ``YOLO(...).model``.
        name: An ablation that changes the model, or ``module:function``, a person's own.
        seed: Seed of what the ablation draws.
        images: A batch as the model takes it, float of shape (batch, 3, height, width), for an ablation that depends
            on data.

    Returns:
        Names of the modules that it changed; never empty.

    Raises:
        ValueError: The ablation is unknown, changes training and not the model, found nothing to change, or
            depends on data and got none.
    """
    spec = find_ablation(name)
    if spec.parts:
        changed = apply_ablations(model, [name], seed)
        return list(dict.fromkeys(module for modules in changed.values() for module in modules))
    if spec.surgery is None:
        where = "the training arguments" if spec.arguments else "GradStudyTrainer.using"
        setting = spec.settings if spec.arguments or spec.trainer else f"ablations=[{spec.label!r}]"
        raise ValueError(
            f"ablations: {spec.name!r} changes training and not the model; set {setting} in {where} instead."
        )
    if spec.calibration is not None and images is None:
        raise ValueError(f"ablations: {spec.name!r} sets weights by a batch of images; pass it as images=.")
    changed_modules = _operate(model, spec, seed)
    if images is not None:
        calibrate_ablations(model, [name], images)
    return changed_modules


def apply_ablations(model: nn.Module, names: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """Applies a set of ablations in the table's order, whatever order they are given in.

    Ablations that change training and not the model are passed over here; see ``combined_arguments``,
    ``combined_trainer_options`` and ``switched_off``. What depends on data waits for :func:`calibrate_ablations`.
    After an error throw the model away: an ablation before may have changed it.

    Args:
        model: As in :func:`apply_ablation`.
        names: Ablations.
        seed: Seed of what they draw.

    Returns:
        For each ablation that changes the model, in the table's order, names of the modules that it changed. One that
        stands for several has an entry for each part that found something.

    Raises:
        ValueError: A name is unknown or given twice, two ablations contradict each other, or one of them found
            nothing to change.
    """
    changed: dict[str, list[str]] = {}
    optional = parts_of(names)
    for spec in ordered(names):
        if spec.surgery is None:
            continue
        try:
            changed[spec.label] = _operate(model, spec, seed)
        except NothingToChangeError:
            if spec.name not in optional:
                raise
    return changed


@torch.no_grad()
def calibrate_ablations(model: nn.Module, names: Sequence[str], images: Tensor) -> None:
    """Sets what depends on data, for the ablations that do; the model has been operated on.

    Args:
        model: Changed in place. Its mode, its buffers and the random generators are left as they were.
        names: Ablations.
        images: As in :func:`apply_ablation`.
    """
    for spec in ordered(names):
        if spec.calibration is not None:
            spec.calibration(model, images)


def _operate(model: nn.Module, spec: AblationSpec, seed: int) -> list[str]:
    if isinstance(getattr(model, "model", None), BaseModel):
        raise ValueError(
            f"ablations: {spec.name!r} got a {type(model).__name__} object, whose train() builds its model anew; pass "
            f"its .model, or train with GradStudyTrainer.using(ablations=[{spec.label!r}])."
        )
    changed = spec.operate(model, seed)
    if not changed:
        raise NothingToChangeError(f"ablations: {spec.name!r} found nothing to change in {model_name(model)}.")
    return changed


def model_name(model: nn.Module) -> str:
    """The model's class, and its YAML file where it has one."""
    configuration = getattr(model, "yaml", None)
    file = configuration.get("yaml_file") if isinstance(configuration, Mapping) else None
    return f"{type(model).__name__} ({file})" if file else type(model).__name__
