# SPDX-License-Identifier: AGPL-3.0-or-later
"""What optimizers make of scales, by the tables of ``results/signal``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from yolo_gradstudy.report.claims.experiments import ABOVE_0, Evidence, Experiment, Make, Mean
from yolo_gradstudy.report.claims.signals import paired, select

SCALES = (-20, 60)
"""Powers of two over which the size of an update is looked at: below them Adam's ε has taken over."""


def scale_slope(optimizer: str) -> Make:
    """How many times less an optimizer's update follows the scale of the loss than SGD's."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("loss_scale")
        if frame is None:
            return []
        slopes = {name: _slopes(frame, name) for name in ("SGD", optimizer)}
        least = select(frame, optimizer=optimizer, exponent=int(frame["exponent"].min()))["log2_update"].mean()
        octaves = [float(np.mean(slopes[name])) for name in ("SGD", optimizer)]
        smallest = int(frame["exponent"].min())
        note = (
            f"{octaves[0]:.2f} octaves an octave with SGD, {octaves[1]:.2g} with {optimizer}; but a loss of "
            f"2^{smallest} of its size, where ε rules, makes its update 2^{least:.0f} of it"
        ).replace("-", "−")
        values = [one - two for one, two in zip(slopes["SGD"], slopes[optimizer], strict=True)]
        return [
            Experiment(
                f"One update of {optimizer} and of SGD, the loss multiplied by 2^{SCALES[0]} to 2^{SCALES[1]}".replace(
                    "-", "−"
                ),
                "difference of octaves of the update an octave of the loss",
                Mean(values),
                ABOVE_0,
                "seed",
                "loss_scale",
                "signed",
                note,
            )
        ]

    return made


def _slopes(frame: pd.DataFrame, optimizer: str) -> list[float]:
    rows = frame[(frame["optimizer"] == optimizer) & frame["exponent"].between(*SCALES)]
    tables = rows.pivot_table(index="exponent", columns="seed", values="log2_update")
    found: Sequence[float] = np.polyfit(tables.index.to_numpy(float), tables.to_numpy(float), 1)[0]
    return [float(value) for value in found]


def falls_further(one: str, other: str, directions: str, spread: int, what: str, decides: bool = True) -> Make:
    """That one optimizer brings a quadratic further down than another, each at its best rate."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("quadratics")
        if frame is None:
            return []
        rows = select(frame, directions=directions, spread=spread)
        pairs = paired(rows, "decades_fallen", {"optimizer": one}, {"optimizer": other})
        means = np.mean(pairs, axis=0)
        note = f"{means[0]:.2f} decades with {one}, {means[1]:.2f} with {other}, of 12 that are counted"
        return [
            Experiment(
                what,
                "more decades by which the loss fell in 300 steps",
                Mean([a - b for a, b in pairs]),
                ABOVE_0,
                "seed",
                "quadratics",
                "signed",
                note,
                decides,
            )
        ]

    return made
