# SPDX-License-Identifier: AGPL-3.0-or-later
"""The report's page in a real browser: what it shows, sorts, filters and draws; and it asks nobody for anything."""

import io
import json
import math
import os
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from PIL import Image
from synthetic import judge, make_result, make_spec, make_study, record

from yolo_gradstudy.readings import RunCourse, write_tables
from yolo_gradstudy.report import page as page_module
from yolo_gradstudy.report import write_report
from yolo_gradstudy.report.drawings import Drawing
from yolo_gradstudy.report.page import PAGE_BYTES, render
from yolo_gradstudy.run_folder import StudyFolder, load_run
from yolo_gradstudy.tables import layer_table

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[test]'")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: `apt-get install chromium`, or CHROMIUM=/path/to/it"
)

ATTACK = "</script><img src=x onerror=alert(1)>\"'`--><svg onload=alert(2)>"
ATTACK_ID = "x\"><img src=x onerror=alert(3)>'&amp;-lr1-s0"
ARMS = {
    "control": {0.01: "stable", 1.0: "collapsed"},
    "no_clip": {0.01: "stable", 1.0: "nonfinite"},
    ATTACK: {1.0: "nonfinite"},
}
BROKEN = "no_clip-lr1-s1-abc123"


def make_hostile_study(path: Path) -> StudyFolder:
    """A study of whose names each tries to become markup: study, arm, run, layer, image and error."""
    folder = StudyFolder(path)
    plan = [make_spec(arm, lr0, seed) for arm, kinds in ARMS.items() for lr0 in kinds for seed in (0, 1)]
    plan = [replace(s, run_id=ATTACK_ID.replace("s0", f"s{s.seed}")) if s.arm == ATTACK else s for s in plan]
    study = {"name": f"demo {ATTACK}", "description": "@@courses of runs@@", "model": "yolo26n.yaml", "data": "shapes"}
    folder.write_study({**study, "lr0": [0.01], "seeds": [0, 1]}, plan)
    for spec in plan:
        kind = ARMS[spec.arm][spec.lr0]
        record(folder, spec, kind, None if spec.arm == "no_clip" else 10.0)
        error = {"status": "failed", "error": ATTACK} if spec.arm == ATTACK else {}
        folder.run(spec.run_id).write_result(make_result(spec, weights_finite=kind != "nonfinite", **error))
        if kind == "nonfinite":
            incident = folder.run(spec.run_id).path / "incidents" / "001" / "incident.json"
            incident.parent.mkdir(parents=True)
            cause = {"evidence": f"the loss {ATTACK}"}
            told = {"incident": 1, "step": 14, "kind": "spike", "cause": cause, "images": [f"{ATTACK}.jpg"]}
            incident.write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    names = synthetic.parameter_names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "parameter_names", lambda: [names[0], f"model.0.{ATTACK}", *names[1:]])
        folder = make_hostile_study(tmp_path_factory.mktemp("study") / "demo")
    png = io.BytesIO()
    Image.new("RGB", (900, 300), "white").save(png, format="png")
    drawing = Drawing("outcome_grid", ATTACK, ATTACK, "plot_outcome_grid", pd.DataFrame(), png.getvalue(), b"")
    page = render(write_tables(folder.path, judge), [drawing], "", "")  # real figures take longest, and stay pictures
    (folder.report_path / "index.html").write_text(page)
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page, and all that it did besides being shown."""

    def __init__(self, browser, path: Path, fragment: str = "", **context):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.trouble: list[str] = []
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.trouble.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._requested)
        self.page.goto(f"{path.as_uri()}{fragment}")
        if context.get("java_script_enabled", True):
            self.page.wait_for_function(
                "document.querySelector('#view').textContent || !document.querySelector('#note').hidden"
            )

    def _requested(self, request):
        if not re.match(r"file:.*/index\.html(#.*)?$|data:|blob:", request.url):
            self.trouble.append(f"asked for {request.url}")

    def text(self, selector):
        return " ".join(self.page.locator(selector).inner_text().split())

    def column(self, number):
        cells = f"#table tbody tr:not([hidden]) > :nth-child({number})"
        script = "cells => [...document.querySelectorAll(cells)].map(cell => cell.textContent)"
        return [text.strip() for text in self.page.evaluate(script, cells)]

    def press(self, *keys):
        for key in keys:
            self.page.locator("#chart").press(key)

    def view(self):
        """First and last step, first and last layer of what is in view."""
        text = self.text("#view").replace("step ", "steps ")
        found = re.match(r"steps (\d+)(?: to (\d+))? of .* layers (\d+) to (\d+) of", text)
        first, last, *layers = found.groups()
        return int(first), int(last or first), *map(int, layers)

    def close(self):
        assert self.trouble == []
        self.context.close()


@pytest.fixture
def visit(browser, study):
    opened = []

    def go(fragment="", path=None, **context):
        opened.append(Visit(browser, path or study.report_path / "index.html", fragment, **context))
        return opened[-1]

    yield go
    for one in opened:
        one.close()  # tells of errors in the console, dialogs, and requests


def test_the_table_sorts_by_every_column_with_missing_last(visit):
    one = visit()
    heads = one.page.locator("#table thead th")
    for number in range(1, heads.count() + 1):
        head = heads.nth(number - 1)
        for direction in ("ascending", "descending"):
            head.get_by_role("button").click()
            assert head.get_attribute("aria-sort") == direction
            assert one.page.locator("#table [aria-sort]").count() == 1
            found = one.column(number)
            known = [text for text in found if text != "–"]
            assert found == known + ["–"] * (len(found) - len(known)), "missing comes last"
            if head.get_attribute("class") == "n":
                values = [float(text) for text in known]
                assert values == sorted(values, reverse=direction == "descending")
    outcome = one.page.get_by_role("button", name="outcome", exact=True)
    outcome.focus()
    outcome.press("Enter")
    assert [text.split()[-1] for text in one.column(5)][:4] == ["stable"] * 4, "by how bad it is, not by letters"


def test_the_table_filters_and_counts(visit):
    one = visit()
    page = one.page
    assert one.text("#count") == "10 of 10 runs"
    page.fill("#f-text", "NO_CLIP nonfinite")
    assert one.text("#count") == "2 of 10 runs"
    page.fill("#f-text", "")
    page.select_option("#f-lr0", "1.0")
    page.select_option("#f-seed", "1")
    assert set(zip(one.column(3), one.column(4), strict=True)) == {("1", "1")}
    assert one.text("#count") == "3 of 10 runs"
    page.select_option("#f-arm", ATTACK)
    assert one.column(2) == [ATTACK]
    page.get_by_role("button", name="Show all").click()
    sync_api.expect(page.locator("#count")).to_have_text("10 of 10 runs")
    page.select_option("#f-outcome", "collapsed")
    assert len(one.column(1)) == 2
    page.get_by_role("button", name="Next →").click()  # goes along the table as it is filtered
    sync_api.expect(page).to_have_url(re.compile("control-lr1-s"))


def test_a_run_is_chosen_by_address_click_enter_and_list(visit, study):
    one = visit(f"#run={BROKEN}")
    page = one.page
    verdict = page.locator("#verdict")
    sync_api.expect(verdict).to_contain_text(BROKEN)
    assert one.text("#note") == ""
    page.locator("#facts-of-run summary").click()
    assert "incident 1 step 14, spike: the loss" in one.text("#facts")
    assert f"images {ATTACK}.jpg" in one.text("#facts")
    page.locator("#table tbody tr", has_text="control-lr1-s0").locator("td").nth(2).click()
    sync_api.expect(verdict).to_contain_text("control-lr1-s0-abc123")
    assert page.evaluate("location.hash") == "#run=control-lr1-s0-abc123"
    assert page.evaluate("document.activeElement.id") == "run"
    link = page.get_by_role("link", name="no_clip-lr0.01-s0-abc123")
    link.focus()
    link.press("Enter")
    sync_api.expect(verdict).to_contain_text("no_clip-lr0.01-s0-abc123")
    assert page.locator("#table tr[aria-current] a").inner_text() == "no_clip-lr0.01-s0-abc123"
    page.select_option("#choose", ATTACK_ID)
    sync_api.expect(verdict).to_contain_text(ATTACK_ID)
    page.go_back()
    sync_api.expect(verdict).to_contain_text("no_clip-lr0.01-s0-abc123")


def test_the_chart_says_what_was_recorded(visit, study):
    """Every number that is read out is the telemetry's, to a quarter of a percent."""
    run_id = "no_clip-lr1-s0-abc123"
    one = visit(f"#run={run_id}")
    sync_api.expect(one.page.locator("#verdict")).to_contain_text(run_id)
    layers = layer_table(load_run(study.run(run_id).path)).set_index("step")
    steps = load_run(study.run(run_id).path).steps
    one.press("Home")
    for keys in ([], ["ArrowRight"] * 3, ["ArrowDown"] * 2, ["PageDown"] * 4, ["ArrowLeft", "ArrowUp"]):
        one.press(*keys)
        name, found, norm = re.match(r"(.*?) · step (\d+), gradient norm (\S+)", one.text("#readout")).groups()
        assert float(norm) == pytest.approx(layers.loc[int(found), name], rel=0.003 + 0.005)
        total = re.search(r"norm (\S+?),? ·", one.text("#readout").split("whole gradient’s ")[1])[1]
        assert float(total) == pytest.approx(steps["grad_norm"][int(found)], rel=0.006)
    assert int(found) == 3
    one.press("End")
    assert "gradient norm NaN or infinite · loss NaN or infinite" in one.text("#readout")
    one.press("Home", "i")
    assert "step 7" in one.text("#readout")
    assert "onset" in one.text("#readout")
    one.press("i")
    assert "incident: spike" in one.text("#readout")
    assert one.page.get_attribute("#readout", "aria-live") == "polite"
    one.press("Escape")
    assert one.text("#readout").startswith("Point at the chart")


