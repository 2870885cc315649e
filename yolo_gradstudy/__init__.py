# SPDX-License-Identifier: AGPL-3.0-or-later
"""Records what gradients do while a YOLO model trains, ablates what keeps it stable, and diagnoses runs.

The public names are loaded when they are first used: reading a run needs neither torch nor Ultralytics.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolo_gradstudy.ablations import ABLATIONS, apply_ablation
    from yolo_gradstudy.diagnoses import diagnose
    from yolo_gradstudy.recorder import GradRecorder
    from yolo_gradstudy.records import RecordConfig
    from yolo_gradstudy.run_folder import load_run
    from yolo_gradstudy.trainer import GradStudyTrainer, gradstudy_trainer

_HOMES = {
    "ABLATIONS": "ablations",
    "GradRecorder": "recorder",
    "GradStudyTrainer": "trainer",
    "RecordConfig": "records",
    "apply_ablation": "ablations",
    "diagnose": "diagnoses",
    "gradstudy_trainer": "trainer",
    "load_run": "run_folder",
}

__all__ = [
    "ABLATIONS",
    "GradRecorder",
    "GradStudyTrainer",
    "RecordConfig",
    "apply_ablation",
    "diagnose",
    "gradstudy_trainer",
    "load_run",
]

__version__ = version("yolo_gradstudy")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
