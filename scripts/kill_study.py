# SPDX-License-Identifier: AGPL-3.0-or-later
"""Kills a study at random moments until it ends all the same, and compares it with one that nothing disturbed.

    python scripts/kill_study.py [--kills 50] [--seeds 3] [--rng 0] [--root DIR]

The study has 2 arms × 2 learning rates × ``--seeds`` runs of 3 steps; without the clip and BatchNorm, some of them go
wrong. After a reference, studies in fresh folders get SIGKILLs at moments that are uniform over what is left of them:
to the study's process alone, to all its processes at once (as when the machine goes), to one run, or to the server
that forks the runs. Where the study itself is gone, the same command is given again. ``--retries`` is so high in all
of them that no run, which may be killed by itself several times, is given up.

Exit status 1 where a study does not end with status 0 and the reference's files, leaves a process or a temporary
file, or trains a run again that had a result when something was killed. Started again with the same ``--root``, it
goes on after the last study that is done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import yaml

from yolo_gradstudy.datasets import resolve_dataset
from yolo_gradstudy.executors.processes import can_fork
from yolo_gradstudy.run_folder import QUANTITIES, StudyFolder, TelemetryFolder, read_results

STUDY = {
    "name": "killed",
    "model": "yolo26n.yaml",
    "arguments": {
        "epochs": 1, "imgsz": 32, "batch": 4, "nbs": 4, "optimizer": "SGD", "warmup_epochs": 0, "amp": False,
        "pretrained": False, "patience": 0, "val": False, "plots": False,
    },
    "lr0": [0.01, 1.0],
    "record": {"flush_every": 1},
    "arms": {"control": {}, "unsafe": {"ablations": ["no_batchnorm", "no_clip"]}},
}  # fmt: skip
IMAGES = {"train": 12, "val": 4}
KINDS = ("study", "all at once", "a run", "the server")
PHASES = ("while it starts", "while runs train", "in its report")
TIMES = ["started", "duration_s", "attempts"]
TIMED = ("log.txt", "result.json", "results.csv", "events.jsonl", "incident.json")
"""Files that hold times or attempts, and so are not the same byte for byte."""

MOST_KILLS = 6
"""Of one study."""

_MARK = "GRADSTUDY_KILLED_STUDY"
"""Variable in the environment of every process of a study, by which they are found."""

_LOOK_S = 0.02


class Difference(Exception):
    """A study did not end as it should have."""


@dataclass
class Pace:
    """Where the time of an undisturbed study goes, in seconds."""

    start: float
    run: float
    report: float

    def left(self, elapsed: float, runs: int) -> float:
        """Of a study that was started ``elapsed`` seconds ago and has ``runs`` to train."""
        return max(0.0, self.start - elapsed) + runs * self.run + self.report


@dataclass
class Tally:
    """What was done to studies and what they did."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    studies: int = 0
    restarts: int = 0
    trained: int = 0
    seconds: float = 0.0

    def of_kind(self, kind: str) -> int:
        """Kills of a kind."""
        return sum(self.kills[kind, phase] for phase in PHASES)


class Results:
    """The results in a study's folder, which stay as they are once they are there."""

    def __init__(self, study: Path) -> None:
        self._study = study
        self._known: dict[Path, tuple[int, int, bytes]] = {}

    def there(self) -> list[Path]:
        """Those that are there."""
        return sorted(self._study.glob("runs/*/result.json"))

    def note(self) -> None:
        """Remember those that are there, and hold them to what was remembered before."""
        for path, known in self._known.items():
            if not path.exists() or _identity(path) != known:
                raise Difference(f"{path} was there when something was killed, and is another now")
        self._known = {path: _identity(path) for path in self.there()}


def _identity(path: Path) -> tuple[int, int, bytes]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, path.read_bytes()


