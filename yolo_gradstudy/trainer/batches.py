# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the batches of one optimizer step add up to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class BatchSums:
    """Images and losses of the batches that one optimizer step accumulates, on the device."""

    def __init__(self) -> None:
        self._images = 0
        self._losses: dict[str, Tensor] = {}
        self._stepped = False

    def add_images(self, count: int) -> None:
        """A batch of so many images is on its way."""
        self._images += count
        self._stepped = False

    def end_batch(self, loss: Tensor | None, items: Mapping[str, Tensor] | None) -> None:
        """A batch ended; its loss waits for the step, unless the step took it already."""
        if not self._stepped and loss is not None:
            self._add(loss, items or {})

    def take(self, loss: Tensor, items: Mapping[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        """The step's images and losses, with the batch that is on its way; begin anew."""
        self._add(loss, items)
        images, losses = self._images, self._losses
        self._images, self._losses, self._stepped = 0, {}, True
        return images, losses

    def _add(self, loss: Tensor, items: Mapping[str, Tensor]) -> None:
        for name, value in {"loss": loss, **items}.items():
            value = value.detach()
            self._losses[name] = self._losses[name] + value if name in self._losses else value
