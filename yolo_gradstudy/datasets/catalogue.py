# SPDX-License-Identifier: AGPL-3.0-or-later
"""The datasets that have a name: the entries of ``datasets.yaml``, and the folder where they are built."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import yaml

How = Literal["drawn", "ultralytics", "coco-subset"]
"""How a dataset is had: drawn here (``shapes``), by Ultralytics' own download (``official``), or built (``coco``)."""


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
    package = Path(__file__).resolve().parents[1]
    inside = package / "datasets.yaml"
    return inside if inside.is_file() else package.parent / "datasets.yaml"


def _parse_entry(name: str, entry: object, path: Path) -> Dataset:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {name} is not a mapping of keys to values.")
    known = {f.name: f for f in fields(Dataset) if f.name != "name"}
    for key in entry:
        if key not in known:
            raise ValueError(
                f"{path}: {name} has the unknown key {key!r}; the nearest is {nearest(str(key), known)!r}."
            )
    for key, field in known.items():
        if field.default is MISSING and key not in entry:
            raise ValueError(f"{path}: {name} lacks the key {key!r}.")
    if entry["how"] not in get_args(How):
        near = nearest(str(entry["how"]), get_args(How))
        raise ValueError(f"{path}: {name} has how={entry['how']!r}; the nearest valid is {near!r}.")
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


def ultralytics_yamls() -> dict[str, Path]:
    """The data YAMLs that come with Ultralytics, by file name."""
    from ultralytics.utils import ROOT

    return {path.name: path for path in sorted(Path(ROOT, "cfg", "datasets").glob("*.yaml"))}


def is_named(data: str) -> bool:
    """Whether ``data`` is a data set's name, of ``datasets.yaml`` or of Ultralytics, and no file of that name."""
    return data in load_datasets() or (data in ultralytics_yamls() and not Path(data).exists())


def nearest(word: str, valid: Iterable[str]) -> str:
    """The valid word that looks most like ``word``."""
    valid = list(valid)
    folded = {v.lower(): v for v in valid}
    found = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.0)
    return folded[found[0]] if found else valid[0]
