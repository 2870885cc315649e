# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice that several rules give."""

from __future__ import annotations

from collections.abc import Mapping
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


def learning_rate_advice(evidence: Evidence, lr0: float, **arguments: Any) -> dict[str, Any]:
    """Arguments that set a learning rate. Ultralytics' ``optimizer=auto`` ignores ``lr0``, so it is named too."""
    chosen: dict[str, Any] = {"lr0": lr0}
    used = _OPTIMIZERS.get(str(evidence.run.meta.get("optimizer")).lower()) if evidence.run is not None else None
    if evidence.arguments.get("optimizer") == "auto" and used is not None:
        chosen["optimizer"] = used
    return {**chosen, **arguments}


_OPTIMIZERS = {name.lower(): name for name in ("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp")}
"""Ultralytics' names, by torch's in lower case."""


def round_down(value: float) -> float:
    """One digit, as a person would write a learning rate; never 0."""
    return float(f"{value:.1g}")


def in_words(arguments: Mapping[str, Any]) -> str:
    """``lr0=0.03 and warmup_epochs=3``."""
    return " and ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in arguments.items()
    )


def lower_lr0(evidence: Evidence, step: int, what: str, **arguments: Any) -> Advice | None:
    """Advice to train with a third of the learning rate at which it happened.

    Args:
        evidence: What is known of the run.
        step: When it happened.
        what: What happened, to begin the sentence with.
        **arguments: Further arguments to set.
    """
    rate = learning_rate(evidence, step)
    if rate is None or not 0 < rate < float("inf"):
        return None
    chosen = learning_rate_advice(evidence, round_down(rate / 3), **arguments)
    return Advice(f"{what} at lr {rate:.3g}: try {in_words(chosen)}", chosen)


def lower_set_lr0(evidence: Evidence, what: str) -> Advice | None:
    """Advice to train with a third of the rate that was set, where no step's rate is known."""
    rate = evidence.arguments.get("lr0")
    if not isinstance(rate, int | float) or not rate > 0 or evidence.arguments.get("optimizer") == "auto":
        return None
    chosen = {"lr0": round_down(rate / 3)}
    return Advice(f"{what} with lr0={rate:g}: try {in_words(chosen)}", chosen)
