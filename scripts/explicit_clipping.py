# SPDX-License-Identifier: AGPL-3.0-or-later
"""GradRecorder in a plain PyTorch loop: a gradient that explodes through time, with and without clipping.

A working version of the textbook's three lines::

    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

The task is recall: a number comes first, then a long sequence of zeros, and at the end the number is wanted. The
network is a plain RNN with rectifiers whose recurrent matrix starts as ``rho`` times the identity (Le, Jaitly and
Hinton 2015, arXiv:1504.00941), so that what goes back through ``T`` time steps grows ``rho**T`` fold (Pascanu,
Mikolov and Bengio 2013, arXiv:1211.5063). Both trainings start from the same weights and see the same batches.

    python scripts/explicit_clipping.py                 # prints a table; telemetry goes to runs/explicit_clipping
    python -c "from yolo_gradstudy import load_run; print(load_run('runs/explicit_clipping/unclipped-0').steps)"
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from yolo_gradstudy import GradRecorder, RecordConfig, load_run

CLIP_NORM = 1.0


class RecallRNN(nn.Module):
    """Reads a sequence of numbers and says one at its end.

    Args:
        width: Hidden units.
        rho: The recurrent matrix starts as ``rho`` times the identity.
        generator: Draws the other weights.
    """

    def __init__(self, width: int, rho: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, width, nonlinearity="relu", batch_first=True)
        self.readout = nn.Linear(width, 1)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(rho * torch.eye(width))
        nn.init.normal_(self.rnn.weight_ih_l0, generator=generator)
        nn.init.normal_(self.readout.weight, std=width**-0.5, generator=generator)
        for bias in (self.rnn.bias_ih_l0, self.rnn.bias_hh_l0, self.readout.bias):
            nn.init.zeros_(bias)

    def forward(self, sequences: Tensor) -> Tensor:
        """Answers of shape ``(batch,)`` to sequences of shape ``(batch, time, 1)``."""
        outputs, _ = self.rnn(sequences)
        answer: Tensor = self.readout(outputs[:, -1]).squeeze(-1)
        return answer


def recall_batch(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences of shape ``(batch, length, 1)`` and their first numbers, uniform in [-1, 1], of shape ``(batch,)``."""
    numbers = torch.rand(batch, generator=generator) * 2 - 1
    sequences = torch.zeros(batch, length, 1)
    sequences[:, 0, 0] = numbers
    return sequences, numbers


@dataclass(frozen=True)
class Task:
    """What is trained, in both arms alike."""

    steps: int = 400
    length: int = 100
    width: int = 16
    batch: int = 16
    rho: float = 1.035
    lr: float = 0.01


def train(task: Task, seed: int, clip_norm: float | None, out: Path) -> None:
    """Train one network and record it.

    Args:
        task: What to train.
        seed: Of weights and batches.
        clip_norm: Global gradient norm at which a step is clipped; None for no clipping.
        out: The run's folder.
    """
    model = RecallRNN(task.width, task.rho, torch.Generator().manual_seed(seed))
    batches = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.lr)
    config = RecordConfig(extremes_every=1, parameter_every=1)
    with GradRecorder(model, optimizer, out, config, meta={"seed": seed, "clip_norm": clip_norm}) as recorder:
        for _ in range(task.steps):
            sequences, numbers = recall_batch(task.batch, task.length, batches)
            loss = nn.functional.mse_loss(model(sequences), numbers)
            loss.backward()
            norm = recorder.observe(loss=loss, images=task.batch, clip_norm=clip_norm)
            if clip_norm is not None:  # by the norm that was measured: no second pass over the gradients
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, norm)
            optimizer.step()
            recorder.stepped()
            optimizer.zero_grad()


def summary(steps: pd.DataFrame) -> dict[str, float | int | None]:
    """What the table says of a run.

    Args:
        steps: ``load_run(...).steps``.

    Returns:
        Largest finite gradient norm, share of clipped steps, first step whose loss or gradient is not finite
        (None where all are), and the mean loss of the first and the last tenth of the steps.
    """
    finite = steps["grad_norm"].map(math.isfinite) & steps["loss"].map(math.isfinite)
    clipped = steps["clip_coefficient"].lt(1).mean() if "clip_coefficient" in steps else 0.0
    tenth = max(len(steps) // 10, 1)
    return {
        "largest_norm": float(steps["grad_norm"][finite].max()) if finite.any() else math.nan,
        "clipped_share": float(clipped),
        "first_nonfinite": None if finite.all() else int(steps.index[~finite][0]),
        "loss_first": float(steps["loss"].iloc[:tenth].mean()),
        "loss_last": float(steps["loss"].iloc[-tenth:].mean(skipna=False)),
    }


def compare(task: Task, seeds: Sequence[int], out: Path) -> list[dict[str, float | int | str | None]]:
    """Train every seed with and without clipping; a summary a run, read back from the telemetry."""
    rows: list[dict[str, float | int | str | None]] = []
    for seed in seeds:
        for arm, clip_norm in (("unclipped", None), ("clipped", CLIP_NORM)):
            folder = out / f"{arm}-{seed}"
            if (folder / "telemetry").exists():
                raise ValueError(f"{folder} holds telemetry already; choose another --out.")
            train(task, seed, clip_norm, folder)
            rows.append({"arm": arm, "seed": seed, **summary(load_run(folder).steps)})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description="An RNN's gradient explodes through time; clipping holds it.")
    defaults = Task()
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--length", type=int, default=defaults.length, help="time steps of a sequence")
    parser.add_argument(
        "--rho", type=float, default=defaults.rho, help="spectral norm of the recurrent matrix at first"
    )
    parser.add_argument("--lr", type=float, default=defaults.lr, help="learning rate of plain SGD")
    parser.add_argument("--out", type=Path, default=Path("runs/explicit_clipping"))
    options = parser.parse_args(argv)
    task = Task(steps=options.steps, length=options.length, rho=options.rho, lr=options.lr)
    try:
        rows = compare(task, options.seeds, options.out)
    except ValueError as error:
        parser.error(str(error))
    print(f"who always says the mean, 0, has a loss of {1 / 3:.3f}\n")
    print("| arm | seed | largest gradient norm | clipped steps | first non-finite step | loss at first | at last |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        ending = "none" if row["first_nonfinite"] is None else row["first_nonfinite"]
        print(
            f"| {row['arm']} | {row['seed']} | {row['largest_norm']:.3g} | {row['clipped_share']:.0%} | {ending} "
            f"| {row['loss_first']:.3g} | {row['loss_last']:.3g} |"
        )
    print(f"\ntelemetry: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
