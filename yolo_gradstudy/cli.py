# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands. Each reads its words, calls the room that does the work, and prints what came out."""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from yolo_gradstudy.plan import (
    COMMAND_LINE,
    StudyError,
    Vocabulary,
    check_lr0,
    describe_plan,
    load_study,
    parse_overrides,
)
from yolo_gradstudy.records import Diagnosis, Finding, Outcome, RunSpec

if TYPE_CHECKING:
    import pandas as pd
    from ultralytics import RTDETR, YOLO

    from yolo_gradstudy.ablations import SetRow
    from yolo_gradstudy.diagnoses import SideBySide
    from yolo_gradstudy.executors import Executor, Limits, RunEvent
    from yolo_gradstudy.plan import Study
    from yolo_gradstudy.run_folder import RecordedRun

app = typer.Typer(
    name="gradstudy",
    help="Records gradients of YOLO training, ablates what keeps it stable, diagnoses runs that went wrong.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="The data sets that a study can name.", no_args_is_help=True)
app.add_typer(data_app, name="data")

HEALTHY, UNHEALTHY, CANNOT_TELL = 0, 1, 2
"""Exit status of ``gradstudy diagnose``."""

Pairs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Ultralytics training arguments.", show_default=False),
]
Device = Annotated[
    str,
    typer.Option(help="cpu, mps, or GPU numbers: 0,1; cpu or cuda with Ray. Every GPU, or cpu, by default."),
]

StudySource = Annotated[str, typer.Argument(help="A packaged study's name or the path of a study YAML.")]
Data = Annotated[str | None, typer.Option(help="A data set's name or the path of a data YAML.")]
Jobs = Annotated[int, typer.Option(help="Runs at once; 0: one a core, or one a GPU.")]
ExecutorName = Annotated[str, typer.Option(help="Where runs are placed: local, or ray, on a cluster's machines.")]
Address = Annotated[str | None, typer.Option(help="The Ray cluster: host:port, ray://host:port, or auto (default).")]
Workers = Annotated[int, typer.Option(help="Data loader workers a run; -1: 0 on a CPU, up to 8 on a GPU.")]
KeepWeights = Annotated[bool, typer.Option(help="Keep every run's checkpoints.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Train runs that failed again.")]
PerDevice = Annotated[int, typer.Option(help="Runs at once on each GPU.")]
Timeout = Annotated[float, typer.Option(help="Minutes after which a run is ended and noted as failed; 0: never.")]
MemoryLimit = Annotated[float, typer.Option(help="GiB of main memory that a run may use; 0: any.")]
Retries = Annotated[int, typer.Option(help="Further attempts for a run that failed as divergence never does.")]


@contextmanager
def _errors() -> Iterator[None]:
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


def _import_ultralytics() -> None:
    """Import Ultralytics for a command whose standard output is an answer: its messages go to standard error."""
    with redirect_stdout(sys.stderr):  # its logger keeps the stream that it finds when it is imported
        import ultralytics.utils  # noqa: F401


def _vocabulary() -> Vocabulary:
    from yolo_gradstudy.ablations import ABLATIONS, check_ablations
    from yolo_gradstudy.arguments import check_arguments, known_arguments

    return Vocabulary(tuple(ABLATIONS), known_arguments(), check_arguments, check_ablations)


def _load(
    source: str, pairs: Sequence[str] | None, data: str | None, limit: Mapping[str, float] | None = None
) -> Study:
    overrides = parse_overrides(pairs or [])
    if limit:
        overrides["limit"] = dict(limit)
    if data is not None:
        overrides["data"] = data
    _import_ultralytics()
    from yolo_gradstudy.arguments import check_model

    study = load_study(source, _vocabulary(), overrides)
    _check_rates(study)
    check_model(study.model, task="detect")
    return study


