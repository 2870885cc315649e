# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules that ask whether the detector is alive. The training loss is no witness: a dead head's is 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from yolo_gradstudy.diagnoses.advice import lower_lr0, lower_set_lr0
from yolo_gradstudy.diagnoses.epochs import find_epoch_spikes, map_of
from yolo_gradstudy.diagnoses.evidence import Evidence, scores_per_box
from yolo_gradstudy.diagnoses.spikes import find_spikes
from yolo_gradstudy.records import Finding


def is_collapsed(evidence: Evidence) -> Finding:
    """The branch that inference uses learns from nothing any more.

    Told by its target scores for each ground-truth box, which tell how well the best predictions overlap
    the objects: compared with the paired control at its end, or else with the run's own start. YOLO26 has
    two branches, and either can die alone, so the branch that inference uses is the one that is asked.
    """
    rule = "is_collapsed"
    if evidence.only_epochs:
        return _lost_map(rule, evidence, "target scores were not recorded")
    if (short := evidence.too_short(rule)) is not None:
        return short
    assert evidence.run is not None
    compared = compare_scores(evidence)
    if isinstance(compared, str):
        return _lost_map(rule, evidence, compared)
    limit = evidence.thresholds.collapsed_scores * compared.reference
    if compared.end >= limit:
        return Finding(rule, "not matched", compared.told)
    onset = _dead_from(compared.scores, limit)
    loss = f"; the loss there is {evidence.steps['loss'].iloc[-1]:.3g}" if "loss" in evidence.steps else ""
    branch = evidence.run.meta["inference_branch"]
    return Finding(
        rule,
        "matched",
        f"{compared.told}: the {branch} branch is dead from step {onset} on{loss}",
        step=onset,
        advice=lower_lr0(
            evidence, onset, f"the detector died at step {onset}, whatever the loss says,", **_warmup(evidence)
        ),
    )


def _warmup(evidence: Evidence) -> dict[str, float]:
    """Ultralytics' default warm-up, where the run's is not longer already."""
    epochs, usual = evidence.arguments.get("warmup_epochs"), 3.0
    return {} if isinstance(epochs, int | float) and epochs > usual else {"warmup_epochs": usual}


def is_recovered(evidence: Evidence) -> Finding:
    """Loss or gradient norm spiked, and at the end the detector is about as good as the reference.

    A spike is a value far above the start's, or more than 7 robust deviations above the steps before it.
    A run that spiked and ended below is neither this nor stable: what it is can't be told from telemetry.
    """
    rule = "is_recovered"
    if evidence.only_epochs:
        return _recovered_epochs(rule, evidence)
    if (short := evidence.too_short(rule)) is not None:
        return short
    spikes = [s for s in find_spikes(evidence) if s.first]
    if not spikes:
        return Finding(rule, "not matched", "neither loss nor gradient norm spiked")
    compared = compare_scores(evidence)
    if isinstance(compared, str):
        return Finding(rule, "not checked", compared)
    first = min(s.first for s in spikes)
    told = f"spiked from step {first} to {max(s.last for s in spikes)} ({spikes[0].told}); {compared.told}"
    if compared.end < evidence.thresholds.recovered_scores * compared.reference:
        return Finding(rule, "not matched", told)
    if (unreturned := _unreturned_loss(evidence)) is not None:
        return Finding(rule, "not matched", f"{told}; {unreturned}")
    return Finding(
        rule,
        "matched",
        told + other_branch(evidence),
        step=first,
        advice=lower_lr0(evidence, first, f"from step {first} on the run spiked and came back,"),
    )


def is_stable(evidence: Evidence) -> Finding:
    """Nothing went wrong, and the rule that would see a dead detector was able to look."""
    rule = "is_stable"
    compared = compare_scores(evidence)
    if isinstance(compared, str) and (kept := _keeps_map(evidence)) is not None:
        return _stable_by_map(rule, evidence, kept)
    if isinstance(compared, str) or evidence.too_short(rule) is not None:
        return Finding(rule, "not checked", "no rule was able to see whether the detector is alive")
    spiked = [s for s in find_spikes(evidence) if s.first]
    if spiked:
        return Finding(rule, "not matched", f"{spiked[0].name} spiked at step {spiked[0].first}")
    if (unreturned := _unreturned_loss(evidence)) is not None:
        return Finding(rule, "not matched", unreturned)
    return Finding(rule, "matched", f"{len(evidence.steps)} steps finite; {compared.told}{other_branch(evidence)}")


def _unreturned_loss(evidence: Evidence) -> str | None:
    """A clause where the loss, which was lower once, ended above that; None where it did not.

    A loss that is high can be believed: it tells of outputs that died while the assigner, which looks at overlaps
    too, still finds some.
    """
    limits = evidence.thresholds
    if "loss" not in evidence.steps:
        return None
    loss = evidence.per_image(evidence.steps["loss"])
    before = loss.iloc[: len(loss) - len(evidence.end_window(loss))]
    lowest, end = before.rolling(limits.calm_steps).median().min(), evidence.end(loss)
    if not lowest > 0 or not end > limits.returned_loss * lowest:
        return None
    return f"the loss ends at {end / lowest:.2g} times the lowest that it had kept for {limits.calm_steps} steps"


