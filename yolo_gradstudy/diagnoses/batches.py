# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rules on what a step is made of: its precision, its number of images, and which images they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from yolo_gradstudy.diagnoses.advice import in_words
from yolo_gradstudy.diagnoses.evidence import Evidence, finite_median
from yolo_gradstudy.records import Advice, Finding


def is_scaler_skipping(evidence: Evidence) -> Finding:
    """The AMP scaler goes on skipping steps after it has found its scale: fp16 gradients overflow again and again.

    A scaler halves its scale at an overflow and doubles it after 2000 steps without one (Micikevicius et al. 2018,
    arXiv:1710.03740).
    """
    rule = "is_scaler_skipping"
    steps = pd.DataFrame() if evidence.run is None else evidence.run.steps
    if "skipped" not in steps or "amp_scale" not in steps:
        return Finding(rule, "not checked", "whether steps were skipped was not recorded")
    if not (steps["amp_scale"] != 1).any() and not (steps["skipped"] > 0).any():
        return Finding(rule, "not matched", "the loss was not scaled")
    late = steps.iloc[evidence.thresholds.skipped_after :]
    skipped = late.index[(late["skipped"] > 0).to_numpy()]
    told = f"{len(skipped)} of {len(late)} steps skipped after the first {evidence.thresholds.skipped_after}"
    told += f", scale {steps['amp_scale'].iloc[-1]:.3g} at the end"
    if len(skipped) < 2 or len(skipped) <= evidence.thresholds.skipped_share * len(late):
        return Finding(rule, "not matched", told)
    step = int(skipped[0])
    # This package's own `precision` overrules `amp`.
    own = evidence.run is not None and evidence.run.meta.get("precision") is not None
    chosen: dict[str, Any] = {"precision": "fp32"} if own else {"amp": False}
    text = f"{told}: gradients overflow in fp16; try {in_words(chosen)}, or `gradstudy train precision=bf16`"
    return Finding(rule, "matched", told, step=step, advice=Advice(text, chosen))


def is_accumulation_moving(evidence: Evidence) -> Finding:
    """The images in a step change while Ultralytics' warm-up ramps up accumulation, and gradient norms with them.

    The loss is a sum over images, so a fixed clip norm takes ever more of each image's gradient as ``nbs`` is reached.
    """
    rule = "is_accumulation_moving"
    images, norms = evidence.images, evidence.column("grad_norm")
    if images is None or norms is None:
        return Finding(rule, "not checked", "the images or gradient norms of steps were not recorded")
    early, late = evidence.start(images), evidence.end(images)
    told = f"{early:g} images in a step at the start and {late:g} at the end"
    factor = evidence.thresholds.accumulation_factor
    if not (late >= factor * early or early >= factor * late):
        return Finding(rule, "not matched", told)
    each = norms / images
    moved = images.index[(np.abs(images - early) > np.abs(images - late)).to_numpy()]
    step = int(moved[0])
    told += (
        f"; before step {step} the gradient norm is {finite_median(norms.loc[: step - 1]):.3g}, "
        f"{finite_median(each.loc[: step - 1]):.3g} an image, from there on {finite_median(norms.loc[step:]):.3g}, "
        f"{finite_median(each.loc[step:]):.3g} an image"
    )
    batch = None if evidence.run is None else evidence.run.meta.get("batch")
    advice = None
    if isinstance(batch, int) and batch > 0:
        text = f"{told}: compare norms for each image, or try nbs={batch} for steps that are alike"
        advice = Advice(text, {"nbs": batch})
    return Finding(rule, "matched", told, step=step, advice=advice)


def is_repeating_with_images(evidence: Evidence) -> Finding:
    """Incidents share images that they would hardly share by chance: look at these before changing the training.

    With N images and incidents of B_i of them, the expected number of images that all k incidents share by chance is
    N · Π(B_i / N).
    """
    rule = "is_repeating_with_images"
    incidents = [] if evidence.run is None else list(evidence.run.incidents)
    named = [(int(i.get("step", 0)), images) for i in incidents if (images := _images_of(i))]
    if len(named) < 2:
        what = (
            f"{len(named)} of {len(incidents)} incidents name their images" if incidents else "there are no incidents"
        )
        return Finding(rule, "not checked", f"{what}, and it takes two")
    counts = Counter(image for _, images in named for image in images)
    most = max(counts.values())
    shared = sorted(image for image, count in counts.items() if count == most)
    steps = [step for step, images in named if shared[0] in images]
    told = f"{len(shared)} images are in {most} of {len(named)} incidents"
    sizes = [len(images) for step, images in named if step in steps]
    total = _images_of_epoch(evidence)
    if total is not None:
        total = max(total, len(counts))
        expected = total * float(np.prod([size / total for size in sizes])) * math.comb(len(named), most)
        told += f", of {total} images {expected:.2g} would be by chance"
        out = most >= 2 and expected < evidence.thresholds.images_chance
    else:
        out = most >= evidence.thresholds.images_incidents and len(shared) < min(sizes)
    if not out:
        return Finding(rule, "not matched", told)
    names = ", ".join(shared[:3])
    text = f"the incidents at steps {', '.join(map(str, steps))} share {names}: look at these images and their labels"
    return Finding(rule, "matched", f"{told}: {names}", step=steps[0], advice=Advice(text))


def _images_of(incident: Mapping[str, Any]) -> set[str]:
    """The images that an incident names, whether batch by batch or all together."""

    def flat(found: object) -> Iterable[str]:
        if isinstance(found, str):
            yield found
        elif isinstance(found, Mapping):
            for value in found.values():
                yield from flat(value)
        elif isinstance(found, list | tuple):
            for item in found:
                yield from flat(item)

    return set(flat(incident.get("images") or incident.get("batches") or ()))


def _images_of_epoch(evidence: Evidence) -> int | None:
    """How many images an epoch goes through; None where that was not recorded."""
    if evidence.images is None or "epoch" not in evidence.steps:
        return None
    first = evidence.steps["epoch"] == evidence.steps["epoch"].min()
    return round(float(evidence.images[first].sum()))
