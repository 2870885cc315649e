# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a study's trainings say of claims: outcomes paired by seed, and limits of the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.report.claims.experiments import (
    ABOVE_0,
    ABOVE_1,
    ABOVE_HALF,
    BELOW_0,
    BELOW_HALF,
    Across,
    Evidence,
    Experiment,
    Make,
    Mean,
    Share,
)
from yolo_gradstudy.tables import (
    CONTROL,
    PairedDifference,
    accuracies_by_seed,
    accuracy_table,
    arm_order,
    differences,
    limit_ratios_table,
    limits_table,
    paired_outcomes,
)

_UNHEALTHY = "difference of the shares of unhealthy runs"


def without(arm: str, decides: bool = True, against: str = CONTROL, helps: bool = True) -> Make:
    """That training is worse with an arm than with another one, by pairs of runs and by limits.

    Args:
        arm: The arm.
        decides: As :class:`Experiment`.
        against: The arm that it is compared with.
        helps: Whether what the arm lacks is claimed to help; where False, that the arm itself does.
    """

    def made(evidence: Evidence) -> list[Experiment]:
        if evidence.results is None or not {arm, against} <= set(evidence.results["arm"]):
            return []
        if "limit_ratios" in evidence.tables:
            return _by_limits(arm, decides, against, helps, evidence)
        return _by_pairs(arm, decides, against, helps, evidence)

    return made


def _by_pairs(arm: str, decides: bool, against: str, helps: bool, evidence: Evidence) -> list[Experiment]:
    assert evidence.results is not None
    worse, other = (arm, against) if helps else (against, arm)
    pairs = paired_outcomes(evidence.results, worse, other)
    if pairs.empty:
        return []
    n = len(pairs)
    rates = [
        f"{int(of_rate['first'].sum())} and {int(of_rate['second'].sum())} of {len(of_rate)} at {rate:g}"
        for rate, of_rate in pairs.groupby("lr0")
    ]
    note = (
        f"unhealthy with {worse} in {int(pairs['first'].sum())} of {n} runs, with {other} in "
        f"{int(pairs['second'].sum())} of {n}: {', '.join(rates)}"
    )
    what = f"{worse} against {other}, runs of the same seed and learning rate{evidence.suffix}"
    return [_more_unhealthy(what, pairs, note, decides)]


def _more_unhealthy(what: str, pairs: pd.DataFrame, note: str, decides: bool = True) -> Experiment:
    """That the first of paired runs are unhealthy more often."""
    difference = PairedDifference.of(pairs)
    return Experiment(what, _UNHEALTHY, difference, ABOVE_0, "pair", "results", "signed percent", note, decides)


def in_all(arm: str, against: str = CONTROL) -> Across:
    """That training is worse with an arm, in all studies of a pool: by pairs at the rates and seeds that all have.

    A seed of each study stands for itself: models differ in their weights, if not in the order of the data.
    """

    def made(evidences: Sequence[Evidence]) -> list[Experiment]:
        pools = dict.fromkeys(one.pool for one in evidences if one.pool)
        return [found for pool in pools for found in _of_pool([one for one in evidences if one.pool == pool])]

    def _of_pool(evidences: Sequence[Evidence]) -> list[Experiment]:
        grids = {one.name: one.results for one in evidences if one.results is not None}
        having = {name: table for name, table in grids.items() if {arm, against} <= set(table["arm"])}
        if len(having) < 2:
            return []
        cells = [set(zip(table["lr0"], table["seed"], strict=True)) for table in having.values()]
        common = set.intersection(*cells)
        found = []
        for name, table in having.items():
            pairs = paired_outcomes(table, arm, against)
            shared = [cell in common for cell in zip(pairs["lr0"], pairs["seed"], strict=True)]
            found.append(pairs[shared].assign(seed=f"{name} " + pairs["seed"].astype(str)))
        pairs = pd.concat(found, ignore_index=True)
        if pairs.empty:
            return []
        note = (
            f"unhealthy with {arm} in {int(pairs['first'].sum())} of {len(pairs)} runs, with {against} in "
            f"{int(pairs['second'].sum())}; {pairs['seed'].nunique()} seeds, those of each study by themselves"
        )
        return [_more_unhealthy(f"{arm} against {against}, where all have runs ({', '.join(having)})", pairs, note)]

    return made


