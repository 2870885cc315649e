# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every path of a run and of a study, and every read and write of them.

A study's folder::

    study.yaml  plan.json  results.csv  report/  runs/<run_id>/
        spec.json  result.json  log.txt  telemetry/  incidents/

Files appear under a temporary name and are renamed into place after an fsync, so that a reader sees a
whole file or none, whatever killed the writer.
"""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import re
import shutil
import tarfile
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from yolo_gradstudy.records import TELEMETRY_SCHEMA, RunResult, RunSpec

TELEMETRY = "telemetry"
INCIDENTS = "incidents"
LAYER_QUANTITIES = ("grad_norm", "param_norm", "update_ratio")
FLOW_QUANTITIES = ("activation_rms", "output_grad_rms", "forward_gain", "backward_gain", "dead_share")
QUANTITIES = ("steps", *LAYER_QUANTITIES, *FLOW_QUANTITIES)
_CHECKSUM = b"yolo_gradstudy.crc32"
"""Key of a part's checksum among the metadata of its Parquet schema."""

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""LibYAML's loader, ten times as fast as Python's own, where PyYAML was built with it."""

_MERGED_CELLS = 6_000_000
"""Most cells of a part that merging makes, so that it takes some 200 MB however long a run was."""

_UNREADABLE = (pa.ArrowException, OSError, KeyError, ValueError, IndexError)
"""What reading a torn or corrupt Parquet file raises."""

_Record = TypeVar("_Record")
_PART = re.compile(r"^(?P<quantity>[a-z_]+)-(?P<first>\d{9})\.parquet$")


_FULL = (errno.ENOSPC, errno.EDQUOT)
_TORCH_CANT_WRITE = "failed writing file"
"""What ``torch.save`` says of a full disk, in a ``RuntimeError`` without a number."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that the disk or one's share of it is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, RuntimeError) and _TORCH_CANT_WRITE in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def no_room(where: object) -> str:
    """The sentence on a full disk.

    Args:
        where: What could not be written.
    """
    return (
        f"{where}: the disk has no room left; free some and give the same command again, which goes on from the runs "
        "that are finished."
    )


