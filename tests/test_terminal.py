# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every command offers a terminal and a script: help with an example, JSON, silence, completion, no colour."""

import json
import os
import shlex
import subprocess
import sys
import threading

import pandas as pd
import pytest
import typer
from synthetic import make_result, make_spec, make_study, record
from typer.testing import CliRunner

from yolo_gradstudy.cli import app
from yolo_gradstudy.report import write_report
from yolo_gradstudy.run_folder import RunFolder, StudyFolder

ARMS = {"control": {0.01: "stable"}, "no_clip": {0.01: "collapsed"}}


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def commands(group=None, before=()):
    """Every command's words and its object."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr("yolo_gradstudy.report.draw", lambda *_: [])
    return make_study(tmp_path / "demo", ARMS, seeds=(0, 1))


@pytest.mark.parametrize(
    ("words", "command"), commands(), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_help_has_an_example_that_the_command_would_take(words, command):
    text = " ".join(invoke(*words, "--help").output.split())
    example = shlex.split(command.epilog.removeprefix("Example: "))
    assert " ".join(("Example:", *example[:2])) in text
    assert tuple(example[: 1 + len(words)]) == ("gradstudy", *words)
    command.make_context(words[-1], example[1 + len(words) :], resilient_parsing=False)  # its options exist


def test_exit_statuses_are_told():
    assert "Exit status" in invoke("--help").output


def test_report_as_json_is_json_alone(study):
    answer = invoke("report", study.path, "--json")
    told = json.loads(answer.stdout)
    assert told["outcomes"] == pd.read_csv(study.results_path)["outcome"].value_counts().to_dict()
    assert told["report"].endswith("index.html")
    assert told["failed"] == []


def test_quiet_says_nothing(study):
    answer = invoke("report", study.path, "--quiet")
    assert (answer.exit_code, answer.output) == (0, "")


@pytest.mark.parametrize("words", [("ablations",), ("data", "list")])
def test_lists_as_json(words):
    rows = json.loads(invoke(*words, "--json").stdout)
    assert len(rows) > 3
    assert all("name" in row for row in rows)


def test_watch_renews_the_report_until_the_study_is_done(study, monkeypatch):
    """A run without a result gets it while the command watches; then it ends by itself."""
    spec = make_spec("no_clip", 0.01, 1)
    result = study.run(spec.run_id).read_result()
    study.run(spec.run_id).forget_result()
    page, written = write_report(study.path), []

    def write(folder, refresh_s):
        assert refresh_s == 1
        written.append(folder)
        return page

    monkeypatch.setattr("yolo_gradstudy.cli.studies._write", write)
    end = threading.Timer(0.5, lambda: study.run(spec.run_id).write_result(result))
    end.start()
    answer = invoke("report", study.path, "--watch", "--every", 0.1, "--quiet")
    assert answer.exit_code == 0, answer.output
    assert len(written) >= 3


def test_a_study_that_is_held_is_not_done(study):
    from yolo_gradstudy.cli.studies import _is_done

    assert _is_done(study.path)
    with study.locked():
        assert not _is_done(study.path)
    study.run(make_spec().run_id).forget_result()
    assert not _is_done(study.path)


@pytest.mark.parametrize("every", ["0", "-1", "nan"])
def test_watch_with_no_time_between(study, every):
    answer = invoke("report", study.path, "--watch", "--every", every)
    assert (answer.exit_code, "the nearest valid is 30" in answer.stderr) == (2, True)


def test_how_far_a_run_is_is_no_part_of_what_it_leaves(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_progress() == {}
    folder.write_progress({"share": 0.5, "grad_norm": float("nan")})
    assert folder.read_progress()["share"] == 0.5
    (tmp_path / "progress.json").write_text("{tor")
    assert folder.read_progress() == {}
    folder.drop_progress()
    assert list(tmp_path.iterdir()) == []


def test_a_shell_completes_commands_and_studies():
    world = {**os.environ, "COMP_WORDS": "gradstudy run ", "COMP_CWORD": "2", "_GRADSTUDY_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", "from yolo_gradstudy.cli import app; app(prog_name='gradstudy')"],
        env=world, capture_output=True, text=True,
    )  # fmt: skip
    assert {"quick", "stabilisation", "ablations"} <= set(done.stdout.split()), done.stderr


@pytest.mark.parametrize("colour", [True, False])
def test_no_color_is_heeded(study, monkeypatch, colour):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    folder = StudyFolder(study.path)
    record(folder, make_spec(), "stable")
    folder.run(make_spec().run_id).write_result(make_result(make_spec()))
    from rich.console import Console

    from yolo_gradstudy.cli.progress import Progress
    from yolo_gradstudy.executors import RunEvent

    console = Console(record=True, width=120)
    progress = Progress(console, study.path, total=1, missing=1)
    progress.on_event(RunEvent("started", make_spec(), place="cpu"))
    console.print(progress._render())
    assert ("\x1b[9" in console.export_text(styles=True)) == colour