def _by_limits(arm: str, decides: bool, against: str, helps: bool, evidence: Evidence) -> list[Experiment]:
    worse, other = (arm, against) if helps else (against, arm)
    octaves = _octaves(evidence.tables["limits"], worse, other)
    if not octaves:
        return []
    return [
        Experiment(
            f"{worse} against {other}, largest stable learning rate of the same seed{evidence.suffix}",
            "octaves lost",
            Mean([-value for value in octaves]),
            ABOVE_0,
            "seed",
            "limits",
            "signed",
            decides=decides,
        )
    ]


def _octaves(limits: pd.DataFrame, first: str, second: str) -> list[float]:
    """Of each seed whose two limits are known, log2 of the first arm's over the second's."""
    known = limits[(limits["bound"].fillna("") == "") & limits["largest_stable"].notna()]
    found = [known[known["arm"] == arm].set_index("seed")["largest_stable"] for arm in (first, second)]
    both = pd.concat(found, axis=1, join="inner", keys=["first", "second"])
    return [float(value) for value in np.log2(both["first"] / both["second"])]


def detects_less(arm: str) -> Make:
    """That the detector ends worse with an arm, at the control's best rate; stands beside claims of stability."""

    def made(evidence: Evidence) -> list[Experiment]:
        if evidence.results is None or "limit_ratios" in evidence.tables:
            return []
        table = accuracy_table(evidence.results)
        own = table[(table["arm"] == CONTROL) & (table["reason"] == "")].dropna(subset="map50_95")
        if own.empty:
            return []
        best, rate = max(zip(own["map50_95"], own["lr0"], strict=True))
        found = accuracies_by_seed(evidence.results)
        lost = differences(found[CONTROL, rate], found.get((arm, rate), {}))
        if not lost:
            return []
        return [
            Experiment(
                f"{arm} against {CONTROL} at the control’s best rate, {rate:g}{evidence.suffix}",
                "mAP50-95 lost",
                Mean(lost),
                ABOVE_0,
                "seed",
                "results",
                "signed",
                f"the control ends at {best:.2f}; a run that broke counts as 0",
                decides=False,
            )
        ]

    return made


def breaks_by_nan(rates: Literal["all", "largest", "lower"] = "all") -> Make:
    """That runs that break end in NaN or infinity, more often than not.

    A run that a guard ended early had no time for it, and to leave such runs out would leave those that a guard
    did not see in time, NaN first of all: a study in which one was ended says nothing of it.

    Args:
        rates: Of which learning rates; a part of them stands beside.
    """

    def made(evidence: Evidence) -> list[Experiment]:
        if evidence.results is None:
            return []
        told = evidence.results
        broken = told[[Outcome(name).broken for name in told["outcome"]]]
        largest = told["lr0"].max()
        if rates != "all":
            broken = broken[(broken["lr0"] == largest) == (rates == "largest")]
        early = broken["stopped_at"].notna() & (broken["outcome"] != str(Outcome.NONFINITE))
        if broken.empty or early.any():
            return []
        where = {"all": "over all arms and rates", "largest": f"at the largest rate, {largest:g}"}
        counts = broken["outcome"].value_counts()
        others = ", ".join(f"{counts[name]} {name}" for name in ("exploded", "collapsed") if name in counts)
        return [
            Experiment(
                f"Runs that broke {where.get(rates, f'at rates below the largest, {largest:g}')}{evidence.suffix}",
                "share that ended in NaN or infinity",
                Share(int(counts.get(str(Outcome.NONFINITE), 0)), len(broken)),
                ABOVE_HALF,
                "broken run",
                "results",
                "percent",
                f"{others} with a loss that stayed finite" if others else "",
                decides=rates == "all",
            )
        ]

    return made


def control_at(largest: bool) -> Make:
    """That the control, with all safeguards, stays healthy: at the smallest rate, or even at the largest."""

    def made(evidence: Evidence) -> list[Experiment]:
        if evidence.results is None or "limit_ratios" in evidence.tables:
            return []
        told = evidence.results[[Outcome(name).tells for name in evidence.results["outcome"]]]
        control = told[told["arm"] == CONTROL]
        if control.empty or (largest and told["lr0"].nunique() < 2):
            return []
        rate = evidence.results["lr0"].max() if largest else evidence.results["lr0"].min()
        runs = control[control["lr0"] == rate]
        unhealthy = sum(Outcome(name).unhealthy for name in runs["outcome"])
        clipped = runs["clipped_share"].dropna() if "clipped_share" in runs else pd.Series(dtype=float)
        note = f"its clip was at work in {clipped.median():.0%} of the steps (median)" if len(clipped) else ""
        if not len(runs):
            return []
        return [
            Experiment(
                f"The control at the {'largest' if largest else 'smallest'} rate, {rate:g}{evidence.suffix}",
                "share of unhealthy runs",
                Share(unhealthy, len(runs)),
                BELOW_HALF,
                "run",
                "results",
                "percent",
                note,
            )
        ]

    return made


