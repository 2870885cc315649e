# SPDX-License-Identifier: AGPL-3.0-or-later
"""What Ultralytics' trainer does of itself and an ablation ends, each in a real training."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_gradstudy import GradStudyTrainer, load_run
from yolo_gradstudy.ablations import AdaptiveClip, Builtin, parts_of, switched_off
from yolo_gradstudy.trainer.switches import SummedLoss, Switches, without_normaliser

from .small import train

SMALL = {"imgsz": 32, "epochs": 2, "warmup_epochs": 1}


def trained(small_yaml, folder, *names, precision=None, using=None, **arguments):
    """The trainer and the recorded run."""
    cls = GradStudyTrainer.using(ablations=names, precision=precision, **(using or {}))
    yolo = train(cls, small_yaml, folder, **{**SMALL, **arguments})
    return yolo.trainer, load_run(folder)


# Warm-up: three batches of the first epoch, from rate 0 and momentum 0.8 to 0.01 and 0.937; biases from 0.1.


def test_each_warmup_is_switched_off_alone(small_yaml, tmp_path):
    rows = {}
    for name in ("control", "no_rate_warmup", "no_momentum_warmup", "no_bias_rate_warmup"):
        _, run = trained(small_yaml, tmp_path / name, *([] if name == "control" else [name]))
        bias = next(i for i, group in enumerate(run.meta["groups"]) if group == "bias")
        weight = next(i for i, group in enumerate(run.meta["groups"]) if group == "weight")
        assert bias != weight
        rows[name] = run.steps[[f"lr_pg{weight}", f"lr_pg{bias}", "momentum_pg0"]].to_numpy()[:3]
    warm = rows["control"]
    assert warm[0].tolist() == pytest.approx([0.0, 0.1, 0.8])
    assert np.all(np.diff(warm[:, 0]) > 0)
    assert np.all(np.diff(warm[:, 1]) < 0)
    for column, name in enumerate(("no_rate_warmup", "no_bias_rate_warmup", "no_momentum_warmup")):
        full = 0.937 if column == 2 else 0.01
        assert rows[name][:, column] == pytest.approx([full] * 3), name
        others = [c for c in range(3) if c != column]
        assert np.array_equal(rows[name][:, others], warm[:, others]), name


def test_the_ema_without_average_is_the_weights(small_yaml, tmp_path):
    for names, same in (((), False), (("no_ema",), True)):
        trainer, _ = trained(small_yaml, tmp_path / "-".join(("run", *names)), *names)
        pairs = zip(trainer.ema.ema.parameters(), trainer.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same
        saved = YOLO(tmp_path / "-".join(("run", *names)) / "weights" / "last.pt").model.state_dict()
        live = trainer.model.state_dict()
        averaged = [k for k, value in live.items() if value.is_floating_point()]
        assert all(torch.equal(saved[k].float(), live[k].half().float()) for k in averaged) == same


def poison_in(epoch):
    """A callback that makes a weight NaN before the last batch of an epoch."""

    def poison(trainer):
        if trainer.epoch == epoch and not getattr(trainer, "poisoned", False):
            trainer.poisoned = True
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(math.nan)

    return {"on_train_batch_start": poison}


def test_without_nan_recovery_it_trains_on(small_yaml, tmp_path):
    events = {}
    for name in ("control", "no_nan_recovery"):
        cls = GradStudyTrainer.using(ablations=() if name == "control" else [name])
        train(cls, small_yaml, tmp_path / name, callbacks=poison_in(1), **{**SMALL, "epochs": 3})
        run = load_run(tmp_path / name)
        events[name] = [event["event"] for event in run.events]
        bad = ~np.isfinite(run.steps["loss"].to_numpy())
        assert bad.any()
        assert bad[-1] == (name == "no_nan_recovery")
    assert "nan_recovery" in events["control"]
    assert [e for e in events["no_nan_recovery"] if e != "warning"] == ["started", "finished"]


def test_without_loss_scaling_nothing_is_scaled_or_skipped(small_yaml, tmp_path):
    control, run = trained(small_yaml, tmp_path / "control", precision="fp16")
    assert control.scaler.is_enabled()
    assert run.steps["amp_scale"].min() > 1
    trainer, run = trained(small_yaml, tmp_path / "off", "no_amp_scaling", precision="fp16")
    assert not trainer.scaler.is_enabled()
    assert trainer.amp is torch.float16
    assert (run.steps["amp_scale"] == 1).all()
    assert (run.steps["skipped"] == 0).all()


def test_without_accumulation_each_batch_is_a_step(small_yaml, tmp_path):
    _, control = trained(small_yaml, tmp_path / "control", nbs=12, warmup_epochs=0)
    _, run = trained(small_yaml, tmp_path / "off", "no_accumulation", nbs=12, warmup_epochs=0)
    assert control.steps["images"].max() == 12
    assert run.steps["images"].tolist() == [4] * 6
    assert run.meta["nbs"] == 4


def test_frozen_statistics_neither_move_nor_are_left(small_yaml, tmp_path):
    trainer, run = trained(small_yaml, tmp_path / "off", "freeze_batchnorm_statistics")
    norms = [m for m in trainer.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(not m.training and m.num_batches_tracked == 0 for m in norms)
    assert all((m.running_mean == 0).all() and (m.running_var == 1).all() for m in norms)
    control, _ = trained(small_yaml, tmp_path / "control")
    assert all(m.num_batches_tracked == 6 for m in control.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert run.meta["switched_off"] == ["batchnorm_statistics"]


@pytest.mark.parametrize("model", ["yolo26n.yaml", "yolov8n.yaml"])
def test_the_loss_without_normaliser_is_the_sum(model, small_yaml):
    """Loss, items and gradient are those of Ultralytics times the branch's sum of target scores."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = YOLO(model).model.train()
    ours.args = get_cfg()
    batch = {
        "img": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[3.0], [7.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.6, 0.4], [0.4, 0.5, 0.3, 0.5]]),
    }
    twin = copy.deepcopy(ours)
    loss, items = ours(batch)
    sums = {}
    twin.criterion = twin.init_criterion()
    branches = [b for b in ("one2many", "one2one") if hasattr(twin.criterion, b)]
    parts = [getattr(twin.criterion, b) for b in branches] or [twin.criterion]
    for branch, part in zip(branches or ["only"], parts, strict=True):
        part.assigner.register_forward_hook(lambda m, i, o, branch=branch: sums.update({branch: o[2].sum().item()}))
    twin.criterion = without_normaliser(twin.criterion)
    summed, summed_items = twin(batch)
    answering = sums.get("one2one", next(iter(sums.values())))  # whose items Ultralytics logs
    for key, value in items.items():
        assert summed_items[key].item() == pytest.approx(value.item() * max(answering, 1.0), rel=1e-5)
    if not branches:
        assert summed.tolist() == pytest.approx((loss * max(answering, 1.0)).tolist(), rel=1e-5)
    assert all(isinstance(getattr(twin.criterion, b), SummedLoss) for b in branches)
    assert twin.criterion.one2one.hyp is twin.args if branches else twin.criterion.hyp is twin.args


