# SPDX-License-Identifier: AGPL-3.0-or-later
"""What recording costs: a Markdown table, with the machine it was measured on.

    python scripts/bench_overhead.py                             # optimizer_step, YOLO26n and YOLO26l, one thread
    python scripts/bench_overhead.py --training                  # and whole trainings, each in its own process
    python scripts/bench_overhead.py --peers --write docs/recorder.md --save results/peers.csv    # against other tools
    python scripts/bench_overhead.py --device 0 --models yolo26l.yaml

`optimizer_step` is Ultralytics' own method and GradStudyTrainer's, on trainers that differ in nothing else, with the
same gradients put back before each step, outside the time. The unit is a block of ten steps, so that what is taken
every tenth step is in each of them. Blocks are interleaved (A B C A B C ...), and a ratio is of the blocks that
follow each other. Run it on a machine that does nothing else.

`--peers` measures instead the tools of `overhead/peers.py` (the extra `peers` installs them), on whole training steps.
What isn't installed has a column that says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")  # read by Ultralytics when it is imported

import numpy as np
import torch
from overhead.arms import serve
from overhead.compare import Comparison
from overhead.timing import bootstrap_interval, machine, seconds
from overhead.trainers import BareTrainer, set_up
from readme_tables import put
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import unwrap_model

from yolo_gradstudy import RecordConfig, gradstudy_trainer
from yolo_gradstudy.trainer import assigner_modules

BLOCK = 10
"""Steps of a block: the period of what is sampled."""

IMAGE_SIZE = 128
"""Pixels of a training that is timed: the scale of the studies, where a step takes a third of a second on a CPU."""


# Steps ------------------------------------------------------------------------------------------------


class Stepper:
    """A trainer that steps again and again on the same gradients.

    Args:
        trainer_class: A trainer whose `_setup_train` needs no data.
        model: An Ultralytics model name.
        device: An Ultralytics device.
        folder: Where it writes.
        before: Called with the model inside the time, before the step.
    """

    def __init__(
        self,
        trainer_class: type[Any],
        model: str,
        device: str,
        folder: Path,
        before: Callable[[torch.nn.Module], object] | None = None,
    ) -> None:
        self.trainer = set_up(trainer_class, model, device, folder)
        self._before = before
        self._parameters = [p for p in self.trainer.model.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(0)
        self._source = [0.01 * torch.randn(p.shape, generator=generator).to(p.device) for p in self._parameters]
        self._gradients = [g.clone() for g in self._source]
        criterion = getattr(unwrap_model(self.trainer.model), "criterion", None)
        self._assigners = assigner_modules(criterion) if criterion is not None else {}
        device_ = self.trainer.device
        self._assigner_inputs = (
            *(torch.zeros(1, 8, 80, device=device_), torch.zeros(1, 8, 4, device=device_)),
            *(torch.zeros(8, 2, device=device_), torch.zeros(1, 0, 1, device=device_)),
            *(torch.zeros(1, 0, 4, device=device_), torch.zeros(1, 0, 1, device=device_)),
        )

    def prepare(self) -> None:
        """Put the gradients back, and let a batch pass by those who count it."""
        torch._foreach_copy_(self._gradients, self._source)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self.trainer.preprocess_batch({"img": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)})
        for assigner in self._assigners.values():
            assigner(*self._assigner_inputs)

    def step(self) -> float:
        """Seconds of one step."""
        self.prepare()
        self._wait()
        start = time.perf_counter()
        if self._before is not None:
            self._before(self.trainer.model)
        self.trainer.optimizer_step()
        self._wait()
        return time.perf_counter() - start

    def block(self) -> float:
        """Seconds of a block of steps."""
        return sum(self.step() for _ in range(BLOCK))

    def close(self) -> None:
        """End what the trainer began."""
        self.trainer.run_callbacks("teardown")

    def _wait(self) -> None:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)


# Ratios ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: What was timed.
        ratios: Time over that of the plain one, a pair each.
        total: Sum of the times over the sum of the plain ones'.
        plain_s: Median time of the plain one, seconds a step or a training.
        target: Largest median ratio that passes; None where none is set.
    """

    what: str
    ratios: tuple[float, ...]
    total: float
    plain_s: float
    target: float | None = None

    def markdown(self) -> str:
        """The line."""
        low, high = bootstrap_interval(self.ratios)
        median = float(np.median(self.ratios))
        verdict = "" if self.target is None else f"≤ {self.target} {'pass' if median <= self.target else '**fail**'}"
        return (
            f"| {self.what} | {median:.3f} | {low:.3f} to {high:.3f} | {self.total:.3f} | {len(self.ratios)} "
            f"| {seconds(self.plain_s)} | {verdict} |"
        )


