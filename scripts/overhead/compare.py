# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of peers: a row a quantity, a column a peer, and whether this package is ahead of them all.

Times are of whole training steps at the scale that the command names. What does not depend on it (counts, bytes, what
survives) is measured on two images of 64 px.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from .arms import ArmProcess, ArmSpec, Raised
from .peers import ACTIVATION, GRADIENT, OURS, PEERS, STOCK, Peer
from .timing import bootstrap_interval, seconds

KEPT_STEPS = 200
"""Steps of a training whose recording is closed, weighed and read."""

COUNTED_STEPS = 50
"""Steps that are counted: the longest period of what the peers sample, but W&B's 1000."""

KILLED_AFTER = (125, 175)
"""Steps after which a training is killed: what buffers 50 or 100 steps loses, over both, what it loses on average."""

PLANTED_AT = (6, 7, 8, 9, 10)
"""Steps that get a NaN, in a training each: five, as trainscope looks at activations at every fifth."""

SMALL = {"images": 2, "size": 64}
T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """What was measured of a peer.

    Attributes:
        text: As it is shown.
        value: The less the better; None where there is nothing to compare.
        blocks: What the value is the median of, in the order of the blocks; empty where it does not vary.
    """

    text: str
    value: float | None = None
    blocks: tuple[float, ...] = ()


@dataclass(frozen=True)
class PeerRow:
    """A line of the table.

    Attributes:
        what: What was measured.
        cells: By column.
        told: A difference of two values in words.
    """

    what: str
    cells: dict[str, Cell]
    told: Callable[[float], str]

    def markdown(self, columns: Sequence[str], compared: Sequence[str]) -> str:
        """The line; a peer that is not compared stands in brackets."""
        texts = [self.cells[column].text for column in columns]
        shown = [
            text if column in (STOCK, OURS, *compared) or self.cells[column].value is None else f"({text})"
            for column, text in zip(columns, texts, strict=True)
        ]
        return f"| {' | '.join([self.what, *shown, self.verdict(compared)])} |"

    def verdict(self, compared: Sequence[str]) -> str:
        """Whether this package is ahead of every peer that is compared, and by how much it is not."""
        ours = self.cells[OURS].value
        values = {name: value for name in compared if (value := self.cells[name].value) is not None}
        if ours is None or not values:
            return "not compared"
        near = [name for name in values if self._is_near(name)]
        best = min((name for name in values if name not in near), key=lambda name: values[name], default=None)
        unsure = [f"not told apart from {', '.join(near)}"] if near else []
        if best is None:
            told = ""
        elif ours > values[best]:
            told = f"**behind {best} by {self.told(ours - values[best])}**"
        elif ours == values[best]:
            told = f"equal to {', '.join(name for name in values if values[name] == ours)}"
        else:
            told = "ahead of the others" if near else "ahead"
        return "; ".join([*unsure, *filter(None, [told])])

    def _is_near(self, name: str) -> bool:
        """Whether blocks vary so much that the interval of the median difference of a block has 0 in it."""
        ours, others = self.cells[OURS].blocks, self.cells[name].blocks
        if not ours or not others:
            return False
        low, high = bootstrap_interval((np.array(ours) - np.array(others)).tolist())
        return low <= 0 <= high


NOTHING = {STOCK: Cell("–")}
"""What stock Ultralytics has where a recording is asked."""