def test_the_pointer_reads_out_and_says_nothing_aloud(visit):
    one = visit(f"#run={BROKEN}")
    chart = one.page.locator("#chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    one.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.8)
    assert re.match(r"model\.\S+ · step \d+, gradient norm", one.text("#readout"))
    assert one.page.get_attribute("#readout", "aria-live") == "off"
    assert "gradient norm" in one.text("#tip")
    one.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 60)
    assert re.match(r"step \d+ · loss", one.text("#readout")), "above the layers there are none"
    one.page.mouse.move(box["x"] + 5, box["y"] + box["height"] * 0.8)
    assert one.page.locator("#tip").is_hidden()


def test_zoom_by_rectangle_wheel_buttons_and_keys_and_moving(visit):
    one = visit(f"#run={BROKEN}")
    page, chart = one.page, one.page.locator("#chart")
    whole = one.view()
    assert whole == (1, 60, 1, 251)
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()

    def drag(start, end):
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(*end, steps=4)
        page.mouse.up()

    def at(share_x, share_y):
        return box["x"] + box["width"] * share_x, box["y"] + box["height"] * share_y

    drag(at(0.4, 0.6), at(0.6, 0.8))
    first, last, top, bottom = zoomed = one.view()
    assert 1 < first < last < 60
    assert 1 < top < bottom < 251
    page.keyboard.down("Shift")
    drag(at(0.5, 0.7), at(0.7, 0.7))
    page.keyboard.up("Shift")
    assert one.view()[0] < first, "held Shift moves along"
    chart.dblclick()
    assert one.view() == whole
    drag(at(0.4, 0.1), at(0.6, 0.2))
    assert one.view()[2:] == (1, 251), "among the lines a rectangle zooms the steps alone"
    one.press("0")
    assert one.view() == whole
    one.press("+")
    near = one.view()
    assert near[1] - near[0] < 60
    one.press("Shift+ArrowRight")
    assert one.view()[0] > near[0]
    one.press("-", "-")
    assert one.view() == whole
    for name, less in (("Zoom in", True), ("Zoom out", False)):
        before = one.view()
        page.get_by_role("button", name=name).click()
        after = one.view()
        assert (after[1] - after[0] < before[1] - before[0]) is less
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Move right").click()
    moved = one.view()
    page.get_by_role("button", name="Whole run").click()
    assert one.view() == whole != moved
    chart.focus()
    page.mouse.move(*at(0.5, 0.7))
    page.mouse.wheel(0, -300)
    sync_api.expect(page.locator("#view")).not_to_have_text(re.compile("^steps 1 to 60"))
    chart.blur()
    here = one.view()
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert one.view() == here, "without the focus the wheel scrolls the page"
    assert zoomed != whole