# Momentum, clips


@pytest.mark.parametrize("optimizer", ["SGD", "MuSGD", "AdamW", "RMSprop"])
def test_without_momentum(optimizer, small_yaml, tmp_path):
    trainer, run = trained(small_yaml, tmp_path / "run", "no_momentum", optimizer=optimizer, epochs=1)
    assert (run.steps["momentum_pg0"] == 0).all()
    assert all(group.get("momentum", 0) == 0 for group in trainer.optimizer.param_groups)
    assert np.isfinite(run.steps["loss"]).all()


def test_without_momentum_a_step_is_the_gradient(small_yaml, tmp_path):
    """Of plain SGD without decay, ‖update‖ = lr·‖clipped gradient‖ where all groups have one rate."""
    _, run = trained(small_yaml, tmp_path / "run", "no_momentum", "no_weight_decay", "no_warmup")
    row = run.steps.iloc[0]
    assert row["update_norm"] == pytest.approx(0.01 * row["grad_norm_clipped"], rel=1e-3)


def test_another_clip_is_recorded_as_it_acts(small_yaml, tmp_path):
    _, run = trained(small_yaml, tmp_path / "run", "replace_clip_by_norm(2.5)")
    assert run.meta["clip_norm"] == 2.5
    assert run.steps["grad_norm_clipped"].max() == pytest.approx(2.5, rel=1e-4)
    _, run = trained(small_yaml, tmp_path / "agc", using={"clip": AdaptiveClip(0.02)})
    assert run.meta["clip_norm"] is None
    assert run.meta["clip"] == "AdaptiveClip(factor=0.02, eps=0.001)"
    steps = run.steps
    assert (steps["grad_norm_clipped"] < steps["grad_norm"]).all()
    ratio = steps["grad_norm_clipped"] / steps["grad_norm"]
    assert steps["clip_coefficient"].to_numpy() == pytest.approx(ratio.to_numpy(), rel=1e-5)


