# SPDX-License-Identifier: AGPL-3.0-or-later
"""95% intervals. An interval is missing at both ends where the values are too few for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))
"""The standard normal's 97.5% point."""

RESAMPLES = 9_999
SEED = 0
"""Of the bootstrap's own generator, made anew for each interval: a row does not depend on the rows before it."""

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Interval = tuple[float, float]
MISSING: Interval = (math.nan, math.nan)


def bootstrap_interval(values: Sequence[float], of: Literal["mean", "median"]) -> Interval:
    """The percentile bootstrap interval of a mean or median (Efron and Tibshirani 1993, chapter 13).

    It is too narrow for few values: of n resampled values none lies outside the range that was seen.

    Args:
        values: Finite numbers, one a unit that is resampled.
        of: The statistic.

    Returns:
        Missing for fewer than two values; of no width where all are equal.
    """
    if len(values) < 2:
        return MISSING
    if min(values) == max(values):
        return float(values[0]), float(values[0])
    statistic: Any = np.mean if of == "mean" else np.median
    found = stats.bootstrap(
        (np.asarray(values, dtype="float64"),),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(SEED),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean(values: Sequence[float]) -> float:
    """Their mean; missing where there is none."""
    return float(np.mean(values)) if len(values) else math.nan


def student_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The interval of a mean after Student (1908); missing for fewer than two values."""
    if len(values) < 2:
        return MISSING
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    middle = mean(values)
    return middle - half, middle + half


def clustered_mean(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The mean of values that come in clusters, and its standard error where only clusters are independent.

    That of a ratio, a cluster's sum over its size, as Obuchowski (1998), Statistics in Medicine 17, 1495–1507, takes it
    for paired shares: no smaller for values that a cluster only repeats.

    Args:
        clusters: The values of each; at least two, and none is empty.
    """
    sums, counts = np.array([[sum(values), len(values)] for values in clusters], dtype="float64").T
    middle = float(sums.sum() / counts.sum())
    squares = float(((sums - middle * counts) ** 2).sum())
    return middle, math.sqrt(squares * len(clusters) / (len(clusters) - 1)) / float(counts.sum())


def wilson_interval(count: int, n: int, level: float = LEVEL) -> Interval:
    """The score interval of a share after Wilson (1927); missing where there is none."""
    if not n:
        return MISSING
    ends = stats.binomtest(count, n).proportion_ci(confidence_level=level, method="wilson")
    share = count / n
    # Rounding may put an end past a share of 0 or 1 by an ulp.
    return min(max(float(ends.low), 0.0), share), max(min(float(ends.high), 1.0), share)


def paired_difference_interval(only_first: int, only_second: int, n: int, level: float = LEVEL) -> Interval:
    """The score interval of a difference of paired shares after Tango (1998), Statistics in Medicine 17, 891–908.

    All differences that the score test does not refuse, at 5% for the level of 95%. It has a width also where no
    pair is discordant.

    Args:
        only_first: Pairs in which only the first of the two has the property.
        only_second: Pairs in which only the second has.
        n: Pairs.
        level: The confidence.

    Returns:
        Bounds of (share of the first) − (share of the second), within −1 and 1; missing for no pair.
    """
    if n == 0:
        return MISSING
    estimate = (only_first - only_second) / n
    normal = float(stats.norm.ppf((1 + level) / 2))

    def score(difference: float) -> float:
        """Falls with the difference; the share of ``only_second`` is the likeliest one under it."""
        linear = (2 * n - only_first + only_second) * difference - only_first - only_second
        root = math.sqrt(max(linear**2 + 8 * n * only_second * difference * (1 - difference), 0.0))
        share = max((root - linear) / (4 * n), 0.0)
        variance = n * (2 * share + difference * (1 - difference))
        distance = only_first - only_second - n * difference
        if variance > 0:
            return distance / math.sqrt(variance)
        return math.copysign(math.inf, distance) if distance else 0.0

    edge = 1 - 1e-12
    low = -1.0 if estimate == -1 else optimize.brentq(lambda d: score(d) - normal, -edge, min(estimate, edge))
    high = 1.0 if estimate == 1 else optimize.brentq(lambda d: score(d) + normal, max(estimate, -edge), edge)
    return float(low), float(high)
