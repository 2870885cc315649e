# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs of two arms, paired by learning rate and seed, and how far their shares of unhealthy runs differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.frames import telling
from yolo_gradstudy.tables.intervals import (
    LEVEL,
    MISSING,
    Interval,
    clustered_mean,
    paired_difference_interval,
)


def paired_outcomes(results: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Pairs of runs of two arms that both say something.

    Args:
        results: :func:`results_table`.
        first: An arm.
        second: Another one.

    Returns:
        A row a learning rate and seed: ``lr0``, ``seed``, and whether the run of the ``first`` and of the ``second``
        arm is unhealthy.
    """
    told = telling(results)
    unhealthy = told.assign(unhealthy=[Outcome(name).unhealthy for name in told["outcome"]])
    found = {
        name: unhealthy[unhealthy["arm"] == arm].set_index(["lr0", "seed"])["unhealthy"]
        for name, arm in (("first", first), ("second", second))
    }
    return pd.concat(found, axis=1, join="inner").astype(bool).reset_index()


@dataclass(frozen=True)
class PairedDifference:
    """The first arm's share of unhealthy runs less the second's, over pairs that come from a few seeds.

    Pairs of one seed at several learning rates have the order of the data and the initial weights in common. So two
    tests have to refuse chance: McNemar's exact one over pairs, as if each stood for itself, and Student's over seeds.
    The latter takes the larger of two standard errors, Obuchowski's (1998) between seeds and that of independent pairs
    without a difference: seeds that happen to agree do not make it sure of itself. The interval reaches, at each end,
    to the farther of Tango's over pairs and Student's over seeds, and to 0 unless both tests refuse it.

    Attributes:
        by_seed: Of each seed, a number a pair: 1 where only the first arm's run is unhealthy, −1 where only the
            second's, 0 where both are or neither. There is at least one pair.
    """

    by_seed: Sequence[Sequence[int]]

    @classmethod
    def of(cls, pairs: pd.DataFrame) -> PairedDifference:
        """That of :func:`paired_outcomes`."""
        gaps = pairs["first"].astype(int) - pairs["second"].astype(int)
        return cls([of_seed.tolist() for _, of_seed in gaps.groupby(pairs["seed"])])

    @property
    def n(self) -> int:
        """Pairs."""
        return sum(map(len, self.by_seed))

    @property
    def only_first(self) -> int:
        """Pairs of which only the first arm's run is unhealthy."""
        return sum(gap == 1 for gaps in self.by_seed for gap in gaps)

    @property
    def only_second(self) -> int:
        """Pairs of which only the second arm's is."""
        return sum(gap == -1 for gaps in self.by_seed for gap in gaps)

    @property
    def point(self) -> float:
        """The difference."""
        return (self.only_first - self.only_second) / self.n

    @property
    def method(self) -> str:
        """Whose interval it is."""
        return "Tango, Student over seeds" if self._is_clustered else "Tango"

    def interval(self, level: float = LEVEL) -> Interval:
        """Within −1 and 1; missing where several pairs come from one seed, and there is no other."""
        if math.isnan(self.p):
            return MISSING
        low, high = paired_difference_interval(self.only_first, self.only_second, self.n, level)
        if self._is_clustered:
            half = float(stats.t.ppf((1 + level) / 2, len(self.by_seed) - 1)) * self._error
            low, high = max(min(low, self.point - half), -1.0), min(max(high, self.point + half), 1.0)
        # Tango's is of large samples: with few pairs it may leave out 0 where the exact test does not refuse it.
        return (low, high) if self.p < 1 - level else (min(low, 0.0), max(high, 0.0))

    @property
    def p(self) -> float:
        """The larger p of the two tests; missing where the interval is."""
        p = mcnemar_p(self.only_first, self.only_second)
        if not self._is_clustered:
            return p
        if len(self.by_seed) < 2:
            return math.nan
        if not self.only_first + self.only_second:
            return 1.0
        return max(p, float(2 * stats.t.sf(abs(self.point) / self._error, len(self.by_seed) - 1)))

    @property
    def _error(self) -> float:
        """The standard error of Student's test over seeds."""
        return max(clustered_mean(self.by_seed)[1], math.sqrt(self.only_first + self.only_second) / self.n)

    @property
    def _is_clustered(self) -> bool:
        return any(len(gaps) > 1 for gaps in self.by_seed)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """McNemar's exact test (1947): whether discordant pairs lie on one side more often than a fair coin does.

    Returns:
        P, two-sided; 1 where no pair is discordant.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
