# SPDX-License-Identifier: AGPL-3.0-or-later
"""How verdicts are given, in words."""

from __future__ import annotations

VERDICT_RULES: tuple[tuple[str, str], ...] = (
    (
        "an experiment supports a claim",
        "where its 95% interval lies wholly in the range in which the claim holds: a difference above 0, a share above "
        "one half, a factor of a layer within 5% of 1",
    ),
    ("it contradicts the claim", "where the interval lies wholly outside that range"),
    ("it decides nothing", "otherwise, or where there is one value and no interval: not decided at this scale"),
    (
        "a claim is contradicted",
        "where any experiment that decides contradicts it, whatever others say: it is told without conditions",
    ),
    ("a claim is supported", "where none contradicts it and at least one supports it"),
    (
        "intervals",
        "Student’s of a mean over seeds (of a factor, of its logarithm); Wilson’s of a share of runs, which takes runs "
        "of one seed for independent; of a difference of shares over pairs of runs of the same seed and learning rate "
        "the farther end, at each side, of Tango’s over pairs and of Student’s over seeds (with the larger of "
        "Obuchowski’s standard error and that of independent pairs), and 0 as well unless McNemar’s exact test and "
        "Student’s refuse it",
    ),
)
"""What is said, and when."""


def verdict_rule() -> str:
    """The rules as one paragraph; a report says it."""
    told = "; ".join(f"{what} {when}" for what, when in VERDICT_RULES[:-1])
    return (
        f"{told[0].upper()}{told[1:]}. Intervals are {VERDICT_RULES[-1][1]}. Verdicts are not adjusted for how many "
        "intervals there are."
    )