def _check_rates(study: Study) -> None:
    """Refuse learning rates that Ultralytics refuses."""
    from yolo_gradstudy.arguments import check_arguments

    if problems := [p for rate in study.lr0 for p in check_arguments({"lr0": rate})]:
        raise StudyError(problems)


def _load_own(
    model: str, from_weights: bool, pairs: Sequence[str], data: str | None, limit: Mapping[str, float]
) -> Study:
    """The study that repeats the beginning of a training of one's own.

    Args:
        model: A checkpoint of it, or the model that it would begin with.
        from_weights: Whether it is to begin with the checkpoint's weights.
        pairs: Arguments that differ.
        data: Its data set; the checkpoint's where None.
        limit: Where to search.
    """
    overrides = parse_overrides(pairs)
    _import_ultralytics()
    from yolo_gradstudy.arguments import check_model, known_arguments, training_of
    from yolo_gradstudy.datasets import count_classes, count_images, resolve_dataset
    from yolo_gradstudy.plan import OwnTraining, study_of_beginning

    opened = check_model(model, task="detect")
    told = training_of(opened)
    if told is None and from_weights:
        raise ValueError(f"--from-weights asks for a checkpoint of a training of yours, and {model!r} is none.")
    if told is not None:
        told |= _check_plain(model, opened)
    start = _start(model, told) if told is not None and not from_weights else model
    source = data or (told or {}).get("data")
    if not source:
        raise ValueError(f"{model!r} tells of no data set; give it with --data.")
    resolved = resolve_dataset(str(source))
    training = OwnTraining(model, start, told or known_arguments())
    study = study_of_beginning(
        training,
        str(source),
        count_images(resolved),
        count_classes(resolved),
        _vocabulary(),
        {**overrides, "limit": dict(limit)} if limit else overrides,
    )
    _check_rates(study)
    return study


def _start(checkpoint: str, told: Mapping[str, Any]) -> str:
    """The model that a training began with; the checkpoint's weights, with a word on it, where that can't be had."""
    from yolo_gradstudy.arguments import check_model

    start = str(told["model"])
    try:
        if Path(start).resolve() == Path(checkpoint).resolve():
            raise ValueError(f"{checkpoint} was resumed, and does not tell what it began with.")
        check_model(start, task="detect")
    except ValueError as error:
        print(f"its weights are what runs begin with: {error}", file=sys.stderr)
        return checkpoint
    return start


def _check_plain(checkpoint: str, opened: YOLO | RTDETR) -> dict[str, str]:
    """Refuse the checkpoint of an ablated training, whose edge a search without its ablations would not find.

    Returns:
        What this package's trainer was told besides Ultralytics' arguments.
    """
    from yolo_gradstudy.trainer import ULTRALYTICS_CLIP_NORM, settings_of

    told = settings_of(opened.model)
    names = [*told.get("ablations", ()), *([f"clip={told['clip']}"] if told.get("clip") else [])]
    clip_norm = told.get("clip_norm", ULTRALYTICS_CLIP_NORM)
    if not names and clip_norm != ULTRALYTICS_CLIP_NORM:
        names = [f"clip_norm={clip_norm}"]
    if names:
        raise ValueError(
            f"{checkpoint} was trained with {', '.join(names)}, which a search from a checkpoint does not repeat; "
            "`gradstudy limit STUDY` does, of a study with such an arm."
        )
    return {"precision": told["precision"]} if told.get("precision") else {}


