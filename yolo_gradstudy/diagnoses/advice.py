# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice that several rules give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.records import Advice


def learning_rate(evidence: Evidence, step: int, group: str = "weight") -> float | None:
    """The learning rate of a group of parameters at a step; None where it was not recorded.

    Ultralytics' warm-up begins with a bias rate of its own (``warmup_bias_lr``), so the groups differ.
    """
    assert evidence.run is not None
    groups = list(evidence.run.meta.get("groups", ()))
    if group not in groups and group != "weight":
        return None
    column = f"lr_pg{groups.index(group) if group in groups else 0}"
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


def raised_lr0(evidence: Evidence, rate: float, factor: float) -> float:
    """A learning rate that is raised by a factor, as far as is safe without having tried it.

    More than tenfold it is raised to Ultralytics' default at most: updates that rounding swallows, or that a clip
    scales, are not proportional to the rate. Ultralytics takes none above 1.
    """
    return min(round_down(min(rate * factor, max(10 * rate, evidence.thresholds.usual_lr0))), 1.0)


def lower_lr0(evidence: Evidence, step: int, what: str, factor: float = 3.0, **arguments: Any) -> Advice | None:
    """Advice to train with a third of the learning rate at which it happened.

    Where biases trained at several times that rate then, their own rate comes down to it as well: the weights' alone
    would leave what may have been the cause.

    Args:
        evidence: What is known of the run.
        step: When it happened.
        what: What happened, to begin the sentence with.
        factor: What the rate is divided by.
        **arguments: Further arguments to set.
    """
    rate, biases = learning_rate(evidence, step), learning_rate(evidence, step, "bias")
    if rate is None or not 0 < rate < float("inf"):
        return None
    lower, at = round_down(rate / factor), f"{rate:.3g}"
    if biases is not None and evidence.thresholds.bias_rate_factor * rate < biases < float("inf"):
        arguments, at = {**arguments, "warmup_bias_lr": lower}, f"{at}, {biases:.3g} of biases"
    chosen = learning_rate_advice(evidence, lower, **arguments)
    return Advice(f"{what} at lr {at}: try {in_words(chosen)}", chosen)


def lower_set_lr0(evidence: Evidence, what: str) -> Advice | None:
    """Advice to train with a third of the rate that was set, where no step's rate is known."""
    rate = evidence.arguments.get("lr0")
    if not isinstance(rate, int | float) or not rate > 0 or evidence.arguments.get("optimizer") == "auto":
        return None
    chosen = {"lr0": round_down(rate / 3)}
    return Advice(f"{what} with lr0={rate:g}: try {in_words(chosen)}", chosen)


def other_weights(evidence: Evidence, what: str) -> Advice:
    """Advice to begin with other weights, for what an untrained network shows already."""
    bare = evidence.run is not None and "no_batchnorm" in evidence.run.meta.get("ablations", ())
    return Advice(
        f"{what}: "
        + ("train with BatchNorm again, or " if bare else "")
        + "set the initial weights with `gradstudy train --ablate replace_init_by_he` or `replace_init_by_lsuv`"
    )
