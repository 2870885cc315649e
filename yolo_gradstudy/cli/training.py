# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command that trains one model."""

from __future__ import annotations

import math
import sys
from typing import Annotated

import typer

from yolo_gradstudy.cli.judging import print_diagnosis
from yolo_gradstudy.cli.options import Pairs
from yolo_gradstudy.cli.words import errors
from yolo_gradstudy.plan import COMMAND_LINE, check_lr0, parse_overrides


def train(
    pairs: Pairs = None,
    ablate: Annotated[list[str] | None, typer.Option(help="An ablation; may be given several times.")] = None,
    clip: Annotated[str, typer.Option(help="Global gradient norm to clip at, or off.")] = "10",
    every: Annotated[int, typer.Option(help="Record each so many optimizer steps.")] = 1,
) -> None:
    """Train one model with the recording trainer, as `yolo train` does, and judge the run."""
    with errors():
        from yolo_gradstudy.arguments import OWN_ARGUMENTS, check_device, check_model, check_words, load_model
        from yolo_gradstudy.datasets import resolve_dataset
        from yolo_gradstudy.diagnoses import diagnose
        from yolo_gradstudy.records import RecordConfig
        from yolo_gradstudy.run_folder import load_run
        from yolo_gradstudy.trainer import gradstudy_trainer

        arguments = parse_overrides(pairs or [])
        model = str(arguments.pop("model", "yolo26n.yaml"))
        if "lr0" in arguments:
            check_rate(arguments["lr0"])
        check_words(arguments)
        clip_norm = None if clip.lower() in {"off", "none"} else _positive(clip, "--clip", "10 or off")
        check_device(_device_word(arguments.get("device")))
        yolo = check_model(model)
        classifies = yolo is not None and yolo.task == "classify"  # a folder of folders, without a data YAML
        if "data" in arguments and not classifies:
            arguments["data"] = str(resolve_dataset(str(arguments["data"])))
        own = {key: arguments.pop(key) for key in OWN_ARGUMENTS if key in arguments}
        yolo = yolo or load_model(model)
        trainer = gradstudy_trainer(yolo.task_map[yolo.task]["trainer"]).using(
            record=RecordConfig(every=every), ablations=ablate or (), clip_norm=clip_norm, **own
        )
        try:
            yolo.train(trainer=trainer, **arguments)
        except RuntimeError as error:  # Ultralytics' recovery gave up, memory ran out: the run is still judged
            print(f"training ended: {error}", file=sys.stderr)
        run = load_run(yolo.trainer.save_dir)
    print_diagnosis(str(run.path), diagnose(run))


def _device_word(device: object) -> str:
    """A training argument ``device`` as text: YAML makes a number of ``device=0``."""
    if isinstance(device, list | tuple):
        return ",".join(map(str, device))
    return "" if device is None else str(device)


def check_rate(value: object) -> None:
    """Refuse a learning rate as a study does."""
    try:
        check_lr0(value)
    except ValueError as error:
        raise ValueError(f"{COMMAND_LINE}, lr0: {error}.") from None


def _positive(text: str, option: str, valid: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a number; the nearest valid is {valid}.") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{option} {text} is not a finite number above 0; the nearest valid is {valid}.")
    return number