@app.command()
def train(
    pairs: Pairs = None,
    ablate: Annotated[list[str] | None, typer.Option(help="An ablation; may be given several times.")] = None,
    clip: Annotated[str, typer.Option(help="Global gradient norm to clip at, or off.")] = "10",
    every: Annotated[int, typer.Option(help="Record each so many optimizer steps.")] = 1,
) -> None:
    """Train one model with the recording trainer, as `yolo train` does, and judge the run."""
    with _errors():
        from yolo_gradstudy.arguments import OWN_ARGUMENTS, check_device, check_model, check_words, load_model
        from yolo_gradstudy.datasets import resolve_dataset
        from yolo_gradstudy.diagnoses import diagnose
        from yolo_gradstudy.records import RecordConfig
        from yolo_gradstudy.run_folder import load_run
        from yolo_gradstudy.trainer import gradstudy_trainer

        arguments = parse_overrides(pairs or [])
        model = str(arguments.pop("model", "yolo26n.yaml"))
        if "lr0" in arguments:
            _check_lr0(arguments["lr0"])
        check_words(arguments)
        clip_norm = None if clip.lower() in {"off", "none"} else _positive(clip, "--clip", "10 or off")
        check_device(_device_word(arguments.get("device")))
        yolo = check_model(model)
        classifies = yolo is not None and yolo.task == "classify"  # a folder of folders, without a data YAML
        if "data" in arguments and not classifies:
            arguments["data"] = str(resolve_dataset(str(arguments["data"])))
        own = {key: arguments.pop(key) for key in OWN_ARGUMENTS if key in arguments}
        yolo = yolo or load_model(model)
        trainer = gradstudy_trainer(yolo.task_map[yolo.task]["trainer"]).using(
            record=RecordConfig(every=every), ablations=ablate or (), clip_norm=clip_norm, **own
        )
        try:
            yolo.train(trainer=trainer, **arguments)
        except RuntimeError as error:  # Ultralytics' recovery gave up, memory ran out: the run is still judged
            print(f"training ended: {error}", file=sys.stderr)
        run = load_run(yolo.trainer.save_dir)
    _print_diagnosis(str(run.path), diagnose(run))


def _device_word(device: object) -> str:
    """A training argument ``device`` as text: YAML makes a number of ``device=0``."""
    if isinstance(device, list | tuple):
        return ",".join(map(str, device))
    return "" if device is None else str(device)


def _check_lr0(value: object) -> None:
    """Refuse a learning rate as a study does."""
    try:
        check_lr0(value)
    except ValueError as error:
        raise ValueError(f"{COMMAND_LINE}, lr0: {error}.") from None


def _positive(text: str, option: str, valid: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a number; the nearest valid is {valid}.") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{option} {text} is not a finite number above 0; the nearest valid is {valid}.")
    return number


@app.command()
def plan(
    study: StudySource,
    pairs: Pairs = None,
    data: Data = None,
    jobs: Annotated[int, typer.Option(help="Runs at once, for the estimate.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The runs as JSON.")] = False,
) -> None:
    """What would run, and about how long."""
    with _errors():
        from yolo_gradstudy.datasets import is_named, resolve_dataset

        _check_jobs(jobs)
        loaded = _load(study, pairs, data)
        if not is_named(loaded.data):
            resolve_dataset(loaded.data)  # a name or path that is nowhere is refused, as `run` refuses it
        runs = loaded.runs()
        if as_json:
            print(json.dumps([spec.to_dict() for spec in runs], indent=2))
            return
        console = Console()
        console.print(f"[b]{loaded.name}[/b]: {describe_plan(loaded)}")
        changes = _changes(loaded)
        table = Table("arm", "ablations (modules changed)", "arguments", "parameters", box=None, pad_edge=False)
        for name, arm in loaded.arms.items():
            row = changes.get(name)
            table.add_row(name, _ablation_words(arm.ablations, row), _words(arm.arguments), _size_words(row))
        console.print(table)
        console.print(f"model {loaded.model}, data {loaded.data}, {_words(loaded.arguments)}")
        console.print(_estimate(loaded, _jobs(jobs, "cpu")))


def _changes(study: Study) -> dict[str, SetRow]:
    """What each arm's ablations change in the study's model; nothing for weights that are still to be downloaded.

    Raises:
        ValueError: An arm's ablations can't be applied to the model.
    """
    from yolo_gradstudy.ablations import describe_sets

    if _to_download(study.model):
        return {}
    return describe_sets(study.model, {name: arm.ablations for name, arm in study.arms.items()})


