# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether Ultralytics could train on a data YAML, by its own rules, without a download; and what it lists."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_gradstudy.datasets.catalogue import load_datasets, nearest, ultralytics_yamls
from yolo_gradstudy.datasets.downloads import is_offline


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
            absent, or not one training image has a label file that is not empty.
    """
    path = _find_yaml(Path(path).expanduser())
    data = read_data_yaml(path)
    missing = missing_images(path, data)
    if missing:
        key, absent = missing[0]
        source = str(data.get("download") or "")
        if source and any(split == "val" for split, _ in missing):  # Ultralytics downloads where val is absent
            if is_offline(source if source.startswith("http") else ""):
                shown = path.name if path in ultralytics_yamls().values() else path
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
        valid = {**{name: name for name in ultralytics_yamls()}, **valid}
    if valid:
        return f"the nearest data YAML is {valid[nearest(path.name, valid)]}"
    return f"its folder holds no data YAML, and the nearest dataset's name is {nearest(path.stem, load_datasets())!r}"


def read_data_yaml(path: Path) -> dict[str, Any]:
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
    names, count = data.get("names"), _class_count(path, data.get("nc"))
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


def _class_count(path: Path, count: object) -> int | None:
    """The number of classes under ``nc``; None where there is none. Like Ultralytics it takes ``10.0`` and ``'10'``."""
    if count is None:
        return None
    try:
        number = float(str(count))
    except ValueError:
        number = float("nan")
    if isinstance(count, bool) or not number.is_integer() or number < 1:
        raise ValueError(f"{path}: 'nc' is {count!r}, not a number of classes; the nearest valid is 1.")
    return int(number)


def root_folder(path: Path, data: Mapping[str, Any]) -> Path:
    """The dataset's root folder."""
    from ultralytics.utils import DATASETS_DIR

    root = Path(data.get("path") or path.parent)
    if not root.exists() and not root.is_absolute():
        root = Path(DATASETS_DIR) / root
    return root.resolve()


def _split(path: Path, data: Mapping[str, Any], key: str) -> list[Path]:
    """The folders and list files of a split."""
    root, entries = root_folder(path, data), data[key]
    if not isinstance(entries, str):
        return [(root / str(entry)).resolve() for entry in entries]
    split = (root / entries).resolve()
    if not split.exists() and entries.startswith("../"):
        split = (root / entries[3:]).resolve()
    return [split]


def missing_images(path: Path, data: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """The folders and list files of ``train`` and ``val`` that do not exist, each with its key."""
    return [(key, p) for key in ("train", "val") for p in _split(path, data, key) if not p.exists()]


def _nearest_path(path: Path) -> str:
    """A hint at what exists in place of ``path``, to put into a sentence."""
    parent = next(p for p in path.parents if p.is_dir())
    wanted = path.relative_to(parent).parts[0]
    names = [p.name for p in parent.iterdir() if not p.name.startswith(".") and p.suffix not in (".yaml", ".yml")]
    return f"; the nearest in {parent} is {nearest(wanted, names)!r}" if names else f"; {parent} holds no data"


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
    """Check that both splits have an image and that one training image has a label file that is not empty."""
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
    empty = None
    for label in (Path(img2label_paths([image])[0]) for image in _images(entries)):
        if label.is_file():
            if _holds_text(label):
                return
            empty = empty or label
    if empty is not None:
        raise ValueError(f"{path}: train: every label file of {entries[0]} is empty, the first of them {empty}.")
    first = next(_images(entries))
    raise ValueError(
        f"{path}: train: no image in {entries[0]} has a label file; "
        f"that of {Path(first).name} would be {img2label_paths([first])[0]}."
    )


def _holds_text(file: Path) -> bool:
    """Whether a file holds more than white space; only the small ones are read."""
    size = file.stat().st_size
    return size > 100 or (size > 0 and bool(file.read_bytes().strip()))


def count_images(path: Path) -> int:
    """Number of training images of a data YAML, as listed: files are not looked at.

    Args:
        path: A data YAML, as :func:`resolve_dataset` returns it.

    Raises:
        ValueError: Its images are not on this machine yet.
    """
    data = read_data_yaml(path)
    if missing := missing_images(path, data):
        raise ValueError(f"{path}: {missing[0][0]}: {missing[0][1]} is not on this machine yet.")
    return sum(1 for _ in _images(_split(path, data, "train")))


def count_classes(path: Path) -> int:
    """Number of classes of a data YAML.

    Args:
        path: A data YAML, as :func:`resolve_dataset` returns it.
    """
    data = read_data_yaml(path)
    count = _class_count(path, data.get("nc"))
    return len(data["names"]) if count is None else count


def cache_labels(path: Path, arguments: Mapping[str, Any] | None = None) -> None:
    """Let Ultralytics read a detection data set's labels once, so that runs that start together find its cache.

    Each training writes the cache where it finds none that fits, not atomically: several at once could read a torn
    one. Where ``fraction`` is set and both splits lie in one folder, no cache fits both, and each training writes its
    own. Downloads the images first where the data YAML says how and they are absent.

    Args:
        path: A data YAML, as :func:`resolve_dataset` returns it.
        arguments: Training arguments; those of :func:`label_key` decide which cache fits.

    Raises:
        ValueError: Nothing that could be trained on: images that can't be had or read, labels that Ultralytics
            refuses, not one object.
    """
    from ultralytics.utils import remove_colorstr

    chosen = dict(label_key(arguments or {}))
    with contextlib.redirect_stdout(sys.stderr):  # Ultralytics' progress bars are no answer of a command
        try:
            for split in ("train", "val"):
                _read_labels(path, split, chosen)
        except (RuntimeError, SyntaxError, OSError, AssertionError, KeyError, TypeError, ValueError) as error:
            lines = [line.strip().rstrip(".") for line in remove_colorstr(str(error)).splitlines() if line.strip()]
            # What is wrong, and the first file that it is wrong with; hundreds may follow.
            told = ": ".join(lines[:2]) or type(error).__name__
            raise ValueError(f"{path} can't be trained on: {told}.") from error


_LABEL_ARGUMENTS = {"fraction": 1.0, "single_cls": False}
"""Training arguments that decide which images and classes a label cache is of, with Ultralytics' defaults."""


def label_key(arguments: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What a label cache depends on: runs with the same key read the same one.

    Args:
        arguments: Training arguments.

    Returns:
        Names and values of the arguments that count, to compare and to pass on.
    """
    return tuple((key, arguments.get(key, default)) for key, default in _LABEL_ARGUMENTS.items())


def _read_labels(path: Path, split: str, chosen: Mapping[str, Any]) -> None:
    """Read a split's labels as a training does, and with them write or check the cache."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(path))
    if chosen["single_cls"]:  # as Ultralytics' trainer has it
        data["names"], data["nc"] = {0: "item"}, 1
    config = get_cfg(overrides={"task": "detect", **chosen})
    dataset = build_yolo_dataset(config, data[split], batch=1, data=data, mode=split)
    if split == "train" and not any(len(label["cls"]) for label in dataset.labels):
        raise ValueError(f"train: no object is labelled in the {len(dataset.labels)} images that are used")
