# SPDX-License-Identifier: AGPL-3.0-or-later
"""Imports what a training imports before it ends, so that processes that are forked afterwards need not.

Not polars, which Ultralytics imports late: it starts threads when it is imported, and a fork keeps none.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import Any


class _AnyTrainer:
    """What Ultralytics adds its loggers to; they are wanted for what they import (W&B, Ray Tune and others)."""

    def __init__(self) -> None:
        self.callbacks: dict[str, list[Any]] = defaultdict(list)


def preload() -> None:
    """Import everything; computes nothing, and starts neither CUDA nor a thread."""
    import matplotlib.pyplot  # noqa: F401
    import pyarrow.pandas_compat  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torchvision  # noqa: F401
    import ultralytics.engine.exporter
    import ultralytics.models.yolo.detect  # noqa: F401
    from ultralytics.utils.callbacks.base import add_integration_callbacks

    with suppress(ImportError):  # Ultralytics' dependencies, not this package's
        import requests  # noqa: F401
        import thop  # type: ignore[import-untyped]  # noqa: F401
    with suppress(Exception):  # a run will say what is wrong with a logger
        add_integration_callbacks(_AnyTrainer())
