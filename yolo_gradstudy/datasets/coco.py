# SPDX-License-Identifier: AGPL-3.0-or-later
"""The subsets of COCO: which images are drawn, and their labels and images from the official files."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from yolo_gradstudy.datasets.catalogue import Dataset, datasets_dir
from yolo_gradstudy.datasets.checks import check_data_yaml
from yolo_gradstudy.datasets.downloads import download, is_offline
from yolo_gradstudy.datasets.writing import data_yaml_text, replace_text, writable

_CONNECTIONS = 16
"""Images that are downloaded at the same time."""


def folder_of_subsets() -> Path:
    """The folder that all subsets share, so that an image of two is there once."""
    return datasets_dir() / "gradstudy-coco"


def data_yaml(dataset: Dataset) -> Path:
    """The data YAML of a subset; it is there once the subset is whole."""
    return folder_of_subsets() / f"{dataset.name}.yaml"


def choose_subset(image_ids: Iterable[int], share: float, seed: int) -> list[int]:
    """Draw a share of images at random, the same at every call and on every machine.

    The ids are ordered by a hash of seed and id, and the first are taken: with one seed a smaller share lies
    within a larger one, and neither the order of ``image_ids`` nor any random generator has a say.

    Args:
        image_ids: The ids to draw from; what stands twice counts once.
        share: Above 0, at most 1. At least one image is drawn where there is one.
        seed: Another seed, another draw.

    Returns:
        The drawn ids, ascending.

    Raises:
        ValueError: The share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r} is not above 0 and at most 1.")
    ids = set(image_ids)
    count = max(1, round(share * len(ids)))
    return sorted(sorted(ids, key=lambda i: (hashlib.sha256(f"{seed}:{i}".encode()).digest(), i))[:count])


def build_subset(dataset: Dataset) -> Path:
    """Write the labels, images and list files of a subset; the data YAML last, which says that it is whole."""
    from ultralytics.utils import LOGGER, ROOT, YAML

    root, path = folder_of_subsets(), data_yaml(dataset)
    with writable(root), FileLock(root.parent / f".{root.name}.lock"):
        root.mkdir(exist_ok=True)
        lists = {"train": root / f"{dataset.name}.txt", "val": root / f"{dataset.name}-val.txt"}
        names = YAML.load(Path(ROOT, "cfg", "datasets", "coco.yaml"))["names"]
        shares = f"share {dataset.share} of train2017 and {dataset.val_share} of val2017"
        made = f"{dataset.name}, seed {dataset.seed}, {shares}"
        text = data_yaml_text(made, {key: file.name for key, file in lists.items()}, names)
        if path.is_file() and path.read_text(encoding="utf-8") == text and _are_whole(lists.values()):
            return check_data_yaml(path)
        path.unlink(missing_ok=True)
        for key, share in (("train", dataset.share), ("val", dataset.val_share)):
            split = f"{key}2017"
            LOGGER.info(f"{dataset.name}: {split}")
            annotations = _read_annotations(dataset, split)
            chosen = set(choose_subset((image["id"] for image in annotations["images"]), share, dataset.seed))
            images = [image for image in annotations["images"] if image["id"] in chosen]
            files = sorted(image["file_name"] for image in images)
            _write_labels(root, split, annotations, images)
            del annotations  # several GB, for train2017
            _fetch_images(dataset, split, files)
            replace_text(lists[key], "".join(f"./images/{split}/{file}\n" for file in files))
        replace_text(path, text)
    return check_data_yaml(path)


def _are_whole(lists: Iterable[Path]) -> bool:
    """Whether the list files exist, and every image in them."""
    return all(
        file.is_file() and all((file.parent / line).is_file() for line in file.read_text(encoding="utf-8").splitlines())
        for file in lists
    )


