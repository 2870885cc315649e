# SPDX-License-Identifier: AGPL-3.0-or-later
"""A dataset's name, or the path of a data YAML, becomes an Ultralytics data YAML that exists on disk.

The names stand in ``datasets.yaml`` (``catalogue``). There are three ways to have a dataset: ``shapes`` is drawn on
demand (``shapes``, ``drawing``), ``coco8``, ``coco128`` and ``coco`` are Ultralytics' own (``official``), and the
subsets of COCO are made by :func:`build_dataset` from the official annotations (``coco``). ``resolution`` chooses
among them; ``checks`` looks at any data YAML before Ultralytics does.
"""

from yolo_gradstudy.datasets.catalogue import Dataset, How, datasets_dir, is_named, load_datasets
from yolo_gradstudy.datasets.checks import cache_labels, check_data_yaml, count_classes, count_images, label_key
from yolo_gradstudy.datasets.coco import choose_subset
from yolo_gradstudy.datasets.drawing import Plane
from yolo_gradstudy.datasets.resolution import build_dataset, is_present, list_datasets, resolve_dataset

__all__ = [
    "Dataset",
    "How",
    "Plane",
    "build_dataset",
    "cache_labels",
    "check_data_yaml",
    "choose_subset",
    "count_classes",
    "count_images",
    "datasets_dir",
    "is_named",
    "is_present",
    "label_key",
    "list_datasets",
    "load_datasets",
    "resolve_dataset",
]
