# SPDX-License-Identifier: AGPL-3.0-or-later
"""The largest stable learning rate of each arm and seed, and how arms compare by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.arms import CONTROL, arm_order
from yolo_gradstudy.tables.frames import telling, typed
from yolo_gradstudy.tables.intervals import Interval, bootstrap_interval, student_interval

AT_LEAST, BELOW, STUCK = "at least", "below", "stuck"

_ROUNDED = 1 + 1e-3
"""What a ratio of two rates of four digits may be off."""

_LIMIT_COLUMNS = {
    "arm": "str", "seed": "Int64", "largest_stable": "float64", "first_broken": "float64", "bound": "str",
    "resolved": "boolean", **dict.fromkeys(("probes", "exceptions", "n_excluded"), "Int64"),
}  # fmt: skip
_RATIO_COLUMNS = {
    "arm": "str", "limit_median": "float64", "median_bound": "str",
    **dict.fromkeys(("n", "n_bounded", "n_excluded", "wins", "losses"), "Int64"),
    **dict.fromkeys(("log2_ratio", "low", "high", "t_low", "t_high"), "float64"),
}  # fmt: skip


def limits_table(results: pd.DataFrame, factor: float) -> pd.DataFrame:
    """The largest stable learning rate of each arm and seed.

    A run is broken where it is nonfinite, exploded or collapsed, and healthy where it is stable or recovered. The limit
    lies at an edge between two neighbouring probed rates, or beyond all: that which the fewest probes contradict,
    broken ones below it and healthy ones above; of several, the lowest. A ``stuck`` run is neither: its rate was
    too small to learn, and contradicts no edge.

    Args:
        results: :func:`results_table` of a search on a geometric grid.
        factor: The ratio of neighbouring rates of the grid.

    Returns:
        A row an arm and seed. ``largest_stable`` is the largest healthy rate below the edge and ``first_broken`` the
        smallest broken one above it. ``bound`` is empty where both are there; ``at least`` where no broken rate lies
        above the edge, ``below`` where no healthy one lies below it, so that the limit is only known to be at least
        ``largest_stable``, or below ``first_broken``; ``stuck`` where no run is broken or healthy; empty also where no
        run says anything. ``resolved`` tells whether the two are neighbours on the grid. ``probes`` are the runs that
        say something, of which ``exceptions`` contradict the edge; ``n_excluded`` failed, were interrupted or are
        unknown.

    Raises:
        ValueError: ``factor`` is not above 1.
    """
    if not (math.isfinite(factor) and factor > 1):
        raise ValueError(f"factor={factor!r} is not the step of a geometric grid; the nearest valid is above 1, as 2.")
    rows = []
    for arm in arm_order(results["arm"]):
        of_arm = results[results["arm"] == arm]
        for seed in sorted(int(seed) for seed in of_arm["seed"].unique()):
            runs = of_arm[of_arm["seed"] == seed]
            told = telling(runs)
            probes = sorted(zip(told["lr0"].astype("float64"), map(Outcome, told["outcome"]), strict=True))
            stable, broken, bound, exceptions = _limit(probes)
            resolved = None if math.isnan(broken - stable) else broken <= stable * factor * _ROUNDED
            counts = [len(probes), exceptions, len(runs) - len(probes)]
            rows.append([arm, seed, stable, broken, bound, resolved, *counts])
    return typed(rows, _LIMIT_COLUMNS)


def _limit(probes: Sequence[tuple[float, Outcome]]) -> tuple[float, float, str, int]:
    """Largest stable rate, first broken rate, bound and exceptions of probes in rising order."""
    rates = sorted({rate for rate, _ in probes})
    broken = [rate for rate, outcome in probes if outcome.broken]
    healthy = [rate for rate, outcome in probes if outcome.healthy]
    if not broken and not healthy:
        return math.nan, math.nan, STUCK if probes else "", 0
    # An edge is told by the smallest rate above it.
    edges = [*rates, math.inf]
    wrong = [sum(rate < edge for rate in broken) + sum(rate >= edge for rate in healthy) for edge in edges]
    edge = edges[wrong.index(min(wrong))]
    stable = max((rate for rate in healthy if rate < edge), default=math.nan)
    first = min((rate for rate in broken if rate >= edge), default=math.nan)
    return stable, first, AT_LEAST if math.isnan(first) else BELOW if math.isnan(stable) else "", min(wrong)


def describe_limits(limits: pd.DataFrame, rate: float) -> list[str]:
    """How far each arm and seed is from the edge, as ``control, seed 0: alive up to lr0 0.08, 8 × 0.01 …``.

    Args:
        limits: :func:`limits_table`.
        rate: The learning rate to compare with.

    Returns:
        A sentence a row.
    """
    columns = ("arm", "seed", "largest_stable", "first_broken", "bound")
    return [
        f"{arm}, seed {seed}: {_edge(float(stable), float(broken), str(bound), rate)}"
        for arm, seed, stable, broken, bound in zip(*(limits[column] for column in columns), strict=True)
    ]


def _edge(stable: float, broken: float, bound: str, rate: float) -> str:
    if bound == STUCK:
        return "no run broke and none learned"
    if bound == BELOW:
        return f"no run stays alive; already lr0 {broken:g} breaks it, {_times(broken, rate)}"
    if math.isnan(stable):
        return "no run says anything"
    if bound == AT_LEAST:
        return f"alive up to lr0 {stable:g}, the largest that was tried, {_times(stable, rate)}"
    return f"alive up to lr0 {stable:g}, {_times(stable, rate)}; lr0 {broken:g} breaks it"


def _times(one: float, rate: float) -> str:
    return f"{one / rate:.3g} × {rate:g} ({math.log2(one / rate):+.1f} octaves)"


def limit_ratios_table(limits: pd.DataFrame) -> pd.DataFrame:
    """How many octaves higher an arm's largest stable learning rate is than the control's, paired by seed.

    Args:
        limits: :func:`limits_table`.

    Returns:
        A row an arm, the control among them. ``limit_median`` is the median over its seeds of ``largest_stable``, and
        ``median_bound`` tells where the seeds that are only bounds leave it ``at least`` that, or ``below`` it.
        ``log2_ratio`` is the mean over ``n`` pairs of log2 of the arm's limit over the control's, ``low`` and
        ``high`` the percentile bootstrap's interval over seeds, ``t_low`` and ``t_high`` Student's, both 95%.
        ``n_bounded`` pairs, of which one limit or both are only a bound, are left out of it: where they are many it is
        an answer about the others. ``n_excluded`` of the arm's seeds have no limit or no partner.
        ``wins`` and ``losses`` count the pairs, also bounded ones, of which it is certain that the arm's limit is
        higher, or lower, on the grid that was probed.
    """
    controls = _ranges(limits[limits["arm"] == CONTROL])
    rows: list[list[object]] = []
    for arm in arm_order(limits["arm"]):
        of_arm = limits[limits["arm"] == arm]
        own = _ranges(of_arm)
        median = _median(of_arm)
        if arm == CONTROL:
            rows.append([arm, *median, len(own), *[None] * 4, *[math.nan] * 5])
            continue
        pairs = [(own[seed], controls[seed]) for seed in own if seed in controls]
        ratios = [math.log2(one[0] / two[0]) for one, two in pairs if one[0] == one[1] and two[0] == two[1]]
        counts = [len(ratios), len(pairs) - len(ratios), len(of_arm) - len(pairs)]
        decided = [sum(one[0] > two[1] for one, two in pairs), sum(one[1] < two[0] for one, two in pairs)]
        mean = float(np.mean(ratios)) if ratios else math.nan
        intervals = [*bootstrap_interval(ratios, "mean"), *student_interval(ratios)]
        rows.append([arm, *median, *counts, *decided, mean, *intervals])
    return typed(rows, _RATIO_COLUMNS)


def _ranges(limits: pd.DataFrame) -> dict[int, Interval]:
    """Of each seed with a limit, the least and the largest that it can be; equal where it is known."""
    found = {}
    for seed, stable, broken, bound in zip(
        limits["seed"], limits["largest_stable"], limits["first_broken"], limits["bound"], strict=True
    ):
        if bound == AT_LEAST:
            found[int(seed)] = (float(stable), math.inf)
        elif bound == BELOW:
            found[int(seed)] = (0.0, math.nextafter(float(broken), 0.0))
        elif bound != STUCK and not math.isnan(stable):
            found[int(seed)] = (float(stable), float(stable))
    return found


def _median(limits: pd.DataFrame) -> tuple[float, str]:
    """The median limit, on a log scale, and whether it is only a bound."""
    ranges = list(_ranges(limits).values())
    if not ranges:
        return math.nan, ""
    low, high = (_log_median([ends[i] for ends in ranges]) for i in (0, 1))
    if low == high:
        return low, ""
    return (low, AT_LEAST) if low > 0 else (high, BELOW) if math.isfinite(high) else (math.nan, "")


def _log_median(values: list[float]) -> float:
    """The geometric median: of an even number, the geometric mean of the middle two."""
    values = sorted(values)
    low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
    return low if low == high else 0.0 if low == 0 else math.sqrt(low * high)
