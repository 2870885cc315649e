# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a detection criterion has its assigners, and which of its branches answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from ultralytics.cfg import DEFAULT_CFG_DICT

from yolo_gradstudy.records import Branch


def assigner_modules(criterion: Any) -> dict[str, nn.Module]:
    """The assigners of a detection criterion by branch; empty for a criterion that has none."""
    branches = {b: getattr(criterion, b) for b in ("one2many", "one2one") if hasattr(criterion, b)}
    if not branches:
        branches = {"one2many": criterion}
    found = {branch: getattr(part, "assigner", None) for branch, part in branches.items()}
    return {branch: assigner for branch, assigner in found.items() if isinstance(assigner, nn.Module)}


def inference_branch(
    assigners: Mapping[str, nn.Module], nms: bool | None, model: nn.Module | None = None
) -> Branch | None:
    """The branch whose predictions validation and inference use; None for a model without assigners.

    A head with two branches (YOLO26) answers from ``one2one`` where the argument ``nms`` is False, and
    from ``one2many`` with non-maximum suppression otherwise: ``ultralytics.engine.validator`` and
    ``predictor`` set ``model.end2end = args.nms is False``. In the first versions of 8.4, where ``nms`` is
    False by default and counts for export only, the model itself says which.
    """
    if not assigners:
        return None
    first_versions = DEFAULT_CFG_DICT.get("nms", False) is False
    end2end = getattr(model, "end2end", True) if first_versions else nms is False
    return "one2one" if "one2one" in assigners and end2end else "one2many"
