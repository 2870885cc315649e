# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands of a study: plan, run, limit, report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from yolo_gradstudy.cli.loading import changes_of, load, load_own, to_download
from yolo_gradstudy.cli.options import (
    Address,
    AsJson,
    Data,
    Device,
    ExecutorName,
    Jobs,
    KeepWeights,
    MemoryLimit,
    Pairs,
    PerDevice,
    Quiet,
    Retries,
    RetryFailed,
    StudySource,
    Timeout,
    Workers,
)
from yolo_gradstudy.cli.placing import check_jobs, count_jobs, limits_of, place
from yolo_gradstudy.cli.progress import Progress
from yolo_gradstudy.cli.words import errors, import_ultralytics, in_words, interruptible, print_table
from yolo_gradstudy.plan import describe_plan

if TYPE_CHECKING:
    from yolo_gradstudy.ablations import SetRow
    from yolo_gradstudy.plan import Study


def plan(
    study: StudySource,
    pairs: Pairs = None,
    data: Data = None,
    jobs: Annotated[int, typer.Option(help="Runs at once, for the estimate.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The runs as JSON.")] = False,
) -> None:
    """What would run, and about how long."""
    with errors():
        from yolo_gradstudy.datasets import is_named, resolve_dataset

        check_jobs(jobs)
        loaded = load(study, pairs, data)
        if not is_named(loaded.data):
            resolve_dataset(loaded.data)  # a name or path that is nowhere is refused, as `run` refuses it
        runs = loaded.runs()
        if as_json:
            print(json.dumps([spec.to_dict() for spec in runs], indent=2))
            return
        console = Console()
        console.print(f"[b]{loaded.name}[/b]: {describe_plan(loaded)}")
        changes = changes_of(loaded)
        table = Table("arm", "ablations (modules changed)", "arguments", "parameters", box=None, pad_edge=False)
        for name, arm in loaded.arms.items():
            row = changes.get(name)
            table.add_row(name, _ablation_words(arm.ablations, row), in_words(arm.arguments), _size_words(row))
        console.print(table)
        console.print(f"model {loaded.model}, data {loaded.data}, {in_words(loaded.arguments)}")
        console.print(_estimate(loaded, count_jobs(jobs, "cpu")))


def _ablation_words(names: Sequence[str], row: SetRow | None) -> str:
    """The ablations of an arm, with the number of modules that each changes."""
    counts = dict(row.changed) if row is not None else {}
    words = [f"{name} ({counts.pop(name)})" if name in counts else name for name in names]
    return ", ".join(words + [f"{part} ({count})" for part, count in counts.items()]) or "–"


def _size_words(row: SetRow | None) -> str:
    """The parameters of an arm's model, and by how much ablations moved them."""
    if row is None:
        return "–"
    moved = row.parameters_after - row.parameters_before
    return f"{row.parameters_after:,}{f' ({moved:+,})' if moved else ''}"


def _estimate(study: Study, jobs: int) -> str:
    """About how long a study takes here on the CPU, from a few steps that are measured now."""
    from yolo_gradstudy.arguments import seconds_per_step
    from yolo_gradstudy.datasets import count_images, is_named, resolve_dataset

    try:
        images = count_images(resolve_dataset(study.data))
    except ValueError as error:
        if not is_named(study.data):
            raise
        return f"no estimate of the time: {error}"  # its images are not here yet
    if to_download(study.model):
        return f"no estimate of the time: {study.model} is not on this machine yet."
    try:
        each = seconds_per_step(study.model, study.arguments)
    except Exception as error:  # whatever a model's own loss asks for: RT-DETR's can't be timed so
        return f"no estimate of the time: {study.model} can't be timed ({type(error).__name__})."
    batches = sum(
        math.ceil(_used(images, spec.arguments.get("fraction", 1.0)) / int(spec.arguments.get("batch", 16)))
        * int(spec.arguments.get("epochs", 100))
        for spec in study.runs()
    )
    minutes = batches * each / jobs / 60
    return (
        f"about {minutes:.0f} min of training on this CPU with {jobs} runs at once "
        f"({batches} batches, {each:.2f} s each on one thread, measured now), start-up and validation not counted"
    )


