# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules on parts of a network that take no part in the training."""

from __future__ import annotations

import numpy as np

from yolo_gradstudy.diagnoses.advice import lower_lr0, other_weights
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.diagnoses.onset import describe_layers
from yolo_gradstudy.records import Advice, Finding


def is_activation_dead(evidence: Evidence) -> Finding:
    """Modules whose output is nothing in more than half of their channels, at the end, and was not at the start.

    A unit that is dead for every image gets no gradient either, and stays so (Lu et al. 2019, "Dying ReLU and
    initialization", arXiv:1903.06733).
    """
    rule = "is_activation_dead"
    shares = None if evidence.run is None else evidence.run.flow("dead_share")
    shares = None if shares is None else shares.dropna(axis=1, how="all")
    if shares is None or not shares.shape[1]:
        return Finding(rule, "not checked", "the flow through the modules was not sampled (flow_every)")
    last = shares.ffill().iloc[-1]
    dead = last[last > evidence.thresholds.dead_share]
    if not len(dead):
        return Finding(
            rule, "not matched", f"at most {last.max():.0%} of a module's channels are dead ({last.idxmax()})"
        )
    module = str(dead.index[0])
    step = int(shares.index[(shares[module] > evidence.thresholds.dead_share).to_numpy()][0])
    told = f"{len(dead)} of {len(last)} modules are dead in more than half of their channels, the first is {module}"
    # What is dead in the first sample died of no update.
    initial, what = step == int(shares.index[0]), f"by step {step} {module} was dead"
    advice = other_weights(evidence, what) if initial else lower_lr0(evidence, step, what)
    return Finding(rule, "matched", f"{told}, by step {step}", step=step, layer=module, advice=advice)


def is_batchnorm_still(evidence: Evidence) -> Finding:
    """BatchNorm stands still while the other weights move.

    Running means and variances are not recorded: what is known is whether an ablation froze them, and whether the
    norms of BatchNorm's own weights and biases changed.
    """
    rule = "is_batchnorm_still"
    if evidence.run is None:
        return Finding(rule, "not checked", "nothing was recorded")
    frozen = [a for a in evidence.run.meta.get("ablations", ()) if str(a).startswith("freeze_batchnorm_statistics")]
    if frozen:
        text = f"{frozen[0]} froze the statistics: leave it out of --ablate"
        return Finding(rule, "matched", f"the ablation {frozen[0]} froze the statistics", advice=Advice(text))
    norms = evidence.run.layers("param_norm").dropna(how="all")
    layers = [c for c in norms if ".bn." in f".{c}"]
    others = [c for c in norms if str(c).endswith(".weight") and c not in layers]
    if len(norms) < 2 or not layers or not others:
        return Finding(rule, "not checked", "norms of BatchNorm's parameters were not recorded twice")
    still = (norms[layers].iloc[0] == norms[layers].iloc[-1]).to_numpy()
    moving = (norms[others].iloc[0] != norms[others].iloc[-1]).mean()
    told = f"norms of {still.sum()} of {len(layers)} BatchNorm parameters did not change in {norms.index[-1]} steps"
    told += "; running statistics are not recorded"
    if still.mean() < evidence.thresholds.still_share or moving < evidence.thresholds.still_share:
        return Finding(rule, "not matched", told)
    layer = str(np.array(layers)[still][0])
    text = f"{told}: look whether something freezes them (`freeze`, requires_grad, a group without learning rate)"
    return Finding(rule, "matched", told, step=int(norms.index[0]), layer=layer, advice=Advice(text))


def is_without_gradient(evidence: Evidence) -> Finding:
    """Parameters that get no gradient: frozen, or cut off from the loss, from some step on.

    Ultralytics freezes ``dfl`` itself, a fixed average; that does not count.
    """
    rule = "is_without_gradient"
    norms = None if evidence.run is None else evidence.run.layers("grad_norm")
    if evidence.run is None or norms is None or not norms.shape[1] or not len(norms):
        return Finding(rule, "not checked", "gradient norms of parameters were not recorded")
    named = [str(p["name"]) for p in evidence.run.meta.get("parameters", ()) if "name" in p] or [str(c) for c in norms]
    named = [name for name in named if ".dfl." not in f".{name}"]
    never = [name for name in named if name not in norms]
    zero = [name for name in named if name in norms and (evidence.end_window(norms[name]) == 0).all()]
    told = f"{len(never)} of {len(named)} parameters have no gradient, {len(zero)} one that is 0 at the end"
    if not never and not zero:
        return Finding(rule, "not matched", told)
    first = (zero or never)[0]
    step = int(norms.index[0])
    if zero:
        alive = norms.index[(norms[first] != 0).to_numpy()]
        later = norms.index[norms.index > alive[-1]] if len(alive) else norms.index
        step = int(later[0]) if len(later) else int(norms.index[-1])
    told += f": {describe_layers(tuple(zero or never))}, from step {step} on"
    if evidence.trouble is not None and step >= evidence.trouble:
        return Finding(rule, "matched", f"{told}, after the run went wrong", step=step, layer=first)
    freeze = evidence.arguments.get("freeze")
    why = f"freeze={freeze} is set" if freeze else "freeze is not set, so the loss does not reach them"
    return Finding(rule, "matched", told, step=step, layer=first, advice=Advice(f"{told}; {why}"))
