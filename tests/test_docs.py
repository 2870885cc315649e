# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the documentation shows is true: its Python runs, its commands parse, its studies load, its tables are whole."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from trainer.small import write_small

from yolo_gradstudy import GradRecorder, load_run
from yolo_gradstudy.ablations import ABLATIONS
from yolo_gradstudy.cli.loading import vocabulary
from yolo_gradstudy.figures import FIGURES
from yolo_gradstudy.plan import load_study
from yolo_gradstudy.run_folder import FLOW_QUANTITIES, LAYER_QUANTITIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL = {"epochs": 1, "imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "device": "cpu", "val": False, "plots": False}


def blocks(kind):
    """The blocks of a kind, each with the page and the number that it has there."""
    for page in PAGES:
        for number, (tag, text) in enumerate(BLOCK.findall(page.read_text())):
            if tag == kind:
                yield pytest.param(text, id=f"{page.name}-{number}")


def pages_with(kind):
    return [page for page in PAGES if any(tag == kind for tag, _ in BLOCK.findall(page.read_text()))]


def test_every_block_says_what_it_is():
    tags = {tag for page in PAGES for tag, _ in BLOCK.findall(page.read_text())}
    assert tags <= {"python", "sh", "yaml", "json", "text"}
    assert all(page.read_text().count("\n```") % 2 == 0 for page in PAGES)


@pytest.fixture
def place(shapes_yaml, tmp_path, monkeypatch):
    """A folder with a small data set under the name that the documentation uses, where every training is short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copy(write_small(shapes_yaml, tmp_path / "data"), tmp_path / "coco128.yaml")
    from ultralytics import YOLO

    real, runs = YOLO.train, str(tmp_path / "runs" / "detect")
    monkeypatch.setattr(YOLO, "train", lambda self, **given: real(self, **{**SMALL, "project": runs, **given}))
    before = set(sys.modules)
    yield tmp_path
    for name in {path.stem for path in tmp_path.glob("*.py")} - before:  # another test has its own of that name
        sys.modules.pop(name, None)


def surroundings(place):
    """What blocks take for granted: a loop of one's own, images, and a recorded run."""
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = [torch.ones(2, 3) for _ in range(4)]
    with GradRecorder(model, optimizer, place / "recorded") as recorder:
        for batch in loader:
            loss = model(batch).square().sum()
            loss.backward()
            recorder.observe(loss=loss)
            optimizer.step()
            recorder.stepped()
            optimizer.zero_grad()
    return {
        "torch": torch, "model": model, "optimizer": optimizer, "loader": loader,
        "compute": lambda model, batch: model(batch).square().sum(), "images": torch.rand(2, 3, 64, 64),
        "run": load_run(place / "recorded"),
    }  # fmt: skip


@pytest.mark.parametrize("page", pages_with("python"), ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, place):
    names = surroundings(place)
    for tag, text in BLOCK.findall(page.read_text()):
        if tag != "python":
            continue
        if "GradStudyTrainer.using" in text and "import" not in text:
            text = f"from yolo_gradstudy import GradStudyTrainer\n{text}"
        exec(compile(text, page.name, "exec"), names)


STANDS_FOR = {"STUDY": "quick", "DIR": "runs/x", "RUN": "runs/x", "OTHER": "runs/y", "FIRST:6379": "127.0.0.1:6379"}
ELSEWHERE = {"git", "pip", "ray", "sbatch", "source"}  # other people's commands


@pytest.mark.parametrize("text", blocks("sh"))
def test_commands_are_ones_that_exist(text):
    from typer.main import get_command

    from yolo_gradstudy.cli import app

    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        line = re.sub(r"\s{2,}[#a-z].*$", "", line.partition(" #")[0]).split(" | ")[0].rstrip()
        line = re.sub(r"\[and .*?\]", "", line).replace("[", "").replace("]", "")
        words = [STANDS_FOR.get(word, word) for word in shlex.split(line)]
        while words and "=" in words[0]:
            words.pop(0)
        if not words or words[0] in ELSEWHERE:
            continue
        command, *rest = words
        if command == "make":
            assert rest[0] in targets, line
        elif command in ("python", "bash"):
            assert (ROOT / rest[0]).is_file() or rest[0] == "-c", line
        elif command.startswith("scripts/"):
            assert (ROOT / command).is_file(), line
        else:
            assert command == "gradstudy", line
            group = get_command(app)
            rest = [word for word in rest if word != "key=value ..." and word not in ("key=value", "...")]
            name = rest.pop(0)
            sub = group.commands[name]
            if hasattr(sub, "commands"):
                sub = sub.commands[rest.pop(0)]
            sub.make_context(name, rest)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_studies_load(text, tmp_path, place):
    data = yaml.safe_load(text)
    (place / "my_ablations.py").write_text("def no_attention(model):\n    return []\n")
    study = {"name": "x", "model": "yolo26n.yaml", "data": "shapes", "lr0": [0.01], "seeds": [0]}
    study |= {"arguments": {"optimizer": "SGD"}, **data}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    assert load_study(tmp_path / "study.yaml", vocabulary()).runs()


@pytest.mark.parametrize("text", blocks("json"))
def test_json_is_json(text):
    assert json.loads(text)["required"]


def test_every_recorded_quantity_is_defined(place, tmp_path):
    """Of a real training with all on: each scalar, vector, flow, validation and column of results.csv has a row."""
    from ultralytics import YOLO

    from yolo_gradstudy import GradStudyTrainer, RecordConfig

    trainer = GradStudyTrainer.using(RecordConfig(flow_every=2, untrained=True))
    yolo = YOLO("yolo26n.yaml")
    yolo.train(data="coco128.yaml", trainer=trainer, **{**SMALL, "val": True})
    run = load_run(yolo.trainer.save_dir)
    rows = [line.split("|")[1:3] for line in (ROOT / "docs" / "quantities.md").read_text().splitlines() if "|" in line]
    defined = {kind: set() for kind in ("step", "parameter", "module", "validation", "epoch")}
    for names, kind in rows[2:]:
        defined[kind.strip()] |= {re.sub(r"<\w+>", "*", name) for name in re.findall(r"`([^`]+)`", names)}

    def shape(name):
        return re.sub(r"_pg\d+$", "_pg*", re.sub(r"_(one2many|one2one)$", "_*", name))

    assert {shape(name) for name in (run.steps.index.name, *run.steps.columns)} - {"dfl_loss"} <= defined["step"]
    assert set(LAYER_QUANTITIES) == defined["parameter"]
    assert set(FLOW_QUANTITIES) == defined["module"]
    assert {shape(name) for name in run.validations.columns} == defined["validation"]
    ours = set(pd.read_csv(run.path / "results.csv").columns) & defined["epoch"]
    assert ours == defined["epoch"]


def test_every_ablation_is_in_the_documentation():
    text = (ROOT / "docs" / "ablations.md").read_text()
    assert [name for name in ABLATIONS if f"`{name}" not in text] == []


def test_every_figure_is_in_the_documentation():
    text = (ROOT / "docs" / "figures.md").read_text()
    assert [name for name in FIGURES if f"| `{name.removeprefix('plot_')}` |" not in text] == []


def test_the_site_is_built_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    named = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f" {page.name}\n" not in named] == []
