# SPDX-License-Identifier: AGPL-3.0-or-later
"""How recorded steps reach the disk: resumed, torn, refused by a full disk, read by others."""

import json
import math
import queue
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolo_gradstudy import GradRecorder, RecordConfig, load_run
from yolo_gradstudy.run_folder import QUANTITIES, TELEMETRY, TelemetryFolder, write_json

from .loop import convnet, everything, images, sgd


def train(folder, steps, config=None, close=True, model=None, **observed):
    model = model or convnet()
    optimizer = sgd(model)
    recorder = GradRecorder(model, optimizer, folder, config or everything(flush_every=4))
    for seed in range(steps):
        optimizer.zero_grad()
        model(images(seed=seed)).square().mean().backward()
        recorder.observe(**observed)
        optimizer.step()
        recorder.stepped()
    if close:
        recorder.close()
    return recorder


def kill(recorder):
    """What a killed process leaves: whole parts that were flushed, and no goodbye."""
    recorder._writer.close()


def events(folder):
    return [(e["event"], e["step"]) for e in load_run(folder).events]


# Resuming -------------------------------------------------------------------------------------------------


def test_a_resumed_recorder_goes_on_counting(tmp_path):
    train(tmp_path, 6)
    recorder = train(tmp_path, 5)
    assert recorder.step == 11
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == list(range(1, 12))
    assert run.layers("grad_norm").index.tolist() == list(range(1, 12))
    assert run.flow("forward_gain").index.tolist() == list(range(1, 12))
    assert events(tmp_path) == [("started", 0), ("finished", 6), ("resumed", 6), ("finished", 11)]


@pytest.mark.parametrize("config", [everything(flush_every=4), RecordConfig(flush_every=4, flow_every=3)])
@pytest.mark.parametrize("steps", [3, 4, 6, 10])
def test_steps_stay_unique_after_a_kill(tmp_path, steps, config):
    kill(train(tmp_path, steps, config, close=False))
    flushed = steps // 4 * 4
    train(tmp_path, 7, config)
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == list(range(1, flushed + 8))
    for quantity in ("grad_norm", "param_norm", "update_ratio"):
        index = run.layers(quantity).index
        assert index.is_unique
        assert index.is_monotonic_increasing
        assert set(index) <= set(run.steps.index)
    assert run.flow("activation_rms").index.is_unique
    assert events(tmp_path)[1] == (("resumed" if flushed else "started"), flushed)


def test_a_kill_between_the_files_of_one_flush(tmp_path):
    """Vectors are stored before scalars: their steps are not counted again, or one number had values of two steps."""
    kill(train(tmp_path, 8, close=False))
    (tmp_path / TELEMETRY / "steps-000000005.parquet").unlink()
    before = load_run(tmp_path).layers("grad_norm")
    recorder = train(tmp_path, 8, everything(flush_every=3))
    assert recorder.step == 16
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == [1, 2, 3, 4, *range(9, 17)]
    assert run.layers("grad_norm").index.tolist() == list(range(1, 17))
    pd.testing.assert_frame_equal(run.layers("grad_norm").loc[:8], before, check_exact=True)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("steps", [2, 8, 10, 18])
def test_steps_between_recorded_ones_are_not_counted_again(tmp_path, steps, killed):
    config = RecordConfig(every=10, flow_every=3, flush_every=2)
    first = train(tmp_path, steps, config, close=not killed)
    if killed:
        kill(first)
    flow = load_run(tmp_path).flow("activation_rms")
    told = flow.index.max() if killed and len(flow) else 0 if killed else steps
    recorder = train(tmp_path, 15, config)
    assert recorder.step == told + 15
    assert events(tmp_path)[-2:] == [("resumed" if told else "started", told), ("finished", told + 15)]
    run = load_run(tmp_path)
    assert run.steps.index.is_unique
    assert [s for s in run.steps.index if s > told] == [s for s in range(10, told + 16, 10) if s > told]
    sampled = range(3 * math.ceil(told / 3) + 1, told + 16, 3)
    assert run.flow("activation_rms").index.tolist() == [*flow.index, *sampled]
    if len(flow):
        pd.testing.assert_frame_equal(run.flow("activation_rms").loc[flow.index], flow, check_exact=True)


