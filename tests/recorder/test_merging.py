# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parts of a few steps each become one, and what is read stays what it was."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_gradstudy import load_run
from yolo_gradstudy.run_folder import QUANTITIES, TELEMETRY, TelemetryFolder

from .loop import everything
from .test_storage import events, kill, no_space, train

NAMES = ("a", "b", "c.weight", "é")
numbers = st.floats(width=32) | st.floats() | st.none()


@st.composite
def parts(draw):
    """Parts as recorders write them: rising steps that may begin again before the last part's end; columns that come
    and go; numbers that fit into float32 or not, NaN, infinities and missing ones; an epoch that is whole or not."""
    found, first = [], 1
    for _ in range(draw(st.integers(1, 5))):
        first = max(1, first - draw(st.integers(0, 3)))
        steps = list(range(first, first + draw(st.integers(1, 4))))
        names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
        wide = draw(st.booleans())
        cells = st.lists(st.floats(width=32) | st.none() if not wide else numbers, min_size=len(steps),
                         max_size=len(steps))  # fmt: skip
        columns = {name: pa.array(draw(cells), pa.float64() if wide else pa.float32()) for name in names}
        whole = st.lists(st.integers(0, 99) | st.none(), min_size=len(steps), max_size=len(steps))
        epochs = pa.array(draw(whole), draw(st.sampled_from([pa.int32(), pa.float32(), pa.float64()])))
        found.append((steps, columns, epochs))
        first = steps[-1] + 1
    return found


