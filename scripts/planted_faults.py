# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plants faults in small trainings and asks whether step and module are named: a Markdown table and a CSV file.

    python scripts/planted_faults.py                     # 60 plants over three models
    python scripts/planted_faults.py --plants 12 --out /tmp/faults.csv

A plant is NaN or infinity in one element, or a factor of 1e6 on the whole tensor, in a random layer's weight,
activation (its output) or gradient (that with respect to its output) at a random step. Weights are spoiled by a
callback between two steps, activations and gradients by a forward hook that counts its own calls; none of it is known
to the trainer. A plant that changes no number (a factor on zeros) is drawn anew. Trainings without a fault count false
incidents.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")  # read by Ultralytics when it is imported

import pandas as pd
import torch
from torch import Tensor, nn
from ultralytics import YOLO

from yolo_gradstudy import GradStudyTrainer, load_run

MODELS = ("yolo26n.yaml", "yolov8n.yaml", "yolo11n.yaml")
PLACES = ("weight", "activation", "gradient")
FAULTS = {"nan": math.nan, "inf": math.inf, "1e6": 1e6}
STEPS, FIRST = 12, 4
"""Steps of a training, and the first that may get a fault: before, there is nothing to compare a factor with."""

ARGUMENTS: dict[str, Any] = {
    **{"epochs": 1, "imgsz": 64, "batch": 4, "nbs": 4, "optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 0.0},
    **{"device": "cpu", "workers": 0, "pretrained": False, "val": False, "plots": False, "exist_ok": True},
}


@dataclass
class Plant:
    """A fault in one training.

    Attributes:
        model: An Ultralytics model name.
        place: One of ``PLACES``.
        fault: One of ``FAULTS``.
        step: The optimizer step that it acts in.
        seed: Draws the module, and seeds the training.
        module: Where it acts; known once the model exists.
        changed: Whether it changed a number.
    """

    model: str
    place: str
    fault: str
    step: int
    seed: int
    module: str = ""
    changed: bool = False
    calls: int = field(default=0, repr=False)

    def spoil(self, tensor: Tensor) -> Tensor:
        """A spoiled copy."""
        value = FAULTS[self.fault]
        spoiled = tensor * value if math.isfinite(value) else tensor.clone()
        if not math.isfinite(value):
            spoiled.view(-1)[spoiled.numel() // 2] = value
        self.changed = not torch.equal(spoiled, tensor)
        return spoiled

    def begin(self, trainer: Any) -> None:
        """Choose the module, and hook it."""
        named = eligible(trainer.model, self.place)
        self.module = random.Random(self.seed).choice(sorted(named))
        if self.place != "weight":
            named[self.module].register_forward_hook(Spoiler(self))

    def begin_batch(self, trainer: Any) -> None:
        """Spoil a weight before the step's forward pass."""
        self.calls += 1
        if self.place == "weight" and self.calls == self.step:
            weight = trainer.model.get_submodule(self.module).weight
            with torch.no_grad():
                weight.copy_(self.spoil(weight.detach().contiguous()))

    def end_batch(self, trainer: Any) -> None:
        """End the training soon after the fault."""
        trainer.stop = self.calls > self.step


class Spoiler:
    """A forward hook that spoils the output, or the gradient that comes back to it, at one of its calls."""

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._calls = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Act where it is time."""
        self._calls += 1
        calls_a_step = 3 if self._plant.module.endswith(".m") and isinstance(module, nn.MaxPool2d) else 1  # SPPF
        if self._calls != (self._plant.step - 1) * calls_a_step + 1:
            return None
        if self._plant.place == "activation":
            return self._plant.spoil(output)
        output.register_hook(self._plant.spoil)
        return None


def eligible(model: nn.Module, place: str) -> dict[str, nn.Module]:
    """Layers that a training step runs: leaves that stand in one place, and the model's numbered layers."""
    named = dict(model.named_modules(remove_duplicate=False))
    once = {n: m for n, m in named.items() if sum(m is other for other in named.values()) == 1 and ".dfl" not in n}
    if place == "weight":
        return {n: m for n, m in once.items() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d))}
    last = f"model.{len(model.model) - 1}"
    numbered = {n for n in once if n.startswith("model.") and n.count(".") == 1 and n != last}
    leaves = {n for n, m in once.items() if not any(True for _ in m.children())}
    return {n: once[n] for n in sorted(numbered | leaves)}