def test_a_number_that_an_event_or_a_validation_tells_of_is_not_used_again(tmp_path):
    recorder = train(tmp_path, 3, close=False)
    recorder.mark("nan_recovery")
    kill(recorder)
    recorder = train(tmp_path, 2, close=False)
    assert recorder.step == 5
    recorder.validated(0, metric=1.0)
    kill(recorder)
    path = tmp_path / TELEMETRY / "events.jsonl"
    path.write_text("no JSON\n" + path.read_text())  # which keeps nothing from going on
    assert train(tmp_path, 1, close=False).step == 6


def test_a_torn_last_part_is_written_anew(tmp_path):
    kill(train(tmp_path, 8, close=False))
    for path in (tmp_path / TELEMETRY).glob("*-000000005.parquet"):
        path.write_bytes(path.read_bytes()[:-20])
    assert len(load_run(tmp_path).steps) == 4
    assert train(tmp_path, 4).step == 8
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == run.layers("grad_norm").index.tolist() == list(range(1, 9))
    assert not run.damaged


def test_of_a_step_that_two_parts_tell_of_the_later_counts(tmp_path):
    folder = TelemetryFolder(tmp_path)
    for first, loss in ((1, 1.0), (3, 2.0)):
        steps = list(range(first, first + 4))
        folder.write_part("steps", pa.table({"step": steps, "loss": [loss] * 4}))
        folder.write_part("grad_norm", pa.table({"step": steps, "a": [loss] * 4}))
    for column in (folder.read("steps").loss, folder.read("grad_norm").a):
        assert column.to_dict() == {1: 1, 2: 1, 3: 2, 4: 2, 5: 2, 6: 2}


def test_closing_twice_and_observing_after(tmp_path):
    recorder = train(tmp_path, 3)
    recorder.close()
    assert float(recorder.observe()) > 0
    recorder.stepped()
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == [1, 2, 3]
    assert events(tmp_path) == [("started", 0), ("finished", 3)]


def test_an_error_in_the_loop_keeps_what_was_recorded(tmp_path):
    def loop():
        model = convnet()
        with GradRecorder(model, sgd(model), tmp_path) as recorder:
            model(images()).mean().backward()
            recorder.observe()
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        loop()
    assert load_run(tmp_path).steps.index.tolist() == [1]
    assert events(tmp_path)[-1] == ("stopped", 1)


def test_a_missing_call_of_stepped_costs_only_the_update(tmp_path):
    model = convnet()
    with GradRecorder(model, sgd(model), tmp_path, everything(flush_every=2)) as recorder:
        for seed in range(5):
            model(images(seed=seed)).mean().backward()
            recorder.observe()
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == [1, 2, 3, 4, 5]
    assert run.layers("update_ratio").empty


# A disk that refuses --------------------------------------------------------------------------------------


def no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_ends_the_recording_and_not_the_training(tmp_path, monkeypatch):
    real, written = TelemetryFolder.write_part, []

    def write_part(self, quantity, table):
        if len(written) >= 2 * len(QUANTITIES):  # two flushes fit
            no_space()
        written.append(quantity)
        real(self, quantity, table)

    monkeypatch.setattr(TelemetryFolder, "write_part", write_part)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorder = train(tmp_path, 40)
    assert recorder.step == 40
    (warning,) = [w for w in caught if w.category is RuntimeWarning]
    assert "steps from 9 on are not recorded" in str(warning.message)
    assert "No space left" in str(warning.message)
    assert str(tmp_path) in str(warning.message)
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == list(range(1, 9))
    assert run.layers("grad_norm").index.tolist() == list(range(1, 9))
    assert not run.damaged