def _used(images: int, fraction: Any) -> int:
    """How many training images a run uses; Ultralytics takes a share, a count above 1, or a list for each split."""
    if isinstance(fraction, list):
        fraction = fraction[0] if fraction else 1.0
    wanted = int(fraction) if fraction > 1 else max(1, round(images * fraction))
    return min(images, wanted)


def run(
    study: StudySource,
    pairs: Pairs = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="The study's folder; runs/<study> by default.")] = None,
    jobs: Jobs = 0,
    device: Device = "",
    executor: ExecutorName = "local",
    address: Address = None,
    workers: Workers = -1,
    keep_weights: KeepWeights = False,
    retry_failed: RetryFailed = False,
    per_device: PerDevice = 1,
    timeout: Timeout = 0.0,
    memory_limit: MemoryLimit = 0.0,
    retries: Retries = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
    only: Annotated[list[str] | None, typer.Option(help="The id of a run to train, beside other processes.")] = None,
) -> None:
    """Train the runs of a study that are missing, then write its tables, figures and page."""
    with errors():
        import_ultralytics()
        from yolo_gradstudy.arguments import load_model
        from yolo_gradstudy.run_folder import StudyFolder
        from yolo_gradstudy.study import check_folder, missing_runs, run_only, run_study

        loaded = load(study, pairs, data)
        limits = limits_of(timeout, memory_limit, retries)
        placed = place(executor, address, device, jobs, workers, keep_weights, per_device, limits)
        folder = StudyFolder(out or Path("runs") / loaded.name)
        check_folder(loaded, folder)
        missing = missing_runs(loaded, folder, retry_failed)
        if only:
            trained = run_only(only, loaded, folder, placed)
            done = len(only) - len(trained)
            print(f"{len(trained)} trained, {done} done before; `gradstudy report {folder.path}` tells of all runs")
            return
        if missing:
            if to_download(loaded.model):  # once, before runs that would all download it
                load_model(loaded.model)
            changes_of(loaded)  # an ablation with nothing to change is refused before anything trains
        console, planned = Console(stderr=as_json), loaded.runs()
        if not quiet:
            console.print(f"{loaded.name}: {describe_plan(loaded)}; {len(missing)} to train, into {folder.path}")
        shown = Progress(console, folder.path, len(planned), len(missing), planned, quiet)
        with interruptible(console), shown as progress:
            page = run_study(loaded, folder, placed, progress.on_event, retry_failed)
    _answer(page, quiet, as_json)


