# SPDX-License-Identifier: AGPL-3.0-or-later
"""`gradstudy diagnose`: what it prints, its exit status, and `--json` against the schema in the documentation."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from synthetic import make_study
from typer.testing import CliRunner

from tests.diagnoses.test_readings import RISING, write_folder
from yolo_gradstudy.cli import app
from yolo_gradstudy.run_folder import TelemetryFolder

DOCS = Path(__file__).resolve().parents[2] / "docs" / "diagnosis.md"
SCHEMA = json.loads(re.search(r"```json\n(\{.*?\n\})\n```", DOCS.read_text(), re.DOTALL)[1])
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
KNOWN = {
    "$schema", "title", "description", "$defs", "$ref", "type", "enum", "anyOf", "required", "properties",
    "additionalProperties", "items", "minItems", "maxItems", "minLength", "minimum", "pattern",
}  # fmt: skip


def is_of(value, kind):
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)
    return isinstance(value, KINDS[kind])


def problems(value, schema, where="$"):
    """What of a value is not as a JSON Schema says; of the words that the documented one uses."""
    assert set(schema) <= KNOWN, set(schema) - KNOWN
    if "$ref" in schema:
        schema = {**SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], **schema}
    kinds = schema.get("type", [])
    found = []
    if kinds and not any(is_of(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return [f"{where}: {value!r} is no {kinds}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    if "anyOf" in schema and all(problems(value, one, where) for one in schema["anyOf"]):
        found.append(f"{where}: {value!r} is none of {schema['anyOf']}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{where}: {value!r} is not {schema['pattern']}")
    if "minimum" in schema and value is not None and value < schema["minimum"]:
        found.append(f"{where}: {value} is too small")
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        found.append(f"{where}: too short")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for number, item in enumerate(value):
            found += problems(item, schema.get("items", {}), f"{where}[{number}]")
    if isinstance(value, dict):
        found += [f"{where}: no {key}" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            found += problems(item, inner, f"{where}.{key}")
    return found


def answer_of(*words):
    answer = CliRunner().invoke(app, ["diagnose", *map(str, words)])
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer


def told(*words):
    answer = answer_of(*words, "--json")

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    data = json.loads(answer.stdout, parse_constant=refuse)
    assert problems(data, SCHEMA) == []
    return data, answer.exit_code


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    arms = {"control": {0.01: "stable", 1.0: "collapsed"}, "no_clip": {0.01: "stable", 1.0: "nonfinite"}}
    folder = make_study(tmp_path_factory.mktemp("study") / "demo", arms, seeds=(0, 1))
    for spec in folder.read_plan():
        folder.run(spec.run_id).telemetry.add_event({"event": "started"})
        folder.run(spec.run_id).telemetry.add_event({"event": "finished"})
    return folder


def path_of(study, arm, lr0, seed=0):
    (spec,) = [s for s in study.read_plan() if (s.arm, s.lr0, s.seed) == (arm, lr0, seed)]
    return study.run(spec.run_id).path


def test_the_schema_refuses_what_is_not_so(study):
    data, _ = told(path_of(study, "control", 1.0))
    for key in SCHEMA["required"]:
        assert problems({k: v for k, v in data.items() if k != key}, SCHEMA) == [f"$: no {key}"]
    wrong = {
        "outcome": "fine", "onset_step": "7", "onset_layers": [1], "findings": [{}], "advice": {}, "so_far": "x",
        "side_by_side": {"other": "x"}, "nearest_healthy": {"run": "a", "differences": {"lr0": [1]}}, "damaged": None,
    }  # fmt: skip
    for key, value in wrong.items():
        assert problems({**data, key: value}, SCHEMA), key
    assert set(data) == set(SCHEMA["properties"])


@pytest.mark.parametrize(
    ("arm", "lr0", "outcome", "status"),
    [("control", 0.01, "stable", 0), ("control", 1.0, "collapsed", 1), ("no_clip", 1.0, "nonfinite", 1)],
)
def test_json_of_a_run(study, arm, lr0, outcome, status):
    data, code = told(path_of(study, arm, lr0))
    assert (data["outcome"], code) == (outcome, status)
    assert data["side_by_side"] is None
    assert (data["nearest_healthy"] is None) == (status == 0)
    if arm == "no_clip":
        assert data["nearest_healthy"]["run"] == path_of(study, "no_clip", 0.01).name
        assert data["nearest_healthy"]["differences"] == {"lr0": [1.0, 0.01]}


def test_side_by_side(study):
    bad, good = path_of(study, "no_clip", 1.0), path_of(study, "control", 0.01)
    data, code = told(bad, good)
    assert code == 1
    beside = data["side_by_side"]
    assert (beside["outcome"], beside["common_steps"]) == ("stable", 60)
    assert beside["parted"]["step"] == 12  # where the one's norm begins to grow tenfold a step
    assert beside["arguments"]["lr0"] == [1.0, 0.01]
    assert beside["layers_step"] == 12
    text = answer_of(bad, good).stdout
    for words in (
        "they part at step",
        "a factor of 2 apart",
        "layers part first at step 12",
        "lr0 0.01 instead of 1.0",
    ):
        assert words in text, words
    assert f"nearest healthy run: {path_of(study, 'no_clip', 0.01).name}" in text
    assert told(good, bad)[1] == 0
    same, _ = told(good, good)
    assert (same["side_by_side"]["parted"], same["side_by_side"]["arguments"]) == (None, {})
    assert "they never part" in answer_of(good, good).stdout


def test_a_second_run_that_is_nowhere_is_refused(study, tmp_path):
    answer = answer_of(path_of(study, "control", 0.01), tmp_path / "nowhere")
    assert answer.exit_code == 2
    assert "nowhere" in answer.stderr


def test_plain_folder_and_a_running_run(tmp_path):
    data, code = told(write_folder(tmp_path / "plain", RISING))
    assert (data["outcome"], code) == ("stable", 0)
    data, code = told(write_folder(tmp_path / "short", RISING, "epochs: 100\npatience: 0\n"))
    assert (data["outcome"], data["so_far"], code) == ("interrupted", "stable", 2)
    assert "(so far: stable)" in answer_of(tmp_path / "short").stdout
    side, _ = told(tmp_path / "plain", tmp_path / "short")
    assert side["side_by_side"]["arguments"] == {"epochs": [10, 100], "patience": [None, 0]}


def test_any_network(tmp_path):
    folder = TelemetryFolder(tmp_path / "telemetry")
    folder.write_meta({"groups": ["0"], "parameters": []})
    folder.add_event({"event": "started"})
    folder.add_event({"event": "finished"})
    columns = {name: pa.array(np.ones(40)) for name in ("loss", "grad_norm")}
    folder.write_part("steps", pa.table({"step": pa.array(range(1, 41), pa.int64()), **columns}))
    data, code = told(tmp_path)
    assert (data["outcome"], code) == ("unknown", 2)


def test_sentences_with_brackets_are_printed_as_they_are(tmp_path):
    """What a run names may look like markup."""
    folder = write_folder(tmp_path / "[b]", RISING)
    assert "[b]: stable" in answer_of(folder).stdout.replace("\n", "")
