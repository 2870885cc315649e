# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules on numbers that left their range: NaN, infinity, and finite but absurd."""

from __future__ import annotations

import numpy as np

from yolo_gradstudy.diagnoses.advice import lower_lr0, lower_set_lr0, other_weights
from yolo_gradstudy.diagnoses.epochs import epoch_losses, find_epoch_spikes, nonfinite_epochs
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.diagnoses.spikes import find_spikes
from yolo_gradstudy.records import Finding, Run


def is_nonfinite(evidence: Evidence) -> Finding:
    """The run ended with NaN or infinite losses, gradients or weights.

    Steps that an AMP scaler skipped do not count. A non-finite step that training came back from, by
    Ultralytics' recovery from ``last.pt``, does not match either: later rules judge how the run went on.
    """
    rule = "is_nonfinite"
    if evidence.only_epochs:
        return _nonfinite_epochs(rule, evidence)
    first = evidence.first_nonfinite
    weights_finite = None if evidence.result is None else evidence.result.weights_finite
    if (evidence.run is None or not len(evidence.steps)) and weights_finite is None:
        return Finding(rule, "not checked", "neither steps nor final weights were recorded")
    if first is None and weights_finite is None and evidence.lost_end is not None:
        return Finding(rule, "not checked", evidence.lost_end)
    if first is None and weights_finite is not False:
        return Finding(rule, "not matched", f"loss and gradients of {len(evidence.steps)} steps are finite")
    if first is None:
        return Finding(
            rule, "matched", "the final weights or BatchNorm statistics are not finite, the recorded steps are"
        )
    if not evidence.last_is_nonfinite and weights_finite is not False:
        return Finding(rule, "not matched", f"step {first} was non-finite and training came back from it")
    assert evidence.run is not None
    row = evidence.steps.loc[first]
    what = "loss" if not np.isfinite(row.get("loss", 0.0)) else "gradient"
    before = evidence.steps.loc[: first - 1]
    norm = f", gradient norm {before['grad_norm'].iloc[-1]:.3g} the step before" if len(before) else ""
    happened = f"at step {first} the {what} became non-finite"
    return Finding(
        rule,
        "matched",
        f"the {what} is not finite from step {first} on{norm}",
        step=first,
        layer=_first_nonfinite_layer(evidence.run, first),
        # Of the first step no learning rate is the cause: nothing has been updated yet.
        advice=lower_lr0(evidence, first, happened) if first > 1 else other_weights(evidence, happened),
    )


def _nonfinite_epochs(rule: str, evidence: Evidence) -> Finding:
    """The rule on an epoch's mean losses, which are NaN where one batch's were."""
    bad, last = nonfinite_epochs(evidence.epochs), evidence.epochs.index[-1]
    if not len(bad):
        told = f"the mean losses of {len(evidence.epochs)} epochs are finite; steps were not recorded"
        return Finding(rule, "not matched" if epoch_losses(evidence.epochs).shape[1] else "not checked", told)
    if bad[-1] != last:
        return Finding(
            rule, "not matched", f"the mean loss of epoch {bad[0]} is not finite, training came back from it"
        )
    return Finding(
        rule,
        "matched",
        f"the mean loss is not finite from epoch {bad[0]} on; steps were not recorded",
        advice=lower_set_lr0(evidence, f"in epoch {bad[0]} the loss became non-finite"),
    )


def is_exploded(evidence: Evidence) -> Finding:
    """The run ended finite, but far above its own start: at its end loss or gradient norm still spikes.

    A *high* training loss can be believed; only a low one can't. A run that spiked on its way and then went
    quiet is not matched here: ``is_collapsed`` asks whether its detector is alive.
    """
    rule = "is_exploded"
    if evidence.only_epochs:
        return _exploded_epochs(rule, evidence)
    if (short := evidence.too_short(rule)) is not None:
        return short
    told = []
    for spikes in find_spikes(evidence):
        if spikes.at_end:
            return Finding(
                rule,
                "matched",
                f"{spikes.told}, over {spikes.factor:g} times its start",
                step=spikes.far,
                advice=lower_lr0(
                    evidence,
                    spikes.far,
                    f"at step {spikes.far} the {spikes.name} passed {spikes.factor:g} times its start",
                ),
            )
        told.append(spikes.told)
    if not told:
        return Finding(rule, "not checked", "neither a loss nor a gradient norm above 0 was recorded at the start")
    return Finding(rule, "not matched", "; ".join(told))


def _exploded_epochs(rule: str, evidence: Evidence) -> Finding:
    """The rule on an epoch's mean losses."""
    if (found := find_epoch_spikes(evidence)) is None:
        return Finding(rule, "not checked", f"losses of {evidence.thresholds.fewest_epochs} epochs are needed")
    spiked, factor, told = found
    if not len(spiked) or spiked[-1] != evidence.epochs.index[-1]:
        return Finding(rule, "not matched", told)
    what = f"in epoch {spiked[0]} the mean loss passed {factor:g} times that of the first"
    return Finding(rule, "matched", f"{told}, over {factor:g} times", advice=lower_set_lr0(evidence, what))


def _first_nonfinite_layer(run: Run, step: int) -> str | None:
    """The non-finite parameter gradient that the backward pass reached first: the last in model order."""
    norms = run.layers("grad_norm")
    if step not in norms.index:
        return None
    row = norms.loc[step]
    bad = row.index[~np.isfinite(row.to_numpy(dtype="float64"))]
    return str(bad[-1]) if len(bad) else None
