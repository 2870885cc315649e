# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a claim is judged by: experiments with an estimate, its interval, and the range in which the claim holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import pandas as pd

from yolo_gradstudy.report.answer import percent, signed
from yolo_gradstudy.tables.intervals import (
    LEVEL,
    Interval,
    student_interval,
    wilson_interval,
)

Verdict = Literal["supported", "contradicted", "not decided", "not tested"]

ABOVE_0: Interval = (0.0, math.inf)
BELOW_0: Interval = (-math.inf, 0.0)
ABOVE_1: Interval = (1.0, math.inf)
ABOVE_HALF: Interval = (0.5, math.inf)
BELOW_HALF: Interval = (-math.inf, 0.5)
KEPT: Interval = (0.95, 1.05)
"""A factor of one layer that keeps a size, to 5%."""


class Estimate(Protocol):
    """A number with an interval at any level."""

    @property
    def point(self) -> float:
        """The estimate itself."""

    @property
    def method(self) -> str:
        """Whose interval it is."""

    @property
    def n(self) -> int:
        """What is counted."""

    def interval(self, level: float) -> Interval:
        """The interval, missing at both ends where the values are too few."""


@dataclass(frozen=True)
class Mean:
    """The mean of a number a seed, with Student's interval; of no width where all seeds agree.

    Attributes:
        values: One a seed.
        geometric: Whether they are logarithms of what is told, as of a factor.
    """

    values: Sequence[float]
    geometric: bool = False
    method = "Student"

    @property
    def n(self) -> int:
        """Seeds."""
        return len(self.values)

    @property
    def point(self) -> float:
        """The mean; of logarithms, what it is the logarithm of."""
        mean = float(np.mean(self.values))
        return math.exp(mean) if self.geometric else mean

    def interval(self, level: float) -> Interval:
        """Student's interval of the mean; of logarithms, exponentiated."""
        low, high = student_interval(self.values, level)
        return (math.exp(low), math.exp(high)) if self.geometric else (low, high)


@dataclass(frozen=True)
class Share:
    """A share, with Wilson's interval."""

    count: int
    n: int
    method = "Wilson"

    @property
    def point(self) -> float:
        """The share."""
        return self.count / self.n

    def interval(self, level: float) -> Interval:
        """Wilson's interval."""
        return wilson_interval(self.count, self.n, level)


Form = Literal["number", "percent", "signed percent", "signed"]

_FORMS: Mapping[Form, Callable[[float], str]] = {
    "number": lambda value: f"{value:.3g}".replace("-", "−"),
    "percent": lambda value: f"{value:.0%}".replace("-", "−"),
    "signed percent": percent,
    "signed": lambda value: signed(value, 2),
}


@dataclass(frozen=True)
class Experiment:
    """One test of a claim.

    Attributes:
        what: What was done, in one phrase.
        quantity: What was measured, in one phrase.
        estimate: The number.
        holds: The open range in which the claim holds.
        counted: The word for what ``estimate.n`` counts.
        table: The file in which the numbers lie, without its ending.
        form: How numbers are written.
        note: What else the numbers say; a sentence's end without its full stop.
        decides: Whether the claim's verdict rests on it; others stand beside.
    """

    what: str
    quantity: str
    estimate: Estimate
    holds: Interval
    counted: str
    table: str
    form: Form = "number"
    note: str = ""
    decides: bool = True

    @property
    def verdict(self) -> Verdict:
        """By the 95% interval."""
        return self.judge(LEVEL)

    def judge(self, level: float) -> Verdict:
        """What it says of the claim, by an interval of another level."""
        low, high = self.estimate.interval(level)
        least, most = self.holds
        if math.isnan(low) or math.isnan(high):
            return "not decided"
        if least < low and high < most:
            return "supported"
        return "contradicted" if high < least or low > most else "not decided"

    @property
    def n(self) -> str:
        """As ``9 pairs``."""
        n = self.estimate.n
        return f"{n} {self.counted}{'' if n == 1 else 's'}"

    @property
    def point(self) -> str:
        """The estimate as text."""
        return _FORMS[self.form](self.estimate.point)

    @property
    def interval(self) -> str:
        """The 95% interval as text."""
        low, high = self.estimate.interval(LEVEL)
        if math.isnan(low):
            return "none"
        write = _FORMS[self.form]
        return f"{write(low)} to {write(high)}"

    @property
    def claimed(self) -> str:
        """The range in which the claim holds, as text."""
        least, most = self.holds
        write = _FORMS["percent" if "percent" in self.form else "number"]
        if math.isinf(most):
            return f"above {write(least)}"
        return f"below {write(most)}" if math.isinf(least) else f"{write(least)} to {write(most)}"

    @property
    def evidence(self) -> str:
        """One sentence with the numbers."""
        interval = "no interval" if self.interval == "none" else f"95% interval {self.interval}, {self.estimate.method}"
        note = f"; {self.note}" if self.note else ""
        return f"{self.what}: {self.quantity} {self.point} ({interval}){note}."