HEADER = (
    "| what | median ratio | 95% interval | ratio of totals | pairs | plain | target |\n|---|---|---|---|---|---|---|"
)


# optimizer_step ----------------------------------------------------------------------------------------

NORMS = RecordConfig(extremes_every=0, parameter_every=0, update_every=0)
UPDATES = RecordConfig(extremes_every=0, parameter_every=1, update_every=BLOCK)
ARMS: tuple[tuple[str, RecordConfig, float | None], ...] = (
    ("gradient norm of every parameter", NORMS, 1.05),
    ("and parameter norms each step, update ratios every 10", UPDATES, 1.15),
    ("RecordConfig() as it is", RecordConfig(), None),
)
PEERS = {
    "Lightning `grad_norm`": ("lightning.pytorch.utilities", "grad_norm"),
}


def bench_steps(model: str, device: str, steps: int) -> list[Row]:
    """Time `optimizer_step` of every arm and of the peers that are installed.

    Args:
        model: An Ultralytics model name.
        device: An Ultralytics device.
        steps: Steps of each arm, in whole blocks.
    """
    blocks = max(steps // BLOCK, 1)
    with tempfile.TemporaryDirectory(prefix="gradstudy-bench-") as folder:
        place = Path(folder)
        recorded = gradstudy_trainer(BareTrainer)
        steppers = [Stepper(BareTrainer, model, device, place / "plain")]
        labels: list[tuple[str, float | None]] = []
        for i, (what, config, target) in enumerate(ARMS):
            steppers.append(Stepper(recorded.using(record=config), model, device, place / str(i)))
            labels.append((what, target))
        for what, function in installed_peers().items():
            steppers.append(Stepper(BareTrainer, model, device, place / "peer", function))
            labels.append((what, None))
        for stepper in steppers:  # caches, allocations, optimizer state
            stepper.block()
        times = np.zeros((len(steppers), blocks))
        for n in range(blocks):
            turn = range(len(steppers)) if n % 2 == 0 else reversed(range(len(steppers)))
            for i in turn:
                times[i, n] = steppers[i].block()
        for stepper in steppers:
            stepper.close()
    plain = times[0]
    return [
        Row(
            f"{Path(model).stem} `optimizer_step`: {what}",
            tuple(times[i] / plain),
            float(times[i].sum() / plain.sum()),
            float(np.median(plain)) / BLOCK,
            target,
        )
        for i, (what, target) in enumerate(labels, 1)
    ]


@cache
def installed_peers() -> dict[str, Callable[[torch.nn.Module], object]]:
    """What other tools call between the backward pass and the step."""
    found: dict[str, Callable[[torch.nn.Module], object]] = {}
    for what, (module, name) in PEERS.items():
        try:
            function = getattr(importlib.import_module(module), name)
        except ImportError:
            continue
        found[what] = lambda model, function=function: function(model, norm_type=2)
    return found


# A whole training --------------------------------------------------------------------------------------


def train_once(arm: str, data: str, model: str, device: str, epochs: int, threads: int) -> dict[str, float]:
    """Train in this process; wall and CPU seconds of the training, imports left out."""
    from ultralytics import YOLO

    from yolo_gradstudy import GradStudyTrainer

    torch.set_num_threads(threads)
    trainer: type[Any] = DetectionTrainer if arm == "plain" else GradStudyTrainer
    with tempfile.TemporaryDirectory(prefix="gradstudy-bench-") as folder:
        yolo = YOLO(model)
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        yolo.train(
            **{"trainer": trainer, "data": data, "device": device, "epochs": epochs, "imgsz": IMAGE_SIZE, "batch": 16},
            **{"optimizer": "SGD", "lr0": 0.02, "nbs": 16, "seed": 0, "workers": 0, "plots": False, "verbose": False},
            **{"project": folder, "name": arm, "exist_ok": True, "pretrained": False},
        )
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def bench_training(model: str, device: str, pairs: int, epochs: int, threads: int) -> list[Row]:
    """Time whole trainings in pairs, each in its own process, the first of a pair by turns."""
    from yolo_gradstudy.datasets import resolve_dataset

    data = str(resolve_dataset("shapes"))
    command = [
        *(sys.executable, str(Path(__file__).resolve()), "--models", model, "--device", device),
        *("--threads", str(threads), "--epochs", str(epochs)),
    ]
    times: dict[str, list[dict[str, float]]] = {"plain": [], "recorded": []}
    for pair in range(pairs):
        for arm in ("plain", "recorded") if pair % 2 == 0 else ("recorded", "plain"):
            done = subprocess.run([*command, "--train-once", arm, data], stdout=subprocess.PIPE, text=True, check=True)
            times[arm].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"pair {pair + 1} of {pairs}, {arm}: {times[arm][-1]}", file=sys.stderr)
    rows = []
    for clock in ("wall", "cpu"):
        plain, recorded = (np.array([t[clock] for t in times[arm]]) for arm in ("plain", "recorded"))
        what = f"{Path(model).stem} training, {epochs} epochs of `shapes` at {IMAGE_SIZE} px: {clock} time"
        total = float(recorded.sum() / plain.sum())
        rows.append(Row(what, tuple(recorded / plain), total, float(np.median(plain)), 1.01))
    return rows