def _to_download(model: str) -> bool:
    """Whether a model that passed its check is weights that are not on this machine yet."""
    return not model.endswith((".yaml", ".yml")) and not Path(model).is_file()


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


def _words(arguments: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items()) or "–"


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
    if _to_download(study.model):
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


@app.command()
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
    only: Annotated[list[str] | None, typer.Option(help="The id of a run to train, beside other processes.")] = None,
) -> None:
    """Train the runs of a study that are missing, then write its tables, figures and page."""
    with _errors():
        _import_ultralytics()
        from yolo_gradstudy.arguments import load_model
        from yolo_gradstudy.run_folder import StudyFolder
        from yolo_gradstudy.study import check_folder, missing_runs, run_only, run_study

        loaded = _load(study, pairs, data)
        limits = _limits(timeout, memory_limit, retries)
        placed = _place(executor, address, device, jobs, workers, keep_weights, per_device, limits)
        folder = StudyFolder(out or Path("runs") / loaded.name)
        check_folder(loaded, folder)
        missing = missing_runs(loaded, folder, retry_failed)
        if only:
            trained = run_only(only, loaded, folder, placed)
            done = len(only) - len(trained)
            print(f"{len(trained)} trained, {done} done before; `gradstudy report {folder.path}` tells of all runs")
            return
        if missing:
            if _to_download(loaded.model):  # once, before runs that would all download it
                load_model(loaded.model)
            _changes(loaded)  # an ablation with nothing to change is refused before anything trains
        console = Console()
        console.print(f"{loaded.name}: {describe_plan(loaded)}; {len(missing)} to train, into {folder.path}")
        planned = loaded.runs()
        with _interruptible(console), _Progress(console, folder.path, len(planned), len(missing), planned) as progress:
            page = run_study(loaded, folder, placed, progress.on_event, retry_failed)
    _print_report(page)
    _print_failed(page)