@dataclass(frozen=True)
class Evidence:
    """What claims are judged by.

    Attributes:
        results: ``results_table``; None where there is no study.
        tables: The tables that answer with intervals, by the names of their files.
        flow: :func:`yolo_gradstudy.report.claims.flow.flow_frame`; None where a study recorded none.
        signal: The tables of ``results/signal`` by the names of their files.
        name: Of the study, where several are looked at.
        pool: Studies with the same word are also looked at together, where they have the same seeds and rates; alone
            where it is empty.
        asked: Numbers of the claims that it is asked of; all where None. A study that shares runs with another one
            would count them twice.
    """

    results: pd.DataFrame | None = None
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    flow: pd.DataFrame | None = None
    signal: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    name: str = ""
    pool: str = ""
    asked: frozenset[int] | None = None

    @property
    def suffix(self) -> str:
        """Names the study in a phrase."""
        return f" ({self.name})" if self.name else ""


Make = Callable[[Evidence], list[Experiment]]
"""Tests a claim, where its evidence is there."""

Across = Callable[[Sequence[Evidence]], list[Experiment]]
"""Tests a claim by several studies together."""


@dataclass(frozen=True)
class Claim:
    """A claim and what was found of it.

    Attributes:
        number: Its place in the list.
        text: As people make it.
        experiments: What tested it.
        beyond: What is more interesting than the claim, sentences with their numbers.
    """

    number: int
    text: str
    experiments: tuple[Experiment, ...] = ()
    beyond: tuple[str, ...] = ()

    @property
    def deciding(self) -> tuple[Experiment, ...]:
        """The experiments on which the verdict rests."""
        return tuple(experiment for experiment in self.experiments if experiment.decides)

    @property
    def verdict(self) -> Verdict:
        """By the 95% intervals."""
        return self.judge(LEVEL)

    def judge(self, level: float) -> Verdict:
        """Contradicted where any deciding experiment contradicts it, supported where none does and one supports it."""
        found = [experiment.judge(level) for experiment in self.deciding]
        if not found:
            return "not tested"
        return next((verdict for verdict in ("contradicted", "supported") if verdict in found), "not decided")

    @property
    def tally(self) -> str:
        """How many experiments say what, as ``2 support it, 1 contradicts it``."""
        found = [experiment.verdict for experiment in self.deciding]
        words = (("supported", "support"), ("contradicted", "contradict"), ("not decided", "decide nothing"))
        told = [(found.count(verdict), word) for verdict, word in words if verdict in found]
        return ", ".join(f"{n} {_inflected(word, n)}" for n, word in told)


def _inflected(word: str, n: int) -> str:
    verb, _, rest = word.partition(" ")
    return f"{verb}{'s' if n == 1 else ''} {rest or 'it'}"
