# SPDX-License-Identifier: AGPL-3.0-or-later
"""One peer's training in a process of its own, which does what it is told, so that no peer meets another."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .counts import ACCELERATOR, GradientReads, HostReads, tensors_in
from .peers import ACTIVATION, PEERS, Spoiler
from .trainers import set_up, synthetic_batch, train_batch

PLANTED = "model.4."
"""Layer in which a value is planted: in its first convolution, or the gradient of that one's weight."""


@dataclass(frozen=True)
class ArmSpec:
    """What an arm trains.

    Attributes:
        peer: A key of `PEERS`.
        model: An Ultralytics model name.
        device: An Ultralytics device.
        folder: Where the peer writes.
        images: Images of a batch.
        size: Pixels of an image's side.
        threads: CPU threads of torch.
        counting: Whether reads are counted, `cpu` or `accelerator` (a would-be one); nothing where empty.
    """

    peer: str
    model: str
    device: str
    folder: str
    images: int
    size: int
    threads: int = 1
    counting: str = ""


class Arm:
    """A training with a peer.

    Args:
        spec: What is trained.
        plant: Place and step, from 1, of a NaN.
    """

    def __init__(self, spec: ArmSpec, plant: tuple[str, int] | None = None) -> None:
        folder = Path(spec.folder)
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(spec.threads)
        self._spec = spec
        self._peer = PEERS[spec.peer](folder)
        for module in self._peer.imports:  # as a script does at its top, before Ultralytics seeds the generators
            importlib.import_module(module)
        self._batch = synthetic_batch(spec.images, spec.size)
        self._gradients: GradientReads | None = None
        would_be = ACCELERATOR if spec.counting == "accelerator" else None
        with HostReads() if would_be else ExitStack():
            self._trainer = set_up(self._peer.trainer_class, spec.model, spec.device, folder, would_be)
            torch.set_num_threads(spec.threads)  # Ultralytics has just set its own
            self._modules = [n for n, m in self._trainer.model.named_modules() if m._parameters]
            self._planted = next(name for name in self._modules if name.startswith(PLANTED))
            if plant is not None:
                module = self._trainer.model.get_submodule(self._planted)
                if plant[0] == ACTIVATION:
                    module.register_forward_hook(Spoiler(plant[1]))
                else:
                    module.weight.register_hook(Spoiler(plant[1]))
                    self._planted += ".weight"
            if spec.counting:
                self._gradients = GradientReads(self._trainer.model.parameters())
            self._peer.begin(self._trainer)

    def steps(self, count: int) -> float:
        """Train; seconds."""
        start = time.perf_counter()
        for _ in range(count):
            train_batch(self._trainer, self._batch, self._peer.before_step)
            self._peer.end_step()
        if self._trainer.device.type == "cuda":
            torch.cuda.synchronize(self._trainer.device)
        return time.perf_counter() - start

    def counts(self, count: int) -> tuple[float, float]:
        """Host synchronisations on a would-be accelerator and passes over the gradients, a step."""
        assert self._gradients is not None
        reads = HostReads()
        with reads if self._spec.counting == "accelerator" else ExitStack(), self._gradients:
            for _ in range(count):
                self.steps(1)
                self._gradients.forget()
        return reads.count / count, self._gradients.read / count / self._gradients.elements

    def digests(self) -> tuple[str, str]:
        """Of every number of model, EMA and optimizer, and of the random generators."""
        trainer = self._trainer
        state = (trainer.model.state_dict(), trainer.ema.ema.state_dict(), trainer.optimizer.state_dict()["state"])
        weights = hashlib.sha256()
        for tensor in tensors_in(state):
            weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        generators = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=False))
        return weights.hexdigest(), hashlib.sha256(repr(generators).encode()).hexdigest()

    def close(self) -> None:
        """End the recording."""
        self._peer.close()

    def found(self, place: str, steps: Sequence[int]) -> list[bool]:
        """Whether a NaN planted at a step is named, of each in a training of its own."""
        answers = []
        for step in steps:
            folder = f"{self._spec.folder}-{place}-{step}"
            arm = Arm(ArmSpec(**{**asdict(self._spec), "folder": folder}), (place, step))
            arm.steps(step + 1)
            arm.close()
            answers.append(type(arm._peer).named(Path(folder), place, arm._modules) == [arm._planted])
        return answers


def serve(words: str) -> int:
    """Be an arm: read what is asked from standard input, a JSON list a line, and answer likewise."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not stand among the answers
    from ultralytics import settings

    settings.update(dict.fromkeys(("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb"), False))
    arm: Arm | None = None
    for line in sys.stdin:
        name, *given = json.loads(line)
        try:
            arm = arm or Arm(ArmSpec(**json.loads(words)))
            answer = {"is": getattr(arm, name)(*given)}
        except Exception as error:  # a peer that raises is told in the table
            answer = {"raises": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


class Raised(Exception):
    """A peer raised in its process."""


class ArmProcess:
    """An arm as its parent sees it.

    Args:
        spec: What it trains.
    """

    def __init__(self, spec: ArmSpec) -> None:
        self.spec = spec
        config = Path(f"{spec.folder}-config")  # Ultralytics' settings: the user's are neither read nor written
        config.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "YOLO_CONFIG_DIR": str(config), "YOLO_OFFLINE": "1", "WANDB_SILENT": "true"}
        environment |= {f"WANDB_{name}_DIR": str(config) for name in ("CACHE", "CONFIG", "DATA")}
        self._log = Path(f"{spec.folder}.log").open("w")  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "bench_overhead.py"), "--arm", json.dumps(asdict(spec))],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log, "env": environment},
            text=True,
        )

    def ask(self, name: str, *given: object) -> Any:
        """Let the arm do something, and wait for the answer.

        Raises:
            Raised: The peer raised, or its process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([name, *given]) + "\n")
            self._process.stdin.flush()
            answer = json.loads(next((line for line in self._process.stdout if line.startswith('{"')), ""))
        except (BrokenPipeError, ValueError) as error:
            raise Raised(f"its process ended with {self._process.wait()}, see {self._log.name}") from error
        if "raises" in answer:
            raise Raised(answer["raises"])
        return answer["is"]

    def kill(self) -> None:
        """SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._end()

    def end(self) -> None:
        """Nothing more is asked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._end()

    def _end(self) -> None:
        self._process.wait()
        self._log.close()
