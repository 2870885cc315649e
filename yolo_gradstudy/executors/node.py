# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the Ray executor does on the machines of a cluster: hold a place for runs, and prepare what they read."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock

from yolo_gradstudy.datasets import cache_labels, resolve_dataset
from yolo_gradstudy.executors.base import Limits
from yolo_gradstudy.executors.local import LocalExecutor, start_processes
from yolo_gradstudy.executors.processes import can_fork
from yolo_gradstudy.records import RunSpec
from yolo_gradstudy.run_folder import is_disk_full, no_room, scratch_study

_MASK = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Answer:
    """How an attempt ended.

    Attributes:
        again: Whether another attempt may end otherwise, and there is one left.
        result: The result, as :meth:`RunResult.to_dict` writes it.
        packed: The run's folder, as :meth:`RunFolder.pack` packs it.
    """

    again: bool
    result: dict[str, Any]
    packed: bytes


class Place:
    """Room for one run at a time on a node, as an actor of Ray's.

    An actor and not a task for each run: its runs are forked from one server that has imported everything, and the
    driver knows where it is before a run is said to have started. Each attempt is a run of :class:`LocalExecutor`, in
    a folder of this machine's. When Ray ends the actor, the server's input closes, which ends the run.

    Args:
        device: ``cpu``, or ``cuda`` for the GPU that Ray has given.
        threads: CPU threads a run.
        workers: Data loader workers a run.
        keep_weights: Whether checkpoints are part of what is returned.
        limits: What a run may take, and how often it is tried.
    """

    def __init__(self, device: str, threads: int, workers: int, keep_weights: bool, limits: Limits) -> None:
        self._device, hidden = choose_device(device, ray.get_gpu_ids())
        self._threads = threads
        self._workers = workers
        self._keep_weights = keep_weights
        self._limits = limits
        self._processes = start_processes(threads, can_fork(), hidden)

    def where(self) -> tuple[str, str, str]:
        """The node's id in Ray, the place as a person knows it, and the version of this package there."""
        address = ray.util.get_node_ip_address()
        device = self._device if self._device == "cpu" else f"GPU {self._device}"
        return ray.get_runtime_context().get_node_id(), f"{address} {device}", version("yolo_gradstudy")

    def train(self, spec: dict[str, Any], attempt: int) -> Answer:
        """Train one run.

        Args:
            spec: The run, as :meth:`RunSpec.to_dict` writes it.
            attempt: How often it is tried, this time included.

        Raises:
            ValueError: The disk is full.
        """
        executor = LocalExecutor(
            (self._device,),
            self._threads,
            self._workers,
            self._keep_weights,
            self._limits,
            processes=self._processes,
            attempt=attempt,
        )
        run = RunSpec.from_dict(spec)
        try:
            with scratch_study() as folder, closing(executor.execute([run], folder)) as events:
                event = next(e for e in events if e.kind != "started")
                assert event.result is not None
                return Answer(event.kind == "retried", event.result.to_dict(), folder.run(run.run_id).pack())
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and not is_disk_full(error):
                raise
            raise ValueError(no_room(tempfile.gettempdir())) from error


def prepare(spec: dict[str, Any]) -> None:
    """Bring what a study's runs read onto this node, once and before they start, as the driver did on its machine.

    The driver has it run once a node and in a process that ends with it: it imports torch, which places need not. The
    lock is for studies of other drivers.

    Args:
        spec: One of the runs, as :meth:`RunSpec.to_dict` writes it.

    Raises:
        ValueError: The data set or the model can't be had here.
    """
    from yolo_gradstudy.arguments import load_model

    run = RunSpec.from_dict(spec)
    data = resolve_dataset(run.data)
    name = hashlib.sha256(f"{Path.home()} {data}".encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"gradstudy-labels-{name}.lock"):
        cache_labels(data, run.arguments)
        load_model(run.model)  # downloads weights, which runs that start together would all do


def choose_device(device: str, gpus: Sequence[int | str]) -> tuple[str, tuple[str, ...]]:
    """The device of an actor's runs as Ultralytics takes it, and the variables that its runs must not see.

    Ray shows an actor its GPU alone, through ``CUDA_VISIBLE_DEVICES``. Ultralytics counts devices within that, but its
    first versions of 8.4 set it to the device they are given; without the mask both find the GPU of a number.

    Args:
        device: ``cpu`` or ``cuda``.
        gpus: What ``ray.get_gpu_ids`` says: a GPU's number, or the name of a part of one, which has no number.
    """
    if device == "cpu":
        return "cpu", ()
    (gpu,) = map(str, gpus)
    return (gpu, (_MASK,)) if gpu.isdigit() else ("0", ())
