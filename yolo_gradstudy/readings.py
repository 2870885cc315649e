# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study's runs, read and judged, and its tables → CSV files.

Of thousands of runs all that was recorded does not fit into memory. So they are read group by group, a group being the
runs of an arm at a learning rate: each is judged, the group's rows of the tables are made, and its numbers are
forgotten. What a run takes is the same in a study of ten runs and of thousands.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from yolo_gradstudy.diagnoses import StudyJudge
from yolo_gradstudy.plan import cross
from yolo_gradstudy.records import Diagnosis, Finding, Outcome, Run, RunReading, RunResult, RunSpec
from yolo_gradstudy.run_folder import RecordedRun, StudyFolder
from yolo_gradstudy.tables import (
    CONTROL,
    MOST_SEEDS,
    Depths,
    accuracy_table,
    arm_order,
    comparisons_table,
    depths_of,
    effects_table,
    gains_table,
    gradient_depth_table,
    incidence_table,
    layer_table,
    limit_ratios_table,
    limits_table,
    lr50_table,
    medians_table,
    outcome_text_table,
    outcomes_table,
    over_rates_table,
    results_table,
    saved_table,
    sensitivity_curves_table,
    sensitivity_table,
    significant,
    survival_table,
    target_scores_per_box,
    trajectories_table,
)
from yolo_gradstudy.tables.trajectories import bins as line_bins

Judge = Callable[[Run | None, RunResult | None, Run | None], Diagnosis]
"""Run, its result and its control → verdict; :class:`yolo_gradstudy.diagnoses.StudyJudge` is one."""

MOST_HEATMAPS = 60
"""Most runs whose layers are tabulated and drawn: a heatmap takes half a second, and its page 100 kB."""

MOST_COURSES = 100
"""Most runs of which layers and lines are kept for the page, where one may be looked at closely."""

LAYER_POINTS = 100
"""Most bins of consecutive steps of a run's layers."""

_LINE_POINTS = 240
"""Most points of such a line."""

_MOST_PROCESSES = 4
"""Each takes some 350 MB, most of it libraries."""

_POOL_FROM = 200
"""Runs below which processes take longer to start than one of them takes for all."""

_CHUNKS = 4
"""Parts of the work a process, so that none waits long for another. Each reads its controls anew."""