@contextmanager
def _interruptible(console: Console) -> Iterator[None]:
    """Ctrl-C ends what trains with a word on how it goes on, and with a shell's exit status for it."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted: finished runs are kept, the same command goes on from here")
        raise typer.Exit(130) from None


def _limits(timeout: float, memory_limit: float, retries: int) -> Limits:
    from yolo_gradstudy.executors import Limits

    for option, value in (("--timeout", timeout), ("--memory-limit", memory_limit), ("--retries", retries)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{option} {value:g} is below 0; the nearest valid is 0.")
    return Limits(timeout * 60 or None, int(memory_limit * 2**30) or None, retries)


def _place(
    name: str,
    address: str | None,
    device: str,
    jobs: int,
    workers: int,
    keep_weights: bool,
    per_device: int,
    limits: Limits,
) -> Executor:
    from yolo_gradstudy.arguments import check_device, visible_gpus
    from yolo_gradstudy.executors import EXECUTORS, LocalExecutor, RayExecutor

    if name not in EXECUTORS:
        near = difflib.get_close_matches(name, EXECUTORS, n=1, cutoff=0.0)[0]
        raise ValueError(f"--executor {name!r} is not an executor; the nearest valid is {near!r}.")
    _check_jobs(jobs)
    if per_device < 1:
        raise ValueError(f"--per-device {per_device} is below 1; the nearest valid is 1.")
    if name == "ray":
        wanted = None if workers < 0 else workers
        return RayExecutor(address, device, jobs, per_device, None, wanted, keep_weights, limits)
    if address is not None:
        raise ValueError(f"--address {address} is of a Ray cluster, and --executor is {name}; give --executor ray too.")
    check_device(device)
    gpus = device.replace("cuda:", "").split(",") if device not in {"", "cpu", "mps"} else []
    if not device:
        gpus = [str(i) for i in range(visible_gpus())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if gpus:
        slots = gpus * per_device  # every GPU has its first run before one has its second
        places = [slots[i % len(slots)] for i in range(jobs or len(slots))]
    else:
        places = [device or "cpu"] * _jobs(jobs, device or "cpu")
    threads = max(1, cores // len(places))
    if workers < 0:
        workers = min(8, threads) if gpus else 0
    return LocalExecutor(places, threads, workers, keep_weights, limits)


def _check_jobs(jobs: int) -> None:
    if jobs < 0:
        raise ValueError(f"--jobs {jobs} is below 0; the nearest valid is 1.")


def _jobs(jobs: int, device: str) -> int:
    if jobs or device == "mps":
        return max(1, jobs)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Progress:
    """What runs, what is done and how it went, while a study trains."""

    def __init__(
        self, console: Console, folder: Path, total: int, missing: int, plan: Sequence[RunSpec] | None = None
    ) -> None:
        self._console = console
        self._folder = folder
        self._total = total
        self._plan = plan
        self._missing = missing
        self._ended = 0
        self._running: dict[str, tuple[float, str]] = {}
        self._outcomes: Counter[str] = Counter()
        self._durations: list[float] = []
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> _Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def on_round(self, number: int, runs: int) -> None:
        """Tell that a search's next round begins."""
        self._console.print(f"round {number}: {runs} runs to train")

    def on_event(self, event: RunEvent) -> None:
        """Take note of a run that started or ended, and tell."""
        from yolo_gradstudy.diagnoses import StudyJudge
        from yolo_gradstudy.readings import control_of
        from yolo_gradstudy.run_folder import StudyFolder

        run_id = event.spec.run_id
        if event.kind == "started":
            self._running[run_id] = (time.monotonic(), event.place)
            return
        self._running.pop(run_id, None)
        if event.kind == "retried":
            error = event.result.error if event.result is not None else None
            self._console.print(Text(f"{run_id} failed and is tried again: {error}", overflow="fold"))
            return
        self._ended += 1
        run = StudyFolder(self._folder).run(run_id).load()
        try:
            verdict = StudyJudge()(run, event.result, control_of(run, self._plan) if run is not None else None)
        except ValueError as error:  # a damaged file must not end the other runs
            verdict = Diagnosis(Outcome.UNKNOWN, (Finding("is_readable", "not checked", str(error)),))
        self._outcomes[str(verdict.outcome)] += 1
        duration = event.result.duration_s if event.result is not None else None
        if duration is not None:
            self._durations.append(duration)
        done = self._total - self._missing + self._ended
        took = f" in {duration:.0f} s" if duration is not None else ""
        self._console.print(
            Text(f"[{done}/{self._total}] {run_id}: {verdict.outcome}{took}: {verdict.evidence}", overflow="fold")
        )

    def _render(self) -> Group:
        now = time.monotonic()
        lines = [
            Text(f"  {run_id} on {place}, {now - since:.0f} s") for run_id, (since, place) in self._running.items()
        ]
        left = self._missing - self._ended
        eta = ""
        if self._durations and self._running:
            seconds = sum(self._durations) / len(self._durations) * left / len(self._running)
            eta = f", about {seconds / 60:.0f} min left"
        counts = ", ".join(f"{count} {name}" for name, count in self._outcomes.most_common()) or "none yet"
        return Group(*lines, Text(f"{self._ended} of {self._missing} done{eta}; outcomes so far: {counts}"))


