# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a study of thousands of runs costs: a Markdown table, with the machine it was measured on.

    python scripts/bench_scale.py                                # 500, 1000 and 2000 runs of 1000 steps and 366 layers
    python scripts/bench_scale.py --runs 100 --steps 200 --what tables
    python scripts/bench_scale.py --parts                        # in parts of 50 steps, as killed runs leave it

The telemetry is synthetic: the files, columns and types of a recorded YOLO26n run, of runs that are healthy, collapse,
explode, recover or end with NaN. A few dozen distinct runs are written; the runs of a study are hard links to their
files, and have specs and results of their own. Nothing that is measured is kept from one run to the next, but linked
files are in the system's page cache after the first time: the figures are those of a warm disk.

Each measurement is a process of its own: `plan` reads and checks the study and lists its runs, `resume` finds that
none is missing, `tables` is all of the report up to its CSV files, `report` is the whole. Seconds are those of the
work, without the imports; CPU seconds are the process's and its children's, and memory is the largest of any of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from yolo_gradstudy.plan import Study, Vocabulary, load_study
from yolo_gradstudy.records import RunResult, RunSpec
from yolo_gradstudy.run import processor_name
from yolo_gradstudy.run_folder import IncidentsFolder, RunFolder, StudyFolder, long_table, write_json, write_text

FLUSH = 50
"""Steps of a part, the recorder's default."""

EVERY = 10
"""Steps between two parameter norms and updates, the recorder's default."""

BRANCHES = ("one2many", "one2one")
INFERENCE = "one2one"
RATES = (0.01, 0.1, 1.0, 10.0)
ARMS = 25
STEPS_OF_EPOCH = 50
KINDS = ("stable",) * 6 + ("collapsed",) * 2 + ("nonfinite", "exploded", "recovered")
"""Of so many distinct runs of a seed each is one; the share of arms and rates that have it, too."""

DISTINCT_SEEDS = 4
"""Distinct telemetries of each kind."""

MEASURED = ("plan", "resume", "tables", "report")


# Synthetic runs ----------------------------------------------------------------------------------------


def layer_names(count: int) -> list[str]:
    """Names as in an Ultralytics model: convolutions with BatchNorm, the last numbered layer the head."""
    names = []
    for module in range(24):
        for child in range(math.ceil(count / 24 / 3)):
            inner = f"model.{module}.m.{child}" if module < 23 else f"model.23.one2one_cv3.{child}"
            names += [f"{inner}.conv.weight", f"{inner}.bn.weight", f"{inner}.bn.bias"]
    return names[:count]


@dataclass(frozen=True)
class Course:
    """How a synthetic run went: float64 arrays over its steps."""

    norm: NDArray[np.float64]
    loss: NDArray[np.float64]
    scores: NDArray[np.float64]
    trouble: int | None


