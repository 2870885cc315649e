# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules on the size of a step against the weights that it changes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from yolo_gradstudy.diagnoses.advice import in_words, learning_rate_advice, lower_lr0, raised_lr0
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.records import Advice, Finding


def is_update_too_large(evidence: Evidence) -> Finding:
    """A single step changed a group of parameters by a tenth of their norm or more.

    The ratio ‖Δθ‖/‖θ‖ is about 1e-3 in trainings that go well (Karpathy 2015, "CS231n: Neural networks part 3",
    after Bottou). Biases are not judged: they begin at 0.
    """
    rule = "is_update_too_large"
    groups = _ratios(evidence)
    if groups is None:
        return Finding(rule, "not checked", "no updates were recorded (update_every)")
    limit = evidence.thresholds.update_large
    over = groups[(groups > limit).any(axis=1)]
    if not len(over):
        return Finding(rule, "not matched", _told(groups.max(), "at most"))
    step = int(over.index[0])
    told = _told(groups.max(), "at most") + f"; over {limit:g} first at step {step}"
    # An update is proportional to the rate: by a third alone, one of 8 times the weights would be too large again.
    factor = min(max(3.0, 1.5 * float(over.iloc[0].max()) / limit), evidence.thresholds.update_lowered)
    advice = lower_lr0(evidence, step, f"step {step} moved {_largest(over)}", factor)
    return Finding(rule, "matched", told, step=step, advice=advice)


def is_update_too_small(evidence: Evidence) -> Finding:
    """The median step changes a group of parameters by less than a millionth of their norm: hardly anything is learned.

    The other end of :func:`is_update_too_large`.
    """
    rule = "is_update_too_small"
    groups = _ratios(evidence)
    if groups is None:
        return Finding(rule, "not checked", "no updates were recorded (update_every)")
    medians = groups.median()
    told = _told(medians, "in the median")
    if not (medians < evidence.thresholds.update_small).any():
        return Finding(rule, "not matched", told)
    rate, advice = evidence.arguments.get("lr0"), None
    # A tenth of what is usual: a clip may hold back more of the larger updates. Where one group moves as much already,
    # the rate is not what holds the other back.
    factor = evidence.thresholds.update_usual / 10 / max(float(medians.max()), 1e-30)
    if isinstance(rate, int | float) and rate > 0 and factor > 1:
        chosen = learning_rate_advice(evidence, raised_lr0(evidence, rate, factor))
        advice = Advice(f"{told}, where 0.001 is usual: try {in_words(chosen)}", chosen)
    return Finding(rule, "matched", told, step=int(groups.index[0]), advice=advice)


def _ratios(evidence: Evidence) -> pd.DataFrame | None:
    """Update-to-weight ratio: a row a step with updates, a column a parameter group; None where none was recorded.

    Of a group it is the median over its tensors, without those that were 0; where tensors were not recorded, that of
    all parameters together. The warm-up's first step has rate 0 and does not count.
    """
    if evidence.run is None:
        return None
    layers = evidence.run.layers("update_ratio")
    names, found = list(evidence.run.meta.get("groups", ())), {}
    groups = {p["name"]: p.get("group") for p in evidence.run.meta.get("parameters", ()) if "name" in p}
    for number, name in enumerate(names):
        columns = [c for c in layers if groups.get(str(c)) == number]
        if columns and name != "bias":
            values = layers[columns].replace([np.inf, -np.inf], np.nan).dropna(how="all")
            found[str(name)] = values.median(axis=1)
    if not found and {"update_norm", "param_norm"} <= set(evidence.steps.columns):
        found["all"] = (evidence.steps["update_norm"] / evidence.steps["param_norm"]).dropna()
    frame = pd.DataFrame(found)
    frame = frame[(frame > 0).any(axis=1)]
    return frame if len(frame) else None


def _told(ratios: pd.Series, how: str) -> str:
    words = ", ".join(f"{name} {value:.2g}" for name, value in ratios.items())
    return f"update-to-weight ratio {how} {words}"


def _largest(over: pd.DataFrame) -> str:
    row = over.iloc[0]
    what = "the parameters" if row.idxmax() == "all" else f"the group {row.idxmax()}"
    return f"{what} by {row.max():.2g} of its norm"