@app.command()
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
) -> None:
    """Find the largest learning rate at which each arm of a study stays alive, or a training of your own."""
    with _errors():
        _import_ultralytics()
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
            loaded = _load_own(model, from_weights, words, data, searched)
        elif study is None or from_weights:
            raise ValueError(
                "`gradstudy limit` takes a STUDY, or --model and --data; --from-weights goes with --model."
            )
        else:
            loaded = _load(study, words, data, searched)
        limits = _limits(timeout, memory_limit, retries)
        placed = _place(executor, address, device, jobs, workers, keep_weights, per_device, limits)
        folder = StudyFolder(out or Path("runs") / f"{loaded.name}-limit")
        console = Console()
        grid = loaded.grid()
        pairs_searched = len(loaded.arms) * len(loaded.seeds)
        most = pairs_searched * min(most_runs(grid), len(grid.indices)) + len(loaded.seeds)
        console.print(
            f"{loaded.name}: {counted(len(loaded.arms), 'arm')} × {counted(len(loaded.seeds), 'seed')}, "
            f"{len(grid.indices)} rates from "
            f"{grid.rate(grid.indices[0]):g} to {grid.rate(grid.indices[-1]):g}; at most {most} of "
            f"{pairs_searched * len(grid.indices)} runs, into {folder.path}"
        )
        with _interruptible(console), _Progress(console, folder.path, most, most) as progress:
            page = search_limits(loaded, folder, placed, progress.on_event, progress.on_round, retry_failed)
    _print_report(page)
    _print_limits(page, loaded)
    _print_failed(page)


def _print_limits(page: Path, study: Study) -> None:
    """Tell of each arm and seed how far the edge is from the study's smallest rate."""
    from yolo_gradstudy.run_folder import read_results
    from yolo_gradstudy.tables import describe_limits, limits_table

    for line in describe_limits(limits_table(read_results(page.parent.parent), study.grid().factor), study.anchor):
        print(line)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder.")],
) -> None:
    """Tables, figures and the page, from what is recorded; nothing is trained."""
    with _errors():
        from yolo_gradstudy.report import write_report

        page = write_report(folder, processes=_jobs(0, "cpu"))
    _print_report(page)


def _print_report(page: Path) -> None:
    from yolo_gradstudy.run_folder import read_results
    from yolo_gradstudy.tables import outcome_text_table

    _print_table(outcome_text_table(read_results(page.parent.parent)))
    print(f"report: {page}")


def _print_failed(page: Path) -> None:
    """Name the runs that failed, and the way to try them again."""
    from yolo_gradstudy.run_folder import read_results

    results = read_results(page.parent.parent)
    failed = results.loc[results["status"] == "failed", "run_id"].tolist()
    if failed:
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        count, them = ("1 run", "it") if len(failed) == 1 else (f"{len(failed)} runs", "them")
        print(f"{count} failed: {', '.join(failed[:5])}{more}; `--retry-failed` trains {them} again")


def _print_table(frame: pd.DataFrame) -> None:
    table = Table(*map(str, frame.columns), box=None, pad_edge=False)
    for row in frame.itertuples(index=False):
        table.add_row(*map(str, row))
    Console().print(table)


@app.command()
def diagnose(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder or an Ultralytics save_dir.")],
    other: Annotated[Path | None, typer.Argument(metavar="[OTHER]", help="A second run, to put beside it.")] = None,
    control: Annotated[Path | None, typer.Option(help="A healthy run to compare with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The diagnosis as JSON.")] = False,
    replay: Annotated[bool, typer.Option(help="Replay the steps that incidents saved, first.")] = False,
) -> None:
    """Judge a run: exit status 0 for a healthy one, 1 for an unhealthy one, 2 where it can't be told."""
    with _errors():
        from yolo_gradstudy.diagnoses import compare_runs
        from yolo_gradstudy.diagnoses import diagnose as judge
        from yolo_gradstudy.readings import control_of
        from yolo_gradstudy.run_folder import load_run

        loaded = load_run(folder)
        if replay:
            from yolo_gradstudy.trainer import replay_incidents

            replay_incidents(folder)
        paired = load_run(control) if control is not None else control_of(loaded)
        verdict = judge(loaded, paired)
        beside, second = None, None
        if other is not None:
            second = load_run(other)
            beside = compare_runs(loaded, second)
            outcome = judge(second, control_of(second)).outcome
        asked = other is not None or verdict.outcome.unhealthy
        nearest = _nearest_healthy(loaded) if asked else None
        damaged = [*loaded.damaged, *(second.damaged if second is not None else ())]
    if as_json:
        words: dict[str, Any] = {
            "run": str(folder),
            **verdict.to_dict(),
            "damaged": damaged,
            "nearest_healthy": nearest,
        }
        words["side_by_side"] = None
        if beside is not None:
            words["side_by_side"] = {"other": str(other), "outcome": str(outcome), **beside.to_dict()}
        print(json.dumps(words, indent=2))
    else:
        _print_diagnosis(str(folder), verdict)
        for incident in loaded.incidents:
            _print_incident(incident)
        if beside is not None:
            _print_side_by_side(beside, f"{other}: {outcome}")
        if nearest is not None:
            print(f"  nearest healthy run: {nearest['run']}, with {_differences(nearest['differences'])}")
        for sentence in damaged:
            print(f"damaged: {sentence}")
    raise typer.Exit(HEALTHY if verdict.outcome.healthy else UNHEALTHY if verdict.outcome.unhealthy else CANNOT_TELL)


