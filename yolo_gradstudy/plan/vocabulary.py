# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a study may name: the ablations, training arguments and optimizers that exist, and the arguments it owns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OWNED_ARGUMENTS: Mapping[str, str] = {
    "lr0": "the learning rates stand in the study's own list `lr0`",
    "seed": "the seeds stand in the study's own list `seeds`",
    "model": "the model stands in the study's own key `model`",
    "data": "the data set stands in the study's own key `data`",
    "device": "the device is chosen where the study is run, with `gradstudy run --device`",
    "workers": "a study loads data the same way in every run, so that arms see the same batches",
    "project": "the folder is chosen where the study is run, with `gradstudy run --out`",
    "name": "every run's folder is named after its run id; the study's name is its own key `name`",
    "save_dir": "the folder is chosen where the study is run, with `gradstudy run --out`",
    "exist_ok": "a study started again in its folder goes on where it ended",
    "resume": "a study started again in its folder goes on where it ended",
    "mode": "a study always trains",
    "task": "the model decides the task",
    "cfg": "a study holds all its arguments itself; write them under `arguments`",
    "time": "the clock must not decide how long a run trains; set `epochs`",
}
"""Training arguments that a study sets itself, each with the place where a person sets it instead."""


@dataclass(frozen=True)
class Vocabulary:
    """What a study may name; handed in by a caller that knows Ultralytics and the table of ablations.

    Attributes:
        ablations: Names of the ablations.
        arguments: Names of Ultralytics' training arguments with their defaults.
        check_arguments: Ultralytics' own checks of values: a sentence for each that it refuses.
        check_ablations: Raises ValueError for ablations that can't stand together, or that find among the arguments
            what they set; takes the names and an arm's arguments.
        optimizers: Names that the argument ``optimizer`` takes; compared without regard to case.
    """

    ablations: tuple[str, ...]
    arguments: Mapping[str, Any]
    check_arguments: Callable[[Mapping[str, Any]], list[str]] = lambda arguments: []
    check_ablations: Callable[[Sequence[str], Mapping[str, Any]], None] = lambda ablations, arguments: None
    optimizers: tuple[str, ...] = ("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop")
