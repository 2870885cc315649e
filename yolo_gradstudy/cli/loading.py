# SPDX-License-Identifier: AGPL-3.0-or-later
"""The study that a command names: a file, a packaged one, or the beginning of a training of one's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_gradstudy.cli.words import import_ultralytics
from yolo_gradstudy.plan import StudyError, Vocabulary, load_study, parse_overrides

if TYPE_CHECKING:
    from ultralytics import RTDETR, YOLO

    from yolo_gradstudy.ablations import SetRow
    from yolo_gradstudy.plan import Study


def vocabulary() -> Vocabulary:
    """What a study may name here."""
    from yolo_gradstudy.ablations import ABLATIONS, check_ablations
    from yolo_gradstudy.arguments import check_arguments, known_arguments

    return Vocabulary(tuple(ABLATIONS), known_arguments(), check_arguments, check_ablations)


def load(source: str, pairs: Sequence[str] | None, data: str | None, limit: Mapping[str, float] | None = None) -> Study:
    """The study of a file or a packaged one, with what the command line changes.

    Args:
        source: A packaged study's name or the path of a study YAML.
        pairs: ``key=value`` words.
        data: A data set in place of the study's.
        limit: Where a search looks, in place of the study's.

    Raises:
        ValueError: The study, or its model, can't be had.
    """
    overrides = parse_overrides(pairs or [])
    if limit:
        overrides["limit"] = dict(limit)
    if data is not None:
        overrides["data"] = data
    import_ultralytics()
    from yolo_gradstudy.arguments import check_model

    study = load_study(source, vocabulary(), overrides)
    check_rates(study)
    check_model(study.model, task="detect")
    return study


def check_rates(study: Study) -> None:
    """Refuse learning rates that Ultralytics refuses."""
    from yolo_gradstudy.arguments import check_arguments

    if problems := [p for rate in study.lr0 for p in check_arguments({"lr0": rate})]:
        raise StudyError(problems)


def load_own(
    model: str, from_weights: bool, pairs: Sequence[str], data: str | None, limit: Mapping[str, float]
) -> Study:
    """The study that repeats the beginning of a training of one's own.

    Args:
        model: A checkpoint of it, or the model that it would begin with.
        from_weights: Whether it is to begin with the checkpoint's weights.
        pairs: Arguments that differ.
        data: Its data set; the checkpoint's where None.
        limit: Where to search.
    """
    overrides = parse_overrides(pairs)
    import_ultralytics()
    from yolo_gradstudy.arguments import check_model, known_arguments, training_of
    from yolo_gradstudy.datasets import count_classes, count_images, resolve_dataset
    from yolo_gradstudy.plan import OwnTraining, study_of_beginning

    opened = check_model(model, task="detect")
    told = training_of(opened)
    if told is None and from_weights:
        raise ValueError(f"--from-weights asks for a checkpoint of a training of yours, and {model!r} is none.")
    if told is not None:
        told |= _check_plain(model, opened)
    start = _start(model, told) if told is not None and not from_weights else model
    source = data or (told or {}).get("data")
    if not source:
        raise ValueError(f"{model!r} tells of no data set; give it with --data.")
    resolved = resolve_dataset(str(source))
    training = OwnTraining(model, start, told or known_arguments())
    study = study_of_beginning(
        training,
        str(source),
        count_images(resolved),
        count_classes(resolved),
        vocabulary(),
        {**overrides, "limit": dict(limit)} if limit else overrides,
    )
    check_rates(study)
    return study


def _start(checkpoint: str, told: Mapping[str, Any]) -> str:
    """The model that a training began with; the checkpoint's weights, with a word on it, where that can't be had."""
    from yolo_gradstudy.arguments import check_model

    start = str(told["model"])
    try:
        if Path(start).resolve() == Path(checkpoint).resolve():
            raise ValueError(f"{checkpoint} was resumed, and does not tell what it began with.")
        check_model(start, task="detect")
    except ValueError as error:
        print(f"its weights are what runs begin with: {error}", file=sys.stderr)
        return checkpoint
    return start


def _check_plain(checkpoint: str, opened: YOLO | RTDETR) -> dict[str, str]:
    """Refuse the checkpoint of an ablated training, whose edge a search without its ablations would not find.

    Returns:
        What this package's trainer was told besides Ultralytics' arguments.
    """
    from yolo_gradstudy.trainer import ULTRALYTICS_CLIP_NORM, settings_of

    told = settings_of(opened.model)
    names = [*told.get("ablations", ()), *([f"clip={told['clip']}"] if told.get("clip") else [])]
    clip_norm = told.get("clip_norm", ULTRALYTICS_CLIP_NORM)
    if not names and clip_norm != ULTRALYTICS_CLIP_NORM:
        names = [f"clip_norm={clip_norm}"]
    if names:
        raise ValueError(
            f"{checkpoint} was trained with {', '.join(names)}, which a search from a checkpoint does not repeat; "
            "`gradstudy limit STUDY` does, of a study with such an arm."
        )
    return {"precision": told["precision"]} if told.get("precision") else {}


def changes_of(study: Study) -> dict[str, SetRow]:
    """What each arm's ablations change in the study's model; nothing for weights that are still to be downloaded.

    Raises:
        ValueError: An arm's ablations can't be applied to the model.
    """
    from yolo_gradstudy.ablations import describe_sets

    if to_download(study.model):
        return {}
    return describe_sets(study.model, {name: arm.ablations for name, arm in study.arms.items()})


def to_download(model: str) -> bool:
    """Whether a model that passed its check is weights that are not on this machine yet."""
    return not model.endswith((".yaml", ".yml")) and not Path(model).is_file()
