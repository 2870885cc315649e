# SPDX-License-Identifier: AGPL-3.0-or-later
"""The scripts that make and keep the committed results."""

import html
import importlib
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.synthetic import make_study
from yolo_gradstudy import diagnose
from yolo_gradstudy.readings import write_tables
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import StudyFolder
from yolo_gradstudy.tables import accuracy_table, depths_of, outcome_text_table

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def scripts():
    """Imports a script as a module, beside those that it imports itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module


def split_page(path):
    """A page without its runs' numbers and its figures, and the numbers."""
    before, data, after = re.split(r'(?<=id="data">)(.*?)(?=</script>)', path.read_text(), maxsplit=1)
    return re.sub(r'(?<=base64,)[^"]+', "", before + after), json.loads(data)["runs"]


def test_reduced_study_has_the_same_report(tmp_path):
    """What is left out is nothing that tables or figures show; the page has layers of all runs, and then of some.

    What comes from layers is the same to the digits that stay.
    """
    source, target = tmp_path / "full" / "demo", tmp_path / "reduced" / "demo"
    make_study(source, {"control": {0.01: "stable"}, "no_clip": {0.01: "collapsed"}}, seeds=(0, 1))
    write_report(source)
    subprocess.run([sys.executable, SCRIPTS / "reduce_results.py", source, target], check=True)
    for path in sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file()):
        if path.name.startswith(("layers-", "gradient_depth")):
            if path.suffix == ".csv":
                frames = [pd.read_csv(folder / path) for folder in (target, source)]
                pd.testing.assert_frame_equal(*frames, rtol=0.011)
        elif path.parts[0] in ("report", "results.csv") and path.name != "index.html":
            assert (target / path).read_bytes() == (source / path).read_bytes(), path
    (page, data), (reduced, kept) = (split_page(folder / "report" / "index.html") for folder in (source, target))
    assert reduced == page
    assert [run["id"] for run in kept if not run["m"]] == ["control-lr0.01-s1-abc123", "no_clip-lr0.01-s1-abc123"]
    assert all(run["m"] for run in data)
    assert [run["p"] for run in kept] == [run["p"] for run in data]
    size = sum(p.stat().st_size for p in (target / "runs").rglob("*") if p.is_file())
    assert size < sum(p.stat().st_size for p in (source / "runs").rglob("*") if p.is_file())


def test_of_a_run_that_left_its_course_the_steps_around_it_stay(tmp_path):
    source, target = tmp_path / "full", tmp_path / "reduced"
    folder = make_study(source, {"control": {0.01: "stable"}, "no_clip": {0.01: "collapsed"}}, seeds=(0,), steps=200)
    words = [sys.executable, SCRIPTS / "reduce_results.py", "--heatmaps", "none", source, target]
    subprocess.run(words, check=True)
    control, broken = (StudyFolder(target).run(spec.run_id).load() for spec in folder.read_plan())
    whole = folder.run(folder.read_plan()[1].run_id).load()
    verdict = diagnose(broken)
    assert (verdict.onset_step, verdict.onset_layer) == (diagnose(whole).onset_step, diagnose(whole).onset_layer)
    assert verdict.onset_layer
    few = depths_of(whole).norm_steps.tolist()
    around = range(max(verdict.onset_step - 64, 1), verdict.onset_step + 17)
    layers = broken.layers("grad_norm")
    assert layers.index.tolist() == sorted({*few, *around})
    leading = diagnose(whole).onset_layers[:16]
    assert sorted(layers.columns[layers.notna().sum() > len(few)]) == sorted(leading)
    assert control.layers("grad_norm").index.tolist() == few


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
TINY, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@given(st.lists(FLOATS, max_size=20))
@example([0.0, -0.0, TINY / 2, 1e-45, math.nan, math.inf, -math.inf, LARGEST, -LARGEST, 1 + 2.0**-11, -1e-3])
def test_what_is_rounded_is_near_by_and_what_is_not_finite_stays(scripts, values):
    round_vector = scripts("reduce_results").round_vector
    array = np.array(values, dtype=np.float32)
    table = pa.table({"step": np.arange(len(values)), "name": ["x"] * len(values), "grad_norm": array})
    rounded = round_vector("grad_norm", table)
    assert rounded.schema == table.schema
    found = rounded["grad_norm"].to_numpy()
    # Past the largest number with so few bits there is none to round to.
    normal = np.isfinite(array) & (np.abs(array) >= TINY) & (np.abs(array) < LARGEST * (1 - 2.0**-11))
    assert np.array_equal(found[~normal], array[~normal], equal_nan=True)
    assert (np.abs(found[normal].astype(float) / array[normal] - 1) <= 2.0**-11).all()
    assert (found[normal].view(np.uint32) & 0x1FFF == 0).all(), "13 bits of 23 are gone"
    again = round_vector("grad_norm", rounded)
    assert np.array_equal(again["grad_norm"].to_numpy(), found, equal_nan=True)