def test_a_disk_that_takes_nothing_at_all_any_more(tmp_path, monkeypatch):
    model = convnet()
    recorder = GradRecorder(model, sgd(model), tmp_path, everything(flush_every=2))
    monkeypatch.setattr(TelemetryFolder, "write_part", no_space)
    monkeypatch.setattr(TelemetryFolder, "add_event", no_space)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(30):
            recorder.observe()
            recorder.stepped()
        recorder.mark("nan_recovery", epoch=3)
        recorder.close()
    (warning,) = [w for w in caught if w.category is RuntimeWarning]
    assert "can't be written" in str(warning.message)
    assert recorder.step == 30


def test_a_warning_that_is_an_error_does_not_hang_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(TelemetryFolder, "write_part", no_space)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=train, args=(tmp_path, 40), daemon=True)
        thread.start()
        thread.join(60)
    assert not thread.is_alive(), "the queue is full and nobody empties it"
    assert not load_run(tmp_path).steps.size


def test_no_part_is_lost_where_the_disk_is_slow(tmp_path, monkeypatch):
    real, gate = TelemetryFolder.write_part, threading.Semaphore(0)

    def write_part(self, quantity, table):
        gate.acquire()
        real(self, quantity, table)

    monkeypatch.setattr(TelemetryFolder, "write_part", write_part)
    model = nn.Linear(2, 2)
    recorder = GradRecorder(model, sgd(model), tmp_path, RecordConfig(flush_every=1))
    recorder._writer._queue = FullQueue(gate, recorder._writer._queue)
    for _ in range(12):
        model(torch.ones(1, 2)).sum().backward()
        recorder.observe()
        recorder.stepped()
    gate.release(1000)
    recorder.close()
    assert load_run(tmp_path).steps.index.tolist() == list(range(1, 13))


class FullQueue:
    """Opens the gate when somebody waits at the full queue."""

    def __init__(self, gate, inner) -> None:
        self.gate, self.inner = gate, inner

    def put(self, part):
        try:
            self.inner.put_nowait(part)
        except queue.Full:
            self.gate.release(1000)
            self.inner.put(part, timeout=60)

    def get(self):
        return self.inner.get()

    def task_done(self):
        self.inner.task_done()


def test_a_torn_part_is_named_and_the_rest_is_read(tmp_path):
    kill(train(tmp_path, 12, close=False))
    folder = tmp_path / TELEMETRY
    torn = [folder / "steps-000000005.parquet", folder / "grad_norm-000000009.parquet"]
    for path in torn:
        path.write_bytes(path.read_bytes()[:-20])
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == [1, 2, 3, 4, 9, 10, 11, 12]
    assert run.layers("grad_norm").index.tolist() == list(range(1, 9))
    assert run.layers("param_norm").index.tolist() == list(range(1, 13))
    assert len(run.damaged) == 2
    assert all(any(str(path) in sentence for sentence in run.damaged) for path in torn)


@pytest.mark.parametrize(
    ("part", "column", "values"),
    [
        ("steps", "step", ["one", "two"]),
        ("steps", "step", [5.0, 6.0]),
        ("steps", "step", [5, None]),
        ("steps", "loss", ["low", "high"]),
        ("steps", "step", None),
        ("grad_norm", "grad_norm", ["low", "high"]),
        ("grad_norm", "name", [1, 2]),
        ("grad_norm", "name", ["a", None]),
        ("grad_norm", "name", None),
    ],
)
def test_a_part_with_other_columns_is_named_and_the_rest_is_read(tmp_path, part, column, values):
    """Parquet as whole as any, but of something else."""
    kill(train(tmp_path, 8, close=False))
    path = tmp_path / TELEMETRY / f"{part}-000000005.parquet"
    columns = {"step": [5, 6], "name": ["a", "b"], "grad_norm": [1.0, 2.0]} if part == "grad_norm" else {"step": [5, 6]}
    columns = {**columns, column: values}
    pq.write_table(pa.table({name: cells for name, cells in columns.items() if cells is not None}), path)
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == [1, 2, 3, 4, *([5, 6, 7, 8] if part == "grad_norm" else [])]
    assert run.layers("grad_norm").index.tolist() == [1, 2, 3, 4, *([5, 6, 7, 8] if part == "steps" else [])]
    (sentence,) = run.damaged
    assert str(path) in sentence
    assert f"{column!r}" in sentence or values is None
    assert TelemetryFolder(tmp_path / TELEMETRY).last_step() == (4 if part == "steps" else 8)


