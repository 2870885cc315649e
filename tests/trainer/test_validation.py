# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fixed-assignment loss in real trainings."""

import numpy as np
import pytest
import torch

from yolo_gradstudy import GradStudyTrainer, RecordConfig, load_run
from yolo_gradstudy.run_folder import TelemetryFolder
from yolo_gradstudy.trainer.validation import watched_criterion

from .small import train


@pytest.mark.parametrize(
    ("model", "branches"), [("yolo26n.yaml", ["one2many", "one2one"]), ("yolov8n.yaml", ["one2many"])]
)
def test_each_validated_epoch_has_the_loss_of_each_branch(model, branches, small_yaml, tmp_path):
    yolo = train(GradStudyTrainer, small_yaml, tmp_path / "run", model, val=True, epochs=2)
    run = load_run(tmp_path / "run")
    assert run.validations.index.tolist() == [0, 1]
    assert run.validations["step"].tolist() == [3, 6]
    expected = {f"fixed_{what}_{branch}" for what in ("class", "box", "loss", "chance") for branch in branches}
    assert set(run.validations.columns) == {"step", *expected}
    assert np.isfinite(run.validations.to_numpy()).all()
    assert run.validations[[f"fixed_box_{b}" for b in branches]].to_numpy().max() <= 1
    assert len(run.epochs) == 2
    criterion = getattr(yolo.trainer.ema.ema, "criterion", None)
    assert type(criterion).__module__.startswith("ultralytics") or criterion is None


class Validated:
    """What Ultralytics' own validator hands to a criterion before the first step."""

    def __call__(self, trainer):
        trainer.loss_items = dict.fromkeys(("box_loss", "cls_loss", "dfl_loss", "l1_loss"), torch.zeros(()))
        trainer.epoch = 0
        with watched_criterion(trainer.ema.ema, "detect") as watched:
            trainer.validator(trainer)
        self.values = watched.values()
        trainer.loss_items = None


@pytest.mark.parametrize(
    ("model", "settings"), [("yolo26n.yaml", {}), ("yolov8n.yaml", {"ablations": ["replace_init_by_lsuv"]})]
)
def test_the_untrained_model_is_validated_and_training_is_as_without(small_yaml, tmp_path, model, settings):
    weights, own = {}, Validated()
    for name, untrained in (("with", True), ("without", False)):
        trainer = GradStudyTrainer.using(RecordConfig(untrained=untrained), **settings)
        yolo = train(trainer, small_yaml, tmp_path / name, model, callbacks={"on_train_start": own})
        weights[name] = yolo.trainer.model.state_dict()
    run = load_run(tmp_path / "with")
    assert run.validations.index.tolist() == [-1, 1]
    assert run.validations["step"].tolist() == [0, 6]
    first = run.validations.iloc[0].drop("step").to_dict()
    if not settings:  # those weights come with the first batch, after `on_train_start`
        assert first == pytest.approx(own.values, rel=1e-5)
    else:
        assert first != pytest.approx(own.values, rel=1e-2)
    assert load_run(tmp_path / "without").validations.index.tolist() == [1]
    assert all(torch.equal(weights["with"][name], tensor) for name, tensor in weights["without"].items())


def killing(trainer):
    """What a dead head is: no cell thinks that it sees anything."""
    if trainer.epoch == 1:
        with torch.no_grad():
            for model in (trainer.model, trainer.ema.ema):
                head = model.model[-1]
                for heads in (head.cv3, getattr(head, "one2one_cv3", None) or []):
                    for level in heads:
                        level[-1].bias.fill_(-60.0)
                        level[-1].weight.zero_()


def test_a_dead_head_has_a_worse_loss_where_its_training_loss_is_better(small_yaml, tmp_path):
    for name, callbacks in (("alive", {}), ("dead", {"on_train_epoch_end": killing})):
        train(GradStudyTrainer, small_yaml, tmp_path / name, val=True, callbacks=callbacks, epochs=3, lr0=1e-4)
    alive, dead = (load_run(tmp_path / name) for name in ("alive", "dead"))
    for branch in ("one2many", "one2one"):
        column = f"fixed_loss_{branch}"
        assert dead.validations[column].iloc[-1] > alive.validations[column].iloc[-1] + 3
        assert dead.validations[column].iloc[-1] > dead.validations[f"fixed_chance_{branch}"].iloc[-1]
        assert dead.validations[column].iloc[0] == alive.validations[column].iloc[0]
    assert dead.steps["loss"].iloc[-1] < 0.5 * alive.steps["loss"].iloc[-1]


def test_validations_survive_a_torn_line_and_the_last_of_an_epoch_counts(tmp_path):
    folder = TelemetryFolder(tmp_path / "telemetry")
    assert folder.read_validations().empty
    for epoch, value in ((0, 9.0), (1, 8.0), (1, 7.0)):
        folder.add_validation({"epoch": epoch, "step": 3, "fixed_loss_one2many": value})
    with (folder.path / "validations.jsonl").open("a") as file:
        file.write('{"epoch": 2, "fixed_lo')
    assert folder.read_validations()["fixed_loss_one2many"].tolist() == [9.0, 7.0]
    folder.add_validation({"epoch": 2, "step": 3, "fixed_loss_one2many": 6.0})
    assert folder.read_validations()["fixed_loss_one2many"].tolist() == [9.0, 7.0, 6.0]