def test_a_verdict_that_rounding_would_turn_keeps_its_norms(scripts, tmp_path, monkeypatch):
    reduce_results = scripts("reduce_results")
    source, target = tmp_path / "full", tmp_path / "reduced"
    folder = make_study(source, {"control": {0.01: "stable"}, "no_clip": {0.01: "collapsed"}}, seeds=(0,))
    monkeypatch.setattr(reduce_results, "MANTISSA_BITS", 0)  # norms are powers of two: far from themselves
    reduce_results.reduce_study(folder, StudyFolder(target), heatmaps=())
    broken = folder.read_plan()[1].run_id
    whole, copy = (StudyFolder(path).run(broken).load() for path in (source, target))
    pd.testing.assert_frame_equal(copy.layers("grad_norm"), whole.layers("grad_norm"))


@pytest.mark.parametrize("steps", [60, 200])
def test_a_part_of_a_runs_layers_is_no_heatmap(scripts, tmp_path, steps):
    """Of a reduced run some steps are kept, or some layers of all: they would be drawn as if they were the run."""
    reduce_results = scripts("reduce_results")
    source, target = tmp_path / "full", tmp_path / "reduced"
    make_study(source, {"control": {0.01: "stable"}, "no_clip": {0.01: "collapsed"}}, seeds=(0,), steps=steps)
    reduce_results.reduce_study(StudyFolder(source), StudyFolder(target), heatmaps=())
    assert len(list(write_tables(source).layers)) == 2
    # Reduced again, all of what is left is no more than that.
    reduce_results.reduce_study(StudyFolder(target), StudyFolder(tmp_path / "again"))
    for folder in (target, tmp_path / "again"):
        tables = write_tables(folder)
        assert not list(tables.layers)
        assert not list((folder / "report").glob("layers-*"))
        assert len(tables.courses) == 2
        assert all(course.layers.empty for course in tables.courses.values())
    reduce_results.reduce_study(StudyFolder(source), StudyFolder(tmp_path / "some"), heatmaps=["no_clip"])
    assert [run_id.split("-")[0] for run_id in write_tables(tmp_path / "some").layers] == ["no_clip"]
    with pytest.raises(ValueError, match=r"no arm 'no_clp'; the nearest valid is 'no_clip'\.$"):
        reduce_results.reduce_study(StudyFolder(source), StudyFolder(tmp_path / "none"), heatmaps=["no_clp"])


