# SPDX-License-Identifier: AGPL-3.0-or-later
"""One file from the network, whole or not at all, and whether there is a network."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit


def is_offline(url: str) -> bool:
    """Whether ``url`` can't be reached for want of a network; a server on this machine can."""
    from ultralytics.utils import is_online

    return urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1") and not is_online()


def download(url: str, file: Path, progress: bool = False) -> None:
    """Download one file; it appears whole or not at all.

    Raises:
        ValueError: There is no network, or the server does not give the file.
    """
    from ultralytics.utils.downloads import safe_download

    try:
        safe_download(url, file=file.name, dir=file.parent, unzip=False, progress=progress)
    except ConnectionError as error:
        raise ValueError(
            f"data: {url} can't be downloaded; put the file at {file} and start again ({' '.join(str(error).split())})."
        ) from error
