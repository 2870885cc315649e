# SPDX-License-Identifier: AGPL-3.0-or-later
"""A dataset's name, or the path of a data YAML, becomes an Ultralytics data YAML that exists on disk.

The names stand in ``datasets.yaml``. ``shapes`` is drawn on demand, ``coco8``, ``coco128`` and ``coco`` are
Ultralytics' own, and the COCO subsets are made by :func:`build_dataset` from the official annotations.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import cv2
import numpy as np
import yaml
from filelock import FileLock
from numpy.typing import NDArray

How = Literal["drawn", "ultralytics", "coco-subset"]
"""How a dataset is had: drawn here, by Ultralytics' own download, or by :func:`build_dataset`."""

Plane = NDArray[np.float64]
"""A number a pixel, float64, shape (side, side)."""

_SHAPES = ("disc", "ring", "rectangle", "frame", "triangle", "cross", "star", "hourglass")
"""The classes of ``shapes``, in the order of their numbers."""

_SIDE = 96
"""Pixels of a side of an image of ``shapes``: trained at ``imgsz=96``, nothing is resized."""

_DRAWING = 1
"""Version of the drawing of ``shapes``; a higher number draws the files on disk again."""

_CONNECTIONS = 16
"""Images that are downloaded at the same time."""


@dataclass(frozen=True)
class Dataset:
    """An entry of ``datasets.yaml``.

    Attributes:
        name: The name that ``data=`` takes.
        summary: One sentence.
        how: How it is had.
        train: Number of training images.
        val: Number of validation images.
        seed: Seed of the drawing or of the draw of the subset.
        yaml: Name of Ultralytics' data YAML, where it is one of Ultralytics'.
        share: Share of train2017, for a subset of COCO.
        val_share: Share of val2017, for a subset of COCO; 1 is the official validation set.
        annotations_url: Where the official annotations are, a zip file.
        images_url: Where the folders ``train2017`` and ``val2017`` are.
    """

    name: str
    summary: str
    how: How
    train: int
    val: int
    seed: int = 0
    yaml: str = ""
    share: float = 1.0
    val_share: float = 1.0
    annotations_url: str = ""
    images_url: str = ""


def load_datasets(path: Path | None = None) -> dict[str, Dataset]:
    """Read ``datasets.yaml``.

    Args:
        path: Another file of the same form; the packaged one where it is None.

    Returns:
        The datasets by name, in the order of the file.

    Raises:
        ValueError: The file does not exist, is not valid YAML, or an entry has an unknown, missing or bad key.
    """
    path = path or _packaged_file()
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} is not a mapping of names to datasets.")
    return {str(name): _parse_entry(str(name), entry, path) for name, entry in entries.items()}


def _packaged_file() -> Path:
    """``datasets.yaml``: inside an installed package, beside the package's folder in a working copy."""
    package = Path(__file__).resolve().parent
    inside = package / "datasets.yaml"
    return inside if inside.is_file() else package.parent / "datasets.yaml"


def _parse_entry(name: str, entry: object, path: Path) -> Dataset:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {name} is not a mapping of keys to values.")
    known = {f.name: f for f in fields(Dataset) if f.name != "name"}
    for key in entry:
        if key not in known:
            raise ValueError(
                f"{path}: {name} has the unknown key {key!r}; the nearest is {_nearest(str(key), known)!r}."
            )
    for key, field in known.items():
        if field.default is MISSING and key not in entry:
            raise ValueError(f"{path}: {name} lacks the key {key!r}.")
    if entry["how"] not in get_args(How):
        nearest = _nearest(str(entry["how"]), get_args(How))
        raise ValueError(f"{path}: {name} has how={entry['how']!r}; the nearest valid is {nearest!r}.")
    for key in ("share", "val_share"):
        share = entry.get(key, 1.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"{path}: {name} has {key}={share!r}, which is not above 0 and at most 1.")
    return Dataset(name=name, **entry)


