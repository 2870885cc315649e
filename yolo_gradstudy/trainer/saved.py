# SPDX-License-Identifier: AGPL-3.0-or-later
"""A fatal step on disk: weights and batches, to be replayed later, by another process.

A file of tensors and plain data that ``torch.load(weights_only=True)`` reads, which makes no other object. Hooks can't
be saved: what a hook did is not reproduced later, and the replay says so.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import ultralytics.nn.tasks
from torch import Tensor, nn
from ultralytics.utils import IterableSimpleNamespace

from yolo_gradstudy.ablations import Builtin, apply_ablations
from yolo_gradstudy.run_folder import INCIDENTS, IncidentsFolder, replacing
from yolo_gradstudy.statistics import tensor_norms
from yolo_gradstudy.trainer.forensics import BatchInputs, RandomStates, StepInputs, parameters_by_name
from yolo_gradstudy.trainer.replay import Rerun, alike_norms, explain, merge_usual
from yolo_gradstudy.trainer.switches import without_normaliser

SNAPSHOT = "snapshot.pt"
"""Name of the file in an incident's folder."""

SCHEMA = 1


def save_step(
    path: Path,
    trainer: Any,
    weights: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    steps: Sequence[StepInputs],
    norms: Mapping[str, float],
    scale: float,
) -> None:
    """Write a fatal step.

    Args:
        path: The file.
        trainer: The trainer, which preprocesses the batches; its generators are drawn from.
        weights: Parameters and buffers at the step.
        before: Earlier ones, of a time when all was well.
        steps: Steps to compare with, then the fatal one.
        norms: Gradient norms of the fatal step by parameter.
        scale: Factor on the loss.
    """
    model = trainer.model
    given = getattr(model, "class_weights", None)
    setup = {
        "class": type(model).__name__,
        "yaml": model.yaml,
        "nc": getattr(model, "nc", None),
        "names": {str(key): name for key, name in model.names.items()},
        "args": vars(trainer.args),
        "ablations": list(trainer._active.ablations),
        "summed_loss": Builtin.TARGET_SCORE_NORMALISER in trainer._switches,
        "amp": str(trainer.amp).removeprefix("torch."),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "evaluating": [name for name, module in model.named_modules() if not module.training],
    }
    content = {
        "schema": SCHEMA,
        "setup": json.dumps(setup, default=str),
        "weights": _on_cpu(weights),
        "before": _on_cpu(before),
        "class_weights": _on_cpu({"class_weights": given}) if isinstance(given, Tensor) else {},
        "steps": [_saved(trainer, inputs) for inputs in steps],
        "norms": dict(norms),
        "scale": scale,
    }
    with replacing(path) as file:
        torch.save(content, file)


def _saved(trainer: Any, inputs: StepInputs) -> dict[str, Any]:
    batches = []
    for batch in inputs.batches:
        batch.states.restore(trainer.device)
        ready = trainer.preprocess_batch(dict(batch.raw))
        plain = {key: _plain(value) for key, value in ready.items()}
        batches.append({"batch": {k: v for k, v in plain.items() if v is not None}, "states": torch.get_rng_state()})
    return {"step": inputs.step, "criterion": dict(inputs.criterion), "batches": batches}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return None if any(item is None for item in items) else items
    return value if isinstance(value, (str, int, float, bool)) else None


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def replay_saved(path: Path) -> dict[str, Any]:
    """Replay a saved step, on a CPU.

    Args:
        path: The file that :func:`save_step` wrote.

    Returns:
        Facts for the incident, as a replay during training gives.

    Raises:
        ValueError: The file was written by a newer version, or can't be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torn, or no such file: torch raises many kinds
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())[:200]}") from error
    if content.get("schema", 0) > SCHEMA:
        raise ValueError(f"{path} has schema {content['schema']}, this version reads up to {SCHEMA}: upgrade it.")
    started = time.perf_counter()
    setup = json.loads(content["setup"])
    trainer = _Stage(_rebuilt(setup, content), setup)
    steps = [_loaded(step) for step in content["steps"]]
    states = RandomStates.taken(trainer.device)
    try:
        rerun = Rerun(trainer)
        usual: dict[Any, float] = {}
        if content["before"]:
            rerun.load(content["before"])
            for inputs in steps[:-1]:
                merge_usual(usual, rerun.step(inputs, content["scale"]))
        rerun.load(content["weights"])
        passes = rerun.step(steps[-1], content["scale"])
    finally:
        states.restore(trainer.device)
    ours = {n: p.grad / content["scale"] for n, p in parameters_by_name(rerun.model) if p.grad is not None}
    norms = content["norms"]
    alike = set(ours) == set(norms) and alike_norms(
        tensor_norms(list(ours.values())).tolist(), [norms[name] for name in ours]
    )
    facts = explain(passes, usual, rerun.model, content["before"], alike)
    facts["replay"] |= {"steps": 1, "references": len(steps) - 1, "later": True}
    facts["replay"]["duration_s"] = round(time.perf_counter() - started, 3)
    return facts


def replay_incidents(run: Path) -> list[int]:
    """Replay the incidents of a run whose step was saved, and write what that tells into them.

    Args:
        run: A run's folder, or an Ultralytics ``save_dir``.

    Returns:
        Numbers of the incidents that were replayed.

    Raises:
        ValueError: No step was saved, or one can't be read.
    """
    incidents = IncidentsFolder(run / INCIDENTS)
    saved = [number for number in incidents.numbers() if (incidents.folder(number) / SNAPSHOT).is_file()]
    if not saved:
        raise ValueError(
            f"{run} has {len(incidents.numbers())} incidents and no {SNAPSHOT}, so there is nothing to replay; "
            "train with forensics=ForensicsConfig(save=True)."
        )
    for number in saved:
        incidents.amend(number, replay_saved(incidents.folder(number) / SNAPSHOT))
    return saved


class _Stage:
    """What a replay asks of a trainer."""

    def __init__(self, model: nn.Module, setup: Mapping[str, Any]) -> None:
        self.model = model
        self.device = torch.device("cpu")
        self.args = SimpleNamespace(amp=setup["args"].get("amp"))
        self.amp: Any = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(setup["amp"], setup["amp"] == "True")

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Saved batches are preprocessed."""
        return batch


def _rebuilt(setup: Mapping[str, Any], content: Mapping[str, Any]) -> nn.Module:
    kind = getattr(ultralytics.nn.tasks, setup["class"])
    keys = {"nc": setup["nc"]} if setup["nc"] is not None else {}
    model: Any = kind(setup["yaml"], ch=setup["yaml"].get("channels", 3), verbose=False, **keys)
    apply_ablations(model, setup["ablations"], seed=setup["args"].get("seed", 0))
    model.args = IterableSimpleNamespace(**setup["args"])
    model.names = {int(key): name for key, name in setup["names"].items()}
    for name, tensor in content["class_weights"].items():
        setattr(model, name, tensor)
    model.criterion = model.init_criterion()
    if setup["summed_loss"]:
        model.criterion = without_normaliser(model.criterion)
    model.train()
    for name in setup["evaluating"]:
        model.get_submodule(name).training = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in setup["frozen"])
    return model  # type: ignore[no-any-return]


def _loaded(step: Mapping[str, Any]) -> StepInputs:
    batches = [
        BatchInputs(b["batch"], RandomStates(b["states"], None, random.getstate(), np.random.get_state()), None)
        for b in step["batches"]
    ]
    return StepInputs(step["step"], batches, [], dict(step["criterion"]))


__all__ = ["SNAPSHOT", "replay_saved", "save_step"]
