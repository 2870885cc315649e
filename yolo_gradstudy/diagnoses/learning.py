# SPDX-License-Identifier: AGPL-3.0-or-later
"""The rule that asks whether a living detector has learned anything, which its training loss can't tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from yolo_gradstudy.diagnoses.advice import in_words, learning_rate_advice, raised_lr0
from yolo_gradstudy.diagnoses.epochs import map_name, map_of
from yolo_gradstudy.diagnoses.evidence import Evidence, training_arguments
from yolo_gradstudy.diagnoses.thresholds import Thresholds
from yolo_gradstudy.records import Advice, Finding, Run, RunResult


def is_stuck(evidence: Evidence) -> Finding:
    """The detector is alive and has learned nothing, where it could have.

    A detector has learned something where the class loss of a fixed assignment is below chance, which no detector
    that does not look at the image can be (``statistics.validation``), or where its mAP is clearly above 0. Either
    is proof. Their absence is none: early in a healthy training both are missing, and the class loss may be a
    thousand times chance. So a run is stuck only

    - beside a paired control that has learned after as many epochs, or
    - without a control after many validated epochs, with a loss that no longer improves.
    """
    rule = "is_stuck"
    if evidence.run is None:
        return Finding(rule, "not checked", "nothing was recorded")
    own = _witness(evidence.run, evidence.result, evidence.thresholds)
    if own is None:
        return Finding(rule, "not checked", "neither a loss with a fixed assignment nor mAP was validated")
    if own.learned:
        return Finding(rule, "not matched", own.told)
    if evidence.control is not None:
        return _beside_control(rule, evidence, own)
    losses = own.losses
    if losses is None:
        return Finding(
            rule, "not checked", "a low mAP alone does not tell that it should have learned: a control would"
        )
    limits = evidence.thresholds
    if len(losses) < limits.stuck_epochs:
        few = f"without a control it takes {limits.stuck_epochs} validated epochs, there are {len(losses)}"
        return Finding(rule, "not checked", few)
    late = losses.iloc[-limits.stuck_window :].min()
    before = losses.iloc[-2 * limits.stuck_window : -limits.stuck_window].min()
    if late < (1 - limits.stuck_improvement) * before:
        return Finding(rule, "not checked", "it has not learned yet, and its validation loss still improves")
    told = f"{own.told}; after {len(losses)} epochs it no longer improves, {late:.3g} after {before:.3g}"
    return Finding(rule, "matched", told, advice=_other_lr0(evidence, own.told))


def _beside_control(rule: str, evidence: Evidence, own: Witness) -> Finding:
    """The rule for a run that has not learned and has a control."""
    assert evidence.run is not None
    assert evidence.control is not None
    last = (_last(evidence.run.validations), _last(evidence.epochs))
    control = _witness(evidence.control, evidence.control.result, evidence.thresholds, last)
    limits = evidence.thresholds
    if control is None or not control.clearly_learned:
        why = "has learned little" if control is not None and control.learned else "has not learned either"
        why = "is not validated" if control is None else why
        return Finding(rule, "not checked", f"it has not learned, and its paired control {why}: nothing can be told")
    if own.score is not None and control.score is not None and own.score > limits.stuck_map * control.score:
        return Finding(
            rule, "not matched", f"{own.told}: little beside the paired control ({control.told}), not nothing"
        )
    told = f"{own.told}; the paired control has learned ({control.told})"
    return Finding(rule, "matched", told, advice=_other_lr0(evidence, own.told))


@dataclass(frozen=True)
class Witness:
    """What validation tells of a run at its end.

    Attributes:
        learned: Whether it shows that the detector has learned something.
        told: A clause with the numbers.
        losses: The class loss of the branch that inference uses, index epoch; None where it was not recorded.
        clearly_learned: Whether that is beyond doubt: another run that has not learned nearly as much may be as good.
        score: mAP50-95; None where it was not validated.
    """

    learned: bool
    clearly_learned: bool
    told: str
    score: float | None
    losses: pd.Series | None


def _witness(
    run: Run, result: RunResult | None, limits: Thresholds, last: tuple[int | None, int | None] = (None, None)
) -> Witness | None:
    """What validation tells of a run, up to some epoch; None where it tells nothing.

    Args:
        run: The run.
        result: Its result, whose metrics count where no epoch's do.
        limits: The thresholds.
        last: The last epoch that counts, of validations and of ``results.csv``, which count from 0 and from 1.
    """
    told, learned, clearly, losses = [], False, False, None
    branch = run.meta.get("inference_branch")
    loss, chance = f"fixed_class_{branch}", f"fixed_chance_{branch}"
    validations = run.validations.loc[0 : last[0]]  # without that of the untrained model, of epoch -1
    if len(validations) and loss in validations and chance in validations:
        losses = validations[loss].astype("float64")
        end, level = float(losses.iloc[-1]), float(validations[chance].iloc[-1])
        learned, clearly = end < limits.learned_class * level, end < limits.learned_class_clearly * level
        told.append(f"class loss of the fixed assignment {end:.3g}, chance {level:.3g}")
    scores = map_of(run.epochs.loc[: last[1]])
    if scores is not None and len(scores):
        score: float | None = float(scores.iloc[-1])
    else:
        name = None if result is None or last[1] is not None else map_name(result.metrics)
        score = None if result is None or name is None else float(result.metrics[name])
    if score is not None and np.isfinite(score):
        learned |= score >= limits.learned_map
        clearly |= score >= limits.learned_map
        told.append(f"mAP50-95 {score:.2g}")
    return Witness(learned, clearly, ", ".join(told), score, losses) if told else None


def _last(frame: pd.DataFrame) -> int | None:
    return int(frame.index.max()) if len(frame) else None


def _other_lr0(evidence: Evidence, what: str) -> Advice | None:
    """Advice to train at the control's rate, else at one that would move the weights as is usual."""
    rate = evidence.arguments.get("lr0")
    if not isinstance(rate, int | float) or not rate > 0:
        return None
    other = None if evidence.control is None else training_arguments(evidence.control).get("lr0")
    if isinstance(other, int | float) and other != rate:
        chosen = learning_rate_advice(evidence, float(other))
        return Advice(f"{what} with lr0={rate:g}, and the control learns: try {in_words(chosen)}", chosen)
    if not {"update_norm", "param_norm"} <= set(evidence.steps.columns):
        return None
    ratio = float((evidence.steps["update_norm"] / evidence.steps["param_norm"]).median())
    usual = evidence.thresholds.update_usual
    if not 0 < ratio < usual / 10:
        return None
    chosen = learning_rate_advice(evidence, raised_lr0(evidence, rate, usual / ratio))
    text = f"{what}, and a step moves the weights by {ratio:.1g} of their norm, where {usual:g} is usual"
    return Advice(f"{text}: try {in_words(chosen)}", chosen)
