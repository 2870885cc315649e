# SPDX-License-Identifier: AGPL-3.0-or-later
"""What networks that are not trained say of claims: the tables of ``results/signal`` → experiments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from yolo_gradstudy.report.claims.experiments import (
    ABOVE_0,
    ABOVE_HALF,
    BELOW_0,
    KEPT,
    Evidence,
    Experiment,
    Make,
    Mean,
    Share,
)
from yolo_gradstudy.tables.intervals import Interval


def select(frame: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows that have these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame


def seeds_of(frame: pd.DataFrame, column: str, **where: Any) -> list[float]:
    """A column by seed."""
    return [float(value) for value in select(frame, **where).sort_values("seed")[column]]


def paired(frame: pd.DataFrame, column: str, one: dict[str, Any], other: dict[str, Any]) -> list[tuple[float, float]]:
    """A column of two kinds of rows, by seed."""
    return list(zip(seeds_of(frame, column, **one), seeds_of(frame, column, **other), strict=True))


def grows(network: str, parameter: float, depth: int, up: bool, what: str, decides: bool = True) -> Make:
    """That the gradient at the input is larger, or smaller, than at the output."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("depth")
        if frame is None:
            return []
        rows = select(frame, network=network, parameter=parameter, depth=depth)
        note = f"{rows['decades_theory'].mean():.2f} were each factor {rows['factor'].mean():.3g}".replace("-", "−")
        return [
            Experiment(
                what,
                "decades by which the gradient’s norm grows",
                Mean(seeds_of(rows, "decades")),
                ABOVE_0 if up else BELOW_0,
                "seed",
                "depth",
                "signed",
                note,
                decides,
            )
        ]

    return made


def told_apart(column: str, what: str, decides: bool = True) -> Make:
    """That the sign of the slope by depth says whether a network's factor is above or below 1."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("told_apart")
        if frame is None:
            return []
        rows = frame[frame["sigma_w2"] != 2]
        grows = rows[column] < 0 if column == "activations" else rows[column] > 0  # values grow forwards
        right = int((grows == (rows["sigma_w2"] > 2)).sum())
        slopes = rows.groupby("sigma_w2")[column].mean()
        told = ", ".join(f"{slope:+.3f} at σ_w² = {variance:g}" for variance, slope in slopes.items())
        return [
            Experiment(
                what,
                "share of networks told apart rightly",
                Share(right, len(rows)),
                ABOVE_HALF,
                "network",
                "told_apart",
                "percent",
                f"mean slope {told}".replace("-", "−"),
                decides,
            )
        ]

    return made


def kept(initialisation: str, activation: str, decides: bool = True, column: str = "moment_ratio") -> Make:
    """That an initialisation keeps the size of values from layer to layer, to 5%."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("variance")
        if frame is None:
            return []
        rows = select(frame, initialisation=initialisation, activation=activation)
        theory = rows["moment_theory"].mean()
        of_moment = column == "moment_ratio"
        return [
            Experiment(
                f"{initialisation} with {activation}, 20 layers",
                f"factor of a layer to the {'second moment of its values' if of_moment else 'variance over the batch'}",
                Mean([math.log(value) for value in seeds_of(rows, column)], geometric=True),
                KEPT,
                "seed",
                "variance",
                note=f"{theory:.3g} in mean-field theory" if of_moment and not math.isnan(theory) else "",
                decides=decides,
            )
        ]

    return made


def gain(initialisation: str, activation: str, holds: Interval, decides: bool = True) -> Make:
    """The factor of a layer to the gradient, backwards; squared, 1 keeps it."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("activations")
        if frame is None:
            return []
        rows = select(frame, initialisation=initialisation, activation=activation)
        note = f"{rows['decades'].mean():.1f} decades of its norm over 20 layers".replace("-", "−")
        return [
            Experiment(
                f"{activation} with {initialisation}, 20 layers",
                "factor of a layer to the gradient’s square",
                Mean([math.log(value) for value in seeds_of(rows, "gain")], geometric=True),
                holds,
                "seed",
                "activations",
                note=note,
                decides=decides,
            )
        ]

    return made


def softens(plain: str, residual: str, variance: float, depth: int, what: str, decides: bool = True) -> Make:
    """That the gradient grows or shrinks by fewer decades with shortcuts than without."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("residuals")
        if frame is None:
            return []
        own = [{"blocks": blocks, "sigma_w2": variance, "depth": depth} for blocks in (plain, residual)]
        pairs = paired(frame, "decades", *own)
        means = np.mean(pairs, axis=0)
        note = f"{means[0]:+.2f} decades without, {means[1]:+.2f} with".replace("-", "−")
        return [
            Experiment(
                what,
                "decades of growth or decay saved",
                Mean([abs(one) - abs(two) for one, two in pairs]),
                ABOVE_0,
                "seed",
                "residuals",
                "signed",
                note,
                decides,
            )
        ]

    return made
