# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules on the learning rate at the step where a run left its course."""

from __future__ import annotations

import pandas as pd

from yolo_gradstudy.diagnoses.advice import in_words, learning_rate_advice, round_down
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.diagnoses.onset import find_onset
from yolo_gradstudy.records import Advice, Finding


def is_at_rate_peak(evidence: Evidence) -> Finding:
    """The run left its course while warm-up raised the rate, or at its peak: there the rate is what is too high.

    Warm-up exists since early steps can't bear the full rate (Goyal et al. 2017, arXiv:1706.02677).
    """
    rule = "is_at_rate_peak"
    rates = _rates(evidence, "weight")
    if rates is None:
        return Finding(rule, "not checked", "no learning rate was recorded")
    if (onset := find_onset(evidence)) is None:
        return Finding(rule, "not matched", "the run stayed within its band")
    if onset not in rates.index:
        return Finding(rule, "not checked", f"no learning rate is on record at step {onset}")
    rate, peak = float(rates.loc[onset]), float(rates.max())
    reached = int(rates.index[int(rates.to_numpy().argmax())])
    told = f"lr {rate:.3g} at step {onset}, where the run left its course; the peak is {peak:.3g} at step {reached}"
    rising = onset < reached
    if not rising and rate < evidence.thresholds.peak_share * peak:
        return Finding(rule, "not matched", told)
    advice = None
    if rate > 0 and onset > 1:  # before the first update the rate has done nothing
        chosen = learning_rate_advice(evidence, round_down(rate / 3), **_longer_warmup(evidence, rising))
        where = "while warm-up raised it" if rising else "at its peak"
        advice = Advice(
            f"at step {onset} the run left its course at lr {rate:.3g}, {where}: try {in_words(chosen)}", chosen
        )
    return Finding(rule, "matched", told, step=onset, advice=advice)


def _longer_warmup(evidence: Evidence, rising: bool) -> dict[str, float]:
    epochs = evidence.arguments.get("warmup_epochs")
    return {"warmup_epochs": 2.0 * epochs} if rising and isinstance(epochs, int | float) and epochs > 0 else {}


def is_at_bias_rate(evidence: Evidence) -> Finding:
    """The run left its course while warm-up trained biases at a rate of their own, several times the weights'.

    Ultralytics' warm-up begins with ``warmup_bias_lr``, 0.1 by default, while weights begin at 0.
    """
    rule = "is_at_bias_rate"
    weights, biases = _rates(evidence, "weight"), _rates(evidence, "bias")
    if weights is None or biases is None:
        return Finding(rule, "not checked", "no learning rate of a group of biases was recorded")
    if (onset := find_onset(evidence)) is None:
        return Finding(rule, "not matched", "the run stayed within its band")
    if onset not in biases.index or onset not in weights.index:
        return Finding(rule, "not checked", f"no learning rate is on record at step {onset}")
    bias, weight = float(biases.loc[onset]), float(weights.loc[onset])
    told = f"at step {onset}, where the run left its course, biases train at {bias:.3g} and weights at {weight:.3g}"
    if not bias > evidence.thresholds.bias_rate_factor * weight:
        return Finding(rule, "not matched", told)
    lower = round_down(float(weights.max()))
    return Finding(
        rule,
        "matched",
        told,
        step=onset,
        advice=Advice(f"{told}: try warmup_bias_lr={lower:g}", {"warmup_bias_lr": lower}),
    )


def _rates(evidence: Evidence, group: str) -> pd.Series | None:
    """The learning rate of a group; of weights the first group's where groups have no names."""
    if evidence.run is None:
        return None
    groups = list(evidence.run.meta.get("groups", ()))
    if group not in groups and group != "weight":
        return None
    return evidence.column(f"lr_pg{groups.index(group) if group in groups else 0}")