def datasets_dir() -> Path:
    """Where datasets are built: ``$GRADSTUDY_DATASETS`` if set, else Ultralytics' own datasets folder."""
    chosen = os.environ.get("GRADSTUDY_DATASETS")
    if chosen:
        return Path(chosen).expanduser().resolve()
    from ultralytics.utils import DATASETS_DIR

    return Path(DATASETS_DIR).resolve()


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
        return _shapes_are_whole(_folder(dataset), dataset)
    if dataset.how == "coco-subset":
        return _data_yaml(dataset).is_file()
    path = _data_yaml(dataset)
    return not _missing(path, _read_data_yaml(path))


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
            return _draw_shapes(dataset)
        path = _data_yaml(dataset)
        if dataset.how == "coco-subset" and not path.is_file():
            raise ValueError(f"data: {data} is not built yet; `gradstudy data build {data}` builds it at {path}.")
        return check_data_yaml(path)
    path = Path(data).expanduser()
    packaged = _packaged_yamls()
    if not path.exists() and data in packaged:
        return check_data_yaml(packaged[data])
    if data and (path.exists() or path.suffix.lower() in (".yaml", ".yml")) and "://" not in data:
        return check_data_yaml(path)
    nearest = _nearest(data, datasets)
    raise ValueError(
        f"data: {data!r} is neither a dataset's name nor the path of a data YAML; the nearest name is {nearest!r}."
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
        raise ValueError(f"data: {name!r} is not a dataset's name; the nearest is {_nearest(name, datasets)!r}.")
    dataset = datasets[name]
    if dataset.how == "drawn":
        return _draw_shapes(dataset)
    if dataset.how == "ultralytics":
        return _download_ultralytics(dataset)
    return _build_coco_subset(dataset)


def _folder(dataset: Dataset) -> Path:
    """The folder where a dataset is or will be."""
    if dataset.how == "drawn":
        return datasets_dir() / f"gradstudy-{dataset.name}"
    if dataset.how == "coco-subset":
        return datasets_dir() / "gradstudy-coco"
    path = _data_yaml(dataset)
    return _root(path, _read_data_yaml(path))


def _data_yaml(dataset: Dataset) -> Path:
    """The data YAML of a dataset, which may not exist yet."""
    if dataset.how == "ultralytics":
        return _packaged_yamls()[dataset.yaml]
    return _folder(dataset) / f"{dataset.name}.yaml"


def _packaged_yamls() -> dict[str, Path]:
    """The data YAMLs that come with Ultralytics, by file name."""
    from ultralytics.utils import ROOT

    return {path.name: path for path in sorted(Path(ROOT, "cfg", "datasets").glob("*.yaml"))}


def _nearest(word: str, valid: Iterable[str]) -> str:
    """The valid word that looks most like ``word``."""
    valid = list(valid)
    folded = {v.lower(): v for v in valid}
    found = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.0)
    return folded[found[0]] if found else valid[0]


def _is_offline(url: str) -> bool:
    """Whether ``url`` can't be reached for want of a network; a server on this machine can."""
    from ultralytics.utils import is_online

    return urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1") and not is_online()


# Checking a data YAML ------------------------------------------------------------------------------------------------


def check_data_yaml(path: str | Path) -> Path:
    """Check, without a download, that Ultralytics could train on a data YAML.

    The rules are Ultralytics' own (``check_det_dataset``): without ``path`` the file's folder is the root, a
    relative ``path`` that does not exist is looked for in Ultralytics' datasets folder, a split is a folder, a
    list file or a list of them, and labels stand where ``/images/`` is replaced by ``/labels/``.

    Args:
        path: A data YAML, or a folder with one.

    Returns:
        The data YAML. Its images may be absent where it says how to download them and there is a network.

    Raises:
        ValueError: It does not exist, is not a data YAML, names no ``train``, ``val`` or classes, its images are
            absent, or not one training image has a label file.
    """
    path = _find_yaml(Path(path).expanduser())
    data = _read_data_yaml(path)
    missing = _missing(path, data)
    if missing:
        key, absent = missing[0]
        source = str(data.get("download") or "")
        if source and any(split == "val" for split, _ in missing):  # Ultralytics downloads where val is absent
            if _is_offline(source if source.startswith("http") else ""):
                shown = path.name if path in _packaged_yamls().values() else path
                raise ValueError(
                    f"data: the images of {shown} are not on this machine ({key}: {absent} does not exist) and there "
                    f"is no network to download them; 'shapes' needs none."
                )
            return path
        raise ValueError(f"{path}: {key}: {absent} does not exist{_nearest_path(absent)}.")
    _check_images(path, data)
    return path


