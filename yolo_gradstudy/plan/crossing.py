# SPDX-License-Identifier: AGPL-3.0-or-later
"""Crossed factors: an arm for every combination of their levels, so that interactions can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from yolo_gradstudy.plan.study import CONTROL


def cross(factors: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str | None]]:
    """Every combination of the factors' levels.

    Args:
        factors: Factor → ablations, each a level; to leave the factor as it is is a level besides.

    Returns:
        The arm's name → factor → level, None where the factor is left as it is. The combination of these is the
        control; another is named by its ablations, as ``no_batchnorm.no_clip``.
    """
    choices = [(None, *levels) for levels in factors.values()]
    cells = (dict(zip(factors, cell, strict=True)) for cell in product(*choices))
    return {".".join(level for level in cell.values() if level is not None) or CONTROL: cell for cell in cells}
