# SPDX-License-Identifier: AGPL-3.0-or-later
"""The order of arms, and which of them the others are compared with."""

from __future__ import annotations

from collections.abc import Iterable

CONTROL = "control"


def arm_order(arms: Iterable[str]) -> list[str]:
    """The distinct arms in the order in which they come, the control first."""
    distinct = list(dict.fromkeys(arms))
    return sorted(distinct, key=lambda arm: arm != CONTROL)
