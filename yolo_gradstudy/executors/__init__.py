# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where and when a run's process is placed: a file for each kind of place."""

from yolo_gradstudy.executors.base import Executor, Limits, RunEvent
from yolo_gradstudy.executors.local import LocalExecutor
from yolo_gradstudy.executors.ray import RayExecutor

__all__ = ["EXECUTORS", "Executor", "Limits", "LocalExecutor", "RayExecutor", "RunEvent"]

EXECUTORS: dict[str, type[Executor]] = {"local": LocalExecutor, "ray": RayExecutor}
"""Executors by the name that ``gradstudy run --executor`` takes."""