def _find_yaml(path: Path) -> Path:
    """The data YAML that ``path`` means."""
    from ultralytics.data.utils import find_dataset_yaml

    if path.is_dir():
        try:
            return Path(find_dataset_yaml(path))
        except AssertionError as error:
            raise ValueError(
                f"data: {path} is a folder without one data YAML: {' '.join(str(error).split())}."
            ) from error
    if not path.is_file():
        raise ValueError(f"data: {path} does not exist; {_nearest_yaml(path)}.")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ValueError(f"data: {path} is not a data YAML; a name that ends in .yaml or .yml is needed.")
    return path


def _nearest_yaml(path: Path) -> str:
    """What exists in place of a data YAML, to put into a sentence."""
    if not path.parent.is_dir():
        return f"the nearest folder that exists is {next(p for p in path.absolute().parents if p.is_dir())}"
    valid = {p.name: str(p) for p in sorted(path.parent.glob("*.y*ml"))}
    if path.parent == Path():  # a bare name may also mean a file of Ultralytics'
        valid = {**{name: name for name in _packaged_yamls()}, **valid}
    if valid:
        return f"the nearest data YAML is {valid[_nearest(path.name, valid)]}"
    return f"its folder holds no data YAML, and the nearest dataset's name is {_nearest(path.stem, load_datasets())!r}"


