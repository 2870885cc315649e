# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd


def to_markdown(frame: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table, without its index; missing values are ``–``."""

    def line(cells: Iterable[Any]) -> str:
        texts = ("–" if pd.isna(c) else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells)
        return "| " + " | ".join(" ".join(t.replace("|", "\\|").split()) for t in texts) + " |"

    return "\n".join([line(frame.columns), "|---" * len(frame.columns) + "|", *map(line, frame.values.tolist())]) + "\n"
