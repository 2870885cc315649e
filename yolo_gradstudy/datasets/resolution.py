# SPDX-License-Identifier: AGPL-3.0-or-later
"""A dataset's name, or the path of a data YAML, becomes a data YAML that exists on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_gradstudy.datasets import coco, official, shapes
from yolo_gradstudy.datasets.catalogue import Dataset, load_datasets, nearest, ultralytics_yamls
from yolo_gradstudy.datasets.checks import check_data_yaml


def list_datasets() -> list[dict[str, Any]]:
    """What ``gradstudy data list`` shows.

    Returns:
        A dict for each dataset: ``name``, ``summary``, ``how``, ``train`` and ``val`` (numbers of images),
        ``present`` (whether it is on disk) and ``path`` (the folder where it is or will be).
    """
    return [
        {
            "name": dataset.name,
            "summary": dataset.summary,
            "how": dataset.how,
            "train": dataset.train,
            "val": dataset.val,
            "present": is_present(dataset),
            "path": str(_folder(dataset)),
        }
        for dataset in load_datasets().values()
    ]


def is_present(dataset: Dataset) -> bool:
    """Whether a dataset is on disk, ready to train on without drawing, building or downloading."""
    if dataset.how == "drawn":
        return shapes.is_whole(dataset)
    if dataset.how == "ultralytics":
        return official.is_present(dataset)
    return coco.data_yaml(dataset).is_file()


def resolve_dataset(data: str) -> Path:
    """Find the data YAML that Ultralytics is to train on.

    ``shapes`` is drawn where it is not on disk; nothing is downloaded.

    Args:
        data: A name from ``datasets.yaml``, the path of an Ultralytics data YAML or of a folder with one, or
            the file name of a data YAML that comes with Ultralytics (``coco128.yaml``).

    Returns:
        The path of a data YAML that exists. The images of a dataset that Ultralytics downloads on first use may
        be absent while there is a network; :func:`build_dataset` downloads them at once.

    Raises:
        ValueError: No such name or file, a file that can't be trained on (:func:`check_data_yaml`), a COCO subset
            that is not built, or a dataset that has to be downloaded while there is no network.
    """
    datasets = load_datasets()
    dataset = datasets.get(data)
    if dataset is not None:
        if dataset.how == "drawn":
            return shapes.draw(dataset)
        if dataset.how == "ultralytics":
            return check_data_yaml(official.data_yaml(dataset))
        path = coco.data_yaml(dataset)
        if not path.is_file():
            raise ValueError(f"data: {data} is not built yet; `gradstudy data build {data}` builds it at {path}.")
        return check_data_yaml(path)
    path = Path(data).expanduser()
    packaged = ultralytics_yamls()
    if not path.exists() and data in packaged:
        return check_data_yaml(packaged[data])
    if data and (path.exists() or path.suffix.lower() in (".yaml", ".yml")) and "://" not in data:
        return check_data_yaml(path)
    near = nearest(data, datasets)
    raise ValueError(
        f"data: {data!r} is neither a dataset's name nor the path of a data YAML; the nearest name is {near!r}."
    )


def build_dataset(name: str, datasets: Mapping[str, Dataset] | None = None) -> Path:
    """Bring a dataset onto the disk: draw it, let Ultralytics download it, or build the COCO subset.

    What is there already is kept, so that an interrupted build goes on where it was.

    Args:
        name: A name from ``datasets.yaml``.
        datasets: The datasets to choose from, to use a mirror or other shares; ``datasets.yaml``'s where None.

    Returns:
        The path of its data YAML.

    Raises:
        ValueError: No such name, no network, a file that can't be downloaded, read or written.
    """
    datasets = load_datasets() if datasets is None else datasets
    if name not in datasets:
        raise ValueError(f"data: {name!r} is not a dataset's name; the nearest is {nearest(name, datasets)!r}.")
    dataset = datasets[name]
    if dataset.how == "drawn":
        return shapes.draw(dataset)
    if dataset.how == "ultralytics":
        return official.download(dataset)
    return coco.build_subset(dataset)


def _folder(dataset: Dataset) -> Path:
    """The folder where a dataset is or will be."""
    if dataset.how == "drawn":
        return shapes.folder_of(dataset)
    if dataset.how == "ultralytics":
        return official.folder_of(dataset)
    return coco.folder_of_subsets()
