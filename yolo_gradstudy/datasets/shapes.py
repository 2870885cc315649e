# SPDX-License-Identifier: AGPL-3.0-or-later
"""``shapes`` on disk: drawn where it is not whole, by one process at a time, under its name only when it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock

from yolo_gradstudy.datasets.catalogue import Dataset, datasets_dir
from yolo_gradstudy.datasets.drawing import SHAPES, SIDE, draw_image
from yolo_gradstudy.datasets.writing import data_yaml_text, writable

_DRAWING = 1
"""Version of ``drawing``; a higher number draws the files on disk again."""


def folder_of(dataset: Dataset) -> Path:
    """The folder where it is or will be."""
    return datasets_dir() / f"gradstudy-{dataset.name}"


def is_whole(dataset: Dataset) -> bool:
    """Whether every file is there, drawn by this version."""
    folder = folder_of(dataset)
    path = folder / f"{dataset.name}.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") != _data_yaml_text(dataset):
        return False
    return all(
        (folder / "images" / split / f"{stem}.png").is_file() and (folder / "labels" / split / f"{stem}.txt").is_file()
        for split, _, stem in _images(dataset)
    )


def draw(dataset: Dataset) -> Path:
    """Draw it where it is not whole; returns its data YAML."""
    folder = folder_of(dataset)
    path = folder / f"{dataset.name}.yaml"
    if is_whole(dataset):
        return path
    with writable(folder), FileLock(folder.parent / f".{folder.name}.lock"):
        if is_whole(dataset):  # another process drew it while this one waited
            return path
        drawn, old = folder.with_name(f".{folder.name}.drawing"), folder.with_name(f".{folder.name}.old")
        for leftover in (drawn, old):  # of a process that was killed: the lock is ours
            shutil.rmtree(leftover, ignore_errors=True)
        _write(drawn, dataset)
        if folder.exists():
            folder.rename(old)
        drawn.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return path


def _images(dataset: Dataset) -> Iterator[tuple[str, int, str]]:
    """Split, number and name without suffix of every image."""
    for split, count in (("train", dataset.train), ("val", dataset.val)):
        for number in range(count):
            yield split, number, f"{number:04d}"


def _data_yaml_text(dataset: Dataset) -> str:
    made = f"{dataset.name}, seed {dataset.seed}, drawing {_DRAWING}, {dataset.train} and {dataset.val} images"
    return data_yaml_text(made, {"train": "images/train", "val": "images/val"}, dict(enumerate(SHAPES)))


def _write(folder: Path, dataset: Dataset) -> None:
    """Draw every image and label into an empty folder."""
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (folder / kind / split).mkdir(parents=True)
    for split, number, stem in _images(dataset):
        generator = np.random.default_rng([dataset.seed, ("train", "val").index(split), number])
        image, boxes = draw_image(generator)
        encoded, png = cv2.imencode(".png", image)
        assert encoded
        (folder / "images" / split / f"{stem}.png").write_bytes(png.tobytes())
        rows = (
            f"{c} {(x0 + x1) / 2 / SIDE:.6f} {(y0 + y1) / 2 / SIDE:.6f} {(x1 - x0) / SIDE:.6f} {(y1 - y0) / SIDE:.6f}\n"
            for c, x0, y0, x1, y1 in boxes
        )
        (folder / "labels" / split / f"{stem}.txt").write_text("".join(rows), encoding="utf-8", newline="\n")
    (folder / f"{dataset.name}.yaml").write_text(_data_yaml_text(dataset), encoding="utf-8", newline="\n")