def chosen_rates(rates: Iterable[float]) -> list[float]:
    """The smallest, the middle and the largest of learning rates: a figure of each would hide what it shows."""
    distinct = sorted(set(rates))
    return sorted({distinct[i] for i in (0, (len(distinct) - 1) // 2, -1)}) if distinct else []


def is_search(study: Mapping[str, Any], plan: Sequence[RunSpec]) -> bool:
    """Whether a folder is a search's: its plan has rates that its study, which may hold a range, has not."""
    own = study.get("lr0") or ()
    return "factor" in (study.get("limit") or {}) and any(spec.lr0 not in own for spec in plan)


@dataclass(frozen=True)
class StudyReading:
    """A study as it lies on disk now, every run judged.

    Attributes:
        folder: Where it lies.
        study: ``study.yaml``.
        readings: Its runs in plan order.
        damaged: What could not be read, a sentence each.
    """

    folder: StudyFolder
    study: Mapping[str, Any]
    readings: tuple[RunReading, ...]
    damaged: tuple[str, ...]

    @property
    def is_search(self) -> bool:
        """Whether the folder is that of a search for the largest stable rates."""
        return is_search(self.study, [r.spec for r in self.readings])


@dataclass
class _Damage:
    """What could not be read, a sentence each by run id: results, and runs that could not be judged."""

    results: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)

    def add(self, other: _Damage) -> None:
        """Take what another found."""
        self.results |= other.results
        self.runs |= other.runs

    def told(self, plan: Sequence[RunSpec]) -> tuple[str, ...]:
        """All sentences: results first, then runs, in plan order."""
        return tuple(found[spec.run_id] for found in (self.results, self.runs) for spec in plan if spec.run_id in found)


class _Reader:
    """Reads and judges the runs of a study.

    Args:
        folder: The study's folder.
        judge: Gives the verdicts.
        controls: The run id of each seed's control.
    """

    def __init__(self, folder: StudyFolder, judge: Judge, controls: Mapping[int, str]) -> None:
        self._folder = folder
        self._judge = judge
        self._controls = controls
        self._control_ids = set(controls.values())
        self._loaded: dict[str, tuple[RecordedRun | None, ValueError | None]] = {}
        self.damage = _Damage()

    def read(self, group: Iterable[RunSpec]) -> Iterator[RunReading]:
        """Judge runs; of their numbers those of each step stay in memory, and vectors until the next run is read."""
        for spec in group:
            reading = self._read(spec)
            yield reading
            if isinstance(reading.run, RecordedRun):
                reading.run.release_layers()

    def _read(self, spec: RunSpec) -> RunReading:
        result = None
        try:
            result = self._folder.run(spec.run_id).read_result()
        except ValueError as error:
            self.damage.results[spec.run_id] = f"{str(error).rstrip('.')}; it was left out."
        run, unreadable = self._load(spec.run_id)
        control_id = self._controls.get(spec.seed)
        control = None if control_id in (None, spec.run_id) else self._load(str(control_id))[0]
        try:
            if unreadable is not None:
                raise unreadable
            diagnosis = self._judge(run, result, control)
        except ValueError as error:  # one run that can't be judged must not end the others
            diagnosis = Diagnosis(Outcome.UNKNOWN, (Finding("is_readable", "not checked", str(error)),))
            self.damage.runs[spec.run_id] = f"{spec.run_id} could not be judged: {error}"
            run = None
        if run is not None:
            run.name_torn()
        return RunReading(spec, run, result, diagnosis)

    def _load(self, run_id: str) -> tuple[RecordedRun | None, ValueError | None]:
        """A run, and why it can't be read; the same object for as long as it is anybody's control."""
        if run_id in self._loaded:
            return self._loaded[run_id]
        run = self._folder.run(run_id).load()
        found: tuple[RecordedRun | None, ValueError | None] = (run, None)
        try:
            _read_facts(run)
        except ValueError as error:  # telemetry of a newer version, a file that is no JSON
            found = (None, error)
        if run_id in self._control_ids:
            self._loaded[run_id] = found
        return found

    def release(self, group: Sequence[RunReading]) -> None:
        """Have runs forget their numbers, but for those that others are compared with."""
        for reading in group:
            if isinstance(reading.run, RecordedRun) and reading.spec.run_id not in self._loaded:
                reading.run.release()

    def close(self) -> None:
        """Have all forget them."""
        for run, _ in self._loaded.values():
            if run is not None:
                run.release()


def _read_facts(run: RecordedRun | None) -> None:
    """Read what is kept in memory of a run besides numbers, all that may be no JSON.

    Raises:
        ValueError: A file can't be read.
    """
    if run is not None:
        _ = run.meta, run.events, run.spec, run.incidents


def _controls(plan: Sequence[RunSpec], study: Mapping[str, Any]) -> dict[int, str]:
    """The run id of each seed's control, at the smallest of the study's own learning rates: a search has others too."""
    rates = study.get("lr0")
    own = set(rates) if isinstance(rates, list) else {spec.lr0 for spec in plan}
    chosen: dict[int, RunSpec] = {}
    for spec in plan:
        if spec.arm == CONTROL and spec.lr0 in own and (spec.seed not in chosen or spec.lr0 < chosen[spec.seed].lr0):
            chosen[spec.seed] = spec
    return {seed: spec.run_id for seed, spec in chosen.items()}


def control_of(run: RecordedRun, plan: Sequence[RunSpec] | None = None) -> RecordedRun | None:
    """The paired control of a run that lies in a study's folder; None for a run that has none.

    Args:
        run: The run.
        plan: The study's runs, for a caller that asks for many; read where None.
    """
    folder = StudyFolder(run.path.resolve().parent.parent)
    if run.spec is None or not folder.plan_path.is_file():
        return None
    control = _controls(plan or folder.read_plan(), folder.read_study() or {}).get(run.spec.seed)
    return None if control in (None, run.spec.run_id) else folder.run(str(control)).load()


def read_study(folder: StudyFolder, judge: Judge | None = None) -> StudyReading:
    """Read a study and judge each of its runs.

    A run's control is the run of the arm ``control`` with the same seed at the smallest learning rate; that
    run itself has none. Runs forget what was read of them, and read it again where it is asked for.

    Args:
        folder: The study's folder; it may be partly finished.
        judge: Gives the verdicts; where None, :class:`yolo_gradstudy.diagnoses.StudyJudge`.

    Raises:
        ValueError: The folder holds no study.
    """
    plan, study = folder.read_plan(), folder.read_study() or {}
    reader = _Reader(folder, judge or StudyJudge(), _controls(plan, study))
    readings = []
    for reading in reader.read(plan):
        reader.release([reading])
        readings.append(reading)
    reader.close()
    return StudyReading(folder, study, tuple(readings), reader.damage.told(plan))


@dataclass(frozen=True)
class RunCourse:
    """How one run went, for who looks at it closely.

    Attributes:
        layers: :func:`layer_table`; without rows where no layer was recorded.
        lines: ``step``, ``loss``, ``grad_norm`` and ``target_scores`` (a box, of the branch that inference uses), of at
            most 240 bins of consecutive steps: the first step of each, the largest loss and norm, and the least target
            scores. Loss and norm are infinite where they were NaN or infinite; missing is what was not recorded.
        last_step: The last step that was recorded.
        clip_norm: The norm at which it clips, if it does.
        incidents: ``step``, ``kind``, ``evidence`` and ``images`` of each.
    """

    layers: pd.DataFrame
    lines: pd.DataFrame
    last_step: int
    clip_norm: float | None
    incidents: tuple[Mapping[str, Any], ...]


def _may_draw_layers(run: Run) -> bool:
    """Whether layers may be drawn: some steps, or some layers, would look as if they were the run."""
    return not run.meta.get("partial_layers", False)


def _course(run: Run, layers: pd.DataFrame) -> RunCourse:
    if not _may_draw_layers(run):
        layers = layers.iloc[:0, :1]
    clip = run.meta.get("clip_norm")
    last = int(run.steps.index[-1])
    return RunCourse(layers, _lines(run), last, None if clip is None else float(clip), _incidents(run))


def _lines(run: Run) -> pd.DataFrame:
    kept = ~run.steps.index.duplicated(keep="last")
    found = {}
    for name in ("loss", "grad_norm"):
        values = run.steps[name].to_numpy(dtype="float64")[kept] if name in run.steps else np.full(kept.sum(), np.nan)
        found[name] = np.where(np.isfinite(values), values, np.inf) if name in run.steps else values
    starts = np.unique(line_bins(int(kept.sum()), _LINE_POINTS), return_index=True)[1]
    lines = pd.DataFrame({name: np.fmax.reduceat(values, starts) for name, values in found.items()})
    scores = target_scores_per_box(run).to_numpy(dtype="float64")[kept]
    lines["target_scores"] = np.fmin.reduceat(scores, starts)
    lines.insert(0, "step", run.steps.index.to_numpy()[kept][starts])
    return lines


def _incidents(run: Run) -> tuple[Mapping[str, Any], ...]:
    """What is told of them; a file that another program wrote may lack any of it."""
    told = []
    for incident in run.incidents:
        cause, images, step = incident.get("cause"), incident.get("images"), incident.get("step")
        told.append(
            {
                "step": step if isinstance(step, int) else None,
                "kind": str(incident.get("kind", "")),
                "evidence": str(cause.get("evidence", "")) if isinstance(cause, Mapping) else "",
                "images": [str(image) for image in images] if isinstance(images, list) else [],
            }
        )
    return tuple(told)


@dataclass(frozen=True)
class StudyTables:
    """A study's tables, and what the page says of numbers that runs have forgotten.

    Attributes:
        reading: The study.
        results: :func:`results_table`.
        outcomes: :func:`outcomes_table`.
        answers: The tables that answer with intervals, by the names of their files.
        trajectories: :func:`trajectories_table`.
        layers: :func:`layer_table` by run id, of those whose heatmap is drawn, to three digits.
        gradient_depth: :func:`gradient_depth_table` at :func:`chosen_rates`.
        gains: :func:`gains_table` there.
        not_drawn: Arms and learning rates whose heatmap there was no room for.
        courses: How runs went by run id, those that are most worth a look first.
        clip_norm: The norm at which the control clips; where there is no control, the only one in use.
        recorded: The steps that runs recorded, ``96`` or ``8 to 96``.
    """

    reading: StudyReading
    results: pd.DataFrame
    outcomes: pd.DataFrame
    answers: Mapping[str, pd.DataFrame]
    trajectories: pd.DataFrame
    layers: Mapping[str, pd.DataFrame]
    gradient_depth: pd.DataFrame
    gains: pd.DataFrame
    not_drawn: int
    courses: Mapping[str, RunCourse]
    clip_norm: float | None
    recorded: str

    @property
    def files(self) -> dict[str, pd.DataFrame]:
        """The tables that are written into ``report/``, by the names of their files."""
        return {
            "outcomes": self.outcomes,
            "outcome_text": outcome_text_table(self.results),
            "trajectories": self.trajectories,
            **self.answers,
            **{f"layers-{run_id}": frame for run_id, frame in self.layers.items()},
        }


@dataclass
class _Part:
    """What tables need of some of a study's runs, when their numbers are forgotten.

    Attributes:
        depth_rates: The learning rates at which vectors are looked at by depth.
        readings: By run id.
        results: Rows of :func:`results_table`, group by group.
        trajectories: Those of :func:`trajectories_table`.
        gradient_depth: Those of :func:`gradient_depth_table`.
        gains: Those of :func:`gains_table`.
        layers: :func:`layer_table` by run id, of at most ``MOST_HEATMAPS`` runs.
        not_drawn: How many more have some.
        courses: Those of at most ``MOST_COURSES`` runs.
        places: Of each of these, its place among the runs of its arm and learning rate.
        clip_norms: The arms and the norms at which they clip.
        recorded: How many steps each run recorded.
        damage: What could not be read.
    """

    depth_rates: frozenset[float] = frozenset()
    readings: dict[str, RunReading] = field(default_factory=dict)
    results: list[pd.DataFrame] = field(default_factory=list)
    trajectories: list[pd.DataFrame] = field(default_factory=list)
    gradient_depth: list[pd.DataFrame] = field(default_factory=list)
    gains: list[pd.DataFrame] = field(default_factory=list)
    layers: dict[str, pd.DataFrame] = field(default_factory=dict)
    not_drawn: int = 0
    courses: dict[str, RunCourse] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    clip_norms: set[tuple[str, float]] = field(default_factory=set)
    recorded: list[int | None] = field(default_factory=list)
    damage: _Damage = field(default_factory=_Damage)
    _depths: dict[str, Depths] = field(default_factory=dict)

    def add(self, other: _Part) -> None:
        """Take the part that comes next."""
        self.readings |= other.readings
        self.results += other.results
        self.trajectories += other.trajectories
        self.gradient_depth += other.gradient_depth
        self.gains += other.gains
        self.layers |= other.layers
        self.not_drawn += other.not_drawn
        self.clip_norms |= other.clip_norms
        self.recorded += other.recorded
        self.damage.add(other.damage)
        self.courses |= other.courses
        self.places |= other.places
        self._keep_layers()
        self._keep_courses()

    def look(self, reading: RunReading, place: int, first: bool, most_places: int) -> None:
        """Take what is drawn of a run's layers, while they are in memory.

        Args:
            reading: The run.
            place: Its place among the runs of its arm and learning rate.
            first: Whether its heatmap stands for these.
            most_places: Runs of an arm at a learning rate whose courses there may be room for.
        """
        run, run_id = reading.run, reading.spec.run_id
        if run is None or not len(run.steps):
            return
        self.readings[run_id], self.places[run_id] = reading, place
        if reading.spec.lr0 in self.depth_rates and len(self._depths) < MOST_SEEDS:
            self._depths[run_id] = depths_of(run)
        drawn = first and self._is_wanted(reading)
        shown = place < most_places and self._is_shown(run_id)
        self.not_drawn += first and not drawn
        if not drawn and not shown:
            return
        frame = layer_table(run, points=LAYER_POINTS)
        if drawn and len(frame.columns) > 1 and _may_draw_layers(run):
            self.layers[run_id] = frame
            self._keep_layers()
        if shown:
            self.courses[run_id] = _course(run, frame)
            self._keep_courses()

    def see(self, group: Sequence[RunReading]) -> None:
        """Take the runs of an arm at a learning rate, while their numbers are in memory."""
        self.readings |= {reading.spec.run_id: reading for reading in group}
        self.results.append(results_table(group))
        self.trajectories.append(trajectories_table(group))
        if self._depths:
            self.gradient_depth.append(gradient_depth_table(group, self._depths))
        if any(len(depths.flow_steps) for depths in self._depths.values()):
            self.gains.append(gains_table(group, self._depths))
        self._depths = {}
        runs = [(reading.spec, reading.run) for reading in group if reading.run is not None]
        self.recorded += [len(run.steps) or None for _, run in runs]
        self.clip_norms |= {
            (spec.arm, float(run.meta["clip_norm"])) for spec, run in runs if run.meta.get("clip_norm") is not None
        }

    def _is_wanted(self, reading: RunReading) -> bool:
        """Whether a run's heatmap would be among those that are kept."""
        least = max(map(_heat, (self.readings[run_id] for run_id in self.layers)), default=0)
        return len(self.layers) < MOST_HEATMAPS or _heat(reading) < least

    def _keep_layers(self) -> None:
        """Leave out what is one too many: the last of the healthy runs, then of the unhealthy ones."""
        order = sorted(self.layers, key=lambda run_id: _heat(self.readings[run_id]))
        self.not_drawn += len(order[MOST_HEATMAPS:])
        self.layers = {run_id: self.layers[run_id] for run_id in order[:MOST_HEATMAPS]}

    def worth(self, run_id: str) -> tuple[int, int]:
        """The order in which runs are kept to be looked at: of each arm and rate one, before any has two."""
        return self.places[run_id], _heat(self.readings[run_id])

    def _is_shown(self, run_id: str) -> bool:
        """Whether a run's course would be among those that are kept."""
        least = max(map(self.worth, self.courses), default=(0, 0))
        return len(self.courses) < MOST_COURSES or self.worth(run_id) < least

    def _keep_courses(self) -> None:
        order = sorted(self.courses, key=self.worth)
        self.courses = {run_id: self.courses[run_id] for run_id in order[:MOST_COURSES]}


def _heat(reading: RunReading) -> int:
    """How early a run's heatmap is drawn where there is no room for all: the control's, then of what went wrong."""
    return 0 if reading.spec.arm == CONTROL else 1 if reading.diagnosis.outcome.unhealthy else 2


def _read_groups(
    path: Path,
    judge: Judge | None,
    controls: Mapping[int, str],
    groups: Sequence[Sequence[RunSpec]],
    depth_rates: frozenset[float] | None,
    most_places: int,
) -> _Part:
    """Read, judge and tabulate some groups of a study's runs; what a process of several does.

    ``depth_rates`` is None where neither heatmaps nor figures by depth are wanted.
    """
    reader = _Reader(StudyFolder(path), judge or StudyJudge(), controls)
    part = _Part(depth_rates or frozenset(), damage=reader.damage)
    for specs in groups:
        group: list[RunReading] = []
        drawn = depth_rates is None
        for reading in reader.read(specs):
            first = not drawn and reading.run is not None and len(reading.run.steps) > 0
            part.look(reading, len(group), first, most_places)
            drawn = drawn or first
            group.append(reading)
        part.see(group)
        reader.release(group)
    reader.close()
    return part


def _read_parts(
    folder: StudyFolder, plan: Sequence[RunSpec], study: Mapping[str, Any], judge: Judge | None, processes: int
) -> _Part:
    """Read, judge and tabulate all of a study's runs."""
    arms = arm_order(spec.arm for spec in plan)
    by_key: dict[tuple[str, float], list[RunSpec]] = {}
    for spec in plan:
        by_key.setdefault((spec.arm, spec.lr0), []).append(spec)
    groups = [by_key[key] for key in sorted(by_key, key=lambda key: (arms.index(key[0]), key[1]))]
    controls = _controls(plan, study)
    # A search has its runs at many rates, a few each: layers of every rate would hide what it found.
    depth_rates = None if is_search(study, plan) else frozenset(chosen_rates(spec.lr0 for spec in plan))
    most_places = -(-MOST_COURSES // len(groups)) if groups else 0
    processes = min(processes, _MOST_PROCESSES, len(groups)) if judge is None and len(plan) >= _POOL_FROM else 1
    if processes <= 1:
        return _read_groups(folder.path, judge, controls, groups, depth_rates, most_places)
    size = -(-len(groups) // (processes * _CHUNKS))
    whole = _Part()
    # A fork would copy the threads' locks of libraries that were loaded before.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting = [
            pool.submit(
                _read_groups, folder.path, None, controls, groups[start : start + size], depth_rates, most_places
            )
            for start in range(0, len(groups), size)
        ]
        for future in waiting:
            whole.add(future.result())
    return whole


def write_tables(study_dir: Path, judge: Judge | None = None, processes: int = 1) -> StudyTables:
    """Write ``results.csv`` and the tables among ``report/`` of a study that may be partly finished.

    Args:
        study_dir: The study's folder.
        judge: Gives the verdicts; where None, :class:`yolo_gradstudy.diagnoses.StudyJudge`.
        processes: How many may work at once, where the study is large and ``judge`` is None. A script that asks for
            more than one needs its ``if __name__ == "__main__"``: they import it.

    Raises:
        ValueError: The folder holds no study.
    """
    folder = StudyFolder(Path(study_dir))
    plan, study = folder.read_plan(), folder.read_study() or {}
    part = _read_parts(folder, plan, study, judge, processes)
    tables = _tables(
        StudyReading(folder, study, tuple(part.readings[s.run_id] for s in plan), part.damage.told(plan)), part
    )
    folder.write_csv(folder.results_path, tables.results)
    for name, table in tables.files.items():
        folder.write_csv(folder.report_path / f"{name}.csv", table)
    return tables


def _tables(reading: StudyReading, part: _Part) -> StudyTables:
    """All tables of a study, in plan order."""
    place = {r.spec.run_id: n for n, r in enumerate(reading.readings)}
    results = pd.concat(part.results, ignore_index=True)
    results = results.iloc[np.argsort(results["run_id"].map(place).to_numpy())].reset_index(drop=True)
    of_control = {norm for arm, norm in part.clip_norms if arm == CONTROL}
    norms = of_control or {norm for _, norm in part.clip_norms}
    return StudyTables(
        reading,
        results,
        outcomes_table(results),
        _answers(results, reading),
        pd.concat(part.trajectories, ignore_index=True),
        {run_id: _rounded(part.layers[run_id]) for run_id in sorted(part.layers, key=place.__getitem__)},
        pd.concat(part.gradient_depth or [gradient_depth_table([])], ignore_index=True),
        pd.concat(part.gains or [gains_table([])], ignore_index=True),
        part.not_drawn,
        {run_id: part.courses[run_id] for run_id in sorted(part.courses, key=lambda i: (part.worth(i), place[i]))},
        norms.pop() if len(norms) == 1 else None,
        counted(pd.Series(part.recorded, dtype="Int64")),
    )


ANSWERS: Mapping[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "over_rates": ("Each arm against the control over all learning rates, paired by seed", over_rates_table),
    "comparisons": ("Each arm against the control at each learning rate, paired by seed", comparisons_table),
    "survival": ("Steps that runs stay healthy", survival_table),
    "incidence": ("Share of runs that have gone wrong by a step, by cause", incidence_table),
    "medians": ("Medians", medians_table),
    "accuracy": ("Detection accuracy: mAP50-95 against the control, paired by seed", accuracy_table),
    "sensitivity": ("Learning-rate sensitivity", sensitivity_table),
    "sensitivity_curves": ("Loss at each learning rate", sensitivity_curves_table),
    "saved": ("Steps saved by ending lost runs early", saved_table),
}
"""Tables of any study, by the name of their files, with their headings."""


def _answers(results: pd.DataFrame, reading: StudyReading) -> dict[str, pd.DataFrame]:
    """The tables that answer with intervals, by the names of their files; of a search, those of its limits too."""
    study, searched = reading.study, reading.is_search
    # A search has other rates in each arm: neither pairs of one rate nor a common grid.
    kept = {name: made for name, (_, made) in ANSWERS.items() if not searched or name == "saved"}
    found = {name: make(results) for name, make in kept.items()}
    if searched:
        limits = limits_table(results, float(study["limit"]["factor"]))
        found |= {"limits": limits, "limit_ratios": limit_ratios_table(limits), "lr50": lr50_table(results)}
        if factors := study.get("cross"):
            found["effects"] = effects_table(limits, cross(factors))
    return found


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """Norms to three significant digits, more than a colour shows."""
    norms = frame.drop(columns="step")
    rounded = pd.DataFrame(significant(norms.to_numpy(dtype="float64"), 3), columns=norms.columns)
    rounded.insert(0, "step", frame["step"])
    return rounded


def counted(values: pd.Series[Any]) -> str:
    """``96``, or ``8 to 96`` where runs differ."""
    known = values.dropna()
    if known.empty:
        return ""
    least, most = known.min(), known.max()
    return f"{least}" if least == most else f"{least} to {most}"
