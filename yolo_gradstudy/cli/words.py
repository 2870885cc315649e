# SPDX-License-Identifier: AGPL-3.0-or-later
"""What commands say and how: errors of a person, sentences, tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from yolo_gradstudy.plan import StudyError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def errors() -> Iterator[None]:
    """A person's mistake is told in one sentence each, with exit status 2."""
    try:
        yield
    except OSError as error:
        from yolo_gradstudy.run_folder import is_disk_full, no_room

        if not is_disk_full(error):
            raise
        print(f"error: {no_room(error.filename or 'a file')}", file=sys.stderr)
        raise typer.Exit(2) from error
    except ValueError as error:
        problems = error.problems if isinstance(error, StudyError) else [str(error)]
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        raise typer.Exit(2) from error


@contextmanager
def interruptible(console: Console) -> Iterator[None]:
    """Ctrl-C ends what trains with a word on how it goes on, and with a shell's exit status for it."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted: finished runs are kept, the same command goes on from here")
        raise typer.Exit(130) from None


def import_ultralytics() -> None:
    """Import Ultralytics for a command whose standard output is an answer: its messages go to standard error."""
    with redirect_stdout(sys.stderr):  # its logger keeps the stream that it finds when it is imported
        import ultralytics.utils  # noqa: F401


def in_words(arguments: Any) -> str:
    """``lr0=0.01, epochs=3``."""
    return ", ".join(f"{key}={value}" for key, value in arguments.items()) or "–"


def tell(sentence: str) -> None:
    """A line a sentence, also where the output is a file."""
    Console().print(sentence, highlight=False, soft_wrap=True)


def print_table(frame: pd.DataFrame) -> None:
    """A frame as columns of text."""
    table = Table(*map(str, frame.columns), box=None, pad_edge=False)
    for row in frame.itertuples(index=False):
        table.add_row(*map(str, row))
    Console().print(table)
