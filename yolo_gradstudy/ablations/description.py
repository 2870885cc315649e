# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the ablations change, for people to read."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.utils import ROOT

from yolo_gradstudy.ablations.application import apply_ablations
from yolo_gradstudy.ablations.connections import NO_RESIDUALS, SCALE_RESIDUALS, kept_residuals, unscaled_residuals
from yolo_gradstudy.ablations.spec import AblationSpec
from yolo_gradstudy.ablations.table import ABLATIONS, ordered


@dataclass(frozen=True)
class AblationRow:
    """A row of the table that ``gradstudy ablations`` prints.

    Attributes:
        name: The ablation.
        family: Its family.
        summary: One sentence on what changes.
        sets: Training arguments and trainer options that it sets, as ``warmup_epochs=0.0``; empty for none.
        source: The paper or source that it rests on.
        changed: Modules that it changes in the model; None without a model, or where it changes training only.
        parameters_before: Parameters of the model as built; None as above.
        parameters_after: Parameters of the model after the ablation; None as above.
        note: What cannot be changed, or why nothing can; empty for nothing to say.
    """

    name: str
    family: str
    summary: str
    sets: str
    source: str
    changed: int | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    note: str = ""


def describe_ablations(model_name: str | None = None) -> list[AblationRow]:
    """One row an ablation, in the table's order; with a model, also what each changes in it.

    Args:
        model_name: An Ultralytics model YAML (``yolo26n.yaml``) or a weights file on disk. It is never downloaded.

    Raises:
        ValueError: There is no such model.
    """
    model = None if model_name is None else _build(model_name)
    return [_describe(spec, model) for spec in ABLATIONS.values()]


@dataclass(frozen=True)
class SetRow:
    """What a set of ablations changes in a model.

    Attributes:
        changed: For each ablation that changes or concerns modules of the model, how many.
        parameters_before: Parameters of the model as built.
        parameters_after: Parameters after all ablations.
    """

    changed: Mapping[str, int]
    parameters_before: int
    parameters_after: int


def describe_sets(model_name: str, sets: Mapping[str, Sequence[str]]) -> dict[str, SetRow]:
    """What sets of ablations, each with a name, change in a model.

    Args:
        model_name: As in :func:`describe_ablations`.
        sets: Ablations by the set's name, as a study's arms have them.

    Raises:
        ValueError: There is no such model, or a set can't be applied to it; the set is named.
    """
    model = _build(model_name)
    rows = {}
    for set_name, names in sets.items():
        ablated = copy.deepcopy(model)
        try:
            changed = apply_ablations(ablated, names)
        except ValueError as error:
            raise ValueError(f"arms.{set_name}.{error}") from error
        counts = {name: len(modules) for name, modules in changed.items()}
        counts |= {spec.label: len(spec.acts_on(model)) for spec in ordered(names) if spec.acts_on is not None}
        rows[set_name] = SetRow(counts, _count(model), _count(ablated))
    return rows


def _describe(spec: AblationSpec, model: nn.Module | None) -> AblationRow:
    numbers: dict[str, Any] = {}
    if model is not None and (spec.surgery is not None or spec.parts):
        ablated = copy.deepcopy(model)
        numbers["parameters_before"] = _count(model)
        try:
            changed = apply_ablations(ablated, [spec.label])
            numbers["changed"] = len({module for modules in changed.values() for module in modules})
            numbers["parameters_after"] = _count(ablated)
        except ValueError as error:
            numbers["changed"] = 0
            numbers["parameters_after"] = numbers["parameters_before"]
            numbers["note"] = str(error).removeprefix("ablations: ")
        for surgery, told, left in (
            (NO_RESIDUALS, "keeps the residuals of", kept_residuals),
            (SCALE_RESIDUALS, "does not scale the residuals of", unscaled_residuals),
        ):
            if spec is surgery and (names := left(model)):
                numbers["note"] = f"{numbers.get('note', '')} {told} {', '.join(names)}".strip()
    elif model is not None and spec.acts_on is not None:
        numbers["changed"] = len(spec.acts_on(model))
    return AblationRow(spec.name, spec.family, spec.summary, spec.settings, spec.source, **numbers)


def _build(model_name: str) -> nn.Module:
    """The model of a YAML or weights file, on the CPU; the global generator is left as it was."""
    path = Path(model_name)
    if path.suffix not in (".yaml", ".yml", ".pt") or (path.suffix == ".pt" and not path.is_file()):
        raise ValueError(
            f"model: {model_name!r} is no model YAML and no weights file on disk; "
            f"the nearest is {_nearest(path.stem)!r}."
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = (RTDETR if "rtdetr" in path.stem else YOLO)(model_name).model
    except FileNotFoundError as error:
        raise ValueError(f"model: {model_name!r} does not exist; the nearest is {_nearest(path.stem)!r}.") from error
    return model


def _nearest(stem: str) -> str:
    """The model YAML of Ultralytics whose name is nearest."""
    names = [path.stem for path in (ROOT / "cfg" / "models").rglob("*.yaml")]
    families = [name for name in names if name.removeprefix("yolo").removeprefix("v").isdigit()]
    known = [*(f"{family}{scale}" for family in families for scale in "nsmlx"), *names]
    return f"{difflib.get_close_matches(stem, known, n=1, cutoff=0.0)[0]}.yaml"


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
