# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a trainer does about a run that is certainly lost, in real trainings."""

import math

import pytest
import torch

from yolo_gradstudy import GradStudyTrainer, diagnose, load_run
from yolo_gradstudy.diagnoses import live
from yolo_gradstudy.records import Outcome
from yolo_gradstudy.trainer import guard
from yolo_gradstudy.trainer.training import train as train_as_a_study_does

from .small import train

LONG = {"imgsz": 32, "epochs": 45, "warmup_epochs": 1, "save": False}
"""135 steps, three batches an epoch."""


def kill_head(at, again_every=0):
    """A callback after which no class is ever predicted: the loss falls, and the detector is dead."""

    def kill(trainer):
        trainer.made = getattr(trainer, "made", 0) + 1
        if trainer.made == at or (again_every and trainer.made > at and (trainer.made - at) % again_every == 0):
            with torch.no_grad():
                for name, parameter in trainer.model.named_parameters():
                    if "cv3" in name and ".2." in name and name.count(".") == 5:
                        parameter.fill_(-100.0 if name.endswith("bias") else 0.0)

    return {"on_train_batch_start": kill}


def spoil(at, value=math.nan):
    """A callback that fills a weight."""

    def fill(trainer):
        trainer.made = getattr(trainer, "made", 0) + 1
        if trainer.made == at:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(value)

    return {"on_train_batch_start": fill}


def events(run, name):
    return [event for event in run.events if event["event"] == name]


def test_a_dead_head_ends_the_run_and_what_that_saves_is_told(small_yaml, tmp_path):
    train(GradStudyTrainer.using(on_unhealthy="stop"), small_yaml, tmp_path / "run", callbacks=kill_head(40), **LONG)
    run = load_run(tmp_path / "run")
    (ended,) = events(run, "ended_early")
    last = int(run.steps.index[-1])
    assert 40 + live.CERTAIN_AFTER <= last <= 40 + guard_steps() + 10
    assert ended["outcome"] == "collapsed"
    assert ended["step"] == last
    assert ended["planned_steps"] == 135
    assert ended["saved_share"] == pytest.approx(1 - last / 135, abs=1e-4)
    assert abs(ended["onset_step"] - 40) <= 3
    verdict = diagnose(run)
    assert verdict.outcome is Outcome.COLLAPSED
    assert run.events[-1]["event"] == "finished"


def test_nan_ends_the_run(small_yaml, tmp_path):
    cls = GradStudyTrainer.using(on_unhealthy="stop", ablations=["no_nan_recovery"])
    train(cls, small_yaml, tmp_path / "run", callbacks=spoil(16), **LONG)
    run = load_run(tmp_path / "run")
    (ended,) = events(run, "ended_early")
    assert ended["outcome"] == "nonfinite"
    assert ended["onset_step"] == 16
    assert run.steps.index[-1] <= 16 + guard_steps() + 1


def guard_steps():
    """Steps from the trouble to certainty, at most."""
    return live.CERTAIN_AFTER + 2 * live.CHECK_EVERY


def test_a_healthy_run_is_left_alone_to_the_last_bit(small_yaml, tmp_path):
    weights = {}
    for action in ("continue", "stop", "recover"):
        folder = tmp_path / action
        yolo = train(GradStudyTrainer.using(on_unhealthy=action), small_yaml, folder, **{**LONG, "epochs": 18})
        weights[action] = yolo.trainer.model.state_dict()
        assert [e["event"] for e in load_run(folder).events] == ["started", "finished"]
    for action in ("stop", "recover"):
        assert all(torch.equal(weights["continue"][key], weights[action][key]) for key in weights[action])


def test_recover_goes_back_to_a_healthy_state_and_trains_on_more_gently(small_yaml, tmp_path):
    """Weights, momenta and EMA are compared with those of the training when it was there."""
    seen = {}

    def look(trainer):
        if trainer._recorder.step == 50 and trainer._guard._states[-1].step == 50:
            seen.setdefault("then", copied(trainer))
        if trainer._guard._recoveries:
            seen.setdefault("now", copied(trainer))

    def copied(trainer):
        momenta = [s["momentum_buffer"].clone() for s in trainer.optimizer.state.values()]
        ema = [v.clone() for v in trainer.ema.ema.state_dict().values()]
        return [v.clone() for v in trainer.model.state_dict().values()] + momenta + ema

    # The guard acts after the callbacks of a batch: what it did is seen at the beginning of the next.
    callbacks = {"on_train_batch_start": chained(look, kill_head(60)["on_train_batch_start"])}
    cls = GradStudyTrainer.using(on_unhealthy="recover")
    yolo = train(cls, small_yaml, tmp_path / "run", callbacks=callbacks, **LONG)
    run = load_run(tmp_path / "run")
    (back,) = events(run, "went_back")
    assert back["outcome"] == "collapsed"
    assert back["to_step"] == 50  # states are kept after steps 0, 50, 100
    assert back["lr_factor"] == 0.5
    assert back["clip_norm"] == yolo.trainer._active.clip_norm == 5.0
    assert len(seen["then"]) == len(seen["now"])
    assert all(torch.equal(a, b) for a, b in zip(seen["then"], seen["now"], strict=True))
    assert run.steps.index.tolist() == list(range(1, 136))
    weight = f"lr_pg{run.meta['groups'].index('weight')}"
    before, after = (float(run.steps[weight].loc[back["step"] + moved]) for moved in (0, 4))
    assert after == pytest.approx(before / 2, rel=0.15)  # the schedule lowers it, too
    assert diagnose(run).outcome.healthy