def _read_data_yaml(path: Path) -> dict[str, Any]:
    """Read a data YAML and check its keys, without a look at the images."""
    from ultralytics.data import utils
    from ultralytics.utils import YAML

    try:
        data: dict[str, Any] = YAML.load(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read as a data YAML: {' '.join(str(error).split())}.") from error
    for key, types in getattr(utils, "DATASET_KEY_TYPES", {}).items():  # not in the first versions of 8.4
        if data.get(key) is not None and not isinstance(data[key], types):
            expected = " or ".join(t.__name__ for t in types)
            raise ValueError(f"{path}: {key!r} must be {expected}, not {type(data[key]).__name__}.")
    if not data.get("val") and data.get("validation"):
        data["val"] = data["validation"]  # as Ultralytics renames it
    for key in ("train", "val"):
        if not data.get(key):
            near = difflib.get_close_matches(key, [str(k) for k in data if k not in ("train", "val")], n=1, cutoff=0.5)
            hint = f"; the nearest key there is {near[0]!r}" if near else ""
            raise ValueError(f"{path} names no {key!r} images{hint}.")
    names, count = data.get("names"), data.get("nc")
    if names is None and count is None:
        raise ValueError(f"{path} names no classes: 'names' or 'nc' is needed.")
    if names is not None:
        try:
            names = utils.check_class_names(names)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: 'names' is not valid: {error.args[0]}") from error
        if count is not None and count != len(names):
            raise ValueError(f"{path}: 'nc' is {count!r}, but 'names' has {len(names)} classes.")
    return data


def _root(path: Path, data: Mapping[str, Any]) -> Path:
    """The dataset's root folder."""
    from ultralytics.utils import DATASETS_DIR

    root = Path(data.get("path") or path.parent)
    if not root.exists() and not root.is_absolute():
        root = Path(DATASETS_DIR) / root
    return root.resolve()


def _split(path: Path, data: Mapping[str, Any], key: str) -> list[Path]:
    """The folders and list files of a split."""
    root, entries = _root(path, data), data[key]
    if not isinstance(entries, str):
        return [(root / str(entry)).resolve() for entry in entries]
    split = (root / entries).resolve()
    if not split.exists() and entries.startswith("../"):
        split = (root / entries[3:]).resolve()
    return [split]


def _missing(path: Path, data: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """The folders and list files of ``train`` and ``val`` that do not exist, each with its key."""
    return [(key, p) for key in ("train", "val") for p in _split(path, data, key) if not p.exists()]


def _nearest_path(path: Path) -> str:
    """A hint at what exists in place of ``path``, to put into a sentence."""
    parent = next(p for p in path.parents if p.is_dir())
    wanted = path.relative_to(parent).parts[0]
    names = [p.name for p in parent.iterdir() if not p.name.startswith(".") and p.suffix not in (".yaml", ".yml")]
    return f"; the nearest in {parent} is {_nearest(wanted, names)!r}" if names else f"; {parent} holds no data"


def _images(entries: Sequence[Path]) -> Iterator[str]:
    """The images of a split, one by one, as ``BaseDataset.get_img_files`` finds them."""
    from ultralytics.data.utils import IMG_FORMATS

    for entry in entries:
        found: Iterable[str]
        if entry.is_dir():
            found = (os.path.join(folder, file) for folder, _, files in os.walk(entry) for file in sorted(files))  # noqa: PTH118
        else:
            try:
                lines = entry.read_text(encoding="utf-8-sig").strip().splitlines()
            except UnicodeDecodeError:
                raise ValueError(f"{entry} is neither a folder of images nor a list of them.") from None
            parent = f"{entry.parent}{os.sep}"
            found = (line.replace("./", parent, 1) if line.startswith("./") else line for line in lines)
        yield from (file for file in found if file.rpartition(".")[-1].lower() in IMG_FORMATS)


def _check_images(path: Path, data: Mapping[str, Any]) -> None:
    """Check that both splits have an image and that one training image has a label file."""
    from ultralytics.data.utils import img2label_paths

    for key in ("train", "val"):
        entries = _split(path, data, key)
        first = next(_images(entries), None)
        if first is None:
            raise ValueError(f"{path}: {key}: {entries[0]} holds no image.")
        if not any(Path(image).is_file() for image in _images(entries)):
            raise ValueError(f"{path}: {key}: no image listed in {entries[0]} exists, the first of them {first}.")
    if data.get("masks_dir"):  # a segmentation set whose labels are images
        return
    entries = _split(path, data, "train")
    if not any(Path(img2label_paths([image])[0]).is_file() for image in _images(entries)):
        first = next(_images(entries))
        raise ValueError(
            f"{path}: train: no image in {entries[0]} has a label file; "
            f"that of {Path(first).name} would be {img2label_paths([first])[0]}."
        )


def count_images(path: Path) -> int:
    """Number of training images of a data YAML, as listed: files are not looked at.

    Args:
        path: A data YAML, as :func:`resolve_dataset` returns it.

    Raises:
        ValueError: Its images are not on this machine yet.
    """
    data = _read_data_yaml(path)
    if missing := _missing(path, data):
        raise ValueError(f"{path}: {missing[0][0]}: {missing[0][1]} is not on this machine yet.")
    return sum(1 for _ in _images(_split(path, data, "train")))


def cache_labels(path: Path) -> None:
    """Let Ultralytics read a detection data set's labels once, so that runs that start together find its cache.

    Each training writes the cache where it finds none, not atomically: several at once could read a torn one.
    Downloads the images first where the data YAML says how and they are absent.

    Args:
        path: A data YAML, as :func:`resolve_dataset` returns it.
    """
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(path))
    for split in ("train", "val"):
        YOLODataset(img_path=data[split], data=data, task="detect", augment=False)


# Downloads -----------------------------------------------------------------------------------------------------------


def _download_ultralytics(dataset: Dataset) -> Path:
    """Let Ultralytics download one of its datasets, once for all processes that ask."""
    from ultralytics.data.utils import check_det_dataset

    path = _data_yaml(dataset)
    if is_present(dataset):
        return check_data_yaml(path)
    check_data_yaml(path)
    root = _folder(dataset)
    with _writing(root), FileLock(root.parent / f".gradstudy-{dataset.name}.lock"):
        if not is_present(dataset):
            try:
                check_det_dataset(str(path))
            except (ConnectionError, FileNotFoundError) as error:
                raise ValueError(f"data: {dataset.name} can't be downloaded: {' '.join(str(error).split())}") from error
    return check_data_yaml(path)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make the parent of ``folder``; a refused write becomes a sentence that names the way out of it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST):
            raise
        raise ValueError(
            f"data: {folder} can't be written ({error.strerror}); set GRADSTUDY_DATASETS to a folder that can."
        ) from error