def at_smallest(arm: str) -> Make:
    """Whether a set of safeguards was needed at all at the smallest rate; stands beside."""

    def made(evidence: Evidence) -> list[Experiment]:
        if evidence.results is None or "limit_ratios" in evidence.tables:
            return []
        least = evidence.results[evidence.results["lr0"] == evidence.results["lr0"].min()]
        found = without(arm, decides=False)(Evidence(least, {}, name=evidence.name))
        rate = evidence.results["lr0"].min()
        what = f"{arm} against {CONTROL} at the smallest rate, {rate:g}{evidence.suffix}"
        return [replace(one, what=what, note="") for one in found]

    return made


def raising_breaks(evidence: Evidence) -> list[Experiment]:
    """That an arm and seed that is healthy at some rate breaks at a higher one."""
    limits = _limits(evidence)
    if limits is None:
        return []
    climbed = limits[limits["largest_stable"].notna()]
    if climbed.empty:
        return []
    broke = int(climbed["first_broken"].notna().sum())
    never = sorted({str(arm) for arm in climbed.loc[climbed["first_broken"].isna(), "arm"]})
    return [
        Experiment(
            f"Rising rates of one arm and seed, a ladder that begins healthy{evidence.suffix}",
            "share that a higher rate broke",
            Share(broke, len(climbed)),
            ABOVE_HALF,
            "ladder",
            "results",
            "percent",
            f"not broken by any rate tried: some of {', '.join(never)}" if never else "",
        )
    ]


def _limits(evidence: Evidence) -> pd.DataFrame | None:
    """Largest stable rates; of a grid as far as its rates tell them."""
    if "limits" in evidence.tables:
        return evidence.tables["limits"]
    if evidence.results is None:
        return None
    rates = sorted(set(evidence.results["lr0"]))
    if len(rates) < 2:
        return None
    return limits_table(evidence.results, max(high / low for low, high in pairwise(rates)))


def limits_by_arm(evidence: Evidence) -> list[Experiment]:
    """How far each arm moves the limit; stands beside, each safeguard being a claim of its own."""
    limits = _limits(evidence)
    if limits is None or CONTROL not in set(limits["arm"]):
        return []
    ratios = limit_ratios_table(limits).set_index("arm")
    found = []
    for arm in arm_order(limits["arm"]):
        octaves = _octaves(limits, arm, CONTROL)
        if arm == CONTROL or not octaves:
            continue
        bounded = int(ratios["n_bounded"].fillna(0)[arm])
        note = f"{bounded} more seeds have only a bound" if bounded else ""
        found.append(
            Experiment(
                f"{arm}: its largest stable rate against the control’s{evidence.suffix}",
                "octaves",
                Mean(octaves),
                BELOW_0,
                "seed",
                "limits" if "limits" in evidence.tables else "results",
                "signed",
                note,
                decides=False,
            )
        )
    return found


def first_gradient(arm: str, against: str, decides: bool = False) -> Make:
    """That the first gradient's norm is larger with one arm than with another, seed by seed."""

    def made(evidence: Evidence) -> list[Experiment]:
        if evidence.results is None or "grad_norm_first" not in evidence.results:
            return []
        least = evidence.results[evidence.results["lr0"] == evidence.results["lr0"].min()]
        ratios = log_ratios(least, "grad_norm_first", arm, against)
        if not ratios:
            return []
        return [
            Experiment(
                f"{arm} against {against}, first step of a training{evidence.suffix}",
                "ratio of the gradient’s norms",
                Mean(ratios, geometric=True),
                ABOVE_1,
                "seed",
                "results",
                decides=decides,
            )
        ]

    return made


def log_ratios(frame: pd.DataFrame, column: str, arm: str, against: str) -> list[float]:
    """Of each seed that both arms have, the logarithm of the ratio of a positive number."""
    found = [frame[frame["arm"] == name].drop_duplicates("seed").set_index("seed")[column] for name in (arm, against)]
    both = pd.concat(found, axis=1, join="inner", keys=["first", "second"])
    usable = both[(both > 0).all(axis=1)]
    return [float(value) for value in np.log(usable["first"] / usable["second"])]
