# SPDX-License-Identifier: AGPL-3.0-or-later
"""What each factor of a crossed design does to the largest stable learning rate, alone and together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd

from yolo_gradstudy.tables.frames import typed
from yolo_gradstudy.tables.intervals import bootstrap_interval, student_interval

Design = Mapping[str, Mapping[str, str | None]]
"""Arm → factor → level, None for the baseline."""

_COLUMNS = {
    "effect": "str", **dict.fromkeys(("order", "n", "n_bounded", "n_excluded"), "Int64"),
    **dict.fromkeys(("log2_effect", "low", "high", "t_low", "t_high"), "float64"),
}  # fmt: skip

_Pairs = tuple[tuple[str, str], ...]


def effects_table(limits: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Main effects and interactions of crossed factors, in octaves of the largest stable learning rate.

    The effect of a set S of factors, each at a level, on y = log2 of the limit is the mean over all levels of the other
    factors, their baselines among them, of Σ over T ⊆ S of (−1)^(|S| − |T|) · y, with the factors of T at their levels
    and the others of S at their baselines: what the levels do together beyond what any fewer of them do (Yates 1937,
    with levels against a baseline; for two levels it is 2^(|S| − 1) times Yates' own, who halves each interaction).

    Args:
        limits: :func:`limits_table`.
        design: The level of each factor in each arm, None for the baseline. Every combination has one arm.

    Returns:
        A row an effect: main effects (``clip=off``) first, then interactions (``clip=off × init=he``) by ``order``.
        ``log2_effect`` is the mean over the ``n`` seeds that have a limit in every arm that it takes; a seed in which
        one of them is only a bound is left out and counted in ``n_bounded``, one that lacks an arm or a limit in
        ``n_excluded``. ``low`` and ``high`` are the percentile bootstrap's over seeds, ``t_low`` and ``t_high``
        Student's, both 95%.

    Raises:
        ValueError: Arms differ in their factors, two have the same levels, or a combination has no arm.
    """
    factors, arms = _cells(design)
    levels = {factor: list(dict.fromkeys(cell[i] for cell in arms)) for i, factor in enumerate(factors)}
    bounded = {(arm, int(seed)) for arm, seed, bound in _columns(limits, "bound") if bound}
    octaves = {
        (arm, int(seed)): math.log2(rate)
        for arm, seed, rate in _columns(limits, "largest_stable")
        if not math.isnan(rate) and (arm, int(seed)) not in bounded
    }
    seeds = sorted({int(seed) for arm, seed, _ in _columns(limits, "bound") if arm in design})
    rows = []
    for pairs in _effects(levels):
        contrast = _contrast(pairs, levels, arms)
        values = [
            sum(weight * octaves[arm, seed] for arm, weight in contrast.items())
            for seed in seeds
            if all((arm, seed) in octaves for arm in contrast)
        ]
        open_ended = sum(
            any((arm, seed) in bounded for arm in contrast)
            and all((arm, seed) in bounded or (arm, seed) in octaves for arm in contrast)
            for seed in seeds
        )
        name = " × ".join(f"{factor}={level}" for factor, level in pairs)
        counts = [len(pairs), len(values), open_ended, len(seeds) - len(values) - open_ended]
        mean = float(np.mean(values)) if values else math.nan
        rows.append([name, *counts, mean, *bootstrap_interval(values, "mean"), *student_interval(values)])
    return typed(rows, _COLUMNS)


def _columns(limits: pd.DataFrame, name: str) -> Iterator[tuple[str, int, float]]:
    return zip(limits["arm"], limits["seed"], limits[name], strict=True)


def _cells(design: Design) -> tuple[list[str], dict[tuple[str | None, ...], str]]:
    """The factors, and the arm of each combination of levels.

    Raises:
        ValueError: The design is not crossed.
    """
    factors = list(next(iter(design.values()), {}))
    arms: dict[tuple[str | None, ...], str] = {}
    for arm, levels in design.items():
        if set(levels) != set(factors):
            raise ValueError(
                f"the arm {arm!r} has the factors {', '.join(sorted(levels)) or 'none'}; "
                f"the nearest valid are those of the first arm, {', '.join(factors)}."
            )
        cell = tuple(levels[factor] for factor in factors)
        if cell in arms:
            raise ValueError(f"the arm {arm!r} has the same levels as {arms[cell]!r}; each combination takes one arm.")
        arms[cell] = arm
    for wanted in product(*({None, *(cell[i] for cell in arms)} for i in range(len(factors)))):
        if wanted not in arms:
            told = ", ".join(f"{f}={level or 'baseline'}" for f, level in zip(factors, wanted, strict=True))
            near = max(arms, key=lambda cell: sum(a == b for a, b in zip(cell, wanted, strict=True)))
            raise ValueError(f"no arm of the design has {told}; the nearest is {arms[near]!r}.")
    return factors, arms


def _effects(levels: Mapping[str, Sequence[str | None]]) -> Iterator[_Pairs]:
    """Every set of factors at levels other than the baseline, the smallest first."""
    for size in range(1, len(levels) + 1):
        for chosen in combinations(levels, size):
            choices = ([(factor, level) for level in levels[factor] if level is not None] for factor in chosen)
            yield from product(*choices)


def _contrast(
    pairs: _Pairs, levels: Mapping[str, Sequence[str | None]], arms: Mapping[tuple[str | None, ...], str]
) -> dict[str, float]:
    """The weight of each arm in an effect."""
    own = dict(pairs)
    cells = product(*([None, own[factor]] if factor in own else all_ for factor, all_ in levels.items()))
    others = math.prod(len(all_) for factor, all_ in levels.items() if factor not in own)
    found = {}
    for cell in cells:
        at_level = sum(cell[i] is not None for i, factor in enumerate(levels) if factor in own)
        found[arms[cell]] = (-1.0) ** (len(own) - at_level) / others
    return found