def test_a_flipped_bit_among_the_values_is_named(tmp_path):
    """By this package, and by any other reader of Parquet that verifies the pages' own checksums."""
    train(tmp_path, 4)
    path = tmp_path / TELEMETRY / "grad_norm-000000001.parquet"
    column = pq.read_metadata(path).row_group(0).column(2)
    flipped = bytearray(path.read_bytes())
    flipped[column.data_page_offset + column.total_compressed_size - 9] ^= 1
    path.write_bytes(flipped)
    run = load_run(tmp_path)
    assert run.layers("grad_norm").empty
    assert str(path) in " ".join(run.damaged)
    assert len(run.steps) == 4
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(path, page_checksum_verification=True)


def test_a_file_that_can_not_take_its_place_leaves_the_old_one_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})

    def refuse(self, target):
        assert json.loads(path.read_text()) == {"old": 1}, "what is new is not there before it is whole"
        assert json.loads(self.read_text()) == {"new": 2}
        assert self.parent == path.parent, "a rename is atomic within a folder"
        no_space()

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert json.loads(path.read_text()) == {"old": 1}


@pytest.mark.parametrize("quantity", ["steps", "grad_norm"])
def test_no_flipped_bit_is_read_as_another_number(tmp_path, quantity):
    """Neither among the values nor in the footer, where the names of columns stand."""
    train(tmp_path, 4)
    folder = TelemetryFolder(tmp_path / TELEMETRY)
    (path,) = folder.parts(quantity)
    frame, whole, named = folder.read(quantity), path.read_bytes(), 0
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        found = folder.read(quantity, damaged := [])
        assert damaged or found.equals(frame), f"bit {position % 8} of byte {position}"
        assert all(str(path) in sentence for sentence in damaged)
        named += len(damaged)
    assert named > len(whole) / 2


def test_a_part_without_checksum_is_read(tmp_path):
    """Earlier versions wrote none."""
    train(tmp_path, 4)
    folder = TelemetryFolder(tmp_path / TELEMETRY)
    frame = folder.read("steps")
    (path,) = folder.parts("steps")
    table = folder.read_part(path)
    assert table.schema.metadata
    pq.write_table(table.replace_schema_metadata(None), path)
    pd.testing.assert_frame_equal(folder.read("steps"), frame, check_exact=True)


def test_a_folder_that_can_not_be_made_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = threading.active_count()
    model = convnet()
    with pytest.raises(OSError, match="file"):
        GradRecorder(model, sgd(model), tmp_path / "file")
    assert threading.active_count() == before


def test_too_many_scalars_are_an_error(tmp_path):
    model = convnet()
    with GradRecorder(model, sgd(model), tmp_path) as recorder, pytest.raises(ValueError, match="64 scalars"):
        recorder.observe(**{f"value_{i}": torch.ones(()) for i in range(64)})


# Reading --------------------------------------------------------------------------------------------------

READER = """
import json, math, sys
from pathlib import Path
import pandas as pd

found = {}
for path in sorted(Path(sys.argv[1]).glob("*.parquet")):
    frame = pd.read_parquet(path)
    found[path.name] = [len(frame), sorted(frame.columns), sorted(set(frame["step"].tolist()))]
assert not [m for m in sys.modules if m.startswith(("yolo_gradstudy", "torch", "ultralytics"))]
print(json.dumps(found))
"""