# Peers -------------------------------------------------------------------------------------------------


def bench_peers(options: argparse.Namespace) -> None:
    """Compare, print the table, and write it where a page is named."""
    page = options.write
    if page is not None:
        put(page.read_text(), "peers", "")  # a page without the mark is refused before the hours, not after
    comparison = Comparison(options.device, options.threads, options.images, options.imgsz)
    place = machine(options.device, options.threads, comparison.versions())
    rows = comparison.measure(options.models, max(options.steps // BLOCK, 1), BLOCK)
    table = comparison.markdown(rows)
    scale = f"Steps of {options.images} images of {options.imgsz} px, in blocks of {BLOCK}. Measured on: {place}"
    print(f"\n{table}\n\n{scale}")
    if options.save is not None:
        comparison.frame(rows).to_csv(options.save, index=False)
    if page is not None:
        page.write_text(put(page.read_text(), "peers", f"{table}\n\n{scale}\n"))


# ---------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="What recording costs, as a Markdown table.")
    parser.add_argument("--models", nargs="+", default=["yolo26n.yaml", "yolo26l.yaml"])
    parser.add_argument("--steps", type=int, default=300, help="steps of each arm, in blocks of ten")
    parser.add_argument("--training", action="store_true", help="time whole trainings too, of the first model")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of trainings")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a training")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU's number")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--peers", action="store_true", help="compare with other tools, on whole training steps")
    parser.add_argument("--images", type=int, default=4, help="images of a batch, with --peers")
    parser.add_argument("--imgsz", type=int, default=IMAGE_SIZE, help="pixels of an image's side, with --peers")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page with <!-- peers -->, with --peers")
    parser.add_argument("--save", type=Path, metavar="CSV", help="a file for every number and block, with --peers")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--train-once", nargs=2, metavar=("ARM", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.arm:
        return serve(options.arm)
    torch.set_num_threads(options.threads)
    if options.train_once:
        arm, data = options.train_once
        times = train_once(arm, data, options.models[0], options.device, options.epochs, options.threads)
        print(f"\n{json.dumps(times)}")
        return 0
    if options.peers:
        bench_peers(options)
        return 0
    place = machine(options.device, options.threads)
    rows = []
    for model in options.models:
        if options.steps:
            rows += bench_steps(model, options.device, options.steps)
    if options.training:
        rows += bench_training(options.models[0], options.device, options.pairs, options.epochs, options.threads)
    print(f"\nMeasured on: {place}\n\n{HEADER}")
    print("\n".join(row.markdown() for row in rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
