# SPDX-License-Identifier: AGPL-3.0-or-later
import base64
import hashlib
import json
import re
from functools import partial
from html.parser import HTMLParser
from urllib.parse import unquote

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure
from pandas.testing import assert_frame_equal
from synthetic import FakeRun, judge, make_reading, make_result, make_spec, make_study, make_verdict, record

from yolo_gradstudy.figures import FIGURES
from yolo_gradstudy.readings import control_of, read_study, write_tables
from yolo_gradstudy.records import Outcome
from yolo_gradstudy.report import write_report
from yolo_gradstudy.report.claims import Claim, Experiment, Share
from yolo_gradstudy.report.drawings import Drawing, _panels, draw
from yolo_gradstudy.report.page import _embedded, render
from yolo_gradstudy.run_folder import load_run
from yolo_gradstudy.tables import gradient_depth_table

ARMS = {"control": {0.01: "stable", 1.0: "collapsed"}, "no_clip": {0.01: "stable", 1.0: "nonfinite"}}
LOADS = {"src", "srcset", "poster", "data", "action", "background"}


class Page(HTMLParser):
    """The addresses that a page loads, its elements' ids, and its text but for styles and scripts."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.ids, self.tags, self.text, self.links, self.images = [], [], [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img" and "src" in dict(attributes):
            self.images.append(len(dict(attributes)["src"]))
        for name, value in attributes:
            if name in LOADS or (tag == "link" and name == "href"):
                self.loads.append(value)
            if tag == "a" and name == "href":
                self.links.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        if self.cdata_elem is None:
            self.text += data


DRAWN = []
"""The figures of the report of ``study``."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("study") / "demo", ARMS, seeds=(0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_gradstudy.report.draw", lambda *words: DRAWN.extend(draw(*words)) or DRAWN)
        write_report(folder.path, judge)
    return folder


@pytest.fixture(scope="module")
def html(study):
    return (study.report_path / "index.html").read_text()