def test_a_clip_of_ones_own_is_not_lost_on_a_resume(small_yaml, tmp_path):
    def press(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    own = GradStudyTrainer.using(clip=AdaptiveClip(0.02))
    with pytest.raises(KeyboardInterrupt):
        train(own, small_yaml, tmp_path / "run", callbacks={"on_train_batch_end": press}, **SMALL)
    last = tmp_path / "run" / "weights" / "last.pt"
    with pytest.raises(ValueError, match=r"with clip=AdaptiveClip\(factor=0.02.* resumed with clip=None; give"):
        train(GradStudyTrainer, None, tmp_path / "run", last, resume=True)
    train(own, None, tmp_path / "run", last, resume=True)
    assert load_run(tmp_path / "run").meta["clip"] == "AdaptiveClip(factor=0.02, eps=0.001)"


def test_images_are_those_of_every_rank(small_yaml, tmp_path):
    """Ultralytics multiplies the loss by the number of ranks: gradients are sums over all their images."""
    callbacks = {
        "on_train_batch_start": lambda trainer: setattr(trainer, "world_size", 2),
        "on_train_batch_end": lambda trainer: setattr(trainer, "world_size", 0),
    }
    train(GradStudyTrainer, small_yaml, tmp_path / "run", callbacks=callbacks, **SMALL)
    assert load_run(tmp_path / "run").steps["images"].tolist() == [8] * 6


def test_lsuv_waits_for_the_first_batch_and_the_ema_begins_with_it(small_yaml, tmp_path):
    start, after, ema = {}, {}, {}

    def look(trainer):
        if not after:
            after.update({k: v.clone() for k, v in trainer.model.named_parameters()})
            ema.update({k: v.clone() for k, v in trainer.ema.ema.named_parameters()})

    callbacks = {
        "on_train_start": lambda t: start.update({k: v.clone() for k, v in t.model.named_parameters()}),
        "on_train_batch_end": look,
    }
    cls = GradStudyTrainer.using(ablations=["replace_init_by_lsuv"])
    still = {**SMALL, "lr0": 1e-30, "warmup_bias_lr": 0.0}  # nothing but the calibration moves a weight
    train(cls, small_yaml, tmp_path / "run", callbacks=callbacks, **still)
    scaled = [k for k in start if not torch.allclose(after[k], start[k], rtol=1e-3)]
    assert len(scaled) > 100
    assert all(torch.allclose(ema[k], after[k]) for k in after)


# Where there is nothing to switch off


@pytest.mark.parametrize(
    ("name", "arguments", "precision", "sentence"),
    [
        ("no_rate_warmup", {"warmup_epochs": 0}, None, "'no_rate_warmup' found nothing to change: there is no warm-up"),
        ("no_momentum_warmup", {"optimizer": "AdamW"}, None, "Ultralytics warms up no momentum of AdamW"),
        ("no_momentum_warmup", {"warmup_momentum": 0.937}, None, "warmup_momentum is momentum already"),
        ("no_amp_scaling", {}, "bf16", "only fp16 has a loss scaler; set precision=fp16"),
        ("no_warmup", {"warmup_epochs": 0}, None, "'no_warmup' changes nothing, since warmup_epochs=0 already"),
        ("no_accumulation", {"nbs": 4}, None, "'no_accumulation' changes nothing, since nbs=4 already"),
        ("replace_optimizer_by_sgd", {"optimizer": "sgd"}, None, "changes nothing, since optimizer='sgd' already"),
    ],
)
def test_nothing_to_switch_off_is_refused(name, arguments, precision, sentence, small_yaml, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        trained(small_yaml, tmp_path / "run", name, precision=precision, **arguments)


def test_remove_everything_passes_over_what_is_not_there(small_yaml, tmp_path):
    trainer, run = trained(small_yaml, tmp_path / "run", "remove_everything", nbs=4)
    assert run.meta["ablations"] == ["remove_everything"]
    assert run.meta["switched_off"] == ["ema", "nan_recovery", "target_score_normaliser"]
    assert {"no_batchnorm", "no_residuals"} <= set(run.meta["changed"])
    assert run.meta["clip_norm"] is None
    assert trainer.args.weight_decay == trainer.args.warmup_epochs == 0
    assert not [m for m in trainer.model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_switch_that_is_part_of_everything_is_optional():
    off, optional = switched_off(["remove_everything"]), parts_of(["remove_everything"])
    assert {Builtin.EMA, Builtin.NAN_RECOVERY, Builtin.AMP_SCALING, Builtin.TARGET_SCORE_NORMALISER} == set(off)
    assert set(off.values()) <= optional
    assert Switches(off, optional).names == [str(b) for b in Builtin if b in off]


# Pretrained weights


@pytest.fixture(scope="module")
def pretrained(small_yaml, tmp_path_factory):
    """A trained checkpoint of Ultralytics' own trainer."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    train(DetectionTrainer, small_yaml, folder, **SMALL)
    return folder / "weights" / "last.pt"


def start_of(pretrained, small_yaml, folder, *names):
    """The weights with which a training from a checkpoint begins, and its record."""
    began = {}
    cls = GradStudyTrainer.using(ablations=names)
    callbacks = {"on_train_start": lambda t: began.update({k: v.clone() for k, v in t.model.state_dict().items()})}
    train(cls, small_yaml, folder, pretrained, callbacks=callbacks, **{**SMALL, "pretrained": True})
    return began, load_run(folder)


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("no_residuals", set()),
        ("no_batchnorm", {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}),
        ("replace_batchnorm_by_groupnorm", {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}),
        ("replace_silu_by_relu", set()),
    ],
)
def test_pretrained_weights_are_kept_and_what_is_dropped_is_named(name, dropped, pretrained, small_yaml, tmp_path):
    began, run = start_of(pretrained, small_yaml, tmp_path / "run", name)
    theirs = YOLO(pretrained).model.float().state_dict()
    for key, value in theirs.items():
        if key in began and began[key].shape == value.shape:
            assert torch.equal(began[key].float(), value), key
    lost = run.meta["dropped"]
    assert {".".join(key.split(".")[-2:]) for key in lost} == dropped
    assert not [key for key in theirs if key not in began and key not in lost and ".bn." not in key]


def test_weights_that_were_ablated_alike_fit_as_they_are(pretrained, small_yaml, tmp_path):
    train(GradStudyTrainer.using(ablations=["no_batchnorm"]), small_yaml, tmp_path / "first", **SMALL)
    checkpoint = tmp_path / "first" / "weights" / "last.pt"
    began, _ = start_of(checkpoint, small_yaml, tmp_path / "second", "no_batchnorm")
    theirs = YOLO(checkpoint).model.float().state_dict()
    assert all(torch.equal(began[key].float(), value) for key, value in theirs.items())