_TEMPORARY = re.compile(r"^\..+\.(?P<process>\d+)@(?P<machine>.*)\.tmp$")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without an error.

    Raises:
        OSError: It can't be written; the error names ``path`` or the temporary file.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}@{platform.node()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)  # what a full disk refuses has no name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are not there, so that they outlive the machine's power."""
    absent = list(takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    path.mkdir(parents=True, exist_ok=True)
    for folder in absent:
        _sync(folder.parent)


def _is_abandoned(path: Path) -> bool:
    """Whether a file is a temporary one of a process of this machine that is gone."""
    found = _TEMPORARY.match(path.name)
    return found is not None and found["machine"] == platform.node() and not psutil.pid_exists(int(found["process"]))


def _sync(path: Path) -> None:
    """Bring a file, or a folder's entries, to the disk, so that they outlive the machine's power."""
    with suppress(OSError):  # not every system can
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON, whole or not at all; NaN and infinities stay as Python writes them."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def _read_record(path: Path, parse: Callable[[object], _Record]) -> _Record:
    """Read a JSON file that holds one of ``records``.

    Raises:
        ValueError: The file is not JSON, or JSON of something else.
    """
    data = read_json(path)
    try:
        return parse(data)
    except ValueError as error:
        raise ValueError(f"{path} can't be read: {error}.") from error


class TelemetryFolder:
    """The telemetry of one run: ``meta.json``, ``events.jsonl`` and Parquet parts.

    A part is ``<quantity>-<first step>.parquet`` and opens with ``pandas.read_parquet`` alone. ``steps``
    parts have a row a step and a column a scalar. The others are long, with columns ``step``, ``name`` (of
    the parameter or module) and the quantity: hundreds of columns would cost more in headers than in
    numbers, and what was missing in a step is simply not there, which a NaN that was measured is.

    Args:
        path: The folder; created when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether there is anything of a recorder's."""
        return (self.path / "meta.json").is_file() or not self.all_parts().keys().isdisjoint(QUANTITIES)

    def write_meta(self, meta: Mapping[str, Any]) -> None:
        """Write ``meta.json``."""
        write_json(self.path / "meta.json", {"schema": TELEMETRY_SCHEMA, **meta})

    def read_meta(self) -> dict[str, Any]:
        """Read ``meta.json``; empty where there is none.

        Raises:
            ValueError: It is no JSON or JSON of something else, or was written by a newer version of this package.
        """
        path = self.path / "meta.json"
        meta: Any = read_json(path) if path.is_file() else {}
        if not isinstance(meta, dict) or not isinstance(meta.get("schema", TELEMETRY_SCHEMA), int):
            raise ValueError(f"{path} can't be read: it holds no telemetry's meta data.")
        if meta.get("schema", TELEMETRY_SCHEMA) > TELEMETRY_SCHEMA:
            raise ValueError(
                f"{path} has telemetry schema {meta['schema']}, this version reads up to {TELEMETRY_SCHEMA}: "
                "upgrade yolo_gradstudy."
            )
        return meta

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Append an event to ``events.jsonl``."""
        self._append(self.path / "events.jsonl", event)

    def add_validation(self, values: Mapping[str, Any]) -> None:
        """Append what a validation gave, its ``epoch`` and ``step`` among it, to ``validations.jsonl``."""
        self._append(self.path / "validations.jsonl", values)

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        # A line that a killed run left without its end stays a line of its own.
        torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        with path.open("a") as file:
            file.write(("\n" if torn else "") + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_events(self) -> list[dict[str, Any]]:
        """Read the events; a torn line that a killed run left, last or before a resume, is left out.

        Raises:
            ValueError: Another line is no JSON, or no event.
        """
        path = self.path / "events.jsonl"
        if not path.is_file():
            return []
        lines = path.read_text().splitlines()
        events = []
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
            except ValueError as error:
                resumed = number < len(lines) and '"event": "resumed"' in lines[number]
                if number < len(lines) and not resumed:
                    raise ValueError(f"{path} line {number} is not valid JSON: {error}.") from error
                continue
            if not isinstance(event, dict):
                raise ValueError(f"{path} line {number} holds no event.")
            events.append(event)
        return events

    def read_validations(self) -> pd.DataFrame:
        """What validations gave, index ``epoch``; the last of an epoch counts, and a torn line is left out."""
        path = self.path / "validations.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:  # a killed run's last
                continue
            if isinstance(row, dict) and isinstance(row.get("epoch"), int):
                rows.append(row)
        if not rows:
            return pd.DataFrame(index=pd.Index([], name="epoch", dtype="int64"))
        frame = pd.DataFrame(rows).set_index("epoch")
        return frame[~frame.index.duplicated(keep="last")].sort_index()

    def write_part(self, quantity: str, table: pa.Table) -> None:
        """Write one part.

        Args:
            quantity: One of ``QUANTITIES``.
            table: A row a step: int64 column ``step`` and a column a scalar, parameter or module, with
                nulls where a value is missing; of a vector also :func:`long_table`, as it is stored.
        """
        assert quantity in QUANTITIES, quantity
        first = table["step"][0].as_py()
        if quantity != "steps" and table.column_names != ["step", "name", quantity]:
            table = _to_long(quantity, table)
        with replacing(self.path / f"{quantity}-{first:09d}.parquet") as file:
            _write_parquet(file, quantity, table)

    def merge_parts(self) -> int:
        """Make one part of many: a finished run's parts of a few steps each are most of what reading it costs.

        What is read afterwards is the same. Of a step that several parts tell of only what the last one tells is
        kept, as a reader has it. A part that can't be read is left alone, and so is the order around it. Parts larger
        than some megabytes are not merged further.

        A merged part takes the place of its first in one rename, after it was read back, and the others go after that:
        whoever reads in between, or after a crash there, finds some steps twice, with the same values.

        Returns:
            How many files there are less.

        Raises:
            OSError: The disk is full, or can't be written; the parts are as they were.
        """
        before = self.all_parts()
        for quantity, paths in before.items():
            for group in self._groups(paths) if quantity in QUANTITIES else ():
                self._merge(quantity, group)
        return sum(map(len, before.values())) - sum(map(len, self.all_parts().values()))

    def _groups(self, paths: Sequence[Path]) -> Iterator[dict[Path, pa.Table]]:
        """Neighbouring parts that can be read and together are small enough, with what they hold."""
        group: dict[Path, pa.Table] = {}
        cells = 0
        for path in paths:
            try:
                table = self.read_part(path)
            except ValueError:
                table = None
            size = 0 if table is None else table.num_rows * table.num_columns
            if table is None or cells + size > _MERGED_CELLS:
                yield group
                group, cells = {}, 0
            if table is not None:
                group[path], cells = table, cells + size
        yield group

    def _merge(self, quantity: str, parts: Mapping[Path, pa.Table]) -> None:
        """Put parts into one that takes the place of the first."""
        if len(parts) < 2:
            return
        try:
            whole = _joined(list(parts.values()))
        except pa.ArrowException:  # numbers that no one type holds: they stay
            return
        first, *others = parts
        with replacing(first) as file:
            _write_parquet(file, quantity, whole)
            file.flush()
            try:
                _read_parquet(Path(file.name), quantity)
            except _UNREADABLE as error:
                raise OSError(f"{first} comes back from the disk as something else than was written") from error
        # The oldest go first: what is left at any time tells the newest of a step last, or the merged part alone does.
        for path in others:
            path.unlink(missing_ok=True)

    def parts(self, quantity: str) -> list[Path]:
        """The parts of a quantity in the order of their steps."""
        return self.all_parts().get(quantity, [])

    def all_parts(self) -> dict[str, list[Path]]:
        """As :meth:`parts`, by quantity."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if (match := _PART.match(path.name)) is not None:
                found.setdefault(match["quantity"], []).append(path)
        return found

    def read_part(self, path: Path) -> pa.Table:
        """Read one part as it is stored.

        Args:
            path: One of :meth:`parts`.

        Raises:
            ValueError: The part is torn, corrupt or something else.
        """
        try:
            return _read_parquet(path, path.name.split("-")[0])
        except _UNREADABLE as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise ValueError(f"{path} can't be read: {reason}.") from error

    def read(self, quantity: str, damaged: list[str] | None = None) -> pd.DataFrame:
        """Read every part of a quantity.

        Args:
            quantity: One of ``QUANTITIES``.
            damaged: Gets a sentence for each part that can't be read; the others are read.

        Returns:
            A row a recorded step, index ``step``; empty where nothing was recorded.
        """
        frames, found = self._read_frames(quantity)
        for _ in range(3):
            if all(map(Path.exists, found)):
                break
            frames, found = self._read_frames(quantity)  # parts were merged meanwhile
        if damaged is not None:
            damaged += [reason for reason in found.values() if reason is not None]
        if not frames:
            return pd.DataFrame(index=pd.Index([], name="step", dtype="int64"))
        whole: pd.DataFrame = pd.concat(frames) if len(frames) > 1 else frames[0]
        # A run killed between two parts of one flush and resumed has some steps twice; the later ones count.
        if whole.index.has_duplicates:
            whole = whole[~whole.index.duplicated(keep="last")]
        return whole if whole.index.is_monotonic_increasing else whole.sort_index()

    def _read_frames(self, quantity: str) -> tuple[list[pd.DataFrame], dict[Path, str | None]]:
        """A frame a part that can be read, and of every part why it can't be."""
        frames: list[pd.DataFrame] = []
        found: dict[Path, str | None] = {}
        for path in self.parts(quantity):
            found[path] = None
            try:
                table = self.read_part(path)
            except ValueError as error:
                found[path] = str(error).replace("can't be read:", "can't be read and was left out:", 1)
                continue
            frames.append(_to_wide(quantity, table) if quantity != "steps" else _by_step(table))
        return frames, found

    def last_step(self) -> int:
        """The last recorded step, 0 where there is none."""
        return self._last_step("steps")

    def last_number(self) -> int:
        """The last step of which anything tells, 0 where nothing does: from there a resumed run goes on counting.

        It can be later than the last recorded one: flow has a rhythm of its own, the parts of one flush are written one
        after another, and events and validations happen between recorded steps.
        """
        found = [self._last_step(quantity) for quantity in QUANTITIES]
        with suppress(ValueError):  # damaged lines must not keep a run from going on
            found += [event["step"] for event in self.read_events() if isinstance(event.get("step"), int)]
        found += [int(step) for step in self.read_validations().get("step", ())]
        return max(found)

    def _last_step(self, quantity: str) -> int:
        for path in reversed(self.parts(quantity)):
            with suppress(ValueError):
                return int(self.read_part(path)["step"].to_numpy().max())
        return 0


