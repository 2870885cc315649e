# SPDX-License-Identifier: AGPL-3.0-or-later
"""A training of one's own → the study of its first epochs, which a search for its largest stable rate repeats.

Training breaks at the rates that it has just after warm-up or not at all, as a rule; its last epochs, at rates a
hundred times smaller, cost most and tell least. So only the beginning is repeated, with the learning rate that each of
its epochs had.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolo_gradstudy.plan.document import COMMAND_LINE, Document
from yolo_gradstudy.plan.loading import checked
from yolo_gradstudy.plan.sentences import StudyError
from yolo_gradstudy.plan.study import CONTROL, Study
from yolo_gradstudy.plan.vocabulary import OWNED_ARGUMENTS, Vocabulary

_EPOCHS_AFTER_WARMUP = 2
_MUSGD_FROM = 10_000
_SETTLED: Mapping[str, Any] = {"val": False, "plots": False, "patience": 0, "save_period": -1}
"""What a short run does without; none of it changes a gradient."""


@dataclass(frozen=True)
class OwnTraining:
    """A training that somebody did or plans, as its arguments say.

    Attributes:
        source: What tells of it: a checkpoint, or the name of a model.
        start: The model that it began with.
        arguments: All of Ultralytics' arguments, defaults included.
    """

    source: str
    start: str
    arguments: Mapping[str, Any]


def study_of_beginning(
    training: OwnTraining, data: str, images: int, classes: int, vocabulary: Vocabulary, overrides: Mapping[str, Any]
) -> Study:
    """The study whose one arm repeats the first epochs of a training.

    The rate at an epoch is the training's own: a linear schedule is repeated exactly, a cosine by the line to the value
    that it has at the end. Mosaic stays on where the training had it on for longer. What Ultralytics ties to the share
    of epochs done goes faster in fewer: YOLO26's one-to-many branch hands its weight over within them.

    Args:
        training: The training.
        data: The data set, as :attr:`Study.data`.
        images: Its training images.
        classes: Its classes; with ``images`` they decide what ``optimizer=auto`` stands for.
        vocabulary: What arguments there are.
        overrides: As :func:`load_study` takes them; ``epochs`` are those that are repeated.

    Raises:
        StudyError: An argument is not one of a study's.
    """
    refused = vocabulary.check_arguments({k: v for k, v in overrides.items() if k in vocabulary.arguments})
    if not refused and "lr0" in overrides and str(({**training.arguments, **overrides})["optimizer"]).lower() == "auto":
        refused = [f"{COMMAND_LINE}, lr0: optimizer=auto chooses its own; give an optimizer too, or leave lr0 out."]
    if refused:
        raise StudyError(refused)
    changed = {key: value for key, value in overrides.items() if key not in (*OWNED_ARGUMENTS, "seeds", "limit")}
    arguments = {**training.arguments, **{key: value for key, value in changed.items() if key != "epochs"}}
    arguments |= {key: overrides[key] for key in ("lr0",) if isinstance(overrides.get(key), int | float)}
    arguments |= automatic(arguments, images, classes)
    arguments |= beginning(arguments, changed.get("epochs"))
    kept = {
        key: value
        for key, value in arguments.items()
        if key not in OWNED_ARGUMENTS and key in vocabulary.arguments and value != vocabulary.arguments[key]
    }
    raw = {
        "name": _name(training.source),
        "description": f"The beginning of the training that {training.source} tells of.",
        "model": training.start,
        "data": data,
        "arguments": {**kept, "optimizer": arguments["optimizer"], "epochs": arguments["epochs"], **_SETTLED},
        "lr0": [arguments["lr0"]],
        "seeds": [arguments["seed"]],
        "record": {"every": 1},
        "arms": {CONTROL: {}},
    }
    left = {key: value for key, value in overrides.items() if key not in ("epochs", "model", "data")}
    return checked(raw, Document(training.source), vocabulary, left)


def automatic(arguments: Mapping[str, Any], images: int, classes: int) -> dict[str, Any]:
    """What ``optimizer=auto`` stands for, as ``BaseTrainer.build_optimizer`` of Ultralytics 8.4 has it.

    It gives Adam's first moment 0.9, whatever ``momentum`` says, which a checkpoint does not tell: it holds the
    optimizer and rate that were chosen, and a ``warmup_bias_lr`` of 0.

    Args:
        arguments: Of the training.
        images: Training images.
        classes: Classes.

    Returns:
        The arguments that change; none where the optimizer was chosen by a person.
    """
    if str(arguments["optimizer"]).lower() != "auto":
        by_itself = arguments["optimizer"] == "AdamW" and arguments["warmup_bias_lr"] == 0
        return {"momentum": 0.9} if by_itself else {}
    steps = math.ceil(images / max(arguments["batch"], arguments["nbs"])) * arguments["epochs"]
    if steps > _MUSGD_FROM:
        return {"optimizer": "MuSGD", "lr0": 0.01, "warmup_bias_lr": 0.0}  # warm-up sets its momentum each batch
    return {"optimizer": "AdamW", "lr0": round(0.002 * 5 / (4 + classes), 6), "momentum": 0.9, "warmup_bias_lr": 0.0}


def beginning(arguments: Mapping[str, Any], epochs: int | None = None) -> dict[str, Any]:
    """The arguments of a training's first epochs.

    Args:
        arguments: Of the whole training.
        epochs: How many; two more than warm-up takes where None. Never more than the training has.

    Returns:
        The arguments that change.
    """
    whole = int(arguments["epochs"])
    first = math.ceil(arguments["warmup_epochs"]) + _EPOCHS_AFTER_WARMUP if epochs is None else epochs
    if not isinstance(first, int) or first >= whole or first < 1:
        return {} if epochs is None else {"epochs": epochs}  # what is no number of epochs is refused with the rest
    done = first / whole
    fallen = (1 - math.cos(math.pi * done)) / 2 if arguments["cos_lr"] else done
    mosaic = whole - int(arguments["close_mosaic"]) if arguments["close_mosaic"] else whole
    return {
        "epochs": first,
        "lrf": 1 - fallen * (1 - arguments["lrf"]),
        "cos_lr": False,
        "close_mosaic": 0 if mosaic >= first else first - max(mosaic, 0),
    }


def _name(source: str) -> str:
    """A name for a study of what ``runs/detect/train7/weights/last.pt``, or a model's name, tells of."""
    parts = re.split(r"[\\/]", source)
    word = parts[-3] if len(parts) > 2 and parts[-2] == "weights" else parts[-1].rpartition(".")[0] or parts[-1]
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", word)[:79]
    return plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"
