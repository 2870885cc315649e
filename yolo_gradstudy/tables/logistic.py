# SPDX-License-Identifier: AGPL-3.0-or-later
"""Logistic regression on one variable with Firth's penalty, and where it crosses one half.

Where all small values are of one class and all large ones of the other, which is what a search for a limit aims at,
maximum likelihood gives an infinite slope. Jeffreys' prior as a penalty keeps it finite and takes the first-order
bias out: Firth (1993), Biometrika 80, 27–38; Heinze and Schemper (2002), Statistics in Medicine 21, 2409–2419.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from yolo_gradstudy.tables.intervals import LEVEL, Floats

FARTHEST = 64.0
"""Standard deviations of the variable up to which an end of the interval is looked for."""


@dataclass(frozen=True)
class Crossing:
    """Where the probability is one half.

    Attributes:
        centre: The value of the variable.
        low: Lower end of its 95% interval; missing where there is none.
        high: Upper end.
        slope: Log odds a unit of the variable.
    """

    centre: float
    low: float
    high: float
    slope: float


class PenalisedLikelihood:
    """The penalised log-likelihood of intercept and slope, over a variable that is centred and scaled.

    Args:
        x: Values of the variable, of which at least two differ.
        y: Whether each is of the class.
    """

    def __init__(self, x: Sequence[float], y: Sequence[bool]) -> None:
        values = np.asarray(x, dtype="float64")
        self.centre, self.scale = float(np.mean(values)), float(np.std(values))
        scaled, where = np.unique((values - self.centre) / self.scale, return_inverse=True)
        self._x = scaled
        self._n = np.bincount(where).astype("float64")
        self._k = np.bincount(where, weights=np.asarray(y, dtype="float64"))

    def loss(self, intercept: float, slope: float) -> float:
        """Minus the log-likelihood, less half the log determinant of the information."""
        eta = intercept + slope * self._x
        likelihood = self._k @ eta - self._n @ np.logaddexp(0.0, eta)
        # In logs: far out all weights underflow.
        logs = np.log(self._n) + special.log_expit(eta) + special.log_expit(-eta)
        top = float(logs.max())
        weights = np.exp(logs - top)
        mean = weights @ self._x / weights.sum()
        spread = weights @ (self._x - mean) ** 2
        if spread <= 0:
            return math.inf
        return -float(likelihood + 0.5 * (math.log(weights.sum()) + math.log(spread) + 2 * top))

    def score(self, intercept: float, slope: float) -> Floats:
        """Firth's modified score, minus the gradient of :meth:`loss`, by intercept and slope."""
        eta = intercept + slope * self._x
        share = special.expit(eta)
        weights = self._n * share * special.expit(-eta)
        total = weights.sum()
        mean = weights @ self._x / total
        leverage = weights * (1 / total + (self._x - mean) ** 2 / (weights @ (self._x - mean) ** 2))
        residuals = self._k - self._n * share + leverage * (0.5 - share)
        return np.array([residuals.sum(), residuals @ self._x])

    def fit(self) -> tuple[float, float]:
        """The intercept and slope that make the penalised likelihood largest."""

        def loss(both: Floats) -> float:
            return self.loss(float(both[0]), float(both[1]))

        def score(both: Floats) -> Floats:
            return self.score(float(both[0]), float(both[1]))

        found: Floats = np.zeros(2)
        # The simplex takes what finite differences leave.
        for method, options in (("BFGS", {"gtol": 1e-6}), ("Nelder-Mead", {"xatol": 1e-9, "fatol": 1e-12})):
            told: Any = {"method": method, "options": options}
            found = optimize.minimize(loss, found, **told).x
        # Values of a flat top place it to the eighth digit, another on another CPU; where the score is 0, to the last.
        with np.errstate(all="ignore"):  # a step that goes far out, where weights underflow, is not taken
            exact = optimize.root(score, found, tol=1e-14)
        if np.abs(exact.x - found).max() < 1e-4:
            found = exact.x
        return float(found[0]), float(found[1])

    def loss_crossing_at(self, centre: float, widest: float) -> float:
        """The least loss of all curves that cross one half at a value; slopes are between ±``widest``."""
        found = optimize.minimize_scalar(
            lambda slope: self.loss(-slope * centre, slope),
            bounds=(-widest, widest),
            method="bounded",
            options={"xatol": 1e-9},
        )
        return float(found.fun)


def find_crossing(x: Sequence[float], y: Sequence[bool]) -> Crossing | None:
    """Where the probability of a class that is more likely the larger the variable is one half.

    The interval holds all values that the penalised likelihood ratio does not refuse at 5%, the slope profiled out
    (Heinze and Schemper 2002). It has no ends where the slope itself is not told from 0, and observations count as
    independent.

    Args:
        x: Values of the variable.
        y: Whether each is of the class.

    Returns:
        None where the probability does not rise with the variable.
    """
    likelihood = PenalisedLikelihood(x, y)
    intercept, slope = likelihood.fit()
    if slope <= 1e-6:
        return None
    centre = -intercept / slope
    least, half = likelihood.loss(intercept, slope), float(stats.chi2.ppf(LEVEL, 1)) / 2
    widest = 10 + 4 * slope

    def excess(value: float) -> float:
        return likelihood.loss_crossing_at(value, widest) - least - half

    flat = optimize.minimize_scalar(lambda a: likelihood.loss(a, 0.0), bracket=(-1.0, 1.0)).fun
    ends = [math.nan, math.nan] if flat - least <= half else [_end(excess, centre, sign) for sign in (-1, 1)]
    low, high = (likelihood.centre + likelihood.scale * end for end in ends)
    return Crossing(likelihood.centre + likelihood.scale * centre, low, high, slope / likelihood.scale)


def _end(excess: Callable[[float], float], centre: float, sign: int) -> float:
    """Where an interval ends on one side of its centre; missing where that is too far out."""
    near, far = 0.0, 1 / 64
    while excess(centre + sign * far) < 0:
        near, far = far, 2 * far
        if far > FARTHEST:
            return math.nan
    distance = optimize.brentq(lambda d: excess(centre + sign * d), near, far, xtol=1e-12)
    return centre + sign * float(distance)
