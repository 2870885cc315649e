# SPDX-License-Identifier: AGPL-3.0-or-later
"""Models to operate on, each built once, and what the suites ask of them."""

import copy
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import DetectionModel

torch.set_num_threads(1)

RTDETR_SMALL = str(Path(__file__).parents[1] / "lifecycle" / "rtdetr-small.yaml")
"""RT-DETR of the modules that rtdetr-l.yaml is built of, a hundredth of its size."""

TINY = {
    "nc": 3,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C3k2", [32, True]],
        [-1, 1, "RepC3", [32]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 1, "A2C2f", [128, True, 1, True]],
        [-1, 1, "C2PSA", [128]],
    ],
    "head": [[[3, 6], 1, "Detect", ["nc"]]],
}
_BUILT: dict[str, nn.Module] = {}


def control(name="yolo26n.yaml"):
    """A fresh copy of the model as a training with seed 0 builds it."""
    if name not in _BUILT:
        _BUILT[name] = build(name)
    return copy.deepcopy(_BUILT[name])


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "tiny":
            return DetectionModel(copy.deepcopy(TINY), verbose=False)
        return (RTDETR if "rtdetr" in name else YOLO)(name).model


def images(batch=2, size=64, seed=0):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def weight(model, module):
    return model.get_submodule(module).weight


def batchnorms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def generator_states():
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
