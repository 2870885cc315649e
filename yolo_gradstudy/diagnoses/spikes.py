# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where loss and gradient norm left the run's own start by orders of magnitude."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolo_gradstudy.diagnoses.evidence import Evidence


@dataclass(frozen=True)
class Spikes:
    """The steps at which one quantity was far above its start.

    Attributes:
        name: The quantity in words.
        factor: How many times the start's median counts as far.
        first: The first such step; 0 where there is none.
        last: The last such step; 0 where there is none.
        largest: The largest value of the run, infinite where one was not finite.
        at_end: Whether one of the steps that stand for the run's end is among them.
        told: A clause with the numbers.
    """

    name: str
    factor: float
    first: int
    last: int
    largest: float
    at_end: bool
    told: str


def find_spikes(evidence: Evidence) -> list[Spikes]:
    """The spikes of loss and gradient norm, one entry for each that was recorded with a start above 0."""
    limits = evidence.thresholds
    found = []
    for column, name, factor in (
        ("loss", "loss", limits.exploded_loss),
        ("grad_norm", "gradient norm", limits.exploded_grad_norm),
    ):
        if column not in evidence.steps:
            continue
        series = evidence.steps[column]
        start = evidence.start(series)
        if not start > 0:
            continue
        # A NaN that training came back from, or the infinite norm of finite gradients, is beyond any number.
        series = series.astype("float64").fillna(np.inf)
        over = series.index[series > factor * start]
        end = evidence.end_window(series)
        largest = float(series.max())
        found.append(
            Spikes(
                name,
                factor,
                int(over[0]) if len(over) else 0,
                int(over[-1]) if len(over) else 0,
                largest,
                bool(len(over)) and over[-1] >= end.index[0],
                f"{name} {start:.3g} at the start, at most {largest:.3g} on the way, "
                f"at most {end.max():.3g} at the end",
            )
        )
    return found
