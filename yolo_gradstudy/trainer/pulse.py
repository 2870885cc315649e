# SPDX-License-Identifier: AGPL-3.0-or-later
"""How far a training of a study is, told in its run's folder once a second for whoever watches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from yolo_gradstudy.run_folder import RunFolder

_EVERY_S = 1.0


class Pulse:
    """Writes how far a training is.

    Args:
        folder: The run's folder.
        batches: Batches of the whole training.
        clip_norm: Norm at which a step is clipped; None where it is not.
    """

    def __init__(self, folder: RunFolder, batches: int, clip_norm: float | None) -> None:
        self._folder = folder
        self._total = max(batches, 1)
        self._clip_norm = clip_norm
        self._batches = 0
        self._began = self._written = time.monotonic()
        self._seen: tuple[int, float] | None = None

    def see(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take a recorded step; may be called by another thread."""
        self._seen = (step, scalars.get("grad_norm", float("nan")))

    def end_batch(self) -> None:
        """Count a batch, and tell where it is time."""
        self._batches += 1
        now = time.monotonic()
        if now - self._written < _EVERY_S:
            return
        self._written = now
        step, norm = self._seen or (0, float("nan"))
        told = {
            "share": min(self._batches / self._total, 1.0),
            "step": step,
            "batches_per_s": self._batches / (now - self._began),
            "grad_norm": norm,
            "clip_norm": self._clip_norm,
        }
        with suppress(OSError):  # a full disk ends nothing here
            self._folder.write_progress(told)