def _download(url: str, file: Path, progress: bool = False) -> None:
    """Download one file; it appears whole or not at all.

    Raises:
        ValueError: There is no network, or the server does not give the file.
    """
    from ultralytics.utils.downloads import safe_download

    way_out = f"put the file at {file} and start again"
    if _is_offline(url):
        raise ValueError(f"data: {url} can't be downloaded without a network; {way_out}.")
    try:
        safe_download(url, file=file.name, dir=file.parent, unzip=False, progress=progress)
    except ConnectionError as error:
        raise ValueError(f"data: {url} can't be downloaded; {way_out} ({' '.join(str(error).split())}).") from error


# Subsets of COCO -----------------------------------------------------------------------------------------------------


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


def _build_coco_subset(dataset: Dataset) -> Path:
    """Write the labels, images and list files of a subset; the data YAML last, which says that it is whole."""
    from ultralytics.utils import LOGGER, ROOT, YAML

    root, path = _folder(dataset), _data_yaml(dataset)
    with _writing(root), FileLock(root.parent / f".{root.name}.lock"):
        root.mkdir(exist_ok=True)
        lists = {"train": root / f"{dataset.name}.txt", "val": root / f"{dataset.name}-val.txt"}
        names = YAML.load(Path(ROOT, "cfg", "datasets", "coco.yaml"))["names"]
        text = _data_yaml_text(dataset, {key: file.name for key, file in lists.items()}, names)
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
            _replace_text(lists[key], "".join(f"./images/{split}/{file}\n" for file in files))
        _replace_text(path, text)
    return check_data_yaml(path)


def _data_yaml_text(dataset: Dataset, splits: Mapping[str, str], names: dict[int, str]) -> str:
    """A data YAML without ``path``, so that Ultralytics takes its folder and the folder can be moved."""
    head = f"# Written by yolo_gradstudy: {dataset.name}, seed {dataset.seed}"
    if dataset.how == "drawn":
        head += f", drawing {_DRAWING}, {dataset.train} and {dataset.val} images"
    else:
        head += f", share {dataset.share} of train2017 and {dataset.val_share} of val2017"
    return head + ".\n" + yaml.safe_dump({**splits, "names": names}, sort_keys=False)


def _are_whole(lists: Iterable[Path]) -> bool:
    """Whether the list files exist, and every image in them."""
    return all(
        file.is_file() and all((file.parent / line).is_file() for line in file.read_text(encoding="utf-8").splitlines())
        for file in lists
    )


def _replace_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it, so that it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def _read_annotations(dataset: Dataset, split: str) -> dict[str, Any]:
    """The official annotations of a split: those of Ultralytics' COCO folder, our own, or downloaded now."""
    name = f"instances_{split}.json"
    ours = _folder(dataset) / "annotations" / name
    file = datasets_dir() / "coco" / "annotations" / name
    if not file.is_file():
        file = ours
    if not file.is_file():
        archive = _folder(dataset) / Path(urlsplit(dataset.annotations_url).path).name
        if not archive.is_file():
            if _is_offline(dataset.annotations_url):
                raise ValueError(
                    f"data: {dataset.name} needs {dataset.annotations_url}, and there is no network; "
                    f"put that file at {archive}, or its {name} at {ours}, and start again."
                )
            _download(dataset.annotations_url, archive, progress=True)
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

    folder, official = _folder(dataset) / "images" / split, datasets_dir() / "coco" / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    absent = [file for file in files if not (folder / file).is_file() and not _link(official / file, folder / file)]
    if not absent:
        return
    first = f"{dataset.images_url}/{split}/{absent[0]}"
    if _is_offline(first):
        raise ValueError(
            f"data: {dataset.name} lacks {len(absent)} of {len(files)} images of {split} and there is no network; "
            f"put {first} and the others into {folder} and start again."
        )
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        jobs = [pool.submit(_download, f"{dataset.images_url}/{split}/{file}", folder / file) for file in absent]
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


# The shapes ----------------------------------------------------------------------------------------------------------


def _shape_files(dataset: Dataset) -> Iterator[tuple[str, int, str]]:
    """Split, number and name without suffix of every image of ``shapes``."""
    for split, count in (("train", dataset.train), ("val", dataset.val)):
        for number in range(count):
            yield split, number, f"{number:04d}"