def test_reducing_gives_the_parts_of_an_earlier_version_checksums(tmp_path):
    folder = make_study(tmp_path / "demo", {"control": {0.01: "stable"}}, seeds=(0,))
    (spec,) = folder.read_plan()
    telemetry = folder.run(spec.run_id).telemetry
    old, torn = telemetry.parts("steps")
    table = telemetry.read_part(old).replace_schema_metadata(None)
    pq.write_table(table, old, compression="none", use_dictionary=False)
    words = [sys.executable, SCRIPTS / "reduce_results.py", folder.path, tmp_path / "reduced"]
    subprocess.run(words, check=True)
    reduced = StudyFolder(tmp_path / "reduced").run(spec.run_id).telemetry
    part = reduced.parts("steps")[0]
    assert reduced.read_part(part).equals(table)
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 3] + b"\xff" + whole[len(whole) // 3 + 1 :])
    with pytest.raises(ValueError, match=part.name):
        reduced.read_part(part)
    torn.write_bytes(b"torn")
    done = subprocess.run([*words[:3], tmp_path / "again"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(torn) in done.stderr


def test_committed_parts_have_checksums():
    parts = sorted((ROOT / "results").glob("*/runs/*/telemetry/*.parquet"))
    schemas = {part: pq.read_schema(part) for part in parts}
    assert parts
    assert [part for part, schema in schemas.items() if b"yolo_gradstudy.crc32" not in (schema.metadata or {})] == []


def test_reducing_refuses_a_folder_that_is_not_empty(tmp_path):
    make_study(tmp_path / "demo", {"control": {0.01: "stable"}}, seeds=(0,))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("keep")
    words = [sys.executable, SCRIPTS / "reduce_results.py", tmp_path / "demo", tmp_path / "there"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["mine.txt"]


def test_the_card_of_results_says_what_was_run_and_on_what(tmp_path):
    folder = make_study(tmp_path / "demo", {"control": {0.01: "stable", 0.1: "collapsed"}}, seeds=(0, 1))
    write_tables(folder.path)
    first = folder.run(folder.read_plan()[0].run_id)
    first.write_result(replace(first.read_result(), processor="A Processor", started="2025-01-03T00:00:00+00:00"))
    words = [sys.executable, SCRIPTS / "results_card.py", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    (was, on) = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "results/demo` |" in line]
    assert was == [
        "`results/demo`", "yolo26n.yaml from scratch, shapes, 96 px, batch 16, 60 steps",
        "1 arm; lr0 0.01, 0.1; 2 seeds", "4: 2 collapsed, 2 stable",
        "`gradstudy run results/demo/study.yaml --out runs/demo`",
    ]  # fmt: skip
    assert on == [
        "`results/demo`", "CPU (A Processor of 1 run, not noted of 3), 1 thread a run", "0.0",
        "2025-01-01 to 2025-01-03", "torch 2.14.1, python 3.11.2",
    ]  # fmt: skip
    first.result_path.unlink()
    write_tables(folder.path)
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert " | 3 of 4 so far: 2 collapsed, 1 stable | " in shown
    assert "batch 16, 60 steps |" in shown
    done = subprocess.run([*words[:2], tmp_path / "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no study's folder" in done.stderr
    folder.results_path.unlink()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{folder.results_path} is not there" in done.stderr


def test_models_stand_beside_each_other_where_all_have_runs(scripts, tmp_path):
    make_study(tmp_path / "a", {"control": {0.01: "stable", 0.1: "stable"}, "no_clip": {0.1: "collapsed"}}, (0, 1))
    make_study(
        tmp_path / "b", {"control": {0.1: "nonfinite"}, "no_clip": {0.1: "stable"}, "x": {0.1: "stable"}}, (1, 2)
    )
    study = StudyFolder(tmp_path / "b")
    study.write_study({**study.read_study(), "model": "models/yolov8n.yaml"}, study.read_plan())
    for name in ("a", "b"):
        write_tables(tmp_path / name)
    made = scripts("readme_tables").fill("<!-- models: a b -->\n<!-- end -->", tmp_path)
    assert made.splitlines()[1:-1] == [
        "| arm | model | lr0 0.1 |",
        "|---|---|---|",
        "| control | yolo26n | 1 stable |",
        "| control | yolov8n | 1 nonfinite |",
        "| no_clip | yolo26n | 1 collapsed |",
        "| no_clip | yolov8n | 1 stable |",
    ]


def test_accuracies_stand_beside_the_controls(scripts):
    control = {0: 0.3, 1: 0.2, 2: 0.25}
    rows = [("control", 0.01, seed, "stable", value) for seed, value in control.items()]
    rows += [("worse", 0.01, seed, "stable", value - 0.1 - 0.01 * seed) for seed, value in control.items()]
    rows += [("alike", 0.01, seed, "stable", value + 0.02 * (1 - seed)) for seed, value in control.items()]
    rows += [("lost", 0.01, seed, "collapsed" if seed else "stable", 0.1) for seed in control]
    rows += [(arm, 0.1, seed, "nonfinite", 0.0) for arm in ("control", "lost") for seed in control]
    table = pd.DataFrame(rows, columns=["arm", "lr0", "seed", "outcome", "map50_95"]).assign(status="finished")
    made = scripts("readme_tables").accuracies(accuracy_table(table)).set_index("arm")
    # Student's of three differences: mean ± 4.303 s / √3.
    assert made.to_dict() == {
        "lr0 0.01": {
            "control": "0.250 (0.126 to 0.374)",
            "worse": "0.140; **−0.110 (−0.135 to −0.085)**",
            "alike": "0.250; 0.000 (−0.050 to +0.050)",
            "lost": "0.033; **−0.217 (−0.288 to −0.145)**; 2 of 3 broke",
        },
        "lr0 0.1": {
            "control": "0.000; 3 of 3 broke", "worse": "", "alike": "", "lost": "0.000; 0.000; 3 of 3 broke",
        },
    }  # fmt: skip


def test_checkpoints_that_detect_otherwise_are_named(scripts, tmp_path):
    folder = make_study(tmp_path / "demo", {"control": {0.01: "stable"}, "no_clip": {0.01: "stable"}}, seeds=(0, 1))
    for spec, saved in zip(folder.read_plan(), (0.2, 0.204, 0.19, 0.21), strict=True):
        run = folder.run(spec.run_id)
        (run.path / "results.csv").write_text("epoch,metrics/mAP50-95(B)\n1,0\n2,0.2\n")
        run.write_result(replace(run.read_result(), metrics={"metrics/mAP50-95(B)": saved}))
    write_tables(folder.path)
    told = scripts("checkpoint_accuracy").differing(folder)
    assert told["run"].tolist() == [spec.run_id for spec in folder.read_plan()[2:]]
    assert told.iloc[0].tolist()[1:] == ["stable", "0.200", "0.190"]


def test_the_answer_in_a_page_is_that_of_the_report(scripts, tmp_path):
    make_study(tmp_path / "demo", {"control": {0.01: "stable"}, "no_clip": {0.01: "collapsed"}}, seeds=(0, 1))
    write_report(tmp_path / "demo")
    made = scripts("readme_tables").fill("<!-- answer: demo -->\n<!-- end -->", tmp_path)
    lines = [line[2:] for line in made.splitlines()[1:-1]]
    page = html.unescape((tmp_path / "demo" / "report" / "index.html").read_text())
    assert len(lines) > 2
    assert [line for line in lines if line not in page] == []
    first = scripts("readme_tables").fill("<!-- answer: demo, first 1 -->\n<!-- end -->", tmp_path)
    assert first.splitlines()[1:-1] == [f"- {lines[0]}"]


def test_checksums_tell_a_csv_file_that_is_not_what_it_was(tmp_path):
    report = tmp_path / "demo" / "report"
    report.mkdir(parents=True)
    for path in (tmp_path / "demo" / "results.csv", report / "outcomes.csv", report / "trajectories.csv"):
        path.write_text(f"{path.stem}\n1\n")
    words = [sys.executable, SCRIPTS / "checksums.py", tmp_path]

    def check(*options):
        return subprocess.run([*words, "--check", *options], capture_output=True, text=True, check=False)

    assert check().returncode == 2
    subprocess.run(words, check=True)
    subprocess.run(["sha256sum", "--check", "--quiet", "checksums.sha256"], cwd=tmp_path, check=True)
    (report / "trajectories.csv").unlink()  # not committed
    assert (check().returncode, check().stdout) == (0, "")
    assert check("--complete").stdout.splitlines() == ["demo/report/trajectories.csv is not there"]
    (report / "outcomes.csv").write_text("outcomes\n2\n")
    (report / "new.csv").write_text("new\n")
    done = check()
    assert (done.returncode, done.stdout.splitlines()) == (
        1, ["demo/report/new.csv is new", "demo/report/outcomes.csv is not what it was"],
    )  # fmt: skip
    written = subprocess.run(words, capture_output=True, text=True, check=True)
    assert written.stderr == "demo/report/trajectories.csv is not there: its checksum is left out\n"
    assert (check("--complete").returncode, check("--complete").stdout) == (0, "")


def test_the_committed_csv_files_are_those_of_the_checksums():
    """Run `scripts/reproduce_plots.sh`, then `python scripts/checksums.py results`, where this fails."""
    subprocess.run([sys.executable, SCRIPTS / "checksums.py", ROOT / "results", "--check"], check=True)


def test_readme_shows_the_committed_results(scripts):
    """Run `python scripts/readme_tables.py` where this fails."""
    subprocess.run([sys.executable, SCRIPTS / "readme_tables.py", "--check"], check=True)
    fill = scripts("readme_tables").fill
    marked = "<!-- outcomes: results/coco128-cpu -->\n| wrong |\n<!-- end -->"
    filled = fill(marked)
    results = pd.read_csv(ROOT / "results" / "coco128-cpu" / "results.csv")
    assert all(text in filled for text in outcome_text_table(results).iloc[0])


@pytest.mark.parametrize("study", sorted(p.parent.name for p in (ROOT / "results").glob("*/plan.json")))
def test_committed_results_are_what_their_telemetry_says(study, tmp_path):
    """Judged again by the rules of today, every run of the committed results has the outcome that is committed."""
    committed = ROOT / "results" / study
    copy = tmp_path / study
    shutil.copytree(committed, copy, ignore=shutil.ignore_patterns("report"))
    write_tables(copy)
    assert (copy / "results.csv").read_bytes() == (committed / "results.csv").read_bytes()


@pytest.mark.parametrize("script", sorted(p.name for p in SCRIPTS.glob("*.sh")))
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", SCRIPTS / script], check=True)


@pytest.mark.parametrize(
    ("words", "handed_over"),
    [
        ([], ["run", "stabilisation", "--out", "runs/stabilisation"]),
        (["accuracy"], ["run", "accuracy", "--out", "runs/accuracy"]),
        (["my/one.yaml", "coco-10pct"], ["run", "my/one.yaml", "--out", "runs/one-coco-10pct", "--data", "coco-10pct"]),
        (
            ["stabilisation", "a b.yaml", "out dir", "epochs=10", "scale=$x 1"],
            ["run", "stabilisation", "--out", "out dir", "--data", "a b.yaml", "epochs=10", "scale=$x 1"],
        ),
    ],
)
def test_the_ablation_script_hands_over_what_it_is_given(words, handed_over, tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "run_ablation.sh", tmp_path / "scripts")
    (tmp_path / "Makefile").write_text(".venv/.installed:\n\t@touch made\n")
    command = tmp_path / ".venv" / "bin" / "gradstudy"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    command.chmod(0o755)
    done = subprocess.run(
        ["bash", tmp_path / "scripts" / "run_ablation.sh", *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == handed_over
    assert (tmp_path / "made").is_file()


def test_merging_results_changes_nothing_that_is_read(tmp_path):
    make_study(tmp_path / "demo", {"control": {0.01: "stable"}, "no_clip": {0.01: "nonfinite"}}, seeds=(0,))
    write_tables(tmp_path / "demo")
    before = {p.name: p.read_bytes() for p in (tmp_path / "demo" / "report").iterdir()}
    size = len(list((tmp_path / "demo").rglob("*.parquet")))
    words = [sys.executable, SCRIPTS / "merge_results.py", tmp_path]
    told = [subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert told == ["2 of 2 runs merged, 4 files less\n", "0 of 2 runs merged, 0 files less\n"]
    assert len(list((tmp_path / "demo").rglob("*.parquet"))) == size - 4
    write_tables(tmp_path / "demo")
    assert {p.name: p.read_bytes() for p in (tmp_path / "demo" / "report").iterdir()} == before


def test_committed_telemetry_is_merged():
    """Run `python scripts/merge_results.py results` where this fails."""
    seen = {}
    for part in (ROOT / "results").rglob("telemetry/*.parquet"):
        seen.setdefault((part.parent, part.name.split("-")[0]), []).append(part.name)
    assert [place for place, parts in seen.items() if len(parts) > 1] == []


def test_the_benchmark_of_large_studies_makes_a_study_of_every_outcome(tmp_path):
    words = ["--runs", "16", "--arms", "4", "--steps", "100", "--layers", "6", "--what", "tables", "--root", tmp_path]
    done = subprocess.run([sys.executable, SCRIPTS / "bench_scale.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| tables | 16 |" in done.stdout
    (results,) = tmp_path.glob("*/study-16/results.csv")
    outcomes = set(pd.read_csv(results)["outcome"])
    assert {"stable", "collapsed", "nonfinite", "exploded", "recovered"} <= outcomes


@pytest.mark.skipif(sys.platform != "linux", reason="needs the server that forks runs, which is Linux's")
def test_a_study_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path):
    words = [sys.executable, SCRIPTS / "kill_study.py", "--kills", "2", "--seeds", "1", "--root", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "every study as the undisturbed one" in done.stdout
    assert "| together |" in done.stdout
    tally = runpy.run_path(str(SCRIPTS / "kill_study.py"))["read_tally"](tmp_path / "tally.json")  # to go on from
    assert (tally.kills.total(), tally.trained >= tally.studies * 4 >= 4) == (2, True)


def test_what_a_killed_study_did_wrong_is_told(tmp_path):
    script = runpy.run_path(str(SCRIPTS / "kill_study.py"))
    make_study(tmp_path / "one" / "out", {"control": {0.01: "stable"}}, seeds=(0, 1))
    write_report(tmp_path / "one" / "out")

    def differs(change):
        other = tmp_path / "other" / "out"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(tmp_path / "one" / "out", other)
        change(other)
        try:
            script["compare"](tmp_path / "one" / "out", other)
        except script["Difference"] as difference:
            return str(difference)
        return None

    def change_a_number(other):
        telemetry = StudyFolder(other).run(StudyFolder(other).read_plan()[1].run_id).telemetry
        part = telemetry.read_part(telemetry.parts("steps")[0]).to_pandas()
        part.loc[3, "grad_norm"] *= 1.0000002
        telemetry.write_part("steps", pa.Table.from_pandas(part, preserve_index=False))

    def change_an_outcome(other):
        results = other / "results.csv"
        results.write_text(results.read_text().replace("stable", "stuck"))

    assert differs(lambda other: None) is None
    assert "steps" in differs(change_a_number) or "grad_norm" in differs(change_a_number)
    assert "outcome" in differs(change_an_outcome)
    assert "other files" in differs(lambda other: (other / ".results.csv.1@here.tmp").touch())
    assert "plan.json" in differs(lambda other: (other / "plan.json").write_text("[]"))


def test_a_result_that_was_there_and_is_another_is_told(tmp_path):
    script = runpy.run_path(str(SCRIPTS / "kill_study.py"))
    make_study(tmp_path / "out", {"control": {0.01: "stable"}}, seeds=(0, 1))
    results = script["Results"](tmp_path / "out")
    results.note()
    results.note()
    result = results.there()[0]
    content = result.read_bytes()
    result.unlink()
    result.with_name("new").write_bytes(content)
    result.with_name("new").rename(result)  # the same bytes, written again
    with pytest.raises(script["Difference"], match="is another now"):
        results.note()
