# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands that list what there is: ablations and data sets."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from yolo_gradstudy.cli.options import AsJson
from yolo_gradstudy.cli.words import errors, import_ultralytics


def ablations(
    model: Annotated[str | None, typer.Option(help="A model, to count what each ablation changes in it.")] = None,
    as_json: AsJson = False,
) -> None:
    """What can be ablated, and what each changes in a model."""
    with errors():
        import_ultralytics()
        from yolo_gradstudy.ablations import describe_ablations
        from yolo_gradstudy.arguments import check_model

        if model is not None:
            check_model(model)
        rows = describe_ablations(model)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("ablation", "family", "what it does", "sets", box=None, pad_edge=False)
    if model is not None:
        for column in ("modules changed", "parameters before", "after", "note"):
            table.add_column(column, justify="left" if column == "note" else "right")
    for row in rows:
        counts = [row.changed, row.parameters_before, row.parameters_after] if model is not None else []
        cells = ["–" if count is None else f"{count:,}" for count in counts]
        table.add_row(row.name, row.family, row.summary, row.sets or "–", *cells, *([row.note] if model else []))
    Console().print(table)


def data_list(as_json: AsJson = False) -> None:
    """The data sets by name."""
    with errors():
        import_ultralytics()
        from yolo_gradstudy.datasets import list_datasets

        rows = list_datasets()
    if as_json:
        print(json.dumps(rows, indent=2, default=str))
        return
    table = Table("name", "train", "val", "here", "what it is", "where", box=None, pad_edge=False)
    for row in rows:
        here = "yes" if row["present"] else "no"
        table.add_row(row["name"], f"{row['train']:,}", f"{row['val']:,}", here, row["summary"], row["path"])
    Console().print(table)


def data_build(name: Annotated[str, typer.Argument(help="A data set's name.")]) -> None:
    """Draw, download or build a data set."""
    with errors():
        import_ultralytics()
        from yolo_gradstudy.datasets import build_dataset

        path = build_dataset(name)
    print(path)