def write(folder: TelemetryFolder, quantity: str, found) -> None:
    for steps, columns, epochs in found:
        kept = {n: c for n, c in columns.items() if quantity == "steps" or c.null_count < len(c)}
        extra = {"epoch": epochs} if quantity == "steps" else {}
        if kept or extra:
            folder.write_part(quantity, pa.table({"step": pa.array(steps, pa.int64()), **kept, **extra}))


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal to the last bit, and where values are missing.

    A column may be wider, one of nothing may be gone, one whose only missing value was told again later may be whole
    numbers, and one of which a step told that was told again later may have another place.
    """
    expected = expected.dropna(axis=1, how="all")
    found = found.dropna(axis=1, how="all")
    assert sorted(found) == sorted(expected)
    pd.testing.assert_frame_equal(found[list(expected)], expected, check_exact=True, check_dtype=False)
    for name in expected:
        whole = np.issubdtype(found[name].dtype, np.integer)
        assert whole or np.result_type(found[name].dtype, expected[name].dtype) == found[name].dtype, name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("merged")
    return lambda: TelemetryFolder(root / str(len(list(root.iterdir()))))


@given(found=parts(), quantity=st.sampled_from(["steps", "grad_norm", "forward_gain"]))
@settings(max_examples=150, deadline=None)
def test_what_is_read_stays_what_it_was(folders, found, quantity):
    folder = folders()
    write(folder, quantity, found)
    before, count = folder.read(quantity), len(folder.parts(quantity))
    assert folder.merge_parts() == max(count - 1, 0)
    assert len(folder.parts(quantity)) == min(count, 1)
    damaged: list[str] = []
    assert_same(folder.read(quantity, damaged), before)
    assert not damaged
    assert folder.merge_parts() == 0


def test_a_nan_that_was_measured_is_told_from_what_is_missing(tmp_path):
    folder = TelemetryFolder(tmp_path)
    nan, none = [math.nan, 1.0], [None, 1.0]
    write(folder, "steps", [([1, 2], {"a": pa.array(nan), "b": pa.array(none)}, pa.array([0, 0]))])
    write(folder, "steps", [([3, 4], {"a": pa.array(none)}, pa.array([0, 0]))])
    folder.merge_parts()
    (part,) = folder.parts("steps")
    table = folder.read_part(part)
    assert table["a"].is_null().to_pylist() == [False, False, True, False]
    assert table["b"].is_null().to_pylist() == [True, False, True, True]


def test_columns_are_as_wide_as_any_part_needs(tmp_path):
    folder = TelemetryFolder(tmp_path)
    for steps, value, kind in (([1], 0.1, pa.float32()), ([2], 1e300, pa.float64()), ([3], 1e-45, pa.float64())):
        write(folder, "grad_norm", [(steps, {"a": pa.array([value], kind)}, None)])
    folder.merge_parts()
    assert folder.read("grad_norm")["a"].tolist() == [float(np.float32(0.1)), 1e300, 1e-45]


def test_a_closed_recorder_leaves_a_part_a_quantity(tmp_path):
    kill(train(tmp_path / "parts", 14, close=False))
    train(tmp_path / "one", 14)
    folders = [TelemetryFolder(tmp_path / name / TELEMETRY) for name in ("parts", "one")]
    assert [len(f.parts("steps")) for f in folders] == [3, 1]
    for quantity in QUANTITIES:
        (part,) = folders[1].parts(quantity)
        assert part.name == f"{quantity}-000000001.parquet"
    many, one = load_run(tmp_path / "parts"), load_run(tmp_path / "one")
    timed = ["wall_time_s"]
    assert_same(one.steps.drop(columns=timed).loc[:12], many.steps.drop(columns=timed))
    assert_same(one.layers("update_ratio").loc[:12], many.layers("update_ratio"))


def test_a_resume_after_a_merge_goes_on(tmp_path):
    train(tmp_path, 6)
    before = load_run(tmp_path).layers("grad_norm")
    assert train(tmp_path, 5, everything(flush_every=3)).step == 11
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == list(range(1, 12))
    assert_same(run.layers("grad_norm").loc[:6], before)
    assert [p.name for p in (tmp_path / TELEMETRY).glob("steps-*")] == ["steps-000000001.parquet"]
    assert events(tmp_path)[-1] == ("finished", 11)


def torn(tmp_path, steps=16, lost=5):
    kill(train(tmp_path, steps, close=False))
    path = tmp_path / TELEMETRY / f"steps-{lost:09d}.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    return path


def test_a_torn_part_is_left_alone(tmp_path):
    path = torn(tmp_path)
    content, run = path.read_bytes(), load_run(tmp_path)
    before = run.steps
    TelemetryFolder(tmp_path / TELEMETRY).merge_parts()
    assert path.read_bytes() == content
    names = sorted(p.name for p in path.parent.glob("steps-*"))
    assert names == ["steps-000000001.parquet", path.name, "steps-000000009.parquet"]
    again = load_run(tmp_path)
    assert_same(again.steps, before)
    assert again.damaged == run.damaged


@pytest.mark.parametrize("unlinked", range(4))
def test_a_crash_between_rename_and_unlink_loses_nothing(tmp_path, monkeypatch, unlinked):
    """Whatever was unlinked by then; and the parts of a resumed run tell of some steps twice."""
    folder = TelemetryFolder(tmp_path)
    starts = ((1, 1.0), (4, 2.0), (6, 3.0), (9, 4.0))
    for first, loss in starts:
        steps = list(range(first, first + 5))
        folder.write_part("steps", pa.table({"step": steps, "loss": [loss] * 5}))
    before, real, count = folder.read("steps"), Path.unlink, iter(range(100))

    def crash(self, missing_ok=False):
        if not self.name.startswith(".") and next(count) == unlinked:
            raise KeyboardInterrupt
        real(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if unlinked < 3 else monkeypatch.context():
        patch.setattr(Path, "unlink", crash)
        folder.merge_parts()
    assert len(folder.parts("steps")) == 4 - unlinked
    assert_same(folder.read("steps"), before)
    folder.merge_parts()
    assert len(folder.parts("steps")) == 1
    assert_same(folder.read("steps"), before)


def test_who_reads_while_parts_are_merged_misses_nothing(tmp_path, monkeypatch):
    kill(train(tmp_path, 12, close=False))
    folder = TelemetryFolder(tmp_path / TELEMETRY)
    before, real = folder.read("steps"), TelemetryFolder.read_part

    def meanwhile(self, path):
        table = real(self, path)
        monkeypatch.setattr(TelemetryFolder, "read_part", real)
        TelemetryFolder(self.path).merge_parts()
        return table

    monkeypatch.setattr(TelemetryFolder, "read_part", meanwhile)
    damaged: list[str] = []
    assert_same(folder.read("steps", damaged), before)
    assert not damaged
    assert len(folder.parts("steps")) == 1


@pytest.mark.parametrize("refused", ["replace", "write"])
def test_a_full_disk_leaves_the_parts_and_training_goes_on(tmp_path, monkeypatch, refused):
    recorder = train(tmp_path, 12, close=False)
    recorder._flush()
    recorder._writer.put(None)  # all is on the disk
    recorder._writer._thread.join()
    names = sorted(p.name for p in (tmp_path / TELEMETRY).glob("*.parquet"))
    before = load_run(tmp_path).steps
    with monkeypatch.context() as patch:
        if refused == "replace":
            patch.setattr(Path, "replace", no_space)
        else:
            patch.setattr("yolo_gradstudy.run_folder.pq.write_table", no_space)
        with pytest.raises(OSError, match="No space"):
            TelemetryFolder(tmp_path / TELEMETRY).merge_parts()
        recorder._writer.merge()
    assert sorted(p.name for p in (tmp_path / TELEMETRY).iterdir() if ".parquet" in p.name) == names
    assert_same(load_run(tmp_path).steps, before)
    recorder.close()


def test_what_comes_back_wrong_from_the_disk_takes_no_parts_place(tmp_path, monkeypatch):
    kill(train(tmp_path, 8, close=False))
    folder = TelemetryFolder(tmp_path / TELEMETRY)
    before = folder.read("steps")
    real = pq.write_table

    def write_table(table, file, **options):
        real(table, file, **options)
        file.flush()
        file.truncate(100)

    monkeypatch.setattr("yolo_gradstudy.run_folder.pq.write_table", write_table)
    with pytest.raises(OSError, match="something else than was written"):
        folder.merge_parts()
    monkeypatch.undo()
    assert len(folder.parts("steps")) == 2
    assert_same(folder.read("steps"), before)


def test_large_parts_stay_as_they_are(tmp_path, monkeypatch):
    """So that merging takes as much memory however long a run was."""
    monkeypatch.setattr("yolo_gradstudy.run_folder._MERGED_CELLS", 6 * 2)
    folder = TelemetryFolder(tmp_path)
    for first in range(1, 21, 2):
        folder.write_part("steps", pa.table({"step": [first, first + 1], "loss": [1.0, 2.0]}))
    before = folder.read("steps")
    folder.merge_parts()
    assert [p.name for p in folder.parts("steps")] == [f"steps-{n:09d}.parquet" for n in (1, 7, 13, 19)]
    assert_same(folder.read("steps"), before)
    assert folder.merge_parts() == 0
