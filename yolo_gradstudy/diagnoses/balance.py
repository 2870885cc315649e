# SPDX-License-Identifier: AGPL-3.0-or-later
"""The rule on how the gradient divides between the head and the network before it."""

from __future__ import annotations

import re

import numpy as np

from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.records import Advice, Finding

_MODULE = re.compile(r"^model\.(\d+)\.")


def is_head_dominating(evidence: Evidence) -> Finding:
    """Nearly all of the squared gradient lies in the head, so that a clip of the global norm starves the rest.

    The head is the last numbered layer of an Ultralytics model, the rest is backbone and neck. Of a run that went wrong
    the steps before count.
    """
    rule = "is_head_dominating"
    norms = None if evidence.run is None else evidence.run.layers("grad_norm")
    numbers = {} if norms is None else {c: int(m[1]) for c in norms if (m := _MODULE.match(str(c))) is not None}
    if norms is None or len(set(numbers.values())) < 2:
        return Finding(rule, "not checked", "no gradient norms of an Ultralytics model's numbered layers were recorded")
    last = max(numbers.values())
    squares = evidence.before_trouble(norms[list(numbers)]).astype("float64") ** 2
    total = squares.sum(axis=1)
    usable = np.isfinite(total) & (total > 0)
    if not usable.any():
        return Finding(rule, "not checked", "no step has a finite gradient above 0")
    head = [c for c, number in numbers.items() if number == last]
    shares = (squares[head].sum(axis=1) / total)[usable]
    start, end = evidence.start(shares), evidence.end(shares)
    told = f"model.{last}, the head, has {start:.1%} of the squared gradient at the start and {end:.1%} at the end"
    over = shares >= evidence.thresholds.head_share
    if over.mean() < 0.5:
        return Finding(rule, "not matched", told)
    step = int(shares.index[over.to_numpy()][0])
    text = (
        f"{told}: one clip for all parameters scales the rest of the network by the head's gradient; "
        "`gradstudy train --ablate replace_clip_by_agc` clips each tensor by its own weights"
    )
    return Finding(rule, "matched", told, step=step, advice=Advice(text))
