# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study is read run by run: what is judged is forgotten, and tables are the same however it is read."""

import gc
import math
import weakref

import pytest
from synthetic import judge, make_spec, make_study, parameter_names

from yolo_gradstudy import readings
from yolo_gradstudy.diagnoses import StudyJudge, diagnose_run
from yolo_gradstudy.readings import chosen_rates, control_of, read_study, write_tables
from yolo_gradstudy.records import Outcome
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import RecordedRun, TelemetryFolder, load_run
from yolo_gradstudy.tables import MOST_SEEDS

ARMS = {
    "no_clip": {1.0: "nonfinite", 0.01: "stable"},
    "control": {0.01: "stable", 1.0: "collapsed"},
    "no_batchnorm": {0.01: "collapsed", 1.0: "nonfinite"},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study") / "demo", ARMS, seeds=(0, 1))


def files(folder):
    return {p.name: p.read_bytes() for p in (folder.results_path, *folder.report_path.glob("*.csv"))}


def test_a_study_is_judged_as_each_of_its_runs_is(study):
    found = {r.spec.run_id: r.diagnosis for r in read_study(study).readings}
    assert {Outcome.STABLE, Outcome.COLLAPSED, Outcome.NONFINITE} <= {d.outcome for d in found.values()}
    for spec in study.read_plan():
        run = load_run(study.run(spec.run_id).path)
        alone, verdict = diagnose_run(run, run.result, control_of(run)), found[spec.run_id]
        assert [f for f in alone.findings if not f.explains] == list(verdict.findings)
        for name in ("outcome", "evidence", "onset_step", "onset_layer", "onset_layers", "so_far"):
            assert getattr(verdict, name) == getattr(alone, name), (spec.run_id, name)


def test_tables_are_the_same_of_one_process_and_of_two(study, monkeypatch):
    write_tables(study.path)
    one = files(study)
    monkeypatch.setattr(readings, "_POOL_FROM", 1)
    tables = write_tables(study.path, processes=2)
    assert files(study) == one
    assert [r.spec for r in tables.reading.readings] == study.read_plan()
    assert len(one) > 5


@pytest.mark.parametrize("seeds", [1, 4])
def test_numbers_of_a_judged_run_are_forgotten(tmp_path, monkeypatch, seeds):
    """Those of a group and of the controls are in memory at once, however many runs there are."""
    kept: list[weakref.ref] = []
    most = 0

    def remember(run, result, control):
        nonlocal most
        kept.extend((weakref.ref(run.steps), weakref.ref(run.layers("grad_norm"))))
        gc.collect()
        most = max(most, sum(frame() is not None for frame in kept))
        return judge(run, result, control)

    arms = {arm: {0.01: "stable", 0.1: "stable", 1.0: "stable"} for arm in ("control", "no_clip", "no_warmup")}
    folder = make_study(tmp_path / "demo", arms, range(seeds))
    tables = write_tables(folder.path, remember)
    gc.collect()
    assert len(kept) == 2 * 9 * seeds
    assert [frame for frame in kept if frame() is not None] == []
    assert most <= 2 * seeds + 1, "steps of a group and of the controls, and one run's layers"
    assert len(tables.results) == 9 * seeds
    assert [len(r.run.steps) for r in tables.reading.readings][:1] == [60], "read again where it is asked for"


def vectors_read(folder, monkeypatch):
    """The runs whose vectors are read for the tables, each with its quantity."""
    real, read = TelemetryFolder.read, []

    def remember(self, quantity, damaged=None):
        read.append((self.path.parent.name, quantity))
        return real(self, quantity, damaged)

    monkeypatch.setattr(TelemetryFolder, "read", remember)
    tables = write_tables(folder.path)
    assert len(read) == len(set(read)), "nothing is read twice"
    return tables, {(run, quantity) for run, quantity in read if quantity != "steps"}


def test_vectors_of_healthy_runs_are_read_of_a_few_seeds_alone(tmp_path, monkeypatch):
    """The first seed's for its heatmap and the page, and those of the first five for gradients and gains by depth."""
    monkeypatch.setattr(readings, "MOST_COURSES", 2)
    arms = {"control": {0.01: "stable"}, "no_clip": {0.01: "stable"}}
    folder = make_study(tmp_path / "demo", arms, range(MOST_SEEDS + 2))
    tables, read = vectors_read(folder, monkeypatch)
    seen = {make_spec(arm, seed=seed).run_id for arm in arms for seed in range(MOST_SEEDS)}
    assert {run for run, _ in read} == seen
    assert {quantity for _, quantity in read} == {"grad_norm", "activation_rms"}, "and no flow where none was recorded"
    assert tables.gradient_depth["n"].max() == MOST_SEEDS
    assert tables.gains.empty, "no flow was recorded"


def test_by_depth_the_smallest_the_middle_and_the_largest_rate_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(readings, "MOST_COURSES", 4)
    rates = {0.01 * 2**i: "stable" for i in range(4)}
    folder = make_study(tmp_path / "demo", {"control": rates}, (0, 1))
    tables, read = vectors_read(folder, monkeypatch)
    assert sorted(tables.gradient_depth["lr0"].unique()) == [0.01, 0.02, 0.08]
    assert make_spec("control", 0.04, 0).run_id in {run for run, _ in read}, "the heatmap of the first seed"
    assert make_spec("control", 0.04, 1).run_id not in {run for run, _ in read}
    assert chosen_rates([0.3, 0.1, 0.1]) == [0.1, 0.3]
    assert chosen_rates([]) == []


@pytest.mark.parametrize("room", [100, 2])
def test_layers_of_healthy_runs_are_read_for_the_page(tmp_path, monkeypatch, room):
    monkeypatch.setattr(readings, "MOST_COURSES", room)
    monkeypatch.setattr(readings, "MOST_SEEDS", 0)
    arms = {"control": {0.01: "stable"}, "no_clip": {0.01: "stable"}}
    folder = make_study(tmp_path / "demo", arms, (0, 1, 2))
    _, read = vectors_read(folder, monkeypatch)
    seeds = (0,) if room == 2 else (0, 1, 2)
    assert read == {(make_spec(arm, 0.01, seed).run_id, "grad_norm") for arm in arms for seed in seeds}


def test_a_control_is_looked_at_once(study, monkeypatch):
    import yolo_gradstudy.diagnoses as diagnoses

    real, looked = diagnoses.is_healthy_control, []
    monkeypatch.setattr(diagnoses, "is_healthy_control", lambda run: looked.append(run.name) or real(run))
    read_study(study, StudyJudge())
    assert sorted(looked) == sorted(make_spec("control", 0.01, seed).run_id for seed in (0, 1))


def test_a_torn_vector_of_a_healthy_run_is_named_though_nobody_reads_it(tmp_path):
    folder = make_study(tmp_path / "demo", {"control": {0.01: "stable"}, "no_clip": {0.01: "stable"}}, seeds=(0, 1))
    spec = make_spec("no_clip", 0.01, 1)
    part = folder.run(spec.run_id).telemetry.parts("grad_norm")[0]
    part.write_bytes(part.read_bytes()[:-20])
    text = write_report(folder.path).read_text()
    assert f"runs/{spec.run_id}/telemetry/{part.name} can&#39;t be read" in text


def test_where_there_is_no_room_for_all_heatmaps_runs_that_went_wrong_have_theirs(study, monkeypatch):
    monkeypatch.setattr(readings, "MOST_HEATMAPS", 3)
    tables = write_tables(study.path)
    drawn = [(run_id.split("-lr")[0], run_id.split("-lr")[1][0]) for run_id in tables.layers]
    assert sorted(arm for arm, _ in drawn)[:2] == ["control", "control"]
    assert drawn[-1] not in {("no_clip", "0")}
    assert (len(drawn), tables.not_drawn) == (3, 3)


def test_where_there_is_no_room_for_all_courses_each_arm_and_rate_has_one_first(study, monkeypatch):
    def shown(room, processes=1):
        monkeypatch.setattr(readings, "MOST_COURSES", room)
        return [run_id.removesuffix("-abc123") for run_id in write_tables(study.path, processes=processes).courses]

    firsts = ["control-lr0.01-s0", "control-lr1-s0", "no_clip-lr1-s0", "no_batchnorm-lr0.01-s0", "no_batchnorm-lr1-s0"]
    assert shown(5) == firsts, "and not the healthy one that is no control"
    monkeypatch.setattr(readings, "_POOL_FROM", 1)
    assert shown(8, processes=2) == [*firsts, "no_clip-lr0.01-s0", "control-lr0.01-s1", "control-lr1-s1"]


def test_a_course_has_extremes_what_is_not_finite_and_what_is_missing(tmp_path):
    folder = make_study(
        tmp_path / "demo", {"control": {0.01: "nonfinite"}, "no_clip": {0.01: "stable"}}, (0,), steps=600
    )
    incident = folder.run(make_spec().run_id).path / "incidents" / "001" / "incident.json"
    incident.parent.mkdir(parents=True)
    incident.write_text(
        '{"step": 14, "kind": "spike", "cause": {"evidence": "it rose"}, "images": ["a.jpg"], "seen": []}'
    )
    courses = write_tables(folder.path).courses
    broken, healthy = courses[make_spec().run_id], courses[make_spec("no_clip").run_id]
    assert broken.incidents == ({"step": 14, "kind": "spike", "evidence": "it rose", "images": ["a.jpg"]},)
    assert (broken.clip_norm, healthy.clip_norm, broken.last_step) == (10.0, None, 600)
    assert (len(broken.lines), len(broken.layers)) == (240, 100)
    steps = load_run(folder.run(make_spec("no_clip").run_id).path).steps
    last = healthy.lines["step"].iloc[-1]
    assert healthy.lines["grad_norm"].iloc[-1] == steps["grad_norm"].loc[last:].max()
    least = (steps["target_scores_one2one"] / steps["boxes"]).loc[last:].min()
    assert healthy.lines["target_scores"].iloc[-1] == pytest.approx(least)
    assert last < 600, "a bin of several steps"
    assert broken.lines[["loss", "grad_norm"]].iloc[-1].tolist() == [math.inf, math.inf]
    assert math.isnan(broken.lines["target_scores"].iloc[-1])


def test_what_a_run_forgets_is_read_again(study):
    run = RecordedRun(study.run(make_spec("control", 0.01, 0).run_id).path)
    steps, layers, meta = run.steps, run.layers("grad_norm"), run.meta
    run.release()
    assert run.steps is not steps
    assert run.steps.equals(steps)
    assert run.layers("grad_norm").equals(layers)
    assert run.meta == meta
    assert list(layers) == parameter_names()


def test_the_control_of_many_runs_takes_one_look_at_the_plan(study, monkeypatch):
    run, plan = load_run(study.run(make_spec("no_clip", 1.0, 1).run_id).path), study.read_plan()
    monkeypatch.setattr(type(study), "read_plan", lambda self: pytest.fail("the plan is known"))
    assert control_of(run, plan).name == make_spec("control", 0.01, 1).run_id
