# SPDX-License-Identifier: AGPL-3.0-or-later
"""A few images to train on for a second, and training as `YOLO.train` does it, without a log on the screen."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from ultralytics import YOLO

from yolo_gradstudy.arguments import open_model

TRAIN, VAL = 12, 4


def write_small(shapes_yaml: Path, folder: Path, train: int = TRAIN, val: int = VAL) -> Path:
    """A data set of the first images of `shapes`, with labels and caches of its own."""
    source = yaml.safe_load(shapes_yaml.read_text())
    root = Path(source.get("path") or shapes_yaml.parent)
    root = root if root.is_absolute() else shapes_yaml.parent / root
    for split, count in (("train", train), ("val", val)):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        found = sorted(p for p in (root / source[split]).rglob("*") if p.suffix in (".png", ".jpg"))[:count]
        assert len(found) == count
        for image in found:
            label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
            shutil.copy(image, images / image.name)
            shutil.copy(label, labels / label.name)
    path = folder / "small.yaml"
    path.write_text(
        yaml.safe_dump({"path": str(folder), "train": "images/train", "val": "images/val", "names": source["names"]})
    )
    return path


def train(trainer, data, save_dir: Path, model="yolo26n.yaml", callbacks=None, **arguments) -> YOLO:
    """Train on the CPU; small unless arguments say otherwise."""
    yolo = open_model(str(model))
    for event, callback in (callbacks or {}).items():
        yolo.add_callback(event, callback)
    defaults = {"epochs": 2, "imgsz": 64, "batch": 4, "nbs": 4, "optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 1}
    if arguments.get("resume"):
        defaults = {}
    else:
        arguments = {"device": "cpu", "pretrained": False, **arguments}
        arguments |= {"project": str(save_dir.parent), "name": save_dir.name, "exist_ok": True, "data": str(data)}
    yolo.train(trainer=trainer, **{**defaults, "workers": 0, "plots": False, "val": False, **arguments})
    return yolo
