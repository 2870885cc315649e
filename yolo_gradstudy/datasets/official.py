# SPDX-License-Identifier: AGPL-3.0-or-later
"""The datasets that Ultralytics downloads by itself: ``coco8``, ``coco128``, ``coco``."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from yolo_gradstudy.datasets.catalogue import Dataset, ultralytics_yamls
from yolo_gradstudy.datasets.checks import check_data_yaml, missing_images, read_data_yaml, root_folder
from yolo_gradstudy.datasets.writing import writable


def data_yaml(dataset: Dataset) -> Path:
    """The data YAML that comes with Ultralytics."""
    return ultralytics_yamls()[dataset.yaml]


def folder_of(dataset: Dataset) -> Path:
    """The folder where its images are or will be."""
    path = data_yaml(dataset)
    return root_folder(path, read_data_yaml(path))


def is_present(dataset: Dataset) -> bool:
    """Whether its images are on disk."""
    path = data_yaml(dataset)
    return not missing_images(path, read_data_yaml(path))


def download(dataset: Dataset) -> Path:
    """Let Ultralytics download it, once for all processes that ask; returns its data YAML."""
    from ultralytics.data.utils import check_det_dataset

    path = check_data_yaml(data_yaml(dataset))
    if is_present(dataset):
        return path
    root = folder_of(dataset)
    with writable(root), FileLock(root.parent / f".gradstudy-{dataset.name}.lock"):
        if not is_present(dataset):
            try:
                check_det_dataset(str(path))
            except (ConnectionError, FileNotFoundError) as error:
                raise ValueError(f"data: {dataset.name} can't be downloaded: {' '.join(str(error).split())}") from error
    return check_data_yaml(path)