class Process:
    """``gradstudy run`` on one folder, which can be given again."""

    def __init__(self, study: Path, place: Path, runs: int) -> None:
        shutil.rmtree(place, ignore_errors=True)  # of an earlier call
        place.mkdir()
        self.folder = StudyFolder(place / "out")
        self.runs = runs
        self._log = place / "log.txt"
        self._command = [sys.executable, "-m", "yolo_gradstudy.cli", "run", str(study), "--out", str(self.folder.path)]
        self._command += ["--jobs", "2", "--retries", "1000"]
        self.results = Results(self.folder.path)
        self.start()

    def start(self) -> None:
        """Give the command."""
        with self._log.open("ab") as log:
            environment = {**os.environ, _MARK: str(self.folder.path)}
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.began = time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether the study's own process is gone."""
        return self._process.poll() is not None

    def phase(self) -> str:
        """What the study is at: it starts until there is a server, which ends when all runs have."""
        if len(self.results.there()) == self.runs:
            return PHASES[2]
        return PHASES[1] if "the server" in self.victims() else PHASES[0]

    def victims(self) -> dict[str, list[psutil.Process]]:
        """What could be killed now, by kind."""
        found: dict[str, list[psutil.Process]] = {"study": [psutil.Process(self._process.pid)]}
        with contextlib.suppress(psutil.NoSuchProcess):
            found["the server"] = found["study"][0].children()
            found["a run"] = [run for server in found["the server"] for run in server.children()]
        found["all at once"] = [p for kind in ("study", "the server", "a run") for p in found.get(kind, [])]
        return {kind: processes for kind, processes in found.items() if processes}

    def wait(self, seconds: float) -> bool:
        """Wait; whether the study ended meanwhile."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.ended

    def check_end(self, reference: Path | None) -> None:
        """Hold the study, which has ended, to what it should be."""
        if self._process.returncode != 0:
            raise Difference(f"exit status {self._process.returncode}, see {self._log}")
        self.results.note()
        if left := list(_survivors(self.folder.path)):
            raise Difference(f"processes {left} outlive {self.folder.path}")
        if left := [str(p) for p in self.folder.path.rglob("*") if p.name.endswith((".tmp", ".part"))]:
            raise Difference(f"temporary files are left: {left}")
        if reference is not None:
            compare(reference, self.folder.path)

    def trainings(self) -> int:
        """How many trainings of its runs were begun."""
        logs = self.folder.path.glob("runs/*/log.txt")
        return sum(log.read_text(errors="replace").count("Starting training for") for log in logs)

    def end(self) -> None:
        """Leave no process behind, whatever happened."""
        for process in self.victims().get("all at once", []) if not self.ended else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


def _survivors(out: Path) -> Iterator[int]:
    """Processes of a study that are there some seconds after its end."""
    found = [p for p in psutil.process_iter() if _belongs(p, out)]
    _, alive = psutil.wait_procs(found, timeout=10)
    return (p.pid for p in alive)


def _belongs(process: psutil.Process, out: Path) -> bool:
    try:
        return process.environ().get(_MARK) == str(out)
    except psutil.Error:
        return False


def kill(processes: Sequence[psutil.Process]) -> bool:
    """Kill processes at once: none acts on another's end; whether one was there to be killed."""
    there = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if len(processes) > 1:
                process.suspend()
            there.append(process)
    for process in there:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return bool(there)


