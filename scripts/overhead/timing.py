# SPDX-License-Identifier: AGPL-3.0-or-later
"""Medians of ratios, and the machine that they were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import ultralytics

from yolo_gradstudy.run import processor_name


def bootstrap_interval(ratios: Sequence[float], draws: int = 5000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval, 95%, of the median."""
    values = np.asarray(ratios)
    picked = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(np.median(values[picked], axis=1), [0.025, 0.975])
    return float(low), float(high)


def seconds(value: float) -> str:
    """A time in words."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def machine(device: str, threads: int, packages: Iterable[str] = ()) -> str:
    """The machine and the versions, in one sentence.

    Args:
        device: An Ultralytics device.
        threads: CPU threads of torch.
        packages: Further packages, each with its version.
    """
    accelerator = f", {torch.cuda.get_device_name(int(device))}" if device.isdigit() else ""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    own = f"yolo_gradstudy {importlib.metadata.version('yolo_gradstudy')}"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"ultralytics {ultralytics.__version__}", own, *packages]
    used = f"{threads} thread{'s' if threads > 1 else ''}, load {load} at the start"
    return f"{processor_name()}, {os.cpu_count()} cores{accelerator}; {used}; {', '.join(versions)}."
