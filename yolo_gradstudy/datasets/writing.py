# SPDX-License-Identifier: AGPL-3.0-or-later
"""How files are written: whole or not at all, and a refused write is a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml


@contextmanager
def writable(folder: Path) -> Iterator[None]:
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


def replace_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it, so that it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def data_yaml_text(made: str, splits: Mapping[str, str], names: dict[int, str]) -> str:
    """A data YAML without ``path``, so that Ultralytics takes its folder and the folder can be moved.

    Args:
        made: What decides the dataset; where it changes, the dataset is made again.
        splits: ``train`` and ``val``: a folder or a list file each.
        names: The classes by number.
    """
    text = yaml.safe_dump({**splits, "names": names}, sort_keys=False)
    return f"# Written by yolo_gradstudy: {made}.\n{text}"
