# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a person may ask of Ultralytics: its arguments, models and devices, refused in one sentence before it trains."""

from __future__ import annotations

import difflib
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ultralytics import RTDETR, YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg

PRECISIONS: dict[str, bool | str] = {"fp32": False, "bf16": "bf16", "fp16": True}
"""Values of ``precision`` and Ultralytics' ``amp`` for each."""

ON_UNHEALTHY = ("continue", "stop", "recover")
"""Values of ``on_unhealthy``: what a trainer does about a run that is certainly lost."""

OWN_ARGUMENTS: dict[str, Any] = {"precision": None, "on_unhealthy": "continue"}
"""What a study may set among its training arguments that is not Ultralytics', with the defaults."""


def known_arguments() -> dict[str, Any]:
    """Ultralytics' training arguments and this package's own, with their defaults."""
    return {**DEFAULT_CFG_DICT, **OWN_ARGUMENTS}


def check_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """What Ultralytics refuses of some arguments' values, a sentence each."""
    problems = []
    for key, value in arguments.items():
        if key == "precision" and value is not None and value not in PRECISIONS:
            problems.append(no_precision(value))
        if key == "on_unhealthy" and value not in ON_UNHEALTHY:
            problems.append(no_choice(key, value, ON_UNHEALTHY))
        if key == "imgsz" and not _is_size(value):
            problems.append(f"'imgsz={value}' is not a whole number or a list of them; the default is 640.")
        if key not in DEFAULT_CFG_DICT:
            continue
        try:
            get_cfg(overrides={key: value})
        except (TypeError, ValueError, AssertionError, SyntaxError) as error:
            problems.append(" ".join(str(error).split()))
    return problems


