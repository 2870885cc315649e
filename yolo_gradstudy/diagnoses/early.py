# SPDX-License-Identifier: AGPL-3.0-or-later
"""Early warning: signs in the steps so far that a run is about to turn unhealthy.

A detector takes the scalars of one step after another and answers with a statistic that is large where trouble comes;
it looks at nothing that lies ahead. ``DETECTORS`` is the table of those that were tried, ``WARNING`` what the trainer
uses. How much earlier than the trouble they speak, and how often in vain, ``scripts/early_warning.py`` measures.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import pandas as pd

from yolo_gradstudy.diagnoses.live import recorded_scalars
from yolo_gradstudy.diagnoses.thresholds import THRESHOLDS
from yolo_gradstudy.records import Run

Scalars = Mapping[str, float]


class Detector(Protocol):
    """A statistic of the steps so far."""

    def see(self, scalars: Scalars) -> float | None:
        """Take a step; the statistic after it, None where it can't be told."""


class Band:
    """How far a value lies above the band of the values before it, in robust deviations; see ``bands``.

    Args:
        least: Smallest robust deviation that counts.
        noise: Times that the robust deviation counts where it is larger than the least.
    """

    def __init__(self, least: float, noise: float = 1.0) -> None:
        self._least = least
        self._noise = noise
        self._values: deque[float] = deque(maxlen=THRESHOLDS.band_window + THRESHOLDS.band_lag)

    def above(self, value: float) -> float | None:
        """Take a value; infinity where it is not finite, None where there is no band yet."""
        lag = THRESHOLDS.band_lag
        known = list(self._values)
        past = known[:-lag] if len(known) >= 2 * lag else known
        if not math.isfinite(value):
            return math.inf
        self._values.append(value)
        if len(past) < THRESHOLDS.band_fewest:
            return None
        median = _median(past)
        spread = 1.4826 * _median([abs(known - median) for known in past])
        return (value - median) / min(max(self._noise * spread, self._least), THRESHOLDS.band_most)


class AboveBand:
    """A quantity's logarithm above (or below) its own band.

    Args:
        quantity: The number of a step; None where it has none.
        least: Smallest robust deviation that counts.
        sign: 1 for above, -1 for below.
        noise: As of :class:`Band`.
    """

    def __init__(
        self, quantity: Callable[[Scalars], float | None], least: float, sign: int = 1, noise: float = 1.0
    ) -> None:
        self._quantity = quantity
        self._band = Band(least, noise)
        self._sign = sign

    def see(self, scalars: Scalars) -> float | None:
        """As :meth:`Detector.see`."""
        value = self._quantity(scalars)
        return None if value is None else self._band.above(self._sign * log10(value))


class Level:
    """A quantity's logarithm as it is.

    Args:
        quantity: The number of a step; None where it has none.
        smooth: Steps whose median is taken.
    """

    def __init__(self, quantity: Callable[[Scalars], float | None], smooth: int = 1) -> None:
        self._quantity = quantity
        self._last: deque[float] = deque(maxlen=smooth)

    def see(self, scalars: Scalars) -> float | None:
        """As :meth:`Detector.see`."""
        value = self._quantity(scalars)
        if value is None:
            return None
        self._last.append(log10(value))
        return _median(self._last)


class Rise:
    """How far a quantity's logarithm, smoothed, lies above the smallest that it was.

    Args:
        quantity: The number of a step; None where it has none.
        sign: 1 for a rise, -1 for a fall below the largest.
        smooth: Steps whose median is taken.
    """

    def __init__(self, quantity: Callable[[Scalars], float | None], sign: int = 1, smooth: int = 5) -> None:
        self._quantity = quantity
        self._sign = sign
        self._last: deque[float] = deque(maxlen=smooth)
        self._least = math.inf

    def see(self, scalars: Scalars) -> float | None:
        """As :meth:`Detector.see`."""
        value = self._quantity(scalars)
        if value is None:
            return None
        self._last.append(self._sign * log10(value))
        if len(self._last) < (self._last.maxlen or 1):
            return None
        now = _median(self._last)
        self._least = min(self._least, now)
        return now - self._least


class ChangePoint:
    """Page's cumulative sum (1954, "Continuous inspection schemes") of a quantity's deviations above its band.

    Args:
        quantity: The number of a step; None where it has none.
        least: Smallest robust deviation that counts.
        slack: Deviations that are taken off in each step.
        sign: 1 for above, -1 for below.
    """

    def __init__(
        self, quantity: Callable[[Scalars], float | None], least: float, slack: float = 1.0, sign: int = 1
    ) -> None:
        self._inner = AboveBand(quantity, least, sign)
        self._slack = slack
        self._sum = 0.0

    def see(self, scalars: Scalars) -> float | None:
        """As :meth:`Detector.see`."""
        deviation = self._inner.see(scalars)
        if deviation is None:
            return None
        self._sum = max(0.0, self._sum + deviation - self._slack)
        return self._sum