def test_the_page_loads_nothing_from_elsewhere(html):
    page = Page(html)
    assert page.loads
    assert all(address.startswith("data:") for address in page.loads)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp", re.sub(r'src="data:[^"]*"', "", html))
    assert page.tags.count("script") == 2, "the runs' numbers, and what reads them"
    assert "default-src 'none'; img-src data:" in html
    # What the policy allows is what stands in the page.
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in html


def test_the_page_has_every_run_and_its_links_lead_somewhere(study, html):
    page = Page(html)
    for spec in study.read_plan():
        assert f"run={spec.run_id}" in page.ids
    assert {unquote(link.removeprefix("#")) for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_says_what_was_run(html):
    text = " ".join(Page(html).text.split())
    for words in (
        "CPU results", "8 of 8 runs have ended.", "yolo26n.yaml", "imgsz=96", "torch 2.14.1", "CPU, 1 thread",
        "Control: unhealthy in 2 of 4 runs: 0 of 2 at lr0 0.01, 2 of 2 at lr0 1.", "No arm differs from the control",
        "Clipping the gradient’s norm keeps training stable.", "2 nonfinite", "gradstudy run demo/study.yaml",
        "gradstudy report demo", "target scores of one2one fell to 0",
    ):  # fmt: skip
        assert words in text, words


def test_layers_are_drawn_by_the_page_and_not_held_as_pictures_too(study, html):
    pictures = {path.stem for path in study.report_path.glob("*.png")}
    held = {name for name in pictures if name in Page(html).ids}
    assert pictures - held == {name for name in pictures if name.startswith("layers-")}
    assert len(Page(html).images) == len(held) > 3


def test_figures_that_no_section_names_are_shown_too(study):
    drawings = [
        Drawing(name, f"Heading of {name}", "What it shows", "plot_outcome_grid", pd.DataFrame(), b"png", b"svg")
        for name in ("outcome_grid", "new")
    ]
    html = render(write_tables(study.path, judge), drawings, "", "")
    assert "More figures" in Page(html).text
    assert "Heading of new. Files: new.svg, .png, data .csv" in Page(html).text


def test_claims_are_those_of_the_study_or_those_given(study):
    tables = write_tables(study.path, judge)
    flights = Experiment("Pigs off a roof", "share that flew", Share(0, 9), (0.5, 1.0), "pig", "pigs", "percent")
    claims = [Claim(3, "Pigs fly.", (flights,), ("They fall.",)), Claim(4, "Pigs swim.")]
    text = " ".join(Page(render(tables, [], "", "", claims=claims)).text.split())
    for words in (
        "− contradicted 3. Pigs fly. Pigs off a roof: share that flew 0% (95% interval 0% to 30%, Wilson).",
        "n = 9 pigs, pigs.csv They fall.",
        "Not tested by this study, which lacks the arm or the rates for it: 4. Pigs swim.",
    ):
        assert words in text
    assert "Clipping the gradient" not in text
    assert "What this study’s data say" not in Page(render(tables, [], "", "", claims=[])).text


def test_tables_and_figures_lie_beside_the_page(study):
    names = {path.name for path in study.report_path.iterdir()}
    for stem in (
        "outcome_grid", "unhealthy_rate", "gradient_norms-lr0_0.01", "gradient_norms-lr0_1", "target_scores-lr0_1",
        "layers-no_clip-lr1-s0-abc123",
    ):  # fmt: skip
        assert {f"{stem}.png", f"{stem}.svg"} <= names
    assert {"outcomes.csv", "outcome_text.csv", "trajectories.csv", "layers-no_clip-lr1-s0-abc123.csv"} <= names
    assert not any("s1" in name for name in names)
    results = pd.read_csv(study.results_path)
    assert list(results["run_id"]) == [spec.run_id for spec in study.read_plan()]
    assert list(results["outcome"][-2:]) == ["nonfinite", "nonfinite"]


def test_beside_each_figure_lies_what_it_was_drawn_from(study):
    kinds = {drawing.plot for drawing in DRAWN}
    needs_more = {"plot_amp_scale", "plot_gains", "plot_limits", "plot_sensitivity", "plot_update_ratios"}
    assert kinds == set(FIGURES) - needs_more, "no AMP, no flow, no search, no validation and no updates here"
    written = {path.stem for path in study.report_path.iterdir() if path.suffix in (".png", ".svg")}
    assert written == {drawing.name for drawing in DRAWN}
    for drawing in DRAWN:
        assert (study.report_path / f"{drawing.name}.svg").is_file()
        assert (study.report_path / f"{drawing.name}.png").is_file()
        data = pd.read_csv(study.report_path / f"{drawing.name}.csv")
        kept = drawing.data.map(
            lambda value: float("nan") if value == "" else value
        )  # a CSV file has nothing for no text
        assert_frame_equal(data, kept.reset_index(drop=True), check_dtype=False, rtol=0)
        groups = [data] if drawing.plot != "plot_incidence" else [g for _, g in data.groupby(["arm", "lr0"])]
        groups = [g for _, g in data.groupby("arm")] if drawing.plot == "plot_gradient_depth" else groups
        for rows in groups:
            FIGURES[drawing.plot](rows, Figure().subplots())


def test_by_depth_arms_of_another_network_have_names_of_their_own_and_moments_one_legend():
    def run(layers, steps):
        index = pd.RangeIndex(1, steps + 1, name="step")
        norms = pd.DataFrame({f"model.{n}.conv.weight": 1.0 for n in range(layers)}, index=index)
        return FakeRun(pd.DataFrame({"grad_norm": 1.0}, index=index), norms)

    def panels(deep):
        readings = [make_reading(run=run(3, 9)), make_reading("deepen", run=run(deep, 5))]
        frame, plot = gradient_depth_table(readings), partial(FIGURES["plot_gradient_depth"], legend=False)
        figure = _panels("Depth", frame, ["control", "deepen"], plot, True, with_control=False)
        figure.canvas.draw()
        return figure, [[t.get_text() for t in ax.get_xticklabels() if t.get_visible()] for ax in figure.axes]

    figure, names = panels(deep=4)
    assert names == [["0", "1", "2"], ["0", "1", "2", "3"]]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["first", "quarter", "half", "last"]
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["control (n = 1)\nsteps 1, 3, 5 and 9", "deepen (n = 1)\nsteps 1, 2, 3 and 5"]
    assert panels(deep=3)[1] == [["0", "1", "2"]] * 2


def test_no_table_is_written_twice(study):
    paths = [path for path in study.report_path.glob("*.csv") if not path.name.startswith("layers-")]
    names = {}
    for path in paths:
        names.setdefault(path.read_bytes(), []).append(path.name)
    assert [same for same in names.values() if len(same) > 1] == []


def test_a_search_has_the_figure_of_its_limits_and_none_over_the_steps(tmp_path):
    arms = {
        "control": {0.01: "stable", 0.02: "stable", 0.04: "collapsed"},
        "no_clip": {0.01: "stable", 0.02: "nonfinite"},
    }
    folder = make_study(tmp_path / "s", arms, seeds=(0, 1))
    study = folder.read_study()
    folder.write_study({**study, "limit": {"factor": 2}}, folder.read_plan())
    page = Page(write_report(folder.path, judge).read_text())
    names = {path.stem for path in folder.report_path.glob("*.png")}
    assert names == {"outcome_grid", "unhealthy_rate", "largest_stable"}
    assert names <= set(page.ids)
    limits = pd.read_csv(folder.report_path / "largest_stable.csv")
    assert limits["largest_stable"].tolist() == [0.02, 0.02, 0.01, 0.01]
    assert limits["log2_ratio"].dropna().tolist() == [-1.0, -1.0]


def test_the_same_study_gives_the_same_bytes_whatever_a_persons_style(tmp_path):
    folder = make_study(tmp_path / "s", {"control": {0.01: "stable"}, "no_clip": {0.01: "nonfinite"}}, seeds=(0,))

    def files():
        write_report(folder.path, judge)
        return {p.name: p.read_bytes() for p in [folder.results_path, *folder.report_path.iterdir()]}

    before = files()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        after = files()
        assert matplotlib.rcParams["font.size"] == 30
    assert set(before) == set(after)
    assert [name for name in before if before[name] != after[name]] == []


def test_names_are_escaped(tmp_path):
    attack = "<script>alert(1)</script>"
    folder = make_study(tmp_path, {"control": {0.01: "stable"}}, (0,), name=attack, description=f"a {attack}")
    spec = folder.read_plan()[0]
    folder.run(spec.run_id).write_result(make_result(spec, status="failed", error=attack, device=attack))

    def verdict(run, result, control):
        return make_verdict(Outcome.UNKNOWN, attack)

    page = write_report(folder.path, verdict).read_text()
    assert attack not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert Page(page).tags.count("script") == 2


def test_a_study_that_has_not_begun_has_a_page(tmp_path):
    folder = make_study(tmp_path / "s", ARMS, seeds=(0,), finished=False)
    page = Page(write_report(folder.path, judge).read_text())
    assert "0 of 4 runs have ended, 4 left no record." in page.text
    assert "No run has an outcome yet that says anything of stability." in page.text
    assert "CPU results" not in page.text
    assert set(pd.read_csv(folder.results_path)["outcome"]) == {"interrupted"}


def test_a_study_in_the_middle_and_damaged_files(tmp_path):
    folder = make_study(tmp_path / "s", {"control": {0.01: "stable", 1.0: "stable"}}, seeds=(0, 1), finished=False)
    first, second, third, _ = folder.read_plan()
    record(folder, first, "stable")
    folder.run(first.run_id).write_result(make_result(first))
    record(folder, second, "stable")  # began and did not end
    folder.run(second.run_id).telemetry.parts("steps")[0].write_bytes(b"torn")
    folder.run(third.run_id).start_afresh(third)
    folder.run(third.run_id).result_path.write_text("{")
    text = " ".join(Page(write_report(folder.path, judge).read_text()).text.split())
    assert "1 of 4 runs have ended, 1 began and did not end, 2 left no record." in text
    assert "Damaged files" in text
    assert f"runs/{second.run_id}/telemetry/steps-000000001.parquet can't be read and was left out" in text
    assert f"runs/{third.run_id}/result.json is not valid JSON" in text
    assert str(tmp_path) not in text


def test_a_run_that_cannot_be_judged_is_unknown_and_the_others_are_reported(tmp_path):
    folder = make_study(tmp_path / "s", {"control": {0.01: "stable"}}, seeds=(0, 1))
    bad, _ = folder.read_plan()
    (folder.run(bad.run_id).path / "telemetry" / "meta.json").write_text('{"schema": 99}')

    def reads_meta(run, result, control):
        assert run is None or run.meta
        return judge(run, result, control)

    reading = read_study(folder, reads_meta)
    assert [r.diagnosis.outcome for r in reading.readings] == [Outcome.UNKNOWN, Outcome.STABLE]
    assert "telemetry schema 99" in reading.damaged[0]
    page = Page(write_report(folder.path, reads_meta).read_text())
    assert "telemetry schema 99" in page.text


@pytest.mark.parametrize("name", ["telemetry/meta.json", "telemetry/events.jsonl", "spec.json"])
def test_a_damaged_control_does_not_end_the_runs_that_it_is_the_control_of(tmp_path, name):
    """Valid JSON of another shape, of which no run can be judged, and with which none is compared."""
    folder = make_study(tmp_path / "s", {"control": {0.01: "stable"}, "no_clip": {0.01: "stable"}}, seeds=(0,))
    bad, good = folder.read_plan()
    (folder.run(bad.run_id).path / name).write_text("[1]\n")
    controls = {}

    def remember(run, result, control):
        controls[run.name] = control
        return judge(run, result, control)

    reading = read_study(folder, remember)
    assert [r.diagnosis.outcome for r in reading.readings] == [Outcome.UNKNOWN, Outcome.STABLE]
    assert controls == {good.run_id: None}
    assert str(folder.run(bad.run_id).path / name) in reading.damaged[0]
    assert bad.run_id in Page(write_report(folder.path, judge).read_text()).text


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"run_id": 1, "status": "finished"}', '{"run_id": "a", "status": "well"}']
)
def test_a_result_of_another_shape_is_left_out(tmp_path, text):
    folder = make_study(tmp_path / "s", {"control": {0.01: "stable"}}, seeds=(0, 1))
    bad, _ = folder.read_plan()
    folder.run(bad.run_id).result_path.write_text(text)
    reading = read_study(folder, judge)
    assert [r.result is None for r in reading.readings] == [True, False]
    assert str(folder.run(bad.run_id).result_path) in reading.damaged[0]


