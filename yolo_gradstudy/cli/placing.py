# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where runs are placed: the executor that the options ask for."""

from __future__ import annotations

import difflib
import math
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolo_gradstudy.executors import Executor, Limits


def limits_of(timeout: float, memory_limit: float, retries: int) -> Limits:
    """The limits of a run, from minutes, GiB and a number of retries; 0 is no limit."""
    from yolo_gradstudy.executors import Limits

    for option, value in (("--timeout", timeout), ("--memory-limit", memory_limit), ("--retries", retries)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{option} {value:g} is below 0; the nearest valid is 0.")
    return Limits(timeout * 60 or None, int(memory_limit * 2**30) or None, retries)


def place(
    name: str,
    address: str | None,
    device: str,
    jobs: int,
    workers: int,
    keep_weights: bool,
    per_device: int,
    limits: Limits,
) -> Executor:
    """The executor of a name, with its places, threads and workers.

    Raises:
        ValueError: No such executor or device, or an option that it does not take.
    """
    from yolo_gradstudy.arguments import check_device, visible_gpus
    from yolo_gradstudy.executors import EXECUTORS, LocalExecutor, RayExecutor

    if name not in EXECUTORS:
        near = difflib.get_close_matches(name, EXECUTORS, n=1, cutoff=0.0)[0]
        raise ValueError(f"--executor {name!r} is not an executor; the nearest valid is {near!r}.")
    check_jobs(jobs)
    if per_device < 1:
        raise ValueError(f"--per-device {per_device} is below 1; the nearest valid is 1.")
    if name == "ray":
        wanted = None if workers < 0 else workers
        return RayExecutor(address, device, jobs, per_device, None, wanted, keep_weights, limits)
    if address is not None:
        raise ValueError(f"--address {address} is of a Ray cluster, and --executor is {name}; give --executor ray too.")
    check_device(device)
    gpus = device.replace("cuda:", "").split(",") if device not in {"", "cpu", "mps"} else []
    if not device:
        gpus = [str(i) for i in range(visible_gpus())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if gpus:
        slots = gpus * per_device  # every GPU has its first run before one has its second
        places = [slots[i % len(slots)] for i in range(jobs or len(slots))]
    else:
        places = [device or "cpu"] * count_jobs(jobs, device or "cpu")
    threads = max(1, cores // len(places))
    if workers < 0:
        workers = min(8, threads) if gpus else 0
    return LocalExecutor(places, threads, workers, keep_weights, limits)


def check_jobs(jobs: int) -> None:
    """Refuse a negative number of jobs."""
    if jobs < 0:
        raise ValueError(f"--jobs {jobs} is below 0; the nearest valid is 1.")


def count_jobs(jobs: int, device: str) -> int:
    """Runs at once where ``jobs`` leaves it open: a core each, and one on mps."""
    if jobs or device == "mps":
        return max(1, jobs)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