def _median(values: Iterable[float]) -> float:
    """Of so few numbers Python's sort is done before numpy has begun."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def log10(value: float) -> float:
    """log10, infinite where the value is not finite, with a floor for 0."""
    return math.log10(max(value, 1e-40)) if math.isfinite(value) else math.inf


# Quantities ----------------------------------------------------------------------------------------------


def _per_image(name: str) -> Callable[[Scalars], float | None]:
    def quantity(scalars: Scalars) -> float | None:
        return scalars[name] / (scalars.get("images") or 1.0) if name in scalars else None

    return quantity


def _plain(name: str) -> Callable[[Scalars], float | None]:
    return lambda scalars: scalars.get(name)


def _update_ratio(scalars: Scalars) -> float | None:
    if "update_norm" not in scalars or not scalars.get("param_norm", 0.0) > 0:
        return None
    return scalars["update_norm"] / scalars["param_norm"]


def _scores(branch: str) -> Callable[[Scalars], float | None]:
    """Target scores for each ground-truth box, of a step that has boxes."""

    def quantity(scalars: Scalars) -> float | None:
        if not scalars.get("boxes", 0.0) > 0 or f"target_scores_{branch}" not in scalars:
            return None
        return scalars[f"target_scores_{branch}"] / scalars["boxes"]

    return quantity


DETECTORS: Mapping[str, Callable[[str], Detector]] = {
    "norm_above_band": lambda branch: AboveBand(_per_image("grad_norm"), THRESHOLDS.band_norm_least),
    "norm_change_point": lambda branch: ChangePoint(_per_image("grad_norm"), THRESHOLDS.band_norm_least),
    "norm_rise": lambda branch: Rise(_per_image("grad_norm")),
    "loss_above_band": lambda branch: AboveBand(_per_image("loss"), THRESHOLDS.band_loss_least),
    # What is noise is told apart by a factor: a loss over few images moves by its robust deviation all the time.
    "loss_above_noise": lambda branch: AboveBand(_per_image("loss"), THRESHOLDS.band_loss_least, noise=3.0),
    "loss_change_point": lambda branch: ChangePoint(_per_image("loss"), THRESHOLDS.band_loss_least),
    "loss_rise": lambda branch: Rise(_per_image("loss")),
    "update_ratio_level": lambda branch: Level(_update_ratio),
    "update_ratio_smoothed": lambda branch: Level(_update_ratio, smooth=5),
    "param_norm_rise": lambda branch: Rise(_plain("param_norm"), smooth=1),
    "scores_below_band": lambda branch: AboveBand(_scores(branch), THRESHOLDS.band_loss_least, sign=-1),
    "scores_change_point": lambda branch: ChangePoint(_scores(branch), THRESHOLDS.band_loss_least, sign=-1),
    "scores_fall": lambda branch: Rise(_scores(branch), sign=-1),
    "activation_rms_level": lambda branch: Level(_plain("activation_rms_max")),
    "activation_rms_rise": lambda branch: Rise(_plain("activation_rms_max"), smooth=1),
    "activation_kurtosis_rise": lambda branch: Rise(_plain("activation_rms_spread"), smooth=1),
    "backward_gain_level": lambda branch: Level(_plain("output_grad_rms_max")),
}
"""Every detector that was tried, given the branch that inference uses."""

IN_USE: Mapping[str, float] = {"loss_above_noise": 2.0}
"""Detectors that the trainer uses, with the statistic from which each warns."""

FLOW = "flow.csv"
"""File in which a reduced run keeps :func:`flow_signals`."""


@dataclass(frozen=True)
class Sign:
    """That trouble seems to come.

    Attributes:
        step: The step after which it was told.
        detector: Which detector told.
        statistic: Its statistic.
        threshold: What that passed.
    """

    step: int
    detector: str
    statistic: float
    threshold: float

    @property
    def told(self) -> str:
        """A clause with the numbers."""
        return f"{self.detector} {self.statistic:.3g}, healthy runs stay below {self.threshold:.3g}"


def statistics_of(detectors: Mapping[str, Detector], scalars: Scalars) -> Iterator[tuple[str, float]]:
    """Have detectors take a step, and give what each can tell; of a skipped step none is asked.

    Its gradients overflowed because the AMP scaler looks for the largest scale that holds.
    """
    if scalars.get("skipped", 0.0) > 0:
        return
    for name, detector in detectors.items():
        if (statistic := detector.see(scalars)) is not None:
            yield name, statistic


class EarlyWarning:
    """What the trainer uses: warns once, by the detectors of ``IN_USE``.

    Args:
        branch: The branch that inference uses; None for a model without assigners.
    """

    def __init__(self, branch: str | None) -> None:
        self._detectors = {name: DETECTORS[name](branch or "") for name in IN_USE}
        self._warned = False

    def see(self, step: int, scalars: Scalars) -> Sign | None:
        """Take a step; a warning where one is due, at most one a run."""
        found = None
        for name, statistic in statistics_of(self._detectors, scalars):
            if found is None and statistic > IN_USE[name]:
                found = Sign(step, name, statistic, IN_USE[name])
        if self._warned or found is None:
            return None
        self._warned = True
        return found


def flow_signals(run: Run) -> pd.DataFrame:
    """The largest of the flow at each sampled step (index ``step``), and how far it lies above the median module.

    Args:
        run: What :func:`yolo_gradstudy.load_run` returned.
    """
    found = {}
    for quantity in ("activation_rms", "output_grad_rms"):
        flow = run.flow(quantity)
        if len(flow):
            found[f"{quantity}_max"] = flow.max(axis=1)
            found[f"{quantity}_spread"] = flow.max(axis=1) / flow.median(axis=1)
    return pd.DataFrame(found).rename_axis("step")


def signals(run: Run, flow: pd.DataFrame) -> list[tuple[int, dict[str, float]]]:
    """The scalars of each recorded step as a detector takes them, with what was sampled of the flow.

    Args:
        run: What :func:`yolo_gradstudy.load_run` returned.
        flow: What :func:`flow_signals` returned.
    """
    return list(recorded_scalars(run.steps.join(flow)))