class Comparison:
    """Measures every peer that is installed.

    Args:
        device: An Ultralytics device.
        threads: CPU threads of torch.
        images: Images of a batch that is timed.
        size: Pixels of an image's side, likewise.
        peers: What is compared, stock Ultralytics first.
    """

    def __init__(
        self, device: str, threads: int, images: int, size: int, peers: dict[str, type[Peer]] | None = None
    ) -> None:
        self._peers = PEERS if peers is None else peers
        self._spec = ArmSpec(STOCK, "", device, "", images, size, threads)
        self.complete = [name for name in self.installed if name not in (STOCK, OURS)]
        """Peers that this package is compared with: without those that were seen not to record each step."""

    @property
    def installed(self) -> list[str]:
        """Columns whose packages are there."""
        return [name for name, peer in self._peers.items() if not peer.missing()]

    def versions(self) -> list[str]:
        """Of what is installed besides what a benchmark names anyway."""
        return sorted({v for name in self.installed if name != OURS for v in self._peers[name].versions()})

    def measure(self, models: Sequence[str], blocks: int, block: int) -> list[PeerRow]:
        """Every row of the table, a minute's work or an hour's.

        Args:
            models: Ultralytics model names.
            blocks: Timed blocks of each peer.
            block: Steps of a block.
        """
        with tempfile.TemporaryDirectory(prefix="gradstudy-peers-") as folder:
            place = Path(folder)
            rows = []
            for model in models:
                rows += self.kept(model, place)
                rows += self.counted(model, place)
                rows += self.timed(model, place, blocks, block)
                rows += self.killed(model, place)
                rows += self.planted(model, place)
        return rows

    def markdown(self, rows: Sequence[PeerRow]) -> str:
        """The table that a page shows."""
        columns = list(self._peers)
        head = ["", *columns, "this package is"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        return "\n".join([*lines, *(row.markdown(columns, self.complete) for row in rows)])

    def frame(self, rows: Sequence[PeerRow]) -> pd.DataFrame:
        """What stands behind the table: a row a quantity and peer, its blocks parted by blanks."""
        columns = ("what", "peer", "compared", "value", "shown", "blocks")
        cells = [
            (
                row.what,
                name,
                name in self.complete,
                cell.value,
                cell.text,
                " ".join(f"{one:.6g}" for one in cell.blocks),
            )
            for row in rows
            for name, cell in row.cells.items()
        ]
        return pd.DataFrame(cells, columns=columns)

    # Quantities --------------------------------------------------------------------------------------------

    def timed(self, model: str, place: Path, blocks: int, block: int) -> list[PeerRow]:
        """Time of a step, blocks of the peers in turns."""
        arms = {name: self._start(name, model, place, "timed", small=False) for name in self.installed}
        times: dict[str, list[float]] = {name: [] for name in arms}
        failed: dict[str, Cell] = {}
        for n in range(-1, blocks):  # the first block is for caches, allocations and the optimizer's state
            for name in arms if n % 2 else reversed(arms):
                if name in failed:
                    continue
                try:
                    taken = arms[name].ask("steps", block) / block
                except Raised as error:
                    failed[name] = Cell(f"raises {error}")
                    continue
                if n >= 0:
                    times[name].append(taken)
            _tell(f"{model}: block {n + 1} of {blocks}")
        for arm in arms.values():
            arm.end()
        plain = np.array(times[STOCK])

        def ratio(name: str) -> Cell:
            ratios = np.array(times[name]) / plain
            low, high = bootstrap_interval(ratios.tolist())
            return Cell(f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f})", float(np.median(ratios)), tuple(ratios))

        def added(name: str) -> Cell:
            more = np.array(times[name]) - plain
            return Cell(f"{np.median(more) * 1e3:+.2f} ms", float(np.median(more)), tuple(more))

        def row(what: str, stock: str, cell: Callable[[str], Cell], told: Callable[[float], str]) -> PeerRow:
            cells = {name: failed[name] if name in failed else cell(name) for name in self.installed if name != STOCK}
            return self._row(model, what, {STOCK: Cell(stock), **cells}, told)

        return [
            row(f"time of a step over stock's, median of {blocks} pairs (95%)", "1", ratio, "{:.3f}".format),
            row("time added to a step, median", seconds(float(np.median(plain))), added, seconds),
        ]

    def counted(self, model: str, place: Path) -> list[PeerRow]:
        """Host synchronisations and passes over the gradients beyond stock's own."""
        rows = []
        for where in ("accelerator", "cpu"):

            def count(name: str, where: str = where) -> list[float]:
                arm = self._start(name, model, place, f"counted-{where}", counting=where)
                answer: list[float] = arm.ask("counts", COUNTED_STEPS)
                arm.end()
                return answer

            counts, failed = self._each(count)
            quantities = [
                (1, f"passes over the gradients a step, on {'a CPU' if where == 'cpu' else 'an accelerator'}")
            ]
            if where == "accelerator":
                quantities.insert(0, (0, "host synchronisations a step, on an accelerator"))
            for i, what in quantities:
                own = counts[STOCK][i]
                more = {name: round(values[i] - own, 9) for name, values in counts.items()}
                cells = {name: Cell(f"{value:+.2f}", value) for name, value in more.items()}
                rows.append(self._row(model, what, cells | failed | {STOCK: Cell(f"{own:.2f}")}, "{:.2f}".format))
        return rows

    def kept(self, model: str, place: Path) -> list[PeerRow]:
        """What a training leaves: bytes, steps that can be read, and the same weights."""

        def keep(name: str) -> tuple[int, int, tuple[str, str]]:
            arm = self._start(name, model, place, "kept")
            arm.ask("steps", KEPT_STEPS)
            digests = arm.ask("digests")
            arm.ask("close")
            arm.end()
            folder, peer = Path(arm.spec.folder), self._peers[name]
            size = sum(path.stat().st_size for path in peer.files(folder)) if name != STOCK else 0
            return size, peer.recorded(folder), (digests[0], digests[1])

        kept, failed = self._each(keep)
        self.complete = [name for name in self.complete if name in kept and kept[name][1] == KEPT_STEPS]
        stock = kept[STOCK][2]

        def same(digests: tuple[str, str]) -> Cell:
            differing = [w for w, a, b in zip(("weights", "generators"), digests, stock, strict=True) if a != b]
            return Cell("no: " + " and ".join(differing) if differing else "yes", len(differing))

        sizes = {name: Cell(f"{size / KEPT_STEPS:.0f}", size / KEPT_STEPS) for name, (size, _, _) in kept.items()}
        read = {name: Cell(f"{steps} of {KEPT_STEPS}", KEPT_STEPS - steps) for name, (_, steps, _) in kept.items()}
        identical = {name: same(digests) for name, (_, _, digests) in kept.items()}
        rows = [
            ("steps with every parameter's gradient that can be read back", read, _steps),
            ("bytes a step on disk", sizes, "{:.0f} bytes".format),
            ("bit-identical to stock", identical, _things),
        ]
        return [self._row(model, what, cells | failed | NOTHING, told) for what, cells, told in rows]

    def killed(self, model: str, place: Path) -> list[PeerRow]:
        """Steps that can be read after SIGKILL."""

        def survive(name: str) -> list[int]:
            found = []
            for steps in KILLED_AFTER:
                arm = self._start(name, model, place, f"killed-{steps}")
                arm.ask("steps", steps)
                arm.kill()
                folder, peer = Path(arm.spec.folder), self._peers[name]
                wait_for_writers(folder)
                found.append(peer.recorded(folder))
            return found

        survived, failed = self._each(survive, stock=False)
        cells = {
            name: Cell(
                ", ".join(f"{n} of {of}" for n, of in zip(found, KILLED_AFTER, strict=True)),
                sum(KILLED_AFTER) - sum(found),
            )
            for name, found in survived.items()
        }
        return [self._row(model, "steps that survive SIGKILL", cells | failed | NOTHING, _steps)]

    def planted(self, model: str, place: Path) -> list[PeerRow]:
        """Whether the layer of a value that is not finite is named."""
        rows = []
        for where, what in ((GRADIENT, "a parameter's gradient"), (ACTIVATION, "a layer's output")):

            def find(name: str, where: str = where) -> int:
                arm = self._start(name, model, place, "planted")
                answer = sum(arm.ask("found", where, PLANTED_AT))
                arm.end()
                return answer

            found, failed = self._each(find, stock=False)
            cells = {name: Cell(f"{n} of {len(PLANTED_AT)}", len(PLANTED_AT) - n) for name, n in found.items()}
            rows.append(self._row(model, f"NaN in one element of {what}, named", cells | failed | NOTHING, _things))
        return rows

    # Arms --------------------------------------------------------------------------------------------------

    def _start(
        self, name: str, model: str, place: Path, what: str, small: bool = True, counting: str = ""
    ) -> ArmProcess:
        folder = place / f"{_short(model)}-{what}-{list(self._peers).index(name)}"
        spec = replace(self._spec, peer=name, model=model, folder=str(folder), counting=counting)
        return ArmProcess(replace(spec, **SMALL) if small else spec)

    def _each(self, measure: Callable[[str], T], stock: bool = True) -> tuple[dict[str, T], dict[str, Cell]]:
        """What was measured by column, of stock too or not, and the cells of those that raised."""
        measured: dict[str, T] = {}
        failed: dict[str, Cell] = {}
        for name in self.installed if stock else self.installed[1:]:
            try:
                measured[name] = measure(name)
            except Raised as error:
                failed[name] = Cell(f"raises {error}")
            _tell(f"{name}: {measured.get(name, failed.get(name))}")
        return measured, failed

    def _row(self, model: str, what: str, cells: dict[str, Cell], told: Callable[[float], str]) -> PeerRow:
        every = {name: cells.get(name, Cell("not installed")) for name in self._peers}
        return PeerRow(f"{_short(model)}: {what}", every, told)


def wait_for_writers(folder: Path, still_s: float = 3.0) -> None:
    """Wait until no file of a folder grows: a process that outlives the killed one may go on writing."""
    before: list[tuple[Path, int]] | None = None
    while (now := sorted((p, p.stat().st_size) for p in folder.rglob("*") if p.is_file())) != before:
        before = now
        time.sleep(still_s)


def _short(model: str) -> str:
    return Path(model).stem


def _steps(count: float) -> str:
    return f"{count:.0f} steps"


def _things(count: float) -> str:
    return f"{count:.0f}"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
