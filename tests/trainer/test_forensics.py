# SPDX-License-Identifier: AGPL-3.0-or-later
"""Planted faults are found in their step and their module, and looking for them changes nothing."""

import importlib.util
import json
import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner
from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_gradstudy import GradStudyTrainer, RecordConfig, load_run
from yolo_gradstudy.cli import app
from yolo_gradstudy.recorder import recorder as recorder_module
from yolo_gradstudy.records import ForensicsConfig
from yolo_gradstudy.trainer import replay_incidents

from .small import train, write_small
from .test_identity import assert_same

SCRIPT = Path(__file__).parents[2] / "scripts" / "planted_faults.py"


@pytest.fixture(scope="module")
def faults():
    spec = importlib.util.spec_from_file_location("planted_faults", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["planted_faults"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny_yaml(shapes_yaml, tmp_path_factory):
    """As many images as a planted training has batches of four."""
    return write_small(shapes_yaml, tmp_path_factory.mktemp("tiny"), train=48)


def test_planted_faults_are_named(faults, tiny_yaml, tmp_path):
    plants = faults.draw(60, seed=1)[::5]  # twelve, of every place, fault and model
    rows = [faults.judge(plant, str(tiny_yaml), tmp_path / str(i)) for i, plant in enumerate(plants)]
    told = pd.DataFrame(rows)[["place", "fault", "step", "seen_step", "module", "seen_module", "found_by"]].to_string()
    assert {r["place"] for r in rows} == set(faults.PLACES)
    assert all(row["step_exact"] for row in rows), told
    assert sum(row["module_exact"] for row in rows) >= 11, told


def spoil_weight(step, name, value):
    """A callback that spoils a weight before a batch."""
    calls = []

    def callback(trainer):
        calls.append(0)
        if len(calls) == step:
            with torch.no_grad():
                trainer.model.get_parameter(name).view(-1)[0] = value

    return {"on_train_batch_start": callback}


CONV = "model.2.cv1.conv"


class Spiky:
    """A forward hook of a person's own that has state, and draws."""

    def __init__(self, step):
        self.step, self.calls, self.seen = step, 0, []

    def __call__(self, module, inputs, output):
        self.calls += 1
        self.seen.append(float(output.detach().abs().mean()))
        return output * 1e7 if self.calls == self.step else None


def hooked(hook):
    return {"on_train_start": lambda trainer: trainer.model.get_submodule(CONV).register_forward_hook(hook)}


def both(folder, data, faulty, trainer=GradStudyTrainer, **arguments):
    """The same training with Ultralytics' trainer and ours; ``faulty()`` gives callbacks."""
    plain = train(DetectionTrainer, data, folder / "plain", callbacks=faulty(), **arguments).trainer
    ours = train(trainer, data, folder / "ours", callbacks=faulty(), **arguments).trainer
    assert_same(plain.model.state_dict(), ours.model.state_dict(), "model")
    assert_same(plain.ema.ema.state_dict(), ours.ema.ema.state_dict(), "ema")
    assert_same(plain.optimizer.state_dict(), ours.optimizer.state_dict(), "optimizer")
    csvs = [pd.read_csv(folder / run / "results.csv").drop(columns="time") for run in ("plain", "ours")]
    pd.testing.assert_frame_equal(csvs[0], csvs[1][csvs[0].columns], check_exact=True)  # ours has a few more columns
    return load_run(folder / "ours")


def test_a_replay_changes_nothing(small_yaml, tmp_path):
    hooks, states = [], []

    def faulty():
        hooks.append(Spiky(4))

        def state(trainer):
            states.append((torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()))

        return {**hooked(hooks[-1]), "on_train_batch_end": state}

    trainer = GradStudyTrainer.using(forensics=ForensicsConfig(every=2))
    run = both(tmp_path, small_yaml, faulty, trainer, multi_scale=0.5, epochs=2)
    (incident,) = run.incidents
    assert incident["step"] == 4
    assert incident["replay"]["reproduced"]
    assert (incident["cause"]["module"], incident["cause"]["what"]) == (CONV, "output")
    assert hooks[0].__dict__ == hooks[1].__dict__, "a hook's state is its own training's"
    assert_same(states[: len(states) // 2], states[len(states) // 2 :], "generators")


def test_files_of_the_batches_are_told(small_yaml, tmp_path):
    train(GradStudyTrainer, small_yaml, tmp_path / "run", callbacks=spoil_weight(5, f"{CONV}.weight", math.nan))
    (incident,) = load_run(tmp_path / "run").incidents
    assert list(incident["files"]) == ["1", "2", "3", "4", "5"]
    assert {len(names) for names in incident["files"].values()} == {4}
    assert incident["images"] == incident["files"]["5"]
    assert all(Path(name).is_file() for names in incident["files"].values() for name in names)
    assert incident["cause"]["parameter"] == f"{CONV}.weight"
    assert incident["order"][0]["name"] == f"{CONV}.weight"
    assert json.loads((tmp_path / "run/incidents/001/incident.json").read_text())["epoch"] == 1


def test_accumulated_batches_are_replayed_one_by_one(small_yaml, tmp_path):
    callbacks = hooked(Spiky(11))  # in the second batch of the second epoch's step
    train(
        GradStudyTrainer, small_yaml, tmp_path / "run", callbacks=callbacks, batch=2, nbs=4, epochs=4, warmup_epochs=0
    )
    (incident,) = load_run(tmp_path / "run").incidents
    assert incident["replay"]["reproduced"]
    assert (incident["cause"]["module"], incident["cause"]["what"]) == (CONV, "output")
    assert len(incident["files"][str(incident["step"])]) == 4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_mixed_precision_too(small_yaml, tmp_path, precision):
    trainer = GradStudyTrainer.using(precision=precision)
    callbacks = spoil_weight(5, f"{CONV}.weight", math.nan)
    train(trainer, small_yaml, tmp_path / "run", callbacks=callbacks)
    incidents = load_run(tmp_path / "run").incidents
    if precision == "fp16":  # the scaler skips the step: that is no incident
        assert incidents == []
    else:
        assert incidents[0]["step"] == 5
        assert incidents[0]["cause"]["parameter"] == f"{CONV}.weight"
        assert incidents[0]["replay"]["reproduced"]


def test_a_budget_that_is_too_small_turns_it_off_and_says_so(small_yaml, tmp_path):
    trainer = GradStudyTrainer.using(forensics=ForensicsConfig(budget_bytes=2**20))
    train(trainer, small_yaml, tmp_path / "run", callbacks=spoil_weight(5, f"{CONV}.weight", math.nan))
    run = load_run(tmp_path / "run")
    (event,) = [e for e in run.events if e["event"] == "forensics_off"]
    assert "MiB, the budget is 1.0 MiB" in event["reason"]
    assert run.incidents[0]["cause"]["found_by"] == "recorded"
    assert run.incidents[0]["cause"]["parameter"] == f"{CONV}.weight"


def test_off_is_off(small_yaml, tmp_path):
    trainer = GradStudyTrainer.using(forensics=ForensicsConfig(every=0))
    yolo = train(trainer, small_yaml, tmp_path / "run", callbacks=spoil_weight(5, f"{CONV}.weight", math.nan))
    assert yolo.trainer._investigator._box is None
    assert "replay" not in load_run(tmp_path / "run").incidents[0]


def test_a_hook_that_can_not_be_copied_is_left_out_and_said(small_yaml, tmp_path):
    callbacks = hooked(Global())
    train(GradStudyTrainer, small_yaml, tmp_path / "run", callbacks=callbacks)
    (incident,) = load_run(tmp_path / "run").incidents
    assert incident["step"] == 4
    assert not incident["replay"]["reproduced"]
    assert incident["replay"]["hooks_left_out"] == [f"a hook of {CONV}: its state is global (CALLS)"]
    assert incident["cause"]["found_by"] == "recorded"


CALLS = []


class Global:
    def __call__(self, module, inputs, output):
        return spoil_globally(output)


def spoil_globally(output):
    CALLS.append(0)
    return output * math.nan if len(CALLS) == 4 else None


class Steep:
    """A forward hook that makes the gradient of one call large; the clip keeps the weights where they are."""

    def __init__(self, step):
        self.step, self.calls = step, 0

    def __call__(self, module, inputs, output):
        self.calls += 1
        if self.calls == self.step:
            output.register_hook(lambda gradient: gradient * 1e6)


def test_what_is_seen_later_is_replayed_from_a_snapshot(small_yaml, tmp_path, monkeypatch):
    """As on an accelerator, where a step's numbers come with a flush; here the device is a CPU all the same."""
    monkeypatch.setattr(recorder_module, "looks_at_once", lambda device: False)
    trainer = GradStudyTrainer.using(RecordConfig(flush_every=4), forensics=ForensicsConfig(every=50))
    run = both(tmp_path, small_yaml, lambda: hooked(Steep(7)), trainer, epochs=3, optimizer="AdamW", lr0=0.001)
    (incident,) = run.incidents
    assert (incident["step"], incident["kind"]) == (7, "spike")
    assert incident["replay"]["reproduced"], incident["replay"]
    assert incident["replay"]["steps"] == 7
    assert (incident["cause"]["module"], incident["cause"]["what"]) == (CONV, "gradient")


def test_a_saved_step_is_replayed_later_by_the_command(small_yaml, tmp_path):
    trainer = GradStudyTrainer.using(ablations=["no_clip"], forensics=ForensicsConfig(save=True))
    train(trainer, small_yaml, tmp_path / "run", callbacks=spoil_weight(5, f"{CONV}.weight", math.nan))
    path = tmp_path / "run/incidents/001/incident.json"
    first = json.loads(path.read_text())
    path.write_text(json.dumps({**first, "cause": {}, "order": [], "replay": None}))
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path / "run"), "--replay"])
    assert f"nonfinite at step 5: weight {CONV}.weight (replayed, certain" in done.output, done.output
    later = json.loads(path.read_text())
    assert later["cause"] == first["cause"]
    assert later["replay"]["reproduced"]
    assert later["replay"]["later"]
    assert [o["name"] for o in later["order"]] == [o["name"] for o in first["order"]]
    (path.parent / "snapshot.pt").write_bytes(b"torn")
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path / "run"), "--replay"])
    assert "snapshot.pt can't be read" in done.output


def test_a_run_that_saved_nothing_can_not_be_replayed(tmp_path):
    (tmp_path / "incidents").mkdir()
    with pytest.raises(ValueError, match=r"0 incidents and no snapshot\.pt.*save=True"):
        replay_incidents(tmp_path)
