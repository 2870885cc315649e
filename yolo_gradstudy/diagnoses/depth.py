# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules on what becomes of the gradient on its way back through the network, from sampled flow."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from yolo_gradstudy.diagnoses.advice import lower_lr0, other_weights
from yolo_gradstudy.diagnoses.bands import Floats
from yolo_gradstudy.diagnoses.evidence import Evidence
from yolo_gradstudy.records import Finding

_NUMBERED = re.compile(r"^model\.\d+$")
_FEWEST_MODULES = 4


def is_vanishing_with_depth(evidence: Evidence) -> Finding:
    """The gradient that reaches the first modules is a thousandth of that in the last quarter of the network.

    What the first modules get decays as the product of the gains behind them (Glorot & Bengio 2010; He et al. 2015,
    arXiv:1502.01852). Gradients of outputs tell, those of weights need not: see ``docs/recorder.md``.
    """
    rule = "is_vanishing_with_depth"
    profile = _profile(evidence)
    if isinstance(profile, str):
        return Finding(rule, "not checked", profile)
    small = profile.ratios < 1 / evidence.thresholds.depth_factor
    found = profile.first_out(small)
    if found is None:
        return Finding(rule, "not matched", profile.told())
    step, module = found
    advice = other_weights(evidence, f"{profile.told()}, from {module} on towards the input")
    return Finding(rule, "matched", profile.told(), step=step, layer=module, advice=advice)


def is_exploding_with_depth(evidence: Evidence) -> Finding:
    """The gradient that reaches the first modules is a thousand times that in the last quarter of the network.

    The other direction of :func:`is_vanishing_with_depth`: gains above 1 multiply.
    """
    rule = "is_exploding_with_depth"
    profile = _profile(evidence)
    if isinstance(profile, str):
        return Finding(rule, "not checked", profile)
    found = profile.first_out(profile.ratios > evidence.thresholds.depth_factor)
    if found is None:
        return Finding(rule, "not matched", profile.told())
    step, module = found
    told = f"{profile.told()}, from {module} on towards the input"
    # Out of bounds from the first sample on, it is the initial weights that explode: no learning rate changes them.
    initial = step == profile.steps[0]
    advice = other_weights(evidence, told) if initial else lower_lr0(evidence, step, f"{told},")
    return Finding(rule, "matched", profile.told(), step=step, layer=module, advice=advice)


@dataclass(frozen=True)
class _Profile:
    """Gradient of each module's output against the largest in the last quarter of the network.

    Attributes:
        steps: The sampled steps.
        modules: Names in model order.
        ratios: Shape (steps, modules).
        early: How many modules at the input are judged.
    """

    steps: list[int]
    modules: list[str]
    ratios: Floats
    early: int

    def told(self) -> str:
        """A clause with the numbers."""
        middle = np.median(np.median(self.ratios[:, : self.early], axis=1))
        where = " and ".join(dict.fromkeys((self.modules[0], self.modules[self.early - 1])))
        return (
            f"the gradient at {where} is {middle:.2g} of the largest in its last quarter, "
            f"in the median of {len(self.steps)} samples"
        )

    def first_out(self, out: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[int, str] | None:
        """The first step at which the first modules are out of bounds, and where, going back, they left them for good.

        None where they are out in less than half of the samples.
        """
        whole = out[:, : self.early].all(axis=1)
        if whole.mean() < 0.5:
            return None
        sample = int(np.argmax(whole))
        inside = np.flatnonzero(~out[sample])
        return self.steps[sample], self.modules[int(inside[0]) - 1 if len(inside) else len(self.modules) - 1]


def _profile(evidence: Evidence) -> _Profile | str:
    """The numbered layers of an Ultralytics model, else all modules; or what is missing."""
    flow = None if evidence.run is None else evidence.run.flow("output_grad_rms")
    if flow is None or not flow.shape[1]:
        return "the flow through the modules was not sampled (flow_every)"
    numbered = [name for name in flow if _NUMBERED.match(str(name))]
    chosen = flow[numbered] if len(numbered) >= _FEWEST_MODULES else flow
    chosen = chosen.replace([np.inf, -np.inf], np.nan).dropna(axis=1, how="all").dropna()
    if chosen.shape[1] < _FEWEST_MODULES or not len(chosen):
        return "fewer than four modules have finite gradients"
    values = chosen.to_numpy(dtype="float64")
    largest = values[:, -max(1, values.shape[1] // 4) :].max(axis=1)
    values, steps = values[largest > 0], chosen.index[largest > 0]
    if not len(values):
        return "no gradient flows in the last quarter of the network"
    early = max(1, int(evidence.thresholds.depth_share * chosen.shape[1]))
    return _Profile([int(s) for s in steps], [str(c) for c in chosen], values / largest[largest > 0][:, None], early)
