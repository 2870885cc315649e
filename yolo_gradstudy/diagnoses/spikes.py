# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where loss and gradient norm left the run's own start by orders of magnitude, or the band of the steps before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolo_gradstudy.diagnoses.evidence import Evidence


@dataclass(frozen=True)
class Spikes:
    """The steps at which one quantity was far above its start, or above its band.

    Attributes:
        name: The quantity in words.
        factor: How many times the start's median counts as far.
        first: The first such step; 0 where there is none.
        last: The last such step; 0 where there is none.
        far: The first step that was far above the start; 0 where there is none.
        at_end: Whether one of the steps that stand for the run's end is far above the start.
        mostly_at_end: Whether most of them are.
        told: A clause with the numbers.
    """

    name: str
    factor: float
    first: int
    last: int
    far: int
    at_end: bool
    mostly_at_end: bool
    told: str


def find_spikes(evidence: Evidence) -> list[Spikes]:
    """The spikes of loss and gradient norm, one entry for each that was recorded with a start above 0."""
    if "find_spikes" not in evidence.shared:
        evidence.shared["find_spikes"] = _find_spikes(evidence)
    found: list[Spikes] = evidence.shared["find_spikes"]
    return found


def _find_spikes(evidence: Evidence) -> list[Spikes]:
    limits = evidence.thresholds
    found = []
    for column, name, factor, band in (
        ("loss", "loss", limits.exploded_loss, evidence.loss_deviations),
        ("grad_norm", "gradient norm", limits.exploded_grad_norm, evidence.norm_deviations),
    ):
        if column not in evidence.steps:
            continue
        series = evidence.as_first(evidence.steps[column])
        start = evidence.start(series)
        if not start > 0:
            continue
        # A NaN that training came back from, or the infinite norm of finite gradients, is beyond any number.
        series = series.astype("float64").fillna(np.inf)
        is_far = series.to_numpy() > factor * start
        far = series.index[is_far]
        left = series.index[is_far | (band.to_numpy() > limits.band_deviations)]
        end = evidence.end_window(series)
        told = f"{name} {start:.3g} at the start, at most {series.max():.3g} on the way"
        told += f", at most {end.max():.3g} at the end"
        if len(left) and not len(far):
            told += f", {band[left].max():.0f} robust deviations above the steps before"
        found.append(
            Spikes(
                name,
                factor,
                int(left[0]) if len(left) else 0,
                int(left[-1]) if len(left) else 0,
                int(far[0]) if len(far) else 0,
                bool(len(far)) and far[-1] >= end.index[0],
                bool((end > factor * start).mean() > 0.5),
                told,
            )
        )
    return found
