# SPDX-License-Identifier: AGPL-3.0-or-later
"""The runs that are missing → executor → results and report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from yolo_gradstudy.datasets import cache_labels, resolve_dataset
from yolo_gradstudy.executors import Executor, RunEvent
from yolo_gradstudy.plan import Study, compare_studies
from yolo_gradstudy.records import RunSpec
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import RunFolder, StudyFolder


def check_folder(study: Study, folder: StudyFolder) -> None:
    """Refuse a folder that holds something else than this study.

    Raises:
        ValueError: Another study, this study with a changed base or fewer runs, or files of something else.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"--out {folder.path} is a file; the nearest free folder is {_free(folder.path)}.")
    old = folder.read_study()
    if old is None:
        strangers = [p.name for p in folder.path.iterdir() if p.name != ".lock"] if folder.path.is_dir() else []
        if strangers:
            raise ValueError(
                f"--out {folder.path} is not empty and holds no study ({strangers[0]} is there); "
                f"the nearest free folder is {_free(folder.path / study.name)}."
            )
        return
    found = compare_studies(old, study.to_dict())
    if found.changed or found.shrunk:
        what = "; ".join((*found.changed, *found.shrunk))
        raise ValueError(
            f"--out {folder.path} holds another study ({what}); the nearest free folder is {_free(folder.path)}."
        )


def _free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, … that does not exist."""
    candidates = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in range(1, 1_000_000))
    return next(p for p in candidates if not p.exists())


def missing_runs(study: Study, folder: StudyFolder) -> list[RunSpec]:
    """The planned runs that have no result yet, in the plan's order.

    Raises:
        ValueError: A run's ``result.json`` is not a result.
    """
    return [spec for spec in study.runs() if not _has_result(folder.run(spec.run_id))]


def _has_result(run: RunFolder) -> bool:
    try:
        return run.read_result() is not None
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}; delete the file to train the run again.") from error


def run_study(
    study: Study,
    folder: StudyFolder,
    executor: Executor,
    on_event: Callable[[RunEvent], None] = lambda event: None,
) -> Path:
    """Train what is missing of a study and write its report.

    Interrupted, it leaves every finished run in place; called again, it trains only the others.

    Args:
        study: What to train.
        folder: Where; created where it is not there.
        executor: Places the runs.
        on_event: Called as runs start and end.

    Returns:
        The path of the report's page.

    Raises:
        ValueError: The folder is another study's or in use, or the data set can't be had. Nothing is written.
    """
    check_folder(study, folder)
    data = resolve_dataset(study.data)
    with folder.locked():
        check_folder(study, folder)  # again: another process may have begun meanwhile
        folder.write_study(study.to_dict(), study.runs())
        specs = missing_runs(study, folder)
        if specs:
            cache_labels(data)  # once, before runs that would all write it
        with closing(executor.execute(specs, folder)) as events:
            for event in events:
                on_event(event)
        return write_report(folder.path)