def _read_annotations(dataset: Dataset, split: str) -> dict[str, Any]:
    """The official annotations of a split: those of Ultralytics' COCO folder, our own, or downloaded now."""
    name = f"instances_{split}.json"
    ours = folder_of_subsets() / "annotations" / name
    ultralytics = datasets_dir() / "coco" / "annotations" / name
    file = ultralytics if ultralytics.is_file() else ours
    if not file.is_file():
        archive = folder_of_subsets() / Path(urlsplit(dataset.annotations_url).path).name
        if not archive.is_file():
            if is_offline(dataset.annotations_url):
                raise ValueError(
                    f"data: {dataset.name} needs {dataset.annotations_url}, and there is no network; "
                    f"put that file at {archive}, or its {name} at {ours}, and start again."
                )
            download(dataset.annotations_url, archive, progress=True)
        _unpack_annotations(archive, ours.parent)
    if not file.is_file():
        raise ValueError(f"data: {dataset.annotations_url} holds no annotations/{name}.")
    try:
        annotations: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); remove it and start again.") from error
    if not isinstance(annotations, dict) or not annotations.get("images") or "annotations" not in annotations:
        raise ValueError(f"{file} is not a file of COCO instances: 'images' and 'annotations' are needed.")
    return annotations


def _unpack_annotations(archive: Path, folder: Path) -> None:
    """Unpack the two files of instances (``convert_coco`` fails on the captions) and remove the archive."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member in zipped.namelist():
                if Path(member).name in ("instances_train2017.json", "instances_val2017.json"):
                    temporary = folder / f".{Path(member).name}.tmp"
                    with zipped.open(member) as source, temporary.open("wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                    temporary.replace(folder / Path(member).name)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is not a valid zip file ({error}); remove it and start again.") from error
    archive.unlink()


def _write_labels(root: Path, split: str, annotations: Mapping[str, Any], images: Sequence[Mapping[str, Any]]) -> None:
    """Let Ultralytics convert the annotations of ``images``; ``convert_coco`` appends, hence the empty folder."""
    from ultralytics.data.converter import convert_coco

    chosen = {image["id"] for image in images}
    subset = {
        "images": list(images),
        "annotations": [
            {key: annotation[key] for key in ("image_id", "category_id", "bbox", "iscrowd") if key in annotation}
            for annotation in annotations["annotations"]
            if annotation["image_id"] in chosen
        ],
    }
    with tempfile.TemporaryDirectory(dir=root, prefix=".labels-") as folder:
        source, converted = Path(folder, "annotations"), Path(folder, "converted")
        source.mkdir()
        (source / f"instances_{split}.json").write_text(json.dumps(subset), encoding="utf-8")
        convert_coco(str(source), str(converted))
        labels = root / "labels" / split
        labels.mkdir(parents=True, exist_ok=True)
        for file in (converted / "labels" / split).glob("*.txt"):
            file.replace(labels / file.name)


def _fetch_images(dataset: Dataset, split: str, files: Sequence[str]) -> None:
    """Link the images that Ultralytics' COCO folder holds, download the others; what is there is kept."""
    from ultralytics.utils import TQDM

    folder, official = folder_of_subsets() / "images" / split, datasets_dir() / "coco" / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    absent = [file for file in files if not (folder / file).is_file() and not _link(official / file, folder / file)]
    if not absent:
        return
    first = f"{dataset.images_url}/{split}/{absent[0]}"
    if is_offline(first):
        raise ValueError(
            f"data: {dataset.name} lacks {len(absent)} of {len(files)} images of {split} and there is no network; "
            f"put {first} and the others into {folder} and start again."
        )
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        jobs = [pool.submit(download, f"{dataset.images_url}/{split}/{file}", folder / file) for file in absent]
        try:
            for job in TQDM(as_completed(jobs), desc=f"{dataset.name} {split}", total=len(jobs)):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _link(source: Path, target: Path) -> bool:
    """Give an image a second name, or copy it where the disk can't; False where there is no such image."""
    if not source.is_file():
        return False
    try:
        target.hardlink_to(source)
    except OSError:
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    return True