def draw(count: int, models: Sequence[str] = MODELS, seed: int = 0) -> list[Plant]:
    """Plants, every combination of model, place and fault as often as the count allows."""
    rng = random.Random(seed)
    kinds = [(m, p, f) for p in PLACES for f in FAULTS for m in models]
    plants = []
    for i in range(count):
        model, place, fault = kinds[i % len(kinds)]
        plants.append(Plant(model, place, fault, rng.randint(FIRST, STEPS - 1), rng.randrange(10**6)))
    return plants


def train(plant: Plant | None, model: str, data: str, folder: Path, seed: int, trainer: Any = GradStudyTrainer) -> Any:
    """Train with a plant, or without one; the recorded run."""
    yolo = YOLO(model)
    if plant is not None:
        yolo.add_callback("on_train_start", plant.begin)
        yolo.add_callback("on_train_batch_start", plant.begin_batch)
        yolo.add_callback("on_train_batch_end", plant.end_batch)
    place = {"project": str(folder.parent), "name": folder.name, "data": data, "seed": seed}
    yolo.train(trainer=trainer, **ARGUMENTS, **place)
    return load_run(folder)


def judge(plant: Plant, data: str, folder: Path, trainer: Any = GradStudyTrainer) -> dict[str, Any]:
    """Train with a plant, drawn anew until it changes a number, and compare what the first incident says."""
    for _ in range(20):
        started = time.perf_counter()
        run = train(plant, plant.model, data, folder, plant.seed, trainer)
        if plant.changed:
            break
        plant = Plant(plant.model, plant.place, plant.fault, plant.step, plant.seed + 1)
    first = run.incidents[0] if run.incidents else {"step": None, "cause": {}}
    cause = first["cause"]
    what = {"activation": "output"}.get(plant.place, plant.place)
    return {
        **{k: v for k, v in asdict(plant).items() if k not in ("calls", "changed")},
        "seen_step": first["step"],
        "seen_module": cause.get("module"),
        "seen_what": cause.get("what"),
        "found_by": cause.get("found_by"),
        "certainty": cause.get("certainty"),
        "step_exact": first["step"] == plant.step,
        "module_exact": first["step"] == plant.step and cause.get("module") == plant.module,
        "what_exact": cause.get("what") == what,
        "duration_s": round(time.perf_counter() - started, 2),
    }


def table(results: pd.DataFrame) -> str:
    """Markdown: a line a place and fault."""
    lines = ["| place | fault | plants | step exact | module exact | kind exact |", "|---|---|---|---|---|---|"]
    for (place, fault), group in results.groupby(["place", "fault"], sort=False):
        counts = [int(group[c].sum()) for c in ("step_exact", "module_exact", "what_exact")]
        lines.append(f"| {place} | {fault} | {len(group)} | {' | '.join(map(str, counts))} |")
    counts = [int(results[c].sum()) for c in ("step_exact", "module_exact", "what_exact")]
    lines.append(f"| all | | {len(results)} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Plant, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plants", type=int, default=60)
    parser.add_argument("--healthy", type=int, default=6, help="trainings without a fault")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--data", default="shapes", help="an Ultralytics data YAML, or a data set's name")
    parser.add_argument("--out", type=Path, default=Path("results/planted-faults.csv"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    from yolo_gradstudy.datasets import resolve_dataset

    data = str(resolve_dataset(options.data))
    ARGUMENTS["fraction"] = 4 * STEPS / 256 if options.data == "shapes" else 1.0
    rows, false = [], 0
    with tempfile.TemporaryDirectory(prefix="gradstudy-faults-") as place:
        for i, plant in enumerate(draw(options.plants, seed=options.seed), 1):
            row = judge(plant, data, Path(place) / f"plant-{i}")
            rows.append({"plant": i, **row})
            print(
                f"[{i}/{options.plants}] {row['model']} {row['place']} {row['fault']} at step {row['step']} in "
                f"{row['module']}: step {row['seen_step']}, {row['seen_what']} of {row['seen_module']} "
                f"({row['found_by']}, {row['certainty']})" + ("" if row["module_exact"] else "  <-- missed"),
                file=sys.stderr,
                flush=True,
            )
        for i in range(options.healthy):
            run = train(None, MODELS[i % len(MODELS)], data, Path(place) / f"healthy-{i}", options.seed + i)
            false += len(run.incidents)
            for incident in run.incidents:
                print("false:", MODELS[i % len(MODELS)], incident["step"], incident["seen"][:3], file=sys.stderr)
    results = pd.DataFrame(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results.drop(columns="duration_s").to_csv(options.out, index=False, lineterminator="\n")
    print(table(results))
    print(f"\n{false} incidents in {options.healthy} trainings of {STEPS} steps without a fault.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
