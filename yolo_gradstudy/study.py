# SPDX-License-Identifier: AGPL-3.0-or-later
"""The runs that are missing → executor → results and report."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from yolo_gradstudy.datasets import cache_labels, label_key, resolve_dataset
from yolo_gradstudy.executors import Executor, RunEvent
from yolo_gradstudy.plan import Study, compare_studies
from yolo_gradstudy.records import RunResult, RunSpec
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import RunFolder, StudyFolder


def check_folder(study: Study, folder: StudyFolder) -> None:
    """Refuse a folder that holds something else than this study.

    Raises:
        ValueError: Another study, this study with a changed base or fewer runs, or files of something else; a folder
            that can't be read.
    """
    with folder.accessible():
        _check_contents(study, folder)


def _check_contents(study: Study, folder: StudyFolder) -> None:
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"--out {folder.path} is a file; the nearest free folder is {_free(folder.path)}.")
    old = folder.read_study()
    if old is None:
        if strangers := folder.strangers():
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


def missing_runs(study: Study, folder: StudyFolder, retry_failed: bool = False) -> list[RunSpec]:
    """The planned runs that have no result yet, in the plan's order.

    Args:
        study: What is planned.
        folder: Where results are looked for.
        retry_failed: Whether a run that failed counts as missing.

    Raises:
        ValueError: A run's ``result.json`` is not a result.
    """
    return without_result(study.runs(), folder, retry_failed)


def without_result(specs: Sequence[RunSpec], folder: StudyFolder, retry_failed: bool = False) -> list[RunSpec]:
    """Those of some runs that have no result yet; see :func:`missing_runs`."""
    results = {spec.run_id: _result(folder.run(spec.run_id)) for spec in specs}
    ended = {run_id for run_id, r in results.items() if r is not None and not (retry_failed and r.status == "failed")}
    return [spec for spec in specs if spec.run_id not in ended]


def _result(run: RunFolder) -> RunResult | None:
    try:
        return run.read_result()
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}; delete the file to train the run again.") from error


def run_study(
    study: Study,
    folder: StudyFolder,
    executor: Executor,
    on_event: Callable[[RunEvent], None] = lambda event: None,
    retry_failed: bool = False,
) -> Path:
    """Train what is missing of a study and write its report.

    Interrupted, it leaves every finished run in place; called again, it trains only the others.

    Args:
        study: What to train.
        folder: Where; created where it is not there.
        executor: Places the runs.
        on_event: Called as runs start and end.
        retry_failed: Whether runs that failed are trained again.

    Returns:
        The path of the report's page.

    Raises:
        ValueError: The folder is another study's, in use or can't be written, or the data set can't be had or
            trained on. Nothing is written.
    """
    check_folder(study, folder)
    data = resolve_dataset(study.data)
    with folder.locked():
        check_folder(study, folder)  # again: another process may have begun meanwhile
        planned = study.runs()
        missing = without_result(planned, folder, retry_failed)
        train_runs(missing, study, planned, folder, data, executor, on_event)
        return write_report(folder.path)


_PREPARING_S = 600.0
"""How long one of several processes waits for another to write the plan and read the labels."""


def run_only(
    run_ids: Sequence[str],
    study: Study,
    folder: StudyFolder,
    executor: Executor,
    on_event: Callable[[RunEvent], None] = lambda event: None,
) -> list[RunSpec]:
    """Train some runs of a study that have no result, beside other processes that train others: a scheduler's array.

    The study is held only while it is prepared, and no report is written.

    Args:
        run_ids: Ids of planned runs.
        study: What is planned.
        folder: Where; created where it is not there, and shared by all that train the study.
        executor: Places the runs.
        on_event: Called as runs start and end.

    Returns:
        The runs that were trained.

    Raises:
        ValueError: An id that is not planned, or as :func:`run_study`.
    """
    planned = study.runs()
    by_id = {spec.run_id: spec for spec in planned}
    for run_id in run_ids:
        if run_id not in by_id:
            near = difflib.get_close_matches(run_id, list(by_id), n=1, cutoff=0.0)[0]
            raise ValueError(f"--only {run_id!r} is no run of the study {study.name!r}; the nearest valid is {near!r}.")
    check_folder(study, folder)
    data = resolve_dataset(study.data)
    with folder.locked(wait_s=_PREPARING_S):
        check_folder(study, folder)
        specs = without_result([by_id[run_id] for run_id in run_ids], folder)
        groups = _prepare(specs, study, planned, folder, data)
    _train(groups, folder, data, executor, on_event)
    return specs


def train_runs(
    specs: Sequence[RunSpec],
    study: Study,
    planned: Sequence[RunSpec],
    folder: StudyFolder,
    data: Path,
    executor: Executor,
    on_event: Callable[[RunEvent], None],
) -> None:
    """Write the plan and train some of its runs.

    Args:
        specs: The runs to train.
        study: What they belong to.
        planned: All its runs.
        folder: The study's folder, held by the caller.
        data: The resolved data set.
        executor: Places the runs.
        on_event: Called as runs start and end.

    Raises:
        ValueError: The data set can't be trained on; nothing is written then.
    """
    _train(_prepare(specs, study, planned, folder, data), folder, data, executor, on_event)


def _prepare(
    specs: Sequence[RunSpec], study: Study, planned: Sequence[RunSpec], folder: StudyFolder, data: Path
) -> list[list[RunSpec]]:
    """Read the labels and write the plan; returns the runs in groups that read the same labels."""
    groups = _by_labels(specs)
    for group in reversed(groups):  # all, before anything is written; the cache is then the first group's
        cache_labels(data, group[0].arguments)
    folder.write_study(study.to_dict(), planned)
    return groups


def _train(
    groups: Sequence[Sequence[RunSpec]],
    folder: StudyFolder,
    data: Path,
    executor: Executor,
    on_event: Callable[[RunEvent], None],
) -> None:
    """Train what :func:`_prepare` has prepared, one group after another."""
    for number, group in enumerate(groups):
        if number:
            cache_labels(data, group[0].arguments)
        for spec in group:
            folder.run(spec.run_id).forget_result()
        with closing(executor.execute(group, folder)) as events:
            for event in events:
                on_event(event)


def _by_labels(specs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """Runs that read the same labels, together: a data set has one label cache, which several at once must not write.

    Args:
        specs: Runs in the plan's order, which they keep within their group.
    """
    groups: list[list[RunSpec]] = []
    for spec in specs:
        key = label_key(spec.arguments)
        group = next((g for g in groups if label_key(g[0].arguments) == key), None)
        if group is None:
            groups.append([spec])
        else:
            group.append(spec)
    return groups