def test_a_run_that_went_on_more_gently_is_resumed_so(small_yaml, tmp_path):
    def stop(trainer):
        trainer.stop = trainer.stop or bool(trainer._guard._recoveries)

    cls = GradStudyTrainer.using(on_unhealthy="recover")
    long = {**LONG, "epochs": 30, "save": True}
    train(cls, small_yaml, tmp_path / "run", callbacks={**kill_head(20), "on_train_epoch_end": stop}, **long)
    before = load_run(tmp_path / "run")
    (back,) = events(before, "went_back")
    last = tmp_path / "run" / "weights" / "last.pt"
    checkpoint = torch.load(
        last, weights_only=False
    )  # as an interrupted training leaves it: Ultralytics strips a last one
    model = checkpoint.get("ema") or checkpoint["model"]
    assert model.gradstudy_guard == {"lr_factor": 0.5}
    assert model.gradstudy["clip_norm"] == back["clip_norm"] == 5.0
    assert model.gradstudy["on_unhealthy"] == "recover"


def test_nan_at_the_end_of_an_epoch_is_gone_back_from_at_once(small_yaml, tmp_path):
    """Three batches an epoch: Ultralytics would replay it before anything is certain."""
    cls = GradStudyTrainer.using(on_unhealthy="recover")
    train(cls, small_yaml, tmp_path / "run", callbacks=spoil(16), **{**LONG, "epochs": 12})
    run = load_run(tmp_path / "run")
    (back,) = events(run, "went_back")
    assert back["outcome"] == "nonfinite"
    assert back["to_step"] == 0
    assert not events(run, "nan_recovery")
    assert torch.tensor(run.steps["loss"].to_numpy()[18:]).isfinite().all()


def test_a_mistake_of_ours_ends_no_training(small_yaml, tmp_path, monkeypatch):
    def fail(self, step, scalars):
        raise ArithmeticError("planted")

    monkeypatch.setattr(live.LiveVerdict, "see", fail)
    train(GradStudyTrainer.using(on_unhealthy="stop"), small_yaml, tmp_path / "run", **{**LONG, "epochs": 2})
    run = load_run(tmp_path / "run")
    assert len(run.steps) == 6
    (off,) = events(run, "guard_off")
    assert off["reason"] == "ArithmeticError: planted"


def test_ranks_agree_on_the_end(monkeypatch):
    asked = []

    def broadcast(answer, source):
        asked.append((list(answer), source))
        answer[0] = True

    assert guard.agreed(True)
    assert not guard.agreed(False)
    monkeypatch.setattr(guard.dist, "broadcast_object_list", broadcast)
    for rank, told in ((0, True), (1, None)):
        monkeypatch.setattr(guard, "RANK", rank)
        assert guard.agreed(rank == 0)
        assert asked[-1] == ([told], 0)


def chained(*callbacks):
    def call(trainer):
        for callback in callbacks:
            callback(trainer)

    return call


def test_a_run_that_dies_again_and_again_is_ended(small_yaml, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "MOST_RECOVERIES", 2)
    cls = GradStudyTrainer.using(on_unhealthy="recover")
    callbacks = kill_head(20, again_every=1)
    train(cls, small_yaml, tmp_path / "run", callbacks=callbacks, **{**LONG, "epochs": 100})
    run = load_run(tmp_path / "run")
    assert len(events(run, "went_back")) == 2
    assert len(events(run, "ended_early")) == 1
    assert run.steps.index[-1] < 300


def test_a_study_sets_it_among_its_arguments(small_yaml, tmp_path):
    from yolo_gradstudy.trainer import TrainerSettings

    arguments = {"data": str(small_yaml), "device": "cpu", "workers": 0, "plots": False, "val": False, "batch": 4}
    arguments |= {"epochs": 1, "imgsz": 32, "on_unhealthy": "stop"}
    train_as_a_study_does("yolo26n.yaml", arguments, tmp_path / "run", TrainerSettings())
    assert load_run(tmp_path / "run").meta["on_unhealthy"] == "stop"


def test_another_action_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'on_unhealthy=recovr' is none of continue, stop, recover; .*'recover'"):
        GradStudyTrainer.using(on_unhealthy="recovr")