def _print_incident(incident: Mapping[str, Any]) -> None:
    """A line on where an incident began."""
    cause = incident.get("cause", {})
    where = cause.get("parameter") or cause.get("module") or ""
    told = f"{cause['what']} {where}".strip() if cause.get("what", "unknown") != "unknown" else "where is not known"
    found = f"{cause.get('found_by')}, {cause.get('certainty')}: {cause.get('evidence')}"
    print(f"  incident {incident['incident']}, {incident['kind']} at step {incident['step']}: {told} ({found})")


def _nearest_healthy(run: RecordedRun) -> dict[str, Any] | None:
    """The healthy run of the same study that differs least, and in what; None where there is none."""
    from yolo_gradstudy.diagnoses import StudyJudge, differences_of_specs, nearest_first
    from yolo_gradstudy.readings import control_of
    from yolo_gradstudy.run_folder import StudyFolder

    study = StudyFolder(run.path.resolve().parent.parent)
    if run.spec is None or not study.plan_path.is_file():
        return None
    plan, judge = study.read_plan(), StudyJudge()
    for spec in nearest_first(run.spec, plan):
        candidate = study.run(spec.run_id).load()
        try:
            if candidate is None or not judge(candidate, candidate.result, control_of(candidate, plan)).outcome.healthy:
                continue
        except ValueError:  # a damaged file of another run
            continue
        found = differences_of_specs(run.spec, spec)
        return {"run": spec.run_id, "differences": {name: list(values) for name, values in found.items()}}
    return None


def _differences(found: Mapping[str, Sequence[Any]]) -> str:
    def word(value: Any) -> str:
        if isinstance(value, list | tuple):
            return "+".join(map(str, value)) or "none"
        return "not set" if value is None else str(value)

    return ", ".join(f"{name} {word(there)} instead of {word(here)}" for name, (here, there) in found.items()) or "–"


_MARKS: dict[str, Callable[[Finding], str]] = {
    "matched": lambda f: f"[b]{f.rule}[/b]",
    "not matched": lambda f: f"no {f.rule}",
    "not checked": lambda f: f"[i]{f.rule} not checked[/i]",
}