def compare(reference: Path, other: Path) -> None:
    """Hold a study's folder to another's: what holds times by its other values, the rest byte for byte."""
    names, others = _names(reference), _names(other)
    if names != others:
        raise Difference(f"{other} has other files than {reference}: {sorted(names ^ others)}")
    for name in sorted(names):
        one, two = reference / name, other / name
        if "telemetry" in one.parts and name.endswith(".parquet"):
            continue
        if one.name not in TIMED and _content(one, reference) != _content(two, other):
            raise Difference(f"{two} is another than {one}")
    try:
        frames = [read_results(path).drop(columns=TIMES) for path in (reference, other)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
        for run in sorted(p.name for p in (reference / "runs").iterdir() if p.is_dir()):
            for quantity in QUANTITIES:
                frames = [_read(path / "runs" / run / "telemetry", quantity) for path in (reference, other)]
                pd.testing.assert_frame_equal(*frames, check_exact=True)
    except AssertionError as error:
        raise Difference(f"{other} has other numbers than {reference}: {error}") from error


def _content(path: Path, folder: Path) -> bytes:
    """A file's bytes without the place of its study, which Ultralytics notes in ``args.yaml``."""
    return path.read_bytes().replace(bytes(folder), b"")


def _names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def _read(telemetry: Path, quantity: str) -> pd.DataFrame:
    damaged: list[str] = []
    frame = TelemetryFolder(telemetry).read(quantity, damaged)
    if damaged:
        raise Difference(damaged[0])
    return frame.drop(columns="wall_time_s", errors="ignore")


def make_study(root: Path, seeds: int) -> tuple[Path, int]:
    """Write the study and its few images; returns its file and how many runs it has."""
    shapes = resolve_dataset("shapes").parent
    for kind, ending in (("images", ".png"), ("labels", ".txt")):
        for split, count in IMAGES.items():
            (root / "data" / kind / split).mkdir(parents=True, exist_ok=True)
            for file in sorted((shapes / kind / split).glob(f"*{ending}"))[:count]:
                shutil.copy(file, root / "data" / kind / split / file.name)
    data = root / "data" / "few.yaml"
    names = yaml.safe_load((shapes / "shapes.yaml").read_text())["names"]
    data.write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": names}))
    study = {**STUDY, "data": str(data), "seeds": list(range(seeds))}
    path = root / "killed.yaml"
    path.write_text(yaml.safe_dump(study))
    return path, seeds * len(STUDY["lr0"]) * len(STUDY["arms"])


def forget_labels(root: Path) -> None:
    """Let the next study read its labels itself."""
    for cache in (root / "data" / "labels").glob("*.cache"):
        cache.unlink()


def run_reference(study: Path, root: Path, runs: int) -> Pace:
    """Run the study undisturbed, where that is not done yet."""
    note = root / "pace.json"
    if not note.exists():
        forget_labels(root)
        process = Process(study, root / "reference", runs)
        seen = {}
        while not process.wait(_LOOK_S):
            seen.setdefault(process.phase(), time.monotonic() - process.began)
        whole = time.monotonic() - process.began
        process.check_end(None)
        start, trained = seen[PHASES[1]], seen[PHASES[2]]
        note.write_text(json.dumps({"start": start, "run": (trained - start) / runs, "report": whole - trained}))
    return Pace(**json.loads(note.read_text()))


def run_killed(
    study: Path, root: Path, number: int, kills: int, pace: Pace, tally: Tally, chance: random.Random, runs: int
) -> None:
    """Run a study that is killed up to ``kills`` times, and check how it ends."""
    place, began = root / f"study-{number}", time.monotonic()
    forget_labels(root)
    process = Process(study, place, runs)
    try:
        for _ in range(kills):
            left = pace.left(time.monotonic() - process.began, runs - len(process.results.there()))
            if process.wait(chance.uniform(0, left)) or not disturb(process, tally, chance):
                break
        if not process.wait(120 + 10 * pace.left(0, runs)):
            raise Difference(f"{place} does not come to its end")
        process.check_end(root / "reference" / "out")
        tally.studies += 1
        tally.trained += process.trainings()
        tally.seconds += time.monotonic() - began
    finally:
        process.end()
    shutil.rmtree(place)


def disturb(process: Process, tally: Tally, chance: random.Random) -> bool:
    """Kill what has been killed least, and start the study again where it is gone; whether there was anything."""
    phase, victims = process.phase(), process.victims()
    kind = min(victims, key=lambda kind: (tally.of_kind(kind), KINDS.index(kind)))
    chosen = [chance.choice(victims[kind])] if kind == "a run" else victims[kind]
    if not kill(chosen):
        return False
    tally.kills[kind, phase] += 1
    if kind in ("study", "all at once"):
        process.wait(60)
        process.results.note()
        tally.restarts += 1
        process.start()
    else:
        process.results.note()
    return True


def read_tally(note: Path) -> Tally:
    """What an earlier call did."""
    tally = Tally()
    if note.exists():
        found = json.loads(note.read_text())
        kills = Counter({(kind, phase): n for kind, phase, n in found.pop("kills")})
        tally = Tally(kills, **found)
    return tally


def write_tally(note: Path, tally: Tally) -> None:
    """Note what was done, for a later call."""
    kills = [[kind, phase, n] for (kind, phase), n in tally.kills.items()]
    note.with_suffix(".new").write_text(json.dumps({**vars(tally), "kills": kills}))
    note.with_suffix(".new").replace(note)


def table(tally: Tally, runs: int) -> Iterator[str]:
    """What was done, as Markdown."""
    yield f"| killed | {' | '.join(PHASES)} | kills |"
    yield "|---" * (len(PHASES) + 2) + "|"
    for kind in KINDS:
        yield f"| {kind} | {' | '.join(str(tally.kills[kind, p]) for p in PHASES)} | {tally.of_kind(kind)} |"
    by_phase = [sum(tally.kills[kind, p] for kind in KINDS) for p in PHASES]
    yield f"| together | {' | '.join(map(str, by_phase))} | {sum(by_phase)} |"
    yield ""
    yield (
        f"{tally.studies} studies of {runs} runs, {tally.restarts} restarts, {tally.trained} trainings begun for "
        f"{tally.studies * runs} results, {tally.seconds:.0f} s; every study as the undisturbed one"
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3, help="a study has four runs a seed")
    parser.add_argument("--rng", type=int, default=0, help="seed of the moments")
    parser.add_argument("--root", type=Path, help="where studies lie, to go on later; a temporary folder by default")
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the study
    if not can_fork():
        print("there is no server to kill: runs are not forked on this system", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        root = words.root or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kill-study-")))
        root = root.resolve()
        study, runs = make_study(root, words.seeds)
        pace = run_reference(study, root, runs)
        print(f"undisturbed: {pace.start:.1f} s to start, {pace.run:.1f} s a run, {pace.report:.1f} s the report")
        tally = read_tally(note := root / "tally.json")
        while (left := words.kills - tally.kills.total()) > 0:
            number = tally.studies + 1
            chance = random.Random(f"{words.rng} {number}")
            try:
                run_killed(study, root, number, min(left, chance.randint(1, MOST_KILLS)), pace, tally, chance, runs)
            except Difference as difference:
                print(f"study {number}, after {dict(tally.kills)}: {difference}", file=sys.stderr)
                return 1
            write_tally(note, tally)
            print(f"study {number}: {tally.kills.total()} kills so far, {tally.seconds:.0f} s", flush=True)
        print("\n".join(table(tally, runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