class IncidentsFolder:
    """What was captured where a run went wrong: ``<n>/incident.json``, and tables of the last steps beside it.

    Each table is a Parquet file that opens with ``pandas.read_parquet`` alone.

    Args:
        path: The folder; created when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def numbers(self) -> list[int]:
        """Numbers of the incidents that are there, in order."""
        return sorted(int(p.parent.name) for p in self.path.glob("*/incident.json") if p.parent.name.isdigit())

    def folder(self, number: int) -> Path:
        """The folder of one incident."""
        return self.path / f"{number:03d}"

    def write(self, number: int, incident: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> None:
        """Write an incident; ``incident.json`` comes last, so that what it tells of is there.

        Args:
            number: Counted from 1.
            incident: Plain JSON data.
            tables: By name of the file.
        """
        for name, table in tables.items():
            with replacing(self.folder(number) / f"{name}.parquet") as file:
                pq.write_table(table, file, compression="zstd")
        write_json(self.folder(number) / "incident.json", incident)

    def amend(self, number: int, facts: Mapping[str, Any]) -> None:
        """Add facts to an incident, in place of those that it has under the same names."""
        path = self.folder(number) / "incident.json"
        write_json(path, {**read_json(path), **facts})


def _write_parquet(file: IO[bytes], quantity: str, table: pa.Table) -> None:
    """Write a part's table."""
    encoded: dict[str, Any] = {"use_dictionary": False}
    if quantity != "steps":
        encoded = {"use_dictionary": ["step", "name"], "column_encoding": {quantity: "BYTE_STREAM_SPLIT"}}
    # Without checksums a flipped byte would be read as another number. Those of the pages leave out the footer,
    # where a column's name stands: hence one over all that a reader gets, which stands in the footer itself.
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _CHECKSUM: _checksum(table)})
    pq.write_table(table, file, compression="zstd", write_statistics=False, write_page_checksum=True, **encoded)