def test_pictures_have_their_size_before_they_are_decoded(visit):
    one = visit()
    size = one.page.evaluate("(e => [e.width, e.height, e.naturalWidth])(document.querySelector('figure img'))")
    assert size == [900, 300, 900]
    assert one.page.locator("figure img").get_attribute("height") == "300"


def test_names_stay_text(visit, study):
    """No name becomes an element; a script that ran, or was stopped by the policy, fails at the visit's end."""
    one = visit(f"#run={page_module.jinja2.filters.do_urlencode(ATTACK_ID)}")
    sync_api.expect(one.page.locator("#verdict")).to_contain_text(ATTACK_ID)
    assert one.page.locator("[onerror], [onload], img[src=x]").count() == 0
    assert one.page.locator("h1").inner_text() == f"demo {ATTACK}"
    one.press("Home", "ArrowDown")
    assert ATTACK in one.text("#readout")
    assert one.page.locator("header p").first.inner_text() == "@@courses of runs@@"
    assert one.page.locator("script").count() == 2
    text = (study.report_path / "index.html").read_text()
    assert "</script><img" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_dark_and_what_a_person_chooses(visit, scheme):
    one = visit(color_scheme=scheme)
    page = one.page

    def paper():
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))

    def drawn():
        return page.evaluate("[...document.querySelector('#chart').getContext('2d').getImageData(2, 2, 1, 1).data][0]")

    assert (paper() < 300) is (scheme == "dark")
    assert (drawn() < 100) is (scheme == "dark")
    seen = []
    for _ in range(3):
        page.click("#theme")
        seen.append((paper() < 300, drawn() < 100))
    assert seen == [(False, False), (True, True), (scheme == "dark",) * 2]


