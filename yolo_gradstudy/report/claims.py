# SPDX-License-Identifier: AGPL-3.0-or-later
"""What people hold to be true of training's safeguards, and what a study's tables say of it.

To add a claim, write a function of :class:`Evidence` and add a line to ``CLAIMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from scipy import stats

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.report.answer import percent, signed
from yolo_gradstudy.tables import CONTROL
from yolo_gradstudy.tables.intervals import paired_difference_interval

Verdict = Literal["supported", "contradicted", "not decided"]

VERDICT_RULE = (
    "A claim is supported where the 95% interval of the difference excludes 0 in the direction that it claims, "
    "contradicted where the interval excludes 0 in the other, and otherwise not decided at this scale. Of a grid, the "
    "difference is that of the shares of unhealthy runs over all pairs of an arm’s run with the control’s of the same "
    "seed and learning rate, after Tango; pairs of one seed at several rates count as if they knew nothing of each "
    "other. Of a search, it is that of the largest stable learning rates in octaves, Student’s. Each claim is judged "
    "for itself, without adjustment for how many there are."
)
"""How verdicts are given; the page says it."""


@dataclass(frozen=True)
class Claim:
    """A claim and what the study says of it.

    Attributes:
        text: The claim, as people make it.
        verdict: Of this study.
        evidence: One sentence with the numbers.
        n: What the numbers count, with the word for it, as ``9 pairs``.
        table: The file in which they lie, without its ending.
    """

    text: str
    verdict: Verdict
    evidence: str
    n: str
    table: str


@dataclass(frozen=True)
class Evidence:
    """What claims are judged by.

    Attributes:
        results: ``results_table``.
        tables: The tables that answer with intervals, by the names of their files.
    """

    results: pd.DataFrame
    tables: Mapping[str, pd.DataFrame]


def judge_claims(evidence: Evidence) -> list[Claim]:
    """Every claim of ``CLAIMS`` that the study has anything to say of."""
    return [claim for make in CLAIMS for claim in [make(evidence)] if claim is not None]


def _without(arm: str, text: str) -> Callable[[Evidence], Claim | None]:
    """A claim that what an arm removes keeps training stable."""

    def judged(evidence: Evidence) -> Claim | None:
        arms = set(evidence.results["arm"])
        if arm not in arms or CONTROL not in arms:
            return None
        if "limit_ratios" in evidence.tables:
            return _by_limits(arm, text, evidence.tables["limit_ratios"])
        return _by_pairs(arm, text, evidence.tables["comparisons"])

    return judged


def _by_pairs(arm: str, text: str, comparisons: pd.DataFrame) -> Claim | None:
    rows = comparisons[(comparisons["arm"] == arm) & (comparisons["n"] > 0)]
    n, both, only_arm, only_control = (int(rows[name].sum()) for name in ("n", "both", "only_arm", "only_control"))
    if not n:
        return None
    low, high = paired_difference_interval(only_arm, only_control, n)
    sentence = (
        f"{arm}: unhealthy in {both + only_arm} of {n} runs, the control in {both + only_control} of {n}; difference "
        f"{percent((only_arm - only_control) / n)} (95% interval {percent(low)} to {percent(high)})."
    )
    return Claim(text, _verdict(low, high), sentence, _counted(n, "pair"), "comparisons")


def _by_limits(arm: str, text: str, ratios: pd.DataFrame) -> Claim | None:
    row = ratios[ratios["arm"] == arm].iloc[0]
    n = int(row["n"])
    if not n:
        return None
    octaves, low, high = (float(row[name]) for name in ("log2_ratio", "t_low", "t_high"))
    interval = f"95% interval {signed(low)} to {signed(high)}" if n > 1 else "one seed, no interval"
    sentence = f"{arm}: its largest stable learning rate is {signed(octaves)} octaves from the control’s ({interval})."
    # What is claimed is a smaller limit without the safeguard.
    return Claim(text, _verdict(-high, -low), sentence, _counted(n, "seed"), "limit_ratios")


def _breaks_by_nan(evidence: Evidence) -> Claim | None:
    found = [Outcome(name) for name in evidence.results["outcome"]]
    broken = [outcome for outcome in found if outcome.broken]
    n = len(broken)
    if not n:
        return None
    count = broken.count(Outcome.NONFINITE)
    ends = stats.binomtest(count, n).proportion_ci(method="wilson")
    low, high = float(ends.low), float(ends.high)
    others = ", ".join(
        f"{broken.count(outcome)} {outcome}"
        for outcome in (Outcome.EXPLODED, Outcome.COLLAPSED)
        if broken.count(outcome)
    )
    silent = f"; {others} with a loss that stayed finite" if others else ""
    sentence = (
        f"{count} of {n} broken runs ended in NaN or infinity, {count / n:.0%} (95% interval {low:.0%} to {high:.0%}, "
        f"Wilson; judged against one half){silent}."
    )
    return Claim(
        "A training that breaks shows it: its loss becomes NaN.",
        _verdict(low - 0.5, high - 0.5),
        sentence,
        _counted(n, "run"),
        "outcomes",
    )


def _verdict(low: float, high: float) -> Verdict:
    """Of the interval of what is positive where the claim holds; a missing end decides nothing."""
    return "supported" if low > 0 else "contradicted" if high < 0 else "not decided"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


CLAIMS: Sequence[Callable[[Evidence], Claim | None]] = (
    _without("no_clip", "Clipping the gradient’s norm keeps training stable."),
    _without("no_batchnorm", "Batch normalisation keeps training stable."),
    _without(
        "no_batchnorm_he", "Batch normalisation keeps training stable, also against weights that He’s rule initialises."
    ),
    _without("no_residuals", "Residual connections keep training stable."),
    _without("no_warmup", "Warming the learning rate up keeps training stable."),
    _breaks_by_nan,
)
"""All claims, in the order of the page."""
