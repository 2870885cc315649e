# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules on numbers that left their range: NaN, infinity, and finite but absurd."""

from __future__ import annotations

import numpy as np

from yolo_gradstudy.diagnoses.advice import lower_lr0
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.diagnoses.spikes import find_spikes
from yolo_gradstudy.records import Finding, Run


def is_nonfinite(evidence: Evidence) -> Finding:
    """The run ended with NaN or infinite losses, gradients or weights.

    Steps that an AMP scaler skipped do not count. A non-finite step that training came back from, by
    Ultralytics' recovery from ``last.pt``, does not match either: later rules judge how the run went on.
    """
    rule = "is_nonfinite"
    first = evidence.first_nonfinite
    weights_finite = None if evidence.result is None else evidence.result.weights_finite
    if (evidence.run is None or not len(evidence.steps)) and weights_finite is None:
        return Finding(rule, "not checked", "neither steps nor final weights were recorded")
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
    return Finding(
        rule,
        "matched",
        f"the {what} is not finite from step {first} on{norm}",
        step=first,
        layer=_first_nonfinite_layer(evidence.run, first),
        advice=lower_lr0(evidence, first, f"at step {first} the {what} became non-finite"),
    )


def is_exploded(evidence: Evidence) -> Finding:
    """The run ended finite, but far above its own start: at its end loss or gradient norm still spikes.

    A *high* training loss can be believed; only a low one can't. A run that spiked on its way and then went
    quiet is not matched here: ``is_collapsed`` asks whether its detector is alive.
    """
    rule = "is_exploded"
    if (short := evidence.too_short(rule)) is not None:
        return short
    told = []
    for spikes in find_spikes(evidence):
        if spikes.at_end:
            return Finding(
                rule,
                "matched",
                f"{spikes.told}, over {spikes.factor:g} times its start",
                step=spikes.first,
                advice=lower_lr0(
                    evidence,
                    spikes.first,
                    f"at step {spikes.first} the {spikes.name} passed {spikes.factor:g} times its start",
                ),
            )
        told.append(spikes.told)
    if not told:
        return Finding(rule, "not checked", "neither a loss nor a gradient norm above 0 was recorded at the start")
    return Finding(rule, "not matched", "; ".join(told))


def _first_nonfinite_layer(run: Run, step: int) -> str | None:
    """The non-finite parameter gradient that the backward pass reached first: the last in model order."""
    norms = run.layers("grad_norm")
    if step not in norms.index:
        return None
    row = norms.loc[step]
    bad = row.index[~np.isfinite(row.to_numpy(dtype="float64"))]
    return str(bad[-1]) if len(bad) else None
