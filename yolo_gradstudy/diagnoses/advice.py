# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice that several rules give."""

from __future__ import annotations

from typing import Any

from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.records import Advice


def learning_rate(evidence: Evidence, step: int) -> float | None:
    """The learning rate of the convolutions' weights at a step; None where it was not recorded.

    Ultralytics' warm-up begins with a bias rate of its own (``warmup_bias_lr``), so the groups differ.
    """
    assert evidence.run is not None
    groups = list(evidence.run.meta.get("groups", ()))
    column = f"lr_pg{groups.index('weight') if 'weight' in groups else 0}"
    if column not in evidence.steps or step not in evidence.steps.index:
        return None
    return float(evidence.steps[column].loc[step])


def lower_lr0(evidence: Evidence, step: int, what: str, **arguments: Any) -> Advice | None:
    """Advice to train with a third of the learning rate at which it happened.

    Args:
        evidence: What is known of the run.
        step: When it happened.
        what: What happened, to begin the sentence with.
        **arguments: Further arguments to set.
    """
    rate = learning_rate(evidence, step)
    if rate is None or not rate > 0:
        return None
    lower = float(f"{rate / 3:.1g}")
    words = "".join(f" and {key}={value}" for key, value in arguments.items())
    return Advice(f"{what} at lr {rate:.3g}: try lr0={lower:g}{words}", {"lr0": lower, **arguments})
