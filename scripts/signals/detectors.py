# SPDX-License-Identifier: AGPL-3.0-or-later
"""YOLO26n as it is built, and ablated, on one batch of drawn shapes: its first gradient (claims 4, 5, 6 and 8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from signals.instrument import SEEDS, measure
from yolo_gradstudy.ablations import apply_ablations
from yolo_gradstudy.datasets.drawing import SIDE, draw_image

IMAGES = 8

ARMS: dict[str, tuple[str, ...]] = {
    "control": (),
    "no_batchnorm": ("no_batchnorm",),
    "no_batchnorm_xavier": ("no_batchnorm", "replace_init_by_xavier"),
    "no_batchnorm_he": ("no_batchnorm", "replace_init_by_he"),
    "no_residuals": ("no_residuals",),
    "no_batchnorm_no_residuals": ("no_batchnorm", "no_residuals"),
    "no_batchnorm_he_no_residuals": ("no_batchnorm", "replace_init_by_he", "no_residuals"),
    "relu": ("replace_silu_by_relu",),
    "sigmoid": ("replace_silu_by_sigmoid",),
    "no_batchnorm_relu": ("no_batchnorm", "replace_silu_by_relu"),
    "no_batchnorm_sigmoid": ("no_batchnorm", "replace_silu_by_sigmoid"),
    "deepened": ("deepen(3)",),
    "deepened_no_residuals": ("deepen(3)", "no_residuals"),
}
"""Ablations by the name of their arm, as studies have them."""

_LAYER = re.compile(r"model\.(\d+)")


def build_detector(ablations: Sequence[str], seed: int) -> DetectionModel:
    """YOLO26n from scratch; the same seed gives the same weights where shapes agree."""
    torch.manual_seed(seed)
    model = DetectionModel("yolo26n.yaml", verbose=False)
    model.args = get_cfg()  # gains of the loss
    apply_ablations(model, ablations, seed)
    return model.train()


def drawn_batch(seed: int) -> dict[str, Any]:
    """Images of ``shapes`` that no data set holds, as a trainer hands them to the model."""
    draws = np.random.default_rng([seed, 11])
    images, rows = [], []
    for number in range(IMAGES):
        image, objects = draw_image(draws)
        images.append(torch.from_numpy(image).permute(2, 0, 1))
        for kind, x0, y0, x1, y1 in objects:
            box = [(x0 + x1) / 2 / SIDE, (y0 + y1) / 2 / SIDE, (x1 - x0) / SIDE, (y1 - y0) / SIDE]
            rows.append([number, kind, *box])
    table = torch.tensor(rows, dtype=torch.float32)
    labels = {"batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:]}
    return {"img": torch.stack(images).float() / 255, **labels}


def detector_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """The training loss, summed over its parts and the images."""
    return model.loss(batch)[0].sum()


def measure_detectors() -> dict[str, pd.DataFrame]:
    """The first step of each arm.

    Returns:
        ``yolo26n``: a row an arm, seed and numbered layer of the model: root mean square of its output and of the
        gradient of that, its gains where it has one input, and the norm of the gradient of all its parameters.
    """
    rows = []
    for arm, ablations in ARMS.items():
        for seed in SEEDS:
            model, batch = build_detector(ablations, seed), drawn_batch(seed)
            found = measure(model, lambda m=model, b=batch: detector_loss(m, b), [f"model.{i}" for i in range(40)])
            numbers = found.norms.index.map(lambda name: int(_LAYER.match(name)[1]))
            norms = found.norms.pow(2).groupby(numbers).sum().pow(0.5)
            for name, flow in found.flow.iterrows():
                number = int(_LAYER.match(str(name))[1])
                told = [flow[key] for key in ("activation_rms", "output_grad_rms", "forward_gain", "backward_gain")]
                rows.append([arm, seed, number, *told, norms.get(number, np.nan)])
            last = max(numbers)  # the head puts out several tensors and has no flow of its own
            if f"model.{last}" not in found.flow.index:
                rows.append([arm, seed, last, *[np.nan] * 4, norms[last]])
    columns = [
        "arm",
        "seed",
        "layer",
        "activation_rms",
        "output_grad_rms",
        "forward_gain",
        "backward_gain",
        "grad_norm",
    ]
    return {"yolo26n": pd.DataFrame(rows, columns=columns)}
