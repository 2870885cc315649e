# SPDX-License-Identifier: AGPL-3.0-or-later
"""How far a value is from what it was before, in robust deviations. Only steps before it are looked at."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from yolo_gradstudy.diagnoses.thresholds import Thresholds

Floats = NDArray[np.float64]

_CHUNK = 50_000
"""Numbers in the windows that are sorted at once: 400 kB of them, which stay in a core's cache."""


def log_size(values: ArrayLike) -> Floats:
    """log10 of sizes: +infinity where one is NaN or infinite, a finite floor for 0, NaN for what is negative."""
    sizes = np.asarray(values, dtype="float64")
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log10(np.maximum(sizes, 1e-40))
    return np.where(np.isfinite(sizes), np.where(sizes < 0, np.nan, logs), np.inf)


def deviations(logs: Floats, least: float, limits: Thresholds, rows: slice = slice(None)) -> Floats:
    """Distance of each value from the median of a trailing window, in robust deviations of that window.

    The robust deviation is 1.4826 times the median absolute deviation from the median (Hampel 1974, "The influence
    curve and its role in robust estimation"), which for Gaussian noise is the standard deviation. It is kept between
    ``least`` and ``limits.band_most``.

    Args:
        logs: As :func:`log_size` gives them; shape (steps, series).
        least: Smallest robust deviation that counts.
        limits: ``band_window``, ``band_lag``, ``band_fewest`` and ``band_most``.
        rows: The steps that are asked for; windows reach back before them.

    Returns:
        Shape (steps asked for, series): +infinity where a value is not finite, NaN where there is no band yet or
        no value.
    """
    asked = np.arange(len(logs))[rows]
    window, lag, series = limits.band_window, limits.band_lag, logs.shape[1]
    distance = np.full((series, len(asked)), np.nan)
    # Series by series in memory, so that a window's numbers lie side by side.
    known = np.full((series, window + lag + len(logs)), np.nan)
    known[:, window + lag :] = np.where(np.isfinite(logs), logs, np.nan).T
    windows = sliding_window_view(known, window, axis=1)
    size = max(1, _CHUNK // max(1, window * series))
    for start in range(0, len(asked), size):
        steps = asked[start : start + size]
        # Early on the newest steps count too: without them there would be nothing to compare with.
        past = windows[:, np.where(steps >= 2 * lag, steps, steps + lag)]
        median, count = _median(past)
        spread = 1.4826 * _median(np.abs(past - median[..., None]))[0]
        scale = np.clip(spread, least, limits.band_most)
        away = (known[:, window + lag + steps] - median) / scale
        distance[:, start : start + size] = np.where(count >= limits.band_fewest, away, np.nan)
    return np.where(np.isposinf(logs[rows]), np.inf, distance.T)


def _median(values: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Median over the last axis of what is not NaN, NaN where nothing is; and how many these are.

    numpy's own walks row by row.
    """
    ordered = np.sort(values, axis=-1)  # NaN comes last
    most = values.shape[-1]
    if not np.isnan(ordered[..., -1]).any():
        return (ordered[..., (most - 1) // 2] + ordered[..., most // 2]) / 2, np.full(ordered.shape[:-1], most)
    count: NDArray[np.int64] = np.isfinite(ordered).sum(axis=-1)
    low = np.take_along_axis(ordered, (np.maximum(count - 1, 0) // 2)[..., None], axis=-1)[..., 0]
    high = np.take_along_axis(ordered, np.minimum(count // 2, most - 1)[..., None], axis=-1)[..., 0]
    return (low + np.where(count > 0, high, np.nan)) / 2, count