def test_the_control_is_of_the_same_seed_at_the_smallest_rate(tmp_path):
    arms = {"control": {1.0: "stable", 0.01: "stable"}, "no_clip": {1.0: "stable"}}
    folder = make_study(tmp_path / "s", arms, seeds=(0, 1))
    asked = {}

    def remember(run, result, control):
        asked[run.name] = control and control.name
        return judge(run, result, control)

    read_study(folder, remember)
    for seed in (0, 1):
        control = make_spec("control", 0.01, seed).run_id
        assert asked[make_spec("no_clip", 1.0, seed).run_id] == control
        assert asked[make_spec("control", 1.0, seed).run_id] == control
        assert asked[control] is None
        found = control_of(load_run(folder.run(make_spec("no_clip", 1.0, seed).run_id).path))
        assert found.name == control
        assert control_of(load_run(folder.run(control).path)) is None


def test_a_run_that_is_of_no_study_has_no_control(tmp_path):
    folder = make_study(tmp_path / "s", {"no_clip": {0.1: "stable"}}, seeds=(0,))
    path = folder.run(folder.read_plan()[0].run_id).path
    assert control_of(load_run(path)) is None
    (path / "spec.json").unlink()
    assert control_of(load_run(path)) is None


def test_a_folder_without_a_study_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="holds no study"):
        write_report(tmp_path, judge)
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_a_control_has_a_page(tmp_path):
    folder = make_study(tmp_path / "s", {"no_clip": {0.1: "nonfinite"}}, seeds=(0,))
    assert "no_clip" in write_report(folder.path, judge).read_text()


def test_embedded_data_holds_nothing_that_a_parser_of_html_looks_for():
    data = {"</script><!--": ["&lt;", "\u2028\u2029", "]]>"]}
    text = _embedded(data)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == data