def limit(
    study: Annotated[str | None, typer.Argument(help="As `gradstudy run` takes it; none with --model.")] = None,
    pairs: Pairs = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint of your training, or the model of one.")] = None,
    from_weights: Annotated[
        bool, typer.Option("--from-weights", help="Begin with the checkpoint's weights, not as its training began.")
    ] = False,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="The search's folder; runs/<study>-limit by default.")] = None,
    lowest: Annotated[float | None, typer.Option(help="Lowest rate; a 16th of the smallest lr0 by default.")] = None,
    highest: Annotated[float | None, typer.Option(help="Highest rate; 256 times the smallest lr0, at most 1.")] = None,
    factor: Annotated[float | None, typer.Option(help="From one rate to the next; 1.414 by default.")] = None,
    jobs: Jobs = 0,
    device: Device = "",
    executor: ExecutorName = "local",
    address: Address = None,
    workers: Workers = -1,
    keep_weights: KeepWeights = False,
    retry_failed: RetryFailed = False,
    per_device: PerDevice = 1,
    timeout: Timeout = 0.0,
    memory_limit: MemoryLimit = 0.0,
    retries: Retries = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find the largest learning rate at which each arm of a study stays alive, or a training of your own."""
    with errors():
        import_ultralytics()
        from yolo_gradstudy.limit import search_limits
        from yolo_gradstudy.plan import counted, most_runs
        from yolo_gradstudy.run_folder import StudyFolder

        given = {"lowest": lowest, "highest": highest, "factor": factor}
        searched = {key: value for key, value in given.items() if value is not None}
        words = list(pairs or [])
        if model is not None and study is not None:  # the first KEY=VALUE, or one source too many
            words.insert(0, study)
            study = None
        if model is not None:
            loaded = load_own(model, from_weights, words, data, searched)
        elif study is None or from_weights:
            raise ValueError(
                "`gradstudy limit` takes a STUDY, or --model and --data; --from-weights goes with --model."
            )
        else:
            loaded = load(study, words, data, searched)
        limits = limits_of(timeout, memory_limit, retries)
        placed = place(executor, address, device, jobs, workers, keep_weights, per_device, limits)
        folder = StudyFolder(out or Path("runs") / f"{loaded.name}-limit")
        console = Console(stderr=as_json)
        grid = loaded.grid()
        pairs_searched = len(loaded.arms) * len(loaded.seeds)
        most = pairs_searched * min(most_runs(grid), len(grid.indices)) + len(loaded.seeds)
        if not quiet:
            console.print(
                f"{loaded.name}: {counted(len(loaded.arms), 'arm')} × {counted(len(loaded.seeds), 'seed')}, "
                f"{len(grid.indices)} rates from {grid.rate(grid.indices[0]):g} to {grid.rate(grid.indices[-1]):g}; "
                f"at most {most} of {pairs_searched * len(grid.indices)} runs, into {folder.path}"
            )
        with interruptible(console), Progress(console, folder.path, most, most, quiet=quiet) as progress:
            page = search_limits(loaded, folder, placed, progress.on_event, progress.on_round, retry_failed)
    _answer(page, quiet, as_json, loaded)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder.")],
    watch: Annotated[bool, typer.Option(help="Renew it while runs train, until the study is done.")] = False,
    every: Annotated[float, typer.Option(help="With --watch: seconds between two looks.")] = 30.0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Tables, figures and the page, from what is recorded; nothing is trained."""
    with errors(), interruptible(Console(stderr=True)):
        if not (math.isfinite(every) and every > 0):
            raise ValueError(f"--every {every:g} is not above 0; the nearest valid is 30.")
        refresh_s = max(round(every), 1) if watch else None
        page = _write(folder, refresh_s)
        while watch and not _is_done(folder):
            time.sleep(every)
            page = _write(folder, refresh_s)
    _answer(page, quiet, as_json)


def _write(folder: Path, refresh_s: int | None) -> Path:
    from yolo_gradstudy.report import write_report

    return write_report(folder, processes=count_jobs(0, "cpu"), refresh_s=refresh_s)


def _is_done(path: Path) -> bool:
    """Whether all planned runs have ended and nobody plans more."""
    from yolo_gradstudy.run_folder import StudyFolder
    from yolo_gradstudy.study import without_result

    folder = StudyFolder(path)
    return not without_result(folder.read_plan(), folder) and not folder.is_in_use()


def _answer(page: Path, quiet: bool, as_json: bool, searched: Study | None = None) -> None:
    """What a study came to: its outcomes and where the report lies, as text or JSON.

    Args:
        page: The report's page.
        quiet: Whether to say nothing.
        as_json: Whether as JSON.
        searched: The study whose largest stable rates were looked for.
    """
    from yolo_gradstudy.run_folder import read_results
    from yolo_gradstudy.tables import describe_limits, limits_table, outcome_text_table

    results = read_results(page.parent.parent)
    failed = results.loc[results["status"] == "failed", "run_id"].tolist()
    limits = limits_table(results, searched.grid().factor) if searched is not None else None
    if as_json:
        answer: dict[str, Any] = {
            "report": str(page),
            "outcomes": {str(name): int(count) for name, count in results["outcome"].value_counts().items()},
            "failed": failed,
        }
        if limits is not None:
            answer["limits"] = json.loads(limits.to_json(orient="records"))
        print(json.dumps(answer, indent=2))
    if quiet or as_json:
        return
    print_table(outcome_text_table(results))
    print(f"report: {page}")
    if limits is not None and searched is not None:
        print("\n".join(describe_limits(limits, searched.anchor)))
    if failed:
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        count, them = ("1 run", "it") if len(failed) == 1 else (f"{len(failed)} runs", "them")
        print(f"{count} failed: {', '.join(failed[:5])}{more}; `--retry-failed` trains {them} again")