def _lost_map(rule: str, evidence: Evidence, lacking: str) -> Finding:
    """A collapse told by mAP, where no target scores were recorded: it had been up, and is at nothing at the end."""
    scores = map_of(evidence.epochs)
    if scores is None or not len(scores) or not scores.max() > evidence.thresholds.learned_map:
        told = (
            "no mAP was recorded" if scores is None or not len(scores) else f"mAP50-95 never passed {scores.max():.2g}"
        )
        return Finding(rule, "not checked", f"{lacking}, and {told}")
    best, end = float(scores.max()), float(scores.iloc[-1])
    told = f"mAP50-95 {best:.3g} at its best, in epoch {scores.idxmax()}, and {end:.3g} in the last"
    if end >= evidence.thresholds.collapsed_scores * best:
        return Finding(rule, "not matched", told)
    return Finding(
        rule, "matched", told, advice=lower_set_lr0(evidence, f"after epoch {scores.idxmax()} the detector died")
    )


def _recovered_epochs(rule: str, evidence: Evidence) -> Finding:
    """The rule on an epoch's mean losses and mAP."""
    if (found := find_epoch_spikes(evidence)) is None:
        return Finding(rule, "not checked", f"losses of {evidence.thresholds.fewest_epochs} epochs are needed")
    spiked, _, told = found
    if not len(spiked):
        return Finding(rule, "not matched", f"no epoch's loss spiked: {told}")
    if (kept := _keeps_map(evidence)) is None:
        return Finding(rule, "not checked", f"the loss spiked in epoch {spiked[0]}, and no mAP shows that it came back")
    return Finding(rule, "matched", f"the loss spiked in epoch {spiked[0]} ({told}); {kept}")


def _keeps_map(evidence: Evidence) -> str | None:
    """A clause where mAP shows that the detector is alive at the end and half as good as it ever was; else None."""
    scores = map_of(evidence.epochs)
    if scores is None or not len(scores):
        return None
    best, end = float(scores.max()), float(scores.iloc[-1])
    if not end >= max(evidence.thresholds.learned_map, evidence.thresholds.recovered_scores * best):
        return None
    return f"mAP50-95 {end:.3g} at the end, {best:.3g} at its best"


def _stable_by_map(rule: str, evidence: Evidence, kept: str) -> Finding:
    """A run without target scores, whose mAP shows that the detector is alive."""
    found = find_epoch_spikes(evidence) if evidence.only_epochs else None
    if evidence.only_epochs and found is None:
        return Finding(rule, "not checked", "there are too few epochs, or no losses")
    spiked = [f"{s.name} spiked at step {s.first}" for s in find_spikes(evidence) if s.first]
    spiked += [f"the loss spiked in epoch {found[0][0]}"] if found is not None and len(found[0]) else []
    if spiked:
        return Finding(rule, "not matched", spiked[0])
    return Finding(rule, "matched", f"{kept}; losses finite; target scores were not recorded")


@dataclass(frozen=True)
class Comparison:
    """Target scores a box at the end of a run, and what they are compared with."""

    scores: pd.Series
    end: float
    reference: float
    told: str


def compare_scores(evidence: Evidence) -> Comparison | str:
    """The inference branch against the paired control's end, or the run's own start; else what is missing."""
    if "compare_scores" not in evidence.shared:
        evidence.shared["compare_scores"] = _compare_scores(evidence)
    found: Comparison | str = evidence.shared["compare_scores"]
    return found


def _compare_scores(evidence: Evidence) -> Comparison | str:
    scores = None if evidence.run is None else scores_per_box(evidence.run)
    if scores is None or not len(scores):
        return "no target scores were recorded: the model has no task-aligned assigner"
    reference, whose = evidence.start(scores), "its own start"
    control = None if evidence.control is None else scores_per_box(evidence.control)
    if control is not None and len(control):
        reference, whose = evidence.end(control), "the paired control"
    if not reference > 0:
        return f"the target scores of {whose} are 0 too: there is nothing to compare with"
    end = evidence.end(scores)
    if not np.isfinite(end):
        return "the target scores at the end are not finite"
    return Comparison(
        scores, end, reference, f"target scores a box {end:.3g} at the end against {reference:.3g} of {whose}"
    )


def _dead_from(scores: pd.Series, limit: float) -> int:
    """The step after the last one whose scores reach the limit."""
    alive = scores.index[~(scores < limit)]
    later = scores.index[scores.index > alive[-1]] if len(alive) else scores.index
    return int(later[0]) if len(later) else int(scores.index[-1])


def other_branch(evidence: Evidence) -> str:
    """A remark where the branch that inference does not use is dead, judged against its own start."""
    assert evidence.run is not None
    for branch in evidence.run.meta.get("branches", ()):
        scores = scores_per_box(evidence.run, branch)
        if branch == evidence.run.meta["inference_branch"] or scores is None or not len(scores):
            continue
        limit = evidence.thresholds.collapsed_scores * evidence.start(scores)
        if evidence.end(scores) < limit:
            return f"; the {branch} branch, which inference does not use here, is dead from step " + str(
                _dead_from(scores, limit)
            )
    return ""
