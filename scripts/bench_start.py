# SPDX-License-Identifier: AGPL-3.0-or-later
"""What starting a run costs over its training: forked from the server, and as a new interpreter.

    python scripts/bench_start.py [--runs 5]

The same short run, of 3 steps on the data set `shapes`, is trained one after another: in one process that has trained
before (its training alone), forked, and fresh. The first of each is left out; medians, wall clock, on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from yolo_gradstudy.datasets import cache_labels, resolve_dataset
from yolo_gradstudy.executors import LocalExecutor
from yolo_gradstudy.plan import Arm, Study
from yolo_gradstudy.records import RunSpec
from yolo_gradstudy.run import execute
from yolo_gradstudy.run_folder import StudyFolder

ARGUMENTS = {
    "epochs": 1, "imgsz": 32, "batch": 86, "nbs": 86, "optimizer": "SGD", "warmup_epochs": 0, "amp": False,
    "pretrained": False, "val": False, "plots": False,
}  # fmt: skip


def in_one_process(specs: list[RunSpec], folder: StudyFolder) -> Iterator[float]:
    """Seconds of each run, trained here."""
    torch.set_num_threads(1)
    for spec in specs:
        began = time.perf_counter()
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):  # noqa: PTH123
            result = execute(spec, folder.run(spec.run_id), threads=1)
        assert result.status == "finished", result.error
        yield time.perf_counter() - began


def by_executor(specs: list[RunSpec], folder: StudyFolder, preload: bool) -> Iterator[float]:
    """Seconds from a run's start to its end, each in a process of its own."""
    ended = time.perf_counter()
    for event in LocalExecutor(preload=preload).execute(specs, folder):
        if event.kind == "ended":
            assert event.result is not None
            assert event.result.status == "finished", event.result.error
            yield time.perf_counter() - ended
            ended = time.perf_counter()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each kind")
    words = parser.parse_args()
    data = resolve_dataset("shapes")
    cache_labels(data, ARGUMENTS)
    study = Study(
        name="start", model="yolo26n.yaml", data=str(data), arguments=ARGUMENTS, lr0=(0.01,),
        seeds=tuple(range(words.runs + 1)), arms={"control": Arm()},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folders = [StudyFolder(Path(place) / name) for name in ("one", "forked", "fresh")]
        seconds = {
            "a process that has trained before": list(in_one_process(study.runs(), folders[0])),
            "forked from the server": list(by_executor(study.runs(), folders[1], True)),
            "a new interpreter": list(by_executor(study.runs(), folders[2], False)),
        }
    training = statistics.median(seconds["a process that has trained before"][1:])
    print("| a run in | n | seconds, median | over its training | first run |\n|---|---|---|---|---|")
    for name, values in seconds.items():
        middle = statistics.median(values[1:])
        print(f"| {name} | {len(values) - 1} | {middle:.2f} | {middle - training:+.2f} | {values[0]:.2f} |")


if __name__ == "__main__":
    main()