def _read_parquet(path: Path, quantity: str) -> pa.Table:
    """Read a part's table; raises one of ``_UNREADABLE`` where it is torn, corrupt or something else."""
    # One thread: handing a column of a small file to another takes longer than reading it.
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(use_threads=False)
    _check_columns(quantity, table)
    return table


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of parts in the order of their steps, of each step only those of the last part that tells of it.

    A column has the smallest type that holds its numbers in every part; where a part lacks it, it is null.

    Raises:
        pyarrow.ArrowException: No type holds a column of all parts.
    """
    later: NDArray[np.int64] = np.array([], dtype=np.int64)
    kept = []
    for table in reversed(tables):
        steps = table["step"].to_numpy()
        kept.append(table.filter(pa.array(~np.isin(steps, later))) if np.isin(steps, later).any() else table)
        later = np.union1d(later, steps)
    kept.reverse()
    fields: dict[str, pa.DataType] = {}
    for field in (field for table in tables for field in table.schema):
        kind = fields.get(field.name, field.type)
        fields[field.name] = kind if kind.equals(field.type) else _common(kind, field.type)
    schema = pa.schema(list(fields.items()))
    whole = pa.concat_tables(
        pa.table([_cast(table, name, kind) for name, kind in fields.items()], schema=schema) for table in kept
    )
    whole = whole.unify_dictionaries().combine_chunks()
    order = np.argsort(whole["step"].to_numpy(), kind="stable")
    return whole if (order[1:] > order[:-1]).all() else whole.take(pa.array(order))


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type of numbers that pandas gives a column of both; text is encoded."""
    if not all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other)):
        return pa.dictionary(pa.int32(), pa.string())
    return pa.from_numpy_dtype(np.result_type(one.to_pandas_dtype(), other.to_pandas_dtype()))