def _shapes_are_whole(folder: Path, dataset: Dataset) -> bool:
    """Whether every file of ``shapes`` is there, drawn by this version."""
    path = folder / f"{dataset.name}.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") != _shapes_yaml(dataset):
        return False
    return all(
        (folder / "images" / split / f"{stem}.png").is_file() and (folder / "labels" / split / f"{stem}.txt").is_file()
        for split, _, stem in _shape_files(dataset)
    )


def _shapes_yaml(dataset: Dataset) -> str:
    return _data_yaml_text(dataset, {"train": "images/train", "val": "images/val"}, dict(enumerate(_SHAPES)))


def _draw_shapes(dataset: Dataset) -> Path:
    """Draw ``shapes`` where it is not whole; it appears under its name only when it is."""
    folder = _folder(dataset)
    path = _data_yaml(dataset)
    if _shapes_are_whole(folder, dataset):
        return path
    with _writing(folder), FileLock(folder.parent / f".{folder.name}.lock"):
        if _shapes_are_whole(folder, dataset):  # another process drew it while this one waited
            return path
        drawn, old = folder.with_name(f".{folder.name}.drawing"), folder.with_name(f".{folder.name}.old")
        for leftover in (drawn, old):  # of a process that was killed: the lock is ours
            shutil.rmtree(leftover, ignore_errors=True)
        _write_shapes(drawn, dataset)
        if folder.exists():
            folder.rename(old)
        drawn.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return path


def _write_shapes(folder: Path, dataset: Dataset) -> None:
    """Draw every image and label of ``shapes`` into an empty folder."""
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (folder / kind / split).mkdir(parents=True)
    for split, number, stem in _shape_files(dataset):
        generator = np.random.default_rng([dataset.seed, ("train", "val").index(split), number])
        image, boxes = _draw_image(generator)
        encoded, png = cv2.imencode(".png", image)
        assert encoded
        (folder / "images" / split / f"{stem}.png").write_bytes(png.tobytes())
        rows = (
            f"{c} {(x0 + x1) / 2 / _SIDE:.6f} {(y0 + y1) / 2 / _SIDE:.6f} "
            f"{(x1 - x0) / _SIDE:.6f} {(y1 - y0) / _SIDE:.6f}\n"
            for c, x0, y0, x1, y1 in boxes
        )
        (folder / "labels" / split / f"{stem}.txt").write_text("".join(rows), encoding="utf-8", newline="\n")
    (folder / f"{dataset.name}.yaml").write_text(_shapes_yaml(dataset), encoding="utf-8", newline="\n")


