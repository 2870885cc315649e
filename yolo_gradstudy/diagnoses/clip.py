# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules on gradient clipping: a run that lives on it, and one that would have needed it."""

from __future__ import annotations

import numpy as np

from yolo_gradstudy.diagnoses.advice import round_down
from yolo_gradstudy.diagnoses.evidence import Evidence, finite_median
from yolo_gradstudy.records import Advice, Finding


def is_living_on_clip(evidence: Evidence) -> Finding:
    """Most steps are clipped, and to less than half: the clip is no safeguard but sets the size of each step.

    With a global norm clip c (Pascanu et al. 2013, arXiv:1211.5063) the coefficient is min(1, c / ‖g‖), so that the
    rate in effect is the learning rate times the coefficient. Ultralytics clips at 10 without saying so, and a sum of
    losses over 16 or 64 images has norms of hundreds: healthy YOLO runs live on it too.
    """
    rule = "is_living_on_clip"
    if evidence.column("clip_coefficient") is None:
        return Finding(rule, "not checked", "no clip coefficient was recorded: nothing was clipped, or in another way")
    coefficient = evidence.before_trouble(evidence.steps[["clip_coefficient"]])["clip_coefficient"]
    coefficient = coefficient[np.isfinite(coefficient)]
    if not len(coefficient):
        return Finding(rule, "not checked", "no clip coefficient is finite")
    share, median = float((coefficient < 1).mean()), float(coefficient.median())
    told = f"{share:.0%} of {len(coefficient)} steps are clipped, median coefficient {median:.3g}"
    limits = evidence.thresholds
    if share < limits.clip_share or median >= limits.clip_coefficient:
        return Finding(rule, "not matched", told)
    clip = evidence.run.meta.get("clip_norm") if evidence.run is not None else None
    at = f" at {clip:g}" if isinstance(clip, int | float) else ""
    return Finding(
        rule,
        "matched",
        told,
        step=int(coefficient.index[coefficient < 1][0]),
        advice=Advice(
            f"the clip{at} scales {share:.0%} of the steps, in the median by {median:.2g}, so it and not lr0 alone "
            "sets their size: `gradstudy train --clip off` or `--ablate replace_clip_by_agc` shows what the run owes it"
        ),
    )


def is_unclipped(evidence: Evidence) -> Finding:
    """Nothing clips, and single gradients are a hundred times as large as is usual in this run."""
    rule = "is_unclipped"
    norms = evidence.column("grad_norm")
    if evidence.run is None or norms is None:
        return Finding(rule, "not checked", "no gradient norm was recorded")
    if evidence.column("clip_coefficient") is not None or evidence.run.meta.get("clip") is not None:
        return Finding(rule, "not matched", "gradients are clipped")
    if "clip_norm" not in evidence.run.meta:
        return Finding(rule, "not checked", "whether something clips is not on record")
    before = norms if evidence.trouble is None else norms.loc[: evidence.trouble]
    usual, largest = finite_median(before), float(norms.fillna(np.inf).max())
    told = f"nothing clips; gradient norm {usual:.3g} in the median, {largest:.3g} at most"
    if not largest > evidence.thresholds.unclipped_factor * usual:
        return Finding(rule, "not matched", told)
    step = int(norms.index[(norms.fillna(np.inf) > evidence.thresholds.unclipped_factor * usual).to_numpy()][0])
    return Finding(
        rule,
        "matched",
        told,
        step=step,
        advice=Advice(
            f"at step {step} a gradient of norm {norms.fillna(np.inf).loc[step]:.3g}, where {usual:.3g} is usual, was "
            f"taken whole: "
            f"`gradstudy train --clip {round_down(max(usual, 1e-3)):g}`, or `--clip 10` as Ultralytics does"
        ),
    )
