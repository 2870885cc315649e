# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands. Each reads its words, calls the room that does the work, and prints what came out.

A file for each group of commands (``training``, ``studies``, ``judging``, ``listing``) and for what they share: their
options, the study that they load, where its runs are placed, the progress and the words that are printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import typer

from yolo_gradstudy.cli.judging import CANNOT_TELL, HEALTHY, UNHEALTHY, diagnose
from yolo_gradstudy.cli.listing import ablations, data_build, data_list
from yolo_gradstudy.cli.studies import limit, plan, report, run
from yolo_gradstudy.cli.training import train

__all__ = ["CANNOT_TELL", "HEALTHY", "UNHEALTHY", "app", "main"]

_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "train": (train, "gradstudy train model=yolo26n.yaml data=coco128.yaml epochs=10 --ablate no_clip"),
    "plan": (plan, "gradstudy plan stabilisation --data coco128"),
    "run": (run, "gradstudy run quick --out runs/quick --jobs 2"),
    "limit": (limit, "gradstudy limit --model runs/detect/train/weights/last.pt --data mine.yaml"),
    "report": (report, "gradstudy report runs/quick"),
    "diagnose": (diagnose, "gradstudy diagnose runs/detect/train --json"),
    "ablations": (ablations, "gradstudy ablations --model yolo26n.yaml"),
}
"""Commands and an example of each, which their help shows."""

_DATA_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "list": (data_list, "gradstudy data list"),
    "build": (data_build, "gradstudy data build coco-1pct"),
}

_STATUSES = (
    "Exit status: 0 done; 2 what was asked can't be done, or a run can't be told; 130 interrupted. "
    "`gradstudy diagnose`: 0 healthy, 1 unhealthy."
)

app = typer.Typer(
    name="gradstudy",
    help="Records gradients of YOLO training, ablates what keeps it stable, diagnoses runs that went wrong.",
    epilog=_STATUSES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_data_app = typer.Typer(help="The data sets that a study can name.", no_args_is_help=True)
for _group, _commands in ((app, _COMMANDS), (_data_app, _DATA_COMMANDS)):
    for _name, (_function, _example) in _commands.items():
        _group.command(_name, epilog=f"Example: {_example}")(_function)
app.add_typer(_data_app, name="data")


def main() -> None:
    """The command `gradstudy`."""
    sys.path.append(str(Path.cwd()))  # an ablation of one's own may lie in the folder that one works in
    app()