def make_course(kind: str, seed: int, steps: int) -> Course:
    """A course of one of ``KINDS``; trouble comes between a fifth and four fifths of the run."""
    random = np.random.default_rng([KINDS.index(kind), seed])
    t = np.arange(1, steps + 1, dtype=np.float64)
    norm = 1450 / t + 29 * np.exp(random.normal(0, 0.25, steps))
    loss = 60 + 100 * np.exp(-t / (steps / 4)) + random.normal(0, 2, steps)
    scores = 0.4 + 2.5 * (1 - np.exp(-t / (steps / 8))) + random.normal(0, 0.05, steps)
    if kind == "stable":
        return Course(norm, loss, scores, None)
    at = int(random.integers(steps // 5, 4 * steps // 5))
    growth = 10.0 ** np.arange(1, 9)
    norm[at : at + 8] *= growth[: len(norm[at : at + 8])]
    loss[at + 2 : at + 8] *= growth[: len(loss[at + 2 : at + 8])] ** 0.5
    after = slice(at + 8, None)
    if kind == "collapsed":
        norm[after], loss[after] = 0.5 * np.exp(random.normal(0, 0.25, len(norm[after]))), 13.0
        scores[at + 4 :] = 0.0
    elif kind == "nonfinite":
        norm[after], loss[after], scores[after] = math.nan, math.nan, math.nan
    elif kind == "exploded":
        norm[after] *= 1e7
        loss[after] *= 1e3
        scores[at + 4 :] *= 0.3
    return Course(norm, loss, scores, at)


def scalars_of(course: Course, random: np.random.Generator) -> dict[str, pa.Array]:
    """The columns of a ``steps`` table as a recorded YOLO26n run has them."""
    steps = len(course.norm)
    t = np.arange(1, steps + 1)
    finite = np.isfinite(course.norm)
    boxes = random.integers(60, 120, steps).astype(np.float64)
    clip = np.minimum(10 / (course.norm + 1e-6), 1.0)

    def floats(values: Any, period: int = 1) -> pa.Array:
        return pa.array(np.broadcast_to(values, steps).astype(np.float32), mask=(t - 1) % period != 0)

    columns: dict[str, pa.Array] = {"step": pa.array(t, pa.int64()), "wall_time_s": pa.array(t * 0.35)}
    for group in range(3):
        columns |= {f"lr_pg{group}": floats(0.01 * (1 - t / steps)), f"momentum_pg{group}": floats(0.937)}
    columns |= {
        "images": pa.array(np.full(steps, 16), pa.int32()),
        "epoch": pa.array((t - 1) // STEPS_OF_EPOCH, pa.int32()),
        "amp_scale": floats(1.0),
        "skipped": floats(0.0),
        "grad_norm": floats(course.norm),
        "grad_nonfinite": floats(np.where(finite, 0.0, 2e6)),
        "grad_max_abs": floats(course.norm / 7, FLUSH),
        "grad_norm_clipped": floats(course.norm * clip),
        "clip_coefficient": floats(clip),
        "param_norm": floats(80 + t / 100, EVERY),
        "loss": floats(course.loss),
        "box_loss": floats(course.loss * 0.4),
        "cls_loss": floats(course.loss * 0.5),
        "l1_loss": floats(course.loss * 0.1),
        "boxes": floats(boxes),
    }
    for branch in BRANCHES:
        columns |= {
            f"target_scores_{branch}": floats(course.scores * boxes),
            f"positives_{branch}": floats(np.round(np.nan_to_num(course.scores) * boxes * 2)),
        }
    return {**columns, "update_norm": floats(0.05 * (1 - t / steps) + 1e-4, EVERY)}


def vectors_of(course: Course, layers: int, random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """``grad_norm`` of every step, ``param_norm`` and ``update_ratio`` of every tenth: shape (steps, layers)."""
    steps = len(course.norm)
    share = np.exp(np.linspace(1.5, -2, layers) + random.normal(0, 0.7, layers))
    share /= np.sqrt((share**2).sum())
    norms = course.norm[:, None] * share * np.exp(random.normal(0, 0.2, (steps, layers)))
    if course.trouble is not None:  # some layers leave before the total does
        first = random.integers(0, layers, 3)
        norms[max(0, course.trouble - 2) : course.trouble, first] *= 50
    sampled = np.arange(0, steps, EVERY)
    sizes = 2 + share * 20 + 1e-4 * sampled[:, None] * random.normal(1, 0.3, layers)
    ratios = 1e-3 * np.exp(random.normal(0, 0.4, (len(sampled), layers)))
    found = {"grad_norm": norms, "param_norm": sizes, "update_ratio": ratios}
    return {quantity: values.astype(np.float32) for quantity, values in found.items()}


def write_telemetry(folder: RunFolder, kind: str, seed: int, steps: int, layers: int, merge: bool) -> None:
    """Leave what a recorded run of a kind leaves, but for its spec and its result."""
    course, names = make_course(kind, seed, steps), layer_names(layers)
    random = np.random.default_rng([7, KINDS.index(kind), seed])
    table, vectors = pa.table(scalars_of(course, random)), vectors_of(course, layers, random)
    telemetry = folder.telemetry
    telemetry.write_meta(
        {
            "model": "yolo26n.yaml", "task": "detect", "ablations": [], "changed": {}, "dropped": [],
            "switched_off": [], "clip_norm": 10.0, "clip": None, "branches": list(BRANCHES),
            "inference_branch": INFERENCE, "nbs": 16, "batch": 16, "seed": seed, "amp": False, "precision": None,
            "record": {"every": 1, "extremes_every": FLUSH, "parameter_every": EVERY, "update_every": EVERY,
                       "flow_every": 0, "flow_modules": [], "flush_every": FLUSH},
            "device": "cpu", "optimizer": "SGD", "groups": ["weight", "bn", "bias"],
            "parameters": [{"name": name, "shape": [16, 16, 3, 3], "group": n % 3} for n, name in enumerate(names)],
            "flow_modules": [],
        }
    )  # fmt: skip
    telemetry.add_event({"event": "started", "step": 0, "unix_time_s": 1.8e9})
    if course.trouble is not None:
        step = course.trouble + 1
        telemetry.add_event({"event": "incident", "step": step, "unix_time_s": 1.8e9, "number": 1, "kind": "spike"})
        seen = [{"quantity": "grad_norm", "name": name, "value": 1e6, "usual": 30.0} for name in names[:10]]
        cause = {"what": "unknown", "found_by": "not looked for", "certainty": "none", "evidence": "synthetic"}
        facts = {"incident": 1, "step": step, "kind": "spike", "epoch": step // STEPS_OF_EPOCH, "seen": seen}
        IncidentsFolder(folder.path / "incidents").write(1, {**facts, "cause": cause}, {"steps": table[-20:]})
    telemetry.add_event({"event": "finished", "step": steps, "unix_time_s": 1.8e9})
    every = np.full(layers, False)
    for start in range(0, steps, FLUSH):
        for quantity, values in vectors.items():
            period = 1 if quantity == "grad_norm" else EVERY
            chosen = np.arange(start, min(start + FLUSH, steps), period)
            block = values[chosen // period]
            missing = np.broadcast_to(every, block.shape)
            telemetry.write_part(quantity, long_table(quantity, chosen + 1, names, block, missing))
        telemetry.write_part("steps", table[start : start + FLUSH])
    if merge:
        telemetry.merge_parts()
    learned = kind in ("stable", "recovered")
    _write_epochs(folder, steps // STEPS_OF_EPOCH, learned)


def _write_epochs(folder: RunFolder, epochs: int, learned: bool) -> None:
    """What Ultralytics leaves beside the telemetry, and the validations of the recorder."""
    rows = []
    for epoch in range(epochs):
        score = 0.3 * epoch / epochs if learned else 0.0
        rows.append(
            {"epoch": epoch + 1, "time": 18.0 * epoch, "train/box_loss": 2.1, "train/cls_loss": 3.2,
             "train/l1_loss": 0.4, "metrics/precision(B)": score, "metrics/recall(B)": score,
             "metrics/mAP50(B)": score, "metrics/mAP50-95(B)": score, "val/box_loss": 2.0, "val/cls_loss": 3.0,
             "val/l1_loss": 0.4, "lr/pg0": 0.01, "lr/pg1": 0.01, "lr/pg2": 0.01}
        )  # fmt: skip
        level = 4.0 if learned else 9.0
        found = {}
        for b in BRANCHES:
            found |= {f"fixed_class_{b}": level, f"fixed_loss_{b}": level + 0.7, f"fixed_chance_{b}": 7.6}
        folder.telemetry.add_validation({"epoch": epoch, "step": (epoch + 1) * STEPS_OF_EPOCH, **found})
    write_text(folder.path / "results.csv", pd.DataFrame(rows).to_csv(index=False))
    arguments = {"task": "detect", "mode": "train", "model": "yolo26n.yaml", "optimizer": "SGD"}
    arguments |= {f"argument_{n}": n for n in range(110)}  # as many as Ultralytics writes
    write_text(folder.path / "args.yaml", yaml.safe_dump(arguments, sort_keys=False))


# Studies -----------------------------------------------------------------------------------------------


def study_data(runs: int, arms: int, steps: int) -> dict[str, Any]:
    """A study of so many runs: arms × four learning rates × seeds."""
    seeds, left = divmod(runs, arms * len(RATES))
    if left or not seeds:
        raise ValueError(f"--runs {runs} is no multiple of {arms} arms × {len(RATES)} learning rates.")
    named = {f"arm_{n:02d}": {"arguments": {"warmup_momentum": round(0.5 + n / 1000, 3)}} for n in range(1, arms)}
    return {
        "name": "scale",
        "description": "Synthetic.",
        "model": "yolo26n.yaml",
        "data": "shapes",
        "arguments": {
            "epochs": max(1, steps // STEPS_OF_EPOCH),
            "imgsz": 128,
            "batch": 16,
            "nbs": 16,
            "optimizer": "SGD",
        },
        "lr0": list(RATES),
        "seeds": list(range(seeds)),
        "record": {"every": 1},
        "arms": {"control": {}, **named},
    }


def kind_of(spec: RunSpec, arms: list[str]) -> str:
    """The kind of a run: the control learns, and the other arms and rates have theirs."""
    if spec.arm == "control" and spec.lr0 == RATES[0]:
        return "stable"
    return KINDS[(arms.index(spec.arm) + 3 * RATES.index(spec.lr0) + spec.seed) % len(KINDS)]


def make_study(root: Path, study: Study, steps: int, layers: int, merge: bool) -> StudyFolder:
    """Write a study's folder whose runs have all ended, out of linked telemetries under ``root / "distinct"``."""
    folder = StudyFolder(root / f"study-{len(study.runs())}")
    plan, arms = study.runs(), list(study.arms)
    folder.write_study(study.to_dict(), plan)
    for spec in plan:
        kind, run = kind_of(spec, arms), folder.run(spec.run_id)
        distinct = RunFolder(root / "distinct" / f"{kind}-{spec.seed % DISTINCT_SEEDS}")
        if not distinct.path.is_dir():
            write_telemetry(distinct, kind, spec.seed % DISTINCT_SEEDS, steps, layers, merge)
        shutil.copytree(distinct.path, run.path, copy_function=os.link)
        write_json(run.spec_path, spec.to_dict())
        score = 0.21 if kind in ("stable", "recovered") else 0.0
        result = RunResult(
            spec.run_id, "finished", steps=steps, weights_finite=kind != "nonfinite", parameters=2_572_280,
            metrics={"metrics/mAP50(B)": score, "metrics/mAP50-95(B)": score}, device="cpu", threads=1,
            versions={"torch": "2.14.1", "python": platform.python_version()}, started="2026-01-01T00:00:00+00:00",
            duration_s=350.0,
        )  # fmt: skip
        run.write_result(replace(result, changed={}))
    return folder


# Measuring ---------------------------------------------------------------------------------------------


def _vocabulary() -> Vocabulary:
    """What `gradstudy plan` checks a study against."""
    from yolo_gradstudy.ablations import ABLATIONS, check_ablations
    from yolo_gradstudy.arguments import check_arguments, known_arguments

    return Vocabulary(tuple(ABLATIONS), known_arguments(), check_arguments, check_ablations)


def prepare(what: str, folder: StudyFolder, processes: int) -> Callable[[], object]:
    """Import what a measurement needs, and return what is to be timed."""
    if what in ("plan", "resume"):
        from yolo_gradstudy.study import check_folder, missing_runs

        vocabulary = _vocabulary()

        def plan() -> Study:
            study = load_study(folder.study_path, vocabulary)
            assert len(study.runs())
            return study

        if what == "plan":
            return plan
        study = plan()

        def resume() -> None:
            check_folder(study, folder)
            assert not missing_runs(study, folder)

        return resume
    if what == "tables":
        from yolo_gradstudy.readings import write_tables

        return lambda: write_tables(folder.path, processes=processes)
    from yolo_gradstudy.report import write_report

    return lambda: write_report(folder.path, processes=processes)


def measure(what: str, folder: StudyFolder, processes: int) -> dict[str, float]:
    """Seconds, CPU seconds and the largest memory in MiB of one measurement, in this process."""
    work = prepare(what, folder, processes)
    before, clock = _cpu(), time.monotonic()
    work()
    wall, cpu = time.monotonic() - clock, _cpu() - before
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"wall": wall, "cpu": cpu, "peak": peak / 1024}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure_apart(what: str, folder: StudyFolder, processes: int) -> dict[str, float]:
    """As :func:`measure`, in a fresh process."""
    words = [sys.executable, __file__, "--measure", what, "--root", str(folder.path), "--processes", str(processes)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} of {folder.path} failed: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _lines(found: Mapping[tuple[str, int], Mapping[str, float]], runs: list[int]) -> Iterator[str]:
    yield "| what | runs | seconds | CPU seconds | CPU ms a run | peak memory |"
    yield "|---|---|---|---|---|---|"
    for (what, count), one in found.items():
        each = 1000 * one["cpu"] / count
        cells = (what, count, _seconds(one["wall"]), _seconds(one["cpu"]), f"{each:.2f}", f"{one['peak']:.0f} MiB")
        yield f"| {' | '.join(map(str, cells))} |"
    few, many = min(runs), max(runs)
    if few == many:
        return
    yield ""
    for what in dict.fromkeys(what for what, _ in found):
        times = found[what, many]["cpu"] / found[what, few]["cpu"]
        yield f"{what}: {many / few:g} times the runs take {times:.2f} times the CPU seconds."


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=366)
    parser.add_argument("--arms", type=int, default=ARMS, help=f"arms, each at {len(RATES)} learning rates")
    parser.add_argument("--parts", action="store_true", help=f"leave telemetry in parts of {FLUSH} steps")
    parser.add_argument("--processes", type=int, default=1, help="that read and judge runs at once")
    parser.add_argument("--what", nargs="+", choices=MEASURED, default=list(MEASURED))
    parser.add_argument("--root", type=Path, help="where studies are written and kept; by default a temporary folder")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        print(json.dumps(measure(words.measure, StudyFolder(words.root), words.processes)))
        return
    with tempfile.TemporaryDirectory(prefix="gradstudy-scale-") as temporary:
        scale = f"{words.steps}x{words.layers}x{words.arms}{'-parts' if words.parts else ''}"
        root = (words.root or Path(temporary)) / scale
        found = {}
        for count in words.runs:
            study = Study(**study_data(count, words.arms, words.steps))
            folder = StudyFolder(root / f"study-{count}")
            if not folder.plan_path.is_file():
                folder = make_study(root, study, words.steps, words.layers, not words.parts)
            for what in words.what:
                found[what, count] = measure_apart(what, folder, words.processes)
                print(what, count, found[what, count], file=sys.stderr, flush=True)
    machine = f"{words.processes} of {os.cpu_count()} cores, {processor_name()}"
    print(
        f"{words.steps} steps, {words.layers} layers, {words.arms} arms; {machine}, Python {platform.python_version()}"
    )
    print()
    print("\n".join(_lines(dict(sorted(found.items(), key=lambda item: words.what.index(item[0][0]))), words.runs)))


if __name__ == "__main__":
    main()