def _draw_image(generator: np.random.Generator) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int, int]]]:
    """Draw one image of up to 5 shapes.

    An object is 24 to 60 pixels across, in a random colour that stands out from the background, turned by up to
    20 degrees, at most a tenth of it outside the image. A later object may cover at most 30 % of an earlier one:
    it is moved otherwise, and left out after 20 attempts. A box is the extent of what is visible, as COCO's are.

    Args:
        generator: The only source of chance.

    Returns:
        The image, uint8, shape (side, side, 3), and a row (class, x0, y0, x1, y1) an object, in pixels.
    """
    canvas, base = _draw_background(generator)
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] + 0.5
    classes: list[int] = []
    whole: list[int] = []  # pixels of each object before others covered it
    visible: list[NDArray[np.bool_]] = []
    for _ in range(int(generator.integers(2, 6))):
        shape = int(generator.integers(len(_SHAPES)))
        size = 24.0 * (60.0 / 24.0) ** generator.random()
        for _ in range(20):
            left, top = 0.4 * size + (_SIDE - 0.8 * size) * generator.random(2)
            angle = math.radians(40.0 * generator.random() - 20.0)
            stretch = 0.6 + 0.4 * generator.random()
            cos, sin = math.cos(angle), math.sin(angle)
            u, v = (x - left) * (2.0 / size), (y - top) * (2.0 / size)
            distance = _distance(_SHAPES[shape], cos * u + sin * v, cos * v - sin * u, stretch) * (size / 2.0)
            inside = distance < 0.0
            remaining = [mask & ~inside for mask in visible]
            if all(mask.sum() >= 0.7 * pixels for mask, pixels in zip(remaining, whole, strict=True)):
                break
        else:
            continue
        classes.append(shape)
        whole.append(int(inside.sum()))
        visible = [*remaining, inside]
        colour = generator.random(3)
        while np.abs(colour - base).max() < 0.45:
            colour = generator.random(3)
        cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
        rim = np.clip(distance + 2.0, 0.0, 1.0)[..., None]  # darker, so that objects of one colour stay apart
        canvas = canvas * (1.0 - cover) + cover * colour * (1.0 - 0.35 * rim)
    image = np.floor(np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    boxes = []
    for shape, mask in zip(classes, visible, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((shape, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return image, boxes


def _draw_background(generator: np.random.Generator) -> tuple[Plane, Plane]:
    """Blotches, stripes, checks or a slope between two near colours, under grain.

    Returns:
        The canvas, float64 in about 0 to 1, shape (side, side, 3), and its base colour, shape (3,).
    """
    base = 0.2 + 0.6 * generator.random(3)
    tint = 0.2 * (generator.random(3) - 0.5)
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    kind = int(generator.integers(4))
    angle = math.pi * generator.random()
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    periods = 2.0 + 6.0 * generator.random()
    if kind == 0:
        mix = _blotches(generator.random((7, 7)), x, y)
    elif kind == 1:
        mix = 2.0 * np.abs((along * periods) % 1.0 - 0.5)
    elif kind == 2:
        mix = (np.floor(along * periods) + np.floor(across * periods)) % 2.0
    else:
        mix = (along - along.min()) / (along.max() - along.min())
    grain = 0.16 * generator.random() * (generator.random((_SIDE, _SIDE, 1)) - 0.5)
    return base + mix[..., None] * tint + grain, base


def _blotches(knots: Plane, x: Plane, y: Plane) -> Plane:
    """Interpolate a grid of numbers linearly at ``x`` and ``y``, both in 0 to below 1."""
    cells = len(knots) - 1
    row, column = (y * cells).astype(int), (x * cells).astype(int)
    v, u = y * cells - row, x * cells - column
    above = (1.0 - u) * knots[row, column] + u * knots[row, column + 1]
    below = (1.0 - u) * knots[row + 1, column] + u * knots[row + 1, column + 1]
    return np.asarray((1.0 - v) * above + v * below)


def _distance(shape: str, x: Plane, y: Plane, stretch: float) -> Plane:
    """Signed distance to the outline of a shape of about unit radius, negative inside.

    Args:
        shape: One of the classes.
        x: To the right, in units of the shape's radius.
        y: Downwards.
        stretch: Height over width, of a rectangle and a frame.
    """
    if shape in ("disc", "ring"):
        distance = np.sqrt(x * x + y * y) - 1.0
    else:
        distance = _polygon_distance(x, y, _corners(shape, stretch))
    if shape in ("ring", "frame"):  # a wall 0.4 wide along the inside of the outline
        distance = np.abs(distance + 0.2) - 0.2
    return np.asarray(distance)


def _corners(shape: str, stretch: float) -> list[tuple[float, float]]:
    """The corners of a shape with straight sides."""
    if shape in ("rectangle", "frame"):
        return [(-1.0, -stretch), (1.0, -stretch), (1.0, stretch), (-1.0, stretch)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "hourglass":
        return [(-0.85, -1.0), (0.85, -1.0), (-0.85, 1.0), (0.85, 1.0)]
    if shape == "cross":
        a = 0.34
        quarter = [(-a, -1.0), (a, -1.0), (a, -a)]
        turned = quarter
        corners = list(quarter)
        for _ in range(3):
            turned = [(-y, x) for x, y in turned]
            corners += turned
        return corners
    assert shape == "star", shape
    radii = [1.0, 0.45] * 5
    return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


def _polygon_distance(x: Plane, y: Plane, corners: Sequence[tuple[float, float]]) -> Plane:
    """Signed distance to a polygon, negative where a ray crosses an odd number of sides."""
    squared = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        dx, dy = px - along * ex, py - along * ey
        squared = np.minimum(squared, dx * dx + dy * dy)
        if ey:
            inside ^= ((ay > y) != (by > y)) & (px < py * ex / ey)
    return np.sqrt(squared) * np.where(inside, -1.0, 1.0)