def test_a_narrow_screen_needs_no_sideways_scrolling(visit):
    one = visit(f"#run={BROKEN}", viewport={"width": 400, "height": 800})
    assert one.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    one.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert one.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    one.press("Home")
    assert "gradient norm" in one.text("#readout")


def test_paper_has_tables_whole_and_the_chart_as_a_picture(visit):
    one = visit(f"#run={BROKEN}", color_scheme="dark")
    page = one.page
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for hidden in ("nav", "#filter", "#frame", "#readout", "#theme"):
        assert page.locator(hidden).is_hidden(), hidden
    sync_api.expect(page.locator("#printed")).to_have_js_property("naturalWidth", 2000)
    corner = page.evaluate(
        """() => { const g = document.createElement('canvas').getContext('2d');
        g.drawImage(document.querySelector('#printed'), 0, 0); return [...g.getImageData(2, 2, 1, 1).data]; }"""
    )
    assert min(corner) > 240, "on white paper also where the screen is dark"
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.runs')).maxHeight") == "none"
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert min(map(int, re.findall(r"\d+", colour)[:3])) > 240
    assert len(page.pdf(format="A4")) > 10_000
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_without_scripts_the_text_is_all_there(visit):
    one = visit(java_script_enabled=False)
    text = one.text("main")
    for words in (
        "The answer",
        "Control: unhealthy in 2 of 4 runs",
        "Claims",
        "With scripts on, this table sorts",
        BROKEN,
    ):
        assert words in text, words
    assert len(one.column(1)) == 10
    assert one.page.locator("#filter").is_hidden()
    assert one.page.locator("#one").is_hidden()