def _print_diagnosis(name: str, verdict: Diagnosis) -> None:
    where = f", from step {verdict.onset_step}" if verdict.onset_step is not None else ""
    layer = f" in {verdict.onset_layer}" if verdict.onset_layer else ""
    so_far = f" (so far: {verdict.so_far})" if verdict.so_far is not None else ""
    _tell(f"{escape(name)}: [b]{verdict.outcome}[/b]{so_far}{where}{layer}")
    if len(verdict.onset_layers) > 1:
        more = f" and {len(verdict.onset_layers) - 5} more" if len(verdict.onset_layers) > 5 else ""
        _tell(f"  layers left their bands in this order: {', '.join(verdict.onset_layers[:5])}{more}")
    quiet: dict[str, list[str]] = {}
    for finding in verdict.findings:
        if finding.explains and finding.state != "matched":
            quiet.setdefault(finding.state, []).append(finding.rule)
        else:
            _tell(f"  {_MARKS[finding.state](finding)}: {escape(finding.evidence)}")
    for state, rules in quiet.items():
        _tell(f"  {state}: {', '.join(rules)}")
    for advice in verdict.advice:
        arguments = f" ({_words(advice.arguments)})" if advice.arguments else ""
        _tell(f"  advice: {escape(advice.text)}{escape(arguments)}")


def _print_side_by_side(beside: SideBySide, name: str) -> None:
    _tell(f"beside {escape(name)}; {beside.common_steps} steps are in both")
    for words, parting in (("part", beside.parted), ("are a factor of 2 apart", beside.far_apart)):
        if parting is None:
            _tell(f"  they never {words}")
        else:
            here, there = parting.values
            _tell(f"  they {words} at step {parting.step}: {parting.quantity} {here:.6g} here, {there:.6g} there")
    if beside.layers_step is not None:
        more = f" and {len(beside.layers) - 5} more" if len(beside.layers) > 5 else ""
        _tell(f"  the layers part first at step {beside.layers_step}: {', '.join(beside.layers[:5])}{more}")
    _tell(f"  arguments: {escape(_differences(beside.arguments))}")
    if beside.ablations[0] != beside.ablations[1]:
        ours, theirs = (", ".join(names) or "none" for names in beside.ablations)
        _tell(f"  ablations: {escape(ours)} here, {escape(theirs)} there")


def _tell(sentence: str) -> None:
    """A line a sentence, also where the output is a file."""
    Console().print(sentence, highlight=False, soft_wrap=True)


@app.command()
def ablations(
    model: Annotated[str | None, typer.Option(help="A model, to count what each ablation changes in it.")] = None,
) -> None:
    """What can be ablated, and what each changes in a model."""
    with _errors():
        _import_ultralytics()
        from yolo_gradstudy.ablations import describe_ablations
        from yolo_gradstudy.arguments import check_model

        if model is not None:
            check_model(model)
        rows = describe_ablations(model)
    table = Table("ablation", "family", "what it does", "sets", box=None, pad_edge=False)
    if model is not None:
        for column in ("modules changed", "parameters before", "after", "note"):
            table.add_column(column, justify="left" if column == "note" else "right")
    for row in rows:
        counts = [row.changed, row.parameters_before, row.parameters_after] if model is not None else []
        cells = ["–" if count is None else f"{count:,}" for count in counts]
        table.add_row(row.name, row.family, row.summary, row.sets or "–", *cells, *([row.note] if model else []))
    Console().print(table)


@data_app.command("list")
def data_list() -> None:
    """The data sets by name."""
    with _errors():
        _import_ultralytics()
        from yolo_gradstudy.datasets import list_datasets

        rows = list_datasets()
    table = Table("name", "train", "val", "here", "what it is", "where", box=None, pad_edge=False)
    for row in rows:
        here = "yes" if row["present"] else "no"
        table.add_row(row["name"], f"{row['train']:,}", f"{row['val']:,}", here, row["summary"], row["path"])
    Console().print(table)


@data_app.command("build")
def data_build(name: Annotated[str, typer.Argument(help="A data set's name.")]) -> None:
    """Draw, download or build a data set."""
    with _errors():
        _import_ultralytics()
        from yolo_gradstudy.datasets import build_dataset

        path = build_dataset(name)
    print(path)


def main() -> None:
    """The command `gradstudy`."""
    sys.path.append(str(Path.cwd()))  # an ablation of one's own may lie in the folder that one works in
    app()


if __name__ == "__main__":
    main()