def _cast(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    if name not in table.column_names:
        return pa.chunked_array([pa.nulls(len(table), kind)])
    return table[name].cast(kind)


def _has_end(path: Path) -> bool:
    """Whether a file ends as Parquet does."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return file.read() == b"PAR1"
    return False


def _check_columns(quantity: str, table: pa.Table) -> None:
    """Check that a part holds what its reader takes for granted, and what was written.

    Raises:
        ValueError: A column is missing or of another type, there is no row, or the checksum is another.
    """
    needed = {"step"} if quantity == "steps" else {"step", "name", quantity}
    if not needed <= set(table.column_names) or len(set(table.column_names)) < table.num_columns or not table.num_rows:
        raise ValueError(f"it lacks {', '.join(sorted(needed))}, has a column twice or no row")
    for field in table.schema:
        kind = field.type
        if field.name == "step":
            fits, needs = pa.types.is_integer(kind) and not table["step"].null_count, "a whole number in each row"
        elif field.name == "name" and quantity != "steps":
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            fits, needs = pa.types.is_string(kind) and not table["name"].null_count, "text in each row"
        else:
            fits, needs = pa.types.is_integer(kind) or pa.types.is_floating(kind), "numbers"
        if not fits:
            raise ValueError(f"its column {field.name!r} needs {needs} and has {field.type}")
    written = (table.schema.metadata or {}).get(_CHECKSUM)
    if written is not None and written != _checksum(table):  # parts of earlier versions have none
        raise ValueError("its checksum is another than that of what it holds")


def _checksum(table: pa.Table) -> bytes:
    """CRC-32 of all that a reader gets of a part: names, types, values, and which of them are missing."""
    crc = 0
    for name, column in zip(table.column_names, table.columns, strict=True):
        missing = column.is_null().to_numpy() if column.null_count else np.zeros(len(column), dtype=bool)
        text = pa.types.is_dictionary(column.type) or pa.types.is_string(column.type)
        header = f"{name} {'text' if text else column.type} {len(column)} "
        if text:  # encoded anew: a reader's dictionary may have another order than the writer's
            words, values = _by_appearance(column)
            header += "\0".join(map(str, words))
        else:
            values = column.to_numpy()
        crc = zlib.crc32(header.encode(), crc)
        for numbers in (missing, values):
            crc = zlib.crc32(np.ascontiguousarray(numbers).data, crc)
    return f"{crc:08x}".encode()


def _by_appearance(column: pa.ChunkedArray) -> tuple[list[str], NDArray[Any]]:
    """The words of a column of text in the order in which they first appear, and the number of each row's."""
    encoded = _encoded(column)
    words = encoded.dictionary.to_pylist()
    if column.null_count or len(set(words)) < len(words):
        encoded = _encoded(column.cast(pa.string()))
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    codes = encoded.indices.to_numpy()
    if np.array_equal(codes[: len(words)], np.arange(len(words))):  # as they are where a step has all of them
        return words, codes
    numbers, used = pd.factorize(codes)
    return [words[code] for code in used], numbers.astype(np.int32)


def _to_long(quantity: str, table: pa.Table) -> pa.Table:
    """A row a step and name, in the order of steps, from a row a step; nulls are left out."""
    names = table.column_names[1:]
    missing = np.column_stack([table[n].is_null().to_numpy() for n in names])
    values = np.column_stack([table[n].to_numpy() for n in names])
    return long_table(quantity, table["step"].to_numpy(), names, values, missing)


def long_table(
    quantity: str, steps: NDArray[np.int64], names: Sequence[str], values: NDArray[Any], missing: NDArray[np.bool_]
) -> pa.Table:
    """A vector's values as they are stored: columns ``step``, ``name`` and the quantity.

    Args:
        quantity: The column's name.
        steps: Shape (steps,).
        names: Of parameters or modules.
        values: Shape (steps, names).
        missing: Of the same shape; what is missing gets no row.
    """
    present = ~missing.ravel()
    codes = np.tile(np.arange(len(names), dtype=np.int32), len(steps))[present]
    return pa.table(
        {
            "step": np.repeat(steps, len(names))[present],
            "name": pa.DictionaryArray.from_arrays(codes, pa.array(names)),
            quantity: values.ravel()[present],
        }
    )


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A column of text as numbers of its words and the words."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded


def _to_wide(quantity: str, table: pa.Table) -> pd.DataFrame:
    """The inverse of :func:`_to_long`: step × name, NaN where missing."""
    names = _encoded(table["name"])
    steps, rows = _numbered(table["step"].to_numpy())
    values, codes, shape = table[quantity].to_numpy(), names.indices.to_numpy(), (len(steps), len(names.dictionary))
    if len(values) == shape[0] * shape[1] and (codes.reshape(shape) == np.arange(shape[1])).all():
        wide = values.reshape(shape).copy()  # every step has all of them, in their order
    else:
        wide = np.full(shape, np.nan, dtype=values.dtype)
        wide[rows, codes] = values
    return pd.DataFrame(wide, index=pd.Index(steps, name="step"), columns=names.dictionary.to_pylist())


def _by_step(table: pa.Table) -> pd.DataFrame:
    """A column a scalar, index ``step``."""
    frame: pd.DataFrame = table.drop_columns("step").to_pandas(use_threads=False)
    frame.index = pd.Index(table["step"].to_numpy(), name="step")
    return frame


def _numbered(steps: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The distinct steps in order and the place of each row's among them."""
    starts = np.concatenate([[0], np.flatnonzero(steps[1:] != steps[:-1]) + 1])
    distinct = steps[starts]
    if (distinct[1:] < distinct[:-1]).any():
        distinct, rows = np.unique(steps, return_inverse=True)
        return distinct, rows
    return distinct, np.repeat(np.arange(len(starts)), np.diff(starts, append=len(steps)))


def _parse_incident(data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError("it holds no incident")
    return data


class RecordedRun:
    """A run read from disk; reading happens when something is asked for.

    Implements :class:`yolo_gradstudy.records.Run`.

    Args:
        path: A run's folder or an Ultralytics ``save_dir``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: list[str] = []
        self._telemetry = TelemetryFolder(path / TELEMETRY)
        self._layers: dict[str, pd.DataFrame] = {}

    def __repr__(self) -> str:
        return f"RecordedRun({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def release(self) -> None:
        """Forget what was read, to read it again where it is asked for: thousands of runs don't fit into memory."""
        self.release_layers()
        for name in ("meta", "steps", "epochs", "validations", "events", "incidents", "arguments", "spec", "result"):
            self.__dict__.pop(name, None)

    def release_layers(self) -> None:
        """Forget vectors, by far the most of what a run recorded."""
        self._layers.clear()

    def name_torn(self) -> None:
        """Name, in ``damaged``, torn parts of quantities that nobody asked for; only their last bytes are read."""
        for quantity, parts in self._telemetry.all_parts().items():
            if quantity in QUANTITIES[1:] and quantity not in self._layers and not all(map(_has_end, parts)):
                self._telemetry.read(quantity, self.damaged)

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """``telemetry/meta.json``."""
        return self._telemetry.read_meta()

    @cached_property
    def steps(self) -> pd.DataFrame:
        """A row a recorded step, index ``step``, a column a scalar.

        ``grad_norm_per_image`` is derived: Ultralytics sums the loss over the images of a step, and how many
        they are changes while accumulation ramps up.
        """
        steps = self._telemetry.read("steps", self.damaged)
        if "images" in steps and "grad_norm" in steps:
            steps["grad_norm_per_image"] = steps["grad_norm"] / steps["images"]
        return steps

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """Ultralytics' ``results.csv``, index ``epoch``; empty where there is none."""
        path = self.path / "results.csv"
        if not path.is_file():
            return pd.DataFrame(index=pd.Index([], name="epoch", dtype="int64"))
        try:
            epochs: pd.DataFrame = pd.read_csv(path, skipinitialspace=True)
            epochs.index = pd.Index(epochs.pop("epoch"), name="epoch")
            return epochs
        except (ValueError, KeyError) as error:  # torn, or another program's
            self.damaged.append(f"{path} can't be read and was left out: {error}.")
            return pd.DataFrame(index=pd.Index([], name="epoch", dtype="int64"))

    @cached_property
    def validations(self) -> pd.DataFrame:
        """A row a validated epoch (index ``epoch``): the fixed-assignment loss and its parts, a column each."""
        return self._telemetry.read_validations()

    def layers(self, quantity: str) -> pd.DataFrame:
        """Step × parameter name.

        Args:
            quantity: ``grad_norm``, ``param_norm`` or ``update_ratio``.

        Raises:
            ValueError: No such quantity.
        """
        return self._read_vector(quantity, LAYER_QUANTITIES)

    def flow(self, quantity: str) -> pd.DataFrame:
        """Step × module name, at the sampled steps.

        Args:
            quantity: ``activation_rms``, ``output_grad_rms``, ``forward_gain``, ``backward_gain`` or
                ``dead_share``.

        Raises:
            ValueError: No such quantity.
        """
        return self._read_vector(quantity, FLOW_QUANTITIES)

    def _read_vector(self, quantity: str, known: Sequence[str]) -> pd.DataFrame:
        if quantity not in known:
            raise ValueError(f"{quantity!r} is not recorded; choose one of {', '.join(known)}.")
        if quantity not in self._layers:
            self._layers[quantity] = self._telemetry.read(quantity, self.damaged)
        return self._layers[quantity]

    @cached_property
    def events(self) -> Sequence[Mapping[str, Any]]:
        """What happened besides steps."""
        return self._telemetry.read_events()

    @cached_property
    def incidents(self) -> Sequence[Mapping[str, Any]]:
        """``incidents/<n>/incident.json`` of each incident."""
        return [_read_record(p, _parse_incident) for p in sorted((self.path / INCIDENTS).glob("*/incident.json"))]

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """Ultralytics' ``args.yaml``; empty where there is none, or it can't be read."""
        path = self.path / "args.yaml"
        try:
            found = yaml.load(path.read_text(), _YAML) if path.is_file() else {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.damaged.append(f"{path} can't be read and was left out: {str(error).splitlines()[0]}.")
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def spec(self) -> RunSpec | None:
        """The run's spec, where it belongs to a study."""
        path = self.path / "spec.json"
        return _read_record(path, RunSpec.from_dict) if path.is_file() else None

    @cached_property
    def result(self) -> RunResult | None:
        """How the run's process ended, where it belongs to a study and did."""
        path = self.path / "result.json"
        return _read_record(path, RunResult.from_dict) if path.is_file() else None


def read_results(study: Path) -> pd.DataFrame:
    """A study's ``results.csv``; an arm may be called ``NA``, so only an empty cell is missing."""
    return pd.read_csv(study / "results.csv", keep_default_na=False, na_values=[""])


def load_run(path: str | Path) -> RecordedRun:
    """Read a recorded run.

    Args:
        path: A run's folder, or an Ultralytics ``save_dir``; one that was not recorded has at least a ``results.csv``.

    Raises:
        ValueError: There is no such folder, or neither telemetry nor a ``results.csv`` of Ultralytics in it.
    """
    folder = Path(path)
    if not folder.is_dir():
        nearest = next(p for p in folder.absolute().parents if p.is_dir())
        raise ValueError(f"{folder} is not a folder; the nearest that exists is {nearest}.")
    if not TelemetryFolder(folder / TELEMETRY).exists() and not _has_epochs(folder / "results.csv"):
        hint = ""
        inner = sorted(p.parent.parent for p in folder.glob("**/telemetry/meta.json"))
        if inner:
            hint = f"; the nearest run with telemetry is {inner[0]}"
        raise ValueError(f"{folder} holds no telemetry of yolo_gradstudy{hint}.")
    return RecordedRun(folder)


def _has_epochs(path: Path) -> bool:
    """Whether a ``results.csv`` is Ultralytics', with a row an epoch; a study's has a row a run."""
    if not path.is_file():
        return False
    with path.open(errors="replace") as file:
        return file.readline().split(",")[0].strip() == "epoch"


class RunFolder:
    """One run's folder inside a study.

    Args:
        path: ``<study>/runs/<run_id>``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_path = path / "spec.json"
        self.result_path = path / "result.json"
        self.log_path = path / "log.txt"
        self.telemetry = TelemetryFolder(path / TELEMETRY)

    def lock(self) -> FileLock:
        """A lock that one process holds while it trains here; it stands beside the folder, not in it."""
        make_folder(self.path.parent)
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def read_spec(self) -> RunSpec:
        """Read ``spec.json``.

        Raises:
            ValueError: It is no spec.
        """
        return _read_record(self.spec_path, RunSpec.from_dict)

    def read_result(self) -> RunResult | None:
        """Read ``result.json``; None where the run has not ended.

        Raises:
            ValueError: It is no result.
        """
        return _read_record(self.result_path, RunResult.from_dict) if self.result_path.is_file() else None

    def write_result(self, result: RunResult) -> None:
        """Write ``result.json``: from here on the run counts as done, and what it tells of is on the disk."""
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.is_file():  # what Ultralytics wrote
                _sync(path)
        write_json(self.result_path, result.to_dict())

    def forget_result(self) -> None:
        """Delete ``result.json``: the run counts as not done, and is trained again. Its log is kept."""
        self.result_path.unlink(missing_ok=True)

    def start_afresh(self, spec: RunSpec) -> None:
        """Empty the folder of an earlier, unfinished attempt (its log is kept) and write the spec."""
        if self.path.is_dir():
            for child in self.path.iterdir():
                if child == self.log_path:
                    continue
                if child.is_dir() and not child.is_symlink():
                    shutil.rmtree(child)
                else:
                    child.unlink()
        write_json(self.spec_path, spec.to_dict())

    def drop_weights(self) -> None:
        """Delete the checkpoints that Ultralytics wrote."""
        shutil.rmtree(self.path / "weights", ignore_errors=True)

    def load(self) -> RecordedRun | None:
        """The recorded run, None where nothing was recorded."""
        return RecordedRun(self.path) if self.telemetry.exists() else None

    def write_progress(self, told: Mapping[str, Any]) -> None:
        """Say how far training is, for whoever watches. It is no result, and a crash may take it."""
        new = self._progress_path.with_suffix(".new")
        new.write_text(json.dumps(dict(told)), encoding="utf-8")
        new.replace(self._progress_path)

    def read_progress(self) -> dict[str, Any]:
        """What :meth:`write_progress` said last; empty where it said nothing, or the run has ended."""
        with suppress(OSError, ValueError):
            told = json.loads(self._progress_path.read_text(encoding="utf-8"))
            return told if isinstance(told, dict) else {}
        return {}

    def drop_progress(self) -> None:
        """Delete what :meth:`write_progress` said."""
        self._progress_path.unlink(missing_ok=True)

    @property
    def _progress_path(self) -> Path:
        return self.path / "progress.json"

    def pack(self) -> bytes:
        """The folder as the bytes of a tar archive, for :meth:`receive` on another machine; links are left out."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path in sorted(self.path.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    archive.add(path, str(path.relative_to(self.path)))
        return packed.getvalue()

    def receive(self, packed: bytes) -> None:
        """Put what :meth:`pack` packed in this folder's place, whole or not at all; its log is added to the one here.

        Args:
            packed: The bytes of an archive.

        Raises:
            ValueError: It holds something else than files below the folder; nothing is changed.
        """
        with self.lock():
            new, old = (self.path.with_name(f".{self.path.name}.{what}") for what in ("received", "old"))
            for leftover in (new, old):  # of a process that was killed: the lock is ours
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                new.mkdir()
                if self.log_path.is_file():
                    shutil.copyfile(self.log_path, new / self.log_path.name)
                _unpack(packed, new)
                if self.path.exists():
                    self.path.rename(old)
                new.rename(self.path)
                _sync(self.path.parent)
            finally:
                for leftover in (new, old):
                    shutil.rmtree(leftover, ignore_errors=True)


def _unpack(packed: bytes, folder: Path) -> None:
    """Write an archive's files and bring them to the disk; what is there already is added to."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            path = folder / member.name
            source = archive.extractfile(member) if member.isreg() else None
            if source is None or ".." in path.parts or not path.is_relative_to(folder):
                raise ValueError(f"{folder}: {member.name!r} is no file of a run's folder, and was refused.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
    for parent in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        _sync(parent)


_SCRATCH = "gradstudy-scratch-"


@contextmanager
def scratch_study() -> Iterator[StudyFolder]:
    """A study's folder among this machine's temporary files that is removed at the end.

    Those of processes that were killed are removed before: each is held by a lock that ends with its process.
    """
    temporary = Path(tempfile.gettempdir())
    for lock_path in temporary.glob(f"{_SCRATCH}*.lock"):
        with suppress(OSError, Timeout):  # another user's, or in use
            lock = FileLock(lock_path)
            lock.acquire(timeout=0)
            _remove_scratch(lock)
    lock = FileLock(temporary / f"{_SCRATCH}{uuid.uuid4().hex}.lock")
    lock.acquire()
    try:
        yield StudyFolder(Path(lock.lock_file).with_suffix(""))
    finally:
        _remove_scratch(lock)


def _remove_scratch(lock: FileLock) -> None:
    """Remove a held lock's folder, and the lock."""
    path = Path(lock.lock_file)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    path.unlink(missing_ok=True)
    lock.release()


def _nearest_writable(path: Path) -> Path:
    """A folder of the same name that can be made: beside ``path`` or above it, here, or among temporary files."""
    for parent in (*path.absolute().parents, Path.cwd(), Path(tempfile.gettempdir())):
        if parent == Path(parent.anchor):  # where the superuser can write, and should not
            continue
        with suppress(OSError), tempfile.TemporaryDirectory(prefix=".gradstudy-", dir=parent):
            return next(
                p for n in range(1, 1_000_000) if not (p := parent / f"{path.name}{f'-{n}' * (n > 1)}").exists()
            )
    return Path.home() / path.name


def _parse_plan(data: object) -> list[RunSpec]:
    if not isinstance(data, list) or not data:
        raise ValueError("it holds no list of runs")
    return [RunSpec.from_dict(spec) for spec in data]


class StudyFolder:
    """A study's folder.

    Args:
        path: Where the study is or will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study_path = path / "study.yaml"
        self.plan_path = path / "plan.json"
        self.results_path = path / "results.csv"
        self.report_path = path / "report"

    def run(self, run_id: str) -> RunFolder:
        """The folder of one run."""
        return RunFolder(self.path / "runs" / run_id)

    @contextmanager
    def accessible(self) -> Iterator[None]:
        """Tell a folder that can't be read or written in one sentence.

        Raises:
            ValueError: Instead of an ``OSError``.
        """
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                raise ValueError(no_room(f"--out {self.path}")) from error
            raise ValueError(
                f"--out {self.path} can't be written ({error.strerror or error}); the nearest folder that can is "
                f"{_nearest_writable(self.path)}."
            ) from error

    def is_in_use(self) -> bool:
        """Whether a process trains the study now."""
        try:
            with self.locked():
                return False
        except ValueError:
            return True

    @contextmanager
    def locked(self, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the study for this process; a folder that nothing came of is removed at the end.

        Args:
            wait_s: How long to wait for another process that holds it.

        Raises:
            ValueError: Another process runs this study, or the folder can't be written.
        """
        absent = [p for p in (self.path, *self.path.parents) if not p.exists()]
        lock = FileLock(self.path / ".lock")
        with self.accessible():
            make_folder(self.path)
            try:
                lock.acquire(timeout=wait_s)
            except Timeout:
                raise ValueError(
                    f"{self.path} is in use by another `gradstudy run`; wait for it, or choose another --out."
                ) from None
        try:
            self._sweep()
            yield
        finally:
            if absent and [p.name for p in self.path.iterdir()] == [".lock"]:
                (self.path / ".lock").unlink()
                with suppress(OSError):  # another process has begun there
                    for folder in absent:
                        folder.rmdir()
            lock.release()

    def _sweep(self) -> None:
        """Remove what processes that were killed had begun to write; a run's folder is emptied when it starts."""
        for folder in (self.path, self.report_path):
            for path in folder.iterdir() if folder.is_dir() else ():
                if _is_abandoned(path):
                    with suppress(OSError):  # it is in nobody's way
                        path.unlink()

    def strangers(self) -> list[str]:
        """Names of what lies in the folder, besides what is there before a study is."""
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        return [name for name in names if name != ".lock" and not _TEMPORARY.match(name)]

    def read_study(self) -> dict[str, Any] | None:
        """The resolved study that was started here; None where none was.

        Raises:
            ValueError: The folder holds something that is no study.
        """
        if not self.study_path.is_file():
            return None
        try:
            study = yaml.load(self.study_path.read_text(), _YAML)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}" if mark is not None else ""
            reason = getattr(error, "problem", None) or str(error).split("\n")[0]
            raise ValueError(f"{self.study_path}{line} is not valid YAML: {reason}.") from error
        if not isinstance(study, dict):
            raise ValueError(f"{self.study_path} is not a study: it holds no keys with values.")
        return study

    def write_study(self, study: Mapping[str, Any], plan: Sequence[RunSpec]) -> None:
        """Write ``study.yaml`` as resolved and ``plan.json``."""
        write_text(self.study_path, yaml.safe_dump(dict(study), sort_keys=False))
        write_json(self.plan_path, [spec.to_dict() for spec in plan])

    def read_plan(self) -> list[RunSpec]:
        """The planned runs.

        Raises:
            ValueError: The folder holds no study, or its ``plan.json`` is no plan.
        """
        if not self.plan_path.is_file():
            raise ValueError(f"{self.path} holds no study (no plan.json); `gradstudy run STUDY --out DIR` makes one.")
        return _read_record(self.plan_path, _parse_plan)

    def write_csv(self, path: Path, frame: pd.DataFrame) -> None:
        """Write a table without its index."""
        write_text(path, frame.to_csv(index=False, lineterminator="\n"))