def test_everything_is_reached_with_the_keyboard(visit):
    one = visit()
    page = one.page
    reached, last = set(), ""
    for _ in range(140):
        page.keyboard.press("Tab")
        last = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        reached.add(last)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or last in ("", page.locator("body").text_content()), last
        if last == "zoom-in":
            break
    assert {"theme", "f-text", "f-arm", "largest norm", BROKEN, "choose", "zoom-in"} <= reached
    names = page.evaluate(
        "[...document.querySelectorAll('button, select, input, canvas[tabindex]')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length"
    )
    assert names == 0, "each control has a name"
    for role, name in (
        ("searchbox", "Search"),
        ("combobox", "Arm"),
        ("combobox", "Outcome"),
        ("combobox", "lr0"),
        ("combobox", "Seed"),
        ("combobox", "Run"),
        ("combobox", "Colours"),
    ):
        assert page.get_by_role(role, name=re.compile(f"^{name}")).count() == 1, name
    levels = [int(tag[1]) for tag in page.locator("h1, h2, h3").evaluate_all("all => all.map(e => e.tagName)")]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_texts_have_enough_contrast(visit):
    """WCAG 2 AA: 4.5 to 1 for text, in light and dark."""

    def light(colour):
        parts = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    one = visit()
    script = """() => ['ink', 'soft', 'link', 'good', 'bad', 'onset', 'paper', 'raised', 'mark'].map(name => {
        const e = document.body.appendChild(document.createElement('i')); e.style.color = `var(--${name})`;
        const found = getComputedStyle(e).color; e.remove(); return found; })"""
    for _ in range(2):
        one.page.click("#theme")
        *texts, paper, raised, mark = map(light, one.page.evaluate(script))
        for ground in (paper, raised, mark):
            for text in texts:
                assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5


def test_a_page_is_read_again_only_where_asked_and_unfinished(tmp_path):
    running = make_study(tmp_path / "a", {"control": {0.01: "stable"}}, seeds=(0,), finished=False)
    ended = make_study(tmp_path / "b", {"control": {0.01: "stable"}}, seeds=(0,))
    refresh = '<meta http-equiv="refresh" content="30">'
    assert refresh in write_report(running.path, judge, refresh_s=30).read_text()
    for path, refresh_s in ((running.path, None), (ended.path, 30)):
        assert 'http-equiv="refresh"' not in render(write_tables(path, judge), [], "", "", refresh_s=refresh_s)


# A large study -------------------------------------------------------------------------------------------

LAYERS, STEPS = 366, 100