def _is_size(value: object) -> bool:
    """Whether Ultralytics can take a value as an image size, which it looks at only when it trains."""
    if isinstance(value, list):
        return bool(value) and all(_is_size(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def no_precision(value: object) -> str:
    """The sentence that refuses a precision."""
    return no_choice("precision", value, list(PRECISIONS))


def no_choice(key: str, value: object, choices: Sequence[str]) -> str:
    """The sentence that refuses a value of an argument that has a few."""
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
    return f"'{key}={value}' is none of {', '.join(choices)}; the nearest valid is {near!r}."


def check_model(model: str, task: str | None = None) -> YOLO | RTDETR | None:
    """Refuse a model that is nowhere, that can't be built, or that is for another task. Nothing is downloaded.

    Args:
        model: A model name or path, as Ultralytics takes it.
        task: The task that it has to be for; any where None.

    Returns:
        The model, or None where it is weights that are still to be downloaded.

    Raises:
        ValueError: Neither a file, nor a configuration that Ultralytics ships, nor weights that it offers; weights to
            be downloaded without a network; nothing that Ultralytics can open; another task.
    """
    from ultralytics.utils.checks import check_model_file_from_stem
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    path = Path(check_model_file_from_stem(str(model)))
    is_yaml = path.suffix in {".yaml", ".yml"}
    if path.is_file() or (is_yaml and path.name in configuration_names()):
        opened = load_model(model)
        _check_task(model, opened.task, task)
        return opened
    if is_yaml:
        raise ValueError(
            f"model {model!r} is neither a file nor a configuration of Ultralytics"
            f"{_nearest(path.name, configuration_names())}."
        )
    if path.suffix == ".pt" and path.name in GITHUB_ASSETS_NAMES:
        if reason := _why_offline():
            raise ValueError(
                f"model {model!r} is not on this machine and {reason}; "
                f"the nearest that needs no download is {_configuration(path.stem + '.yaml')!r}."
            )
        _check_task(model, _task_of_weights(path), task)
        return None
    known = [*configuration_names(), *GITHUB_ASSETS_NAMES]
    raise ValueError(f"model {model!r} is neither a file nor a model of Ultralytics{_nearest(path.name, known)}.")


def _why_offline() -> str:
    """Why nothing can be downloaded, to put into a sentence; empty where something can."""
    from ultralytics.utils import is_online

    if os.environ.get("YOLO_OFFLINE", "").lower() in {"1", "true", "yes"}:
        return "YOLO_OFFLINE is set"
    return "" if is_online() else "there is no network to download it"


def _task_of_weights(path: Path) -> str | None:
    """The task of weights that Ultralytics offers, as the configuration of the same name has it; None without one."""
    from ultralytics.nn.tasks import guess_model_task, yaml_model_load

    if f"{path.stem}.yaml" not in configuration_names():
        return None
    task: str = guess_model_task(yaml_model_load(f"{path.stem}.yaml"))
    return task


def _configuration(name: str) -> str:
    """A configuration's name where there is one of it, else that of the smallest detector."""
    return name if name in configuration_names() else "yolo26n.yaml"


def _check_task(model: str, found: str | None, task: str | None) -> None:
    if task is None or found is None or found == task:
        return
    near = _configuration(f"{Path(model).stem.rpartition('-')[0]}.yaml")
    raise ValueError(
        f"model {model!r} is for the task {found!r}, but a study needs one for {task!r}; the nearest is {near!r}."
    )


def load_model(model: str) -> YOLO | RTDETR:
    """The model as Ultralytics opens it, downloaded where it has to be.

    Raises:
        ValueError: Whatever goes wrong, in one sentence: text in place of weights, a configuration without layers, a
            download that fails, an export, which can't be trained.
    """
    try:
        opened = open_model(model)
    except Exception as error:  # Ultralytics and torch raise whatever a file leads them to
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = f"{type(error).__name__}{': ' + lines[0].rstrip('.') if lines else ''}"
        near = _configuration(f"{Path(model).stem}.yaml") if Path(model).suffix == ".pt" else "yolo26n.yaml"
        raise ValueError(f"model {model!r} can't be opened ({told}); the nearest that can is {near!r}.") from error
    if not isinstance(opened.model, torch.nn.Module):
        raise ValueError(f"model {model!r} is an export, which can't be trained; a .pt or .yaml file can.")
    return opened


def training_of(opened: YOLO | RTDETR | None) -> dict[str, Any] | None:
    """All arguments of the training that left a checkpoint, as it went: with the optimizer that ``auto`` chose.

    Args:
        opened: As :func:`check_model` returns it.

    Returns:
        None for a model that nobody here trained: a configuration, or weights that Ultralytics offers.
    """
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    checkpoint = getattr(opened, "ckpt", None)
    if not isinstance(checkpoint, dict) or Path(str(getattr(opened, "ckpt_path", ""))).name in GITHUB_ASSETS_NAMES:
        return None
    told = checkpoint.get("train_args")
    return {**known_arguments(), **told} if isinstance(told, dict) and told.get("model") else None


def open_model(model: str) -> YOLO | RTDETR:
    """The model as Ultralytics opens it: an RT-DETR's configuration has a class of its own.

    Args:
        model: A model name or path that :func:`check_model` accepts.
    """
    from ultralytics.nn.tasks import yaml_model_load
    from ultralytics.utils.checks import check_model_file_from_stem

    path = Path(check_model_file_from_stem(str(model)))
    if path.suffix not in {".yaml", ".yml"}:
        return YOLO(model)
    head = yaml_model_load(path)["head"][-1][2]
    return RTDETR(model) if head == "RTDETRDecoder" else YOLO(model)


@cache
def configuration_names() -> tuple[str, ...]:
    """Names of the model configurations that Ultralytics ships, with their scales (``yolo26n.yaml``)."""
    from ultralytics.utils import ROOT, YAML

    names = []
    for path in sorted((ROOT / "cfg" / "models").rglob("*.yaml")):
        names.append(path.name)
        scales = YAML.load(path).get("scales") or {}
        family, _, rest = path.stem.partition("-")
        names += [f"{family}{scale}{'-' + rest if rest else ''}.yaml" for scale in scales if family[-1:].isdigit()]
    return tuple(names)


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: An unknown name, or an accelerator that torch does not see.
    """
    name = str(device).strip().lower()
    if name in {"", "cpu"}:
        return
    if name == "mps":
        if torch.backends.mps.is_available():
            return
        raise ValueError("device 'mps' is not there; the nearest that is: cpu.")
    wanted = [part.strip().removeprefix("cuda:") for part in name.split(",")]
    count = torch.cuda.device_count()
    there = ", ".join(map(str, range(count))) if count else "cpu"
    for part in wanted:
        if not part.isdigit():
            raise ValueError(f"device {device!r} is not a device; this machine has {there}.")
        if int(part) >= count:
            raise ValueError(
                f"device {device!r} is not there: torch sees {count} CUDA devices; this machine has {there}."
            )


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; the nearest is {close[0]!r}" if close else ""


def check_words(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that Ultralytics does not know, and values that it does not take.

    Raises:
        ValueError: The first of them, with the nearest valid one.
    """
    for key in arguments:
        if key not in known_arguments():
            raise ValueError(f"{key!r} is not an Ultralytics argument{_nearest(key, list(known_arguments()))}.")
    for problem in check_arguments(arguments):
        raise ValueError(problem)


def visible_gpus() -> int:
    """Number of CUDA devices that torch sees."""
    return torch.cuda.device_count()


def seconds_per_step(model: str, arguments: Mapping[str, Any], steps: int = 3) -> float:
    """Seconds of one forward and backward pass on one CPU thread, measured now on random images.

    Args:
        model: An Ultralytics detection model.
        arguments: Training arguments; ``batch`` and ``imgsz`` count.
        steps: Passes that are timed, after one that is not; the median counts.
    """
    batch, size = int(arguments.get("batch", 16)), arguments.get("imgsz", 640)
    size = max(size) if isinstance(size, list) else size  # as Ultralytics trains
    size = max(32, int(size) // 32 * 32)
    built: Any = open_model(model).model
    built.args = get_cfg()
    built.train()
    for parameter in built.parameters():
        parameter.requires_grad_(True)
    targets = {
        "img": torch.rand(batch, 3, size, size),
        "cls": torch.zeros(batch, 1),
        "bboxes": torch.full((batch, 4), 0.5),
        "batch_idx": torch.arange(batch, dtype=torch.float32),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            built(targets)[0].sum().backward()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[1:])
