# SPDX-License-Identifier: AGPL-3.0-or-later
"""The rule on the items that a loss is the sum of."""

from __future__ import annotations

import numpy as np

from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.records import Advice, Finding

_GAINS = {
    "box_loss": ("box", 7.5),
    "cls_loss": ("cls", 0.5),
    "dfl_loss": ("dfl", 1.5),
    "l1_loss": ("dfl", 1.5),
    "pose_loss": ("pose", 12.0),
    "kobj_loss": ("kobj", 1.0),
    "rle_loss": ("rle", 1.0),
    "angle_loss": ("angle", 1.0),
}
"""Ultralytics' argument for the gain of a loss item, and its default."""


def is_one_loss_dominating(evidence: Evidence) -> Finding:
    """One loss item makes up more than nine tenths of the sum at the end: the others hardly steer the training.

    Of a run that went wrong the end is the steps before: afterwards shares tell of a dead head.

    Ultralytics logs the items with their gains (``box``, ``cls``, ``dfl``) applied, so their shares are those of the
    loss that is minimised.
    """
    rule = "is_one_loss_dominating"
    columns = [str(c) for c in evidence.steps if str(c).endswith("_loss")]
    items = evidence.before_trouble(evidence.steps[columns]).replace([np.inf, -np.inf], np.nan).dropna()
    if len(columns) < 2 or not len(items):
        return Finding(rule, "not checked", "no loss items were recorded")
    if (items < 0).any(axis=None):
        return Finding(rule, "not checked", "a loss item is negative, so that shares mean nothing")
    total = items.sum(axis=1)
    shares = items[total > 0].div(total[total > 0], axis=0)
    if not len(shares):
        return Finding(rule, "not matched", "all loss items are 0")
    medians = {name: evidence.end(shares[name]) for name in columns}
    name = max(medians, key=lambda n: medians[n])
    share = medians[name]
    told = f"{name} is {share:.0%} of the loss items" + ("" if evidence.trouble is None else " before the trouble")
    if share < evidence.thresholds.loss_item_share:
        return Finding(rule, "not matched", told)
    step = int(shares.index[(shares[name] >= evidence.thresholds.loss_item_share).to_numpy()][0])
    advice = None
    if name in _GAINS:
        argument, default = _GAINS[name]
        gain = evidence.arguments.get(argument, default)
        if isinstance(gain, int | float) and gain > 0:
            # Halving moves a gain that is a hundred times the default too little to matter.
            lower = default if gain > default else float(f"{gain / 2:.2g}")
            text = f"from step {step} on {name} is over {evidence.thresholds.loss_item_share:.0%} of the loss"
            advice = Advice(f"{text} at {argument}={gain:g}: try {argument}={lower:g}", {argument: lower})
    return Finding(rule, "matched", told, step=step, advice=advice)