def make_course(seed: int) -> RunCourse:
    """Noise of a recorded run's size; the first run's quarters hold values, 0, infinity and nothing."""
    random = np.random.default_rng(seed)
    values = 10 ** (random.normal(0, 0.3, (STEPS, LAYERS)) + np.linspace(1, -3, LAYERS))
    if seed == 0:
        values[25:50], values[50:75], values[75:] = 0.0, math.inf, math.nan
    names = [f"model.{n // 16}.m.{n % 16}.conv.weight" for n in range(LAYERS)]
    frame = pd.DataFrame(values, columns=names)
    frame.insert(0, "step", np.arange(STEPS) * 10 + 1)
    lines = pd.DataFrame({"step": np.arange(240) * 4 + 1, "loss": random.normal(90, 3, 240)})
    lines["grad_norm"], lines["target_scores"] = np.exp(random.normal(3, 0.3, 240)), random.random(240)
    return RunCourse(frame, lines, 1000, 10.0, ())


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A page of 100 runs with what its figures take."""
    arms = {arm: {0.01: "", 0.1: "", 1.0: "", 10.0: ""} for arm in ("control", "a", "b", "c", "d")}
    folder = make_study(tmp_path_factory.mktemp("large") / "demo", arms, range(5), finished=False)
    courses = {spec.run_id: make_course(n) for n, spec in enumerate(folder.read_plan())}
    tables = replace(write_tables(folder.path, judge), courses=courses)
    figures = [
        Drawing(
            f"gradient_norms-lr0_{n}", "Norms", f"Norms {n}", "plot_gradient_norms", pd.DataFrame(), bytes(size), b""
        )
        for n, size in enumerate((700_000, 900_000, 400_000, 100_000))
    ]
    path = folder.report_path / "index.html"
    path.write_text(render(tables, figures, "", ""))
    return path, courses


def test_a_page_of_100_runs_has_them_all_in_5_megabytes(large):
    path, courses = large
    data = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text())[1])
    assert path.stat().st_size <= 5_000_000
    assert path.stat().st_size > 0.8 * PAGE_BYTES, "what there is room for is used"
    assert [run["id"] for run in data["runs"]] == list(courses)
    assert min(run["b"] for run in data["runs"]) >= 24


def test_figures_that_there_is_no_room_for_lie_beside_the_page(large):
    text = large[0].read_text()
    assert len(re.findall(r'<img src="data:', text)) == 3, "what still fits is held"
    assert '<a href="gradient_norms-lr0_2.svg">Norms 2</a> lies beside it.' in text


def test_what_is_0_what_is_not_finite_and_what_is_missing_look_different(visit, large):
    path, courses = large
    run_id = next(iter(courses))
    one = visit(f"#run={run_id}", path=path)
    sync_api.expect(one.page.locator("#verdict")).to_contain_text(run_id)
    said, seen, shares = [], [], (0.12, 0.37, 0.62, 0.87)
    for share in shares:
        found = one.page.evaluate(
            """share => { const c = document.querySelector('#chart'), g = c.getContext('2d');
            const s = c.width / c.clientWidth, x = 142 + share * (c.clientWidth - 150);
            return Array.from({length: 90}, (_, i) => [...g.getImageData(x * s + i % 12, (400 + i) * s, 1, 1).data]
                .slice(0, 3).join()); }""",
            share,
        )
        seen.append({colour for colour in found if found.count(colour) > 5})  # but for lines between blocks
    for share in shares:
        box = one.page.locator("#chart").bounding_box()
        one.page.locator("#chart").hover(position={"x": 142 + share * (box["width"] - 150), "y": 430})
        said.append(re.search(r"gradient norm (.*?)(?: \(largest| ·)", one.text("#readout"))[1])
    assert said[1:] == ["exactly 0", "NaN or infinite", "no gradient"]
    assert float(said[0]) > 0
    assert seen[1:] == [{"255,255,255"}, {"213,94,0", "0,0,0"}, {"189,189,189"}]
    assert not seen[0] & set.union(*seen[1:]), "noise, of which no colour comes often"
    assert re.search(r"steps \d+ to \d+, gradient norm", one.text("#readout")), "a bin says of which steps"


def test_a_table_of_2000_runs_sorts_and_filters_in_a_moment(visit, tmp_path):
    arms = {f"arm{n}": {0.01: ""} for n in range(100)}
    folder = make_study(tmp_path / "s", arms, range(20), finished=False)
    path = tmp_path / "index.html"
    path.write_text(render(write_tables(folder.path, judge), [], "", ""))
    one = visit(path=path)
    took = one.page.evaluate(
        """() => { const start = performance.now(); const head = document.querySelectorAll('#table thead button');
        head[1].click(); head[1].click(); head[3].click();
        const text = document.querySelector('#f-text'); text.value = 'arm42';
        text.dispatchEvent(new Event('input', {bubbles: true})); document.body.offsetHeight;
        return performance.now() - start; }"""
    )
    assert one.text("#count") == "20 of 2000 runs"
    assert one.column(4) == [str(seed) for seed in range(20)]
    assert took < 3000, "milliseconds, on a busy machine"
    assert "No numbers of this run’s steps are in this page" in one.text("#note")