def test_pandas_alone_opens_every_part(tmp_path):
    kill(train(tmp_path / "run", 4, close=False))
    kill(train(tmp_path / "run", 4, everything(flush_every=2), close=False))
    telemetry = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "run" / TELEMETRY, telemetry)
    result = subprocess.run(
        [sys.executable, "-I", "-c", READER, str(telemetry)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = json.loads(result.stdout)
    assert sorted(found) == sorted(f"{q}-00000000{first}.parquet" for q in QUANTITIES for first in (1, 5, 7))
    for name, (rows, columns, steps) in found.items():
        quantity = name.split("-")[0]
        first = int(name.split("-")[1].removesuffix(".parquet"))
        assert steps == ([1, 2, 3, 4] if first == 1 else [first, first + 1])
        if quantity == "steps":
            assert rows == len(steps)
            assert {"grad_norm", "lr_pg0", "update_norm"} <= set(columns)
        else:
            assert columns == sorted(["step", "name", quantity])
    assert json.loads((telemetry / "meta.json").read_text())["parameters"][0]["name"] == "0.weight"


def test_load_run_names_its_quantities(tmp_path):
    train(tmp_path, 1)
    run = load_run(tmp_path)
    with pytest.raises(ValueError, match=r"'norms' is not recorded; choose one of grad_norm, param_norm, update_ratio"):
        run.layers("norms")
    with pytest.raises(ValueError, match="backward_gain"):
        run.flow("grad_norm")


measured = st.floats(width=32) | st.none()


@st.composite
def tables(draw):
    """Steps in order, columns by name, cells that are numbers, NaN, infinite or missing."""
    steps = draw(st.lists(st.integers(1, 10**8), min_size=1, max_size=6, unique=True).map(sorted))
    names = draw(st.lists(st.text("abc.é/ 0", min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
    cells = st.lists(measured, min_size=len(steps), max_size=len(steps))
    return steps, {name: draw(cells) for name in names if name != "step"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    return lambda: TelemetryFolder(root / str(len(list(root.iterdir()))))


@given(table=tables(), quantity=st.sampled_from(QUANTITIES), split=st.integers(0, 6), wide=st.booleans())
@settings(max_examples=60)
def test_parts_are_read_as_they_were_written(folders, table, quantity, split, wide):
    steps, columns = table
    folder = folders()
    for chosen in (slice(None, split), slice(split, None)):
        if steps[chosen]:
            kind = pa.float64() if wide else pa.float32()
            cells = {name: pa.array(values[chosen], kind) for name, values in columns.items()}
            kept = {n: c for n, c in cells.items() if quantity == "steps" or c.null_count < len(c)}
            if kept:
                folder.write_part(quantity, pa.table({"step": pa.array(steps[chosen], pa.int64()), **kept}))
    frame = folder.read(quantity)
    for name, values in columns.items():
        for step, value in zip(steps, values, strict=True):
            there = step in frame.index and name in frame
            found = frame.at[step, name] if there else math.nan
            assert math.isnan(found) if value is None or math.isnan(value) else found == value
    if quantity != "steps":
        long = [pd.read_parquet(part) for part in folder.parts(quantity)]
        on_disk = {(s, n): v for part in long for s, n, v in zip(part.step, part.name, part[quantity], strict=True)}
        cells = {(s, n): v for n, values in columns.items() for s, v in zip(steps, values, strict=True)}
        expected = {place: v for place, v in cells.items() if v is not None}
        assert set(on_disk) == set(expected), "missing is not there; a NaN that was measured is"
        assert {p for p, v in on_disk.items() if np.isnan(v)} == {p for p, v in expected.items() if math.isnan(v)}
