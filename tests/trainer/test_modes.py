# SPDX-License-Identifier: AGPL-3.0-or-later
"""Precision, accidents and launchers: the modes that people train in."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from ultralytics.engine.trainer import BaseTrainer

from yolo_gradstudy import GradStudyTrainer, RecordConfig, load_run
from yolo_gradstudy.trainer.assigners import assigner_modules

from .small import TRAIN, train

STEPS = 2 * TRAIN // 4


def recorded(tmp_path, data, precision=None, callbacks=None, record=None, **arguments):
    trainer = GradStudyTrainer.using(record or RecordConfig(), precision=precision)
    yolo = train(trainer, data, tmp_path / "run", callbacks=callbacks, **arguments)
    return yolo.trainer, load_run(yolo.trainer.save_dir)


def test_fp16_on_a_cpu_overflows_skips_and_says_so(small_yaml, tmp_path):
    """A real overflow: the scaler begins at 65536 and YOLO26's first gradients are in the thousands."""
    trainer, run = recorded(tmp_path, small_yaml, "fp16")
    steps = run.steps
    skipped = steps["skipped"] == 1
    assert skipped.iloc[0]
    assert ((steps["grad_nonfinite"] > 0) == skipped).all()
    assert steps["amp_scale"].iloc[0] == 65536
    # Each skipped step halves the scale, no other changes it within so few.
    np.testing.assert_array_equal(
        steps["amp_scale"].to_numpy()[1:], (steps["amp_scale"] / (1 + skipped)).to_numpy()[:-1]
    )
    assert trainer.scaler.get_scale() == steps["amp_scale"].iloc[-1] / (1 + skipped.iloc[-1])
    assert run.meta["precision"] == "fp16"
    assert run.meta["amp"] is True


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision_without_a_scaler(precision, small_yaml, tmp_path):
    seen = []

    def look(trainer):
        seen.append(next(iter(trainer.loss_items.values())).dtype)

    _, run = recorded(tmp_path, small_yaml, precision, epochs=1, callbacks={"on_train_batch_end": look})
    assert (run.steps["skipped"] == 0).all()
    assert (run.steps["amp_scale"] == 1).all()
    _, plain = recorded(tmp_path / "plain", small_yaml, epochs=1)
    same = np.array_equal(run.steps["grad_norm"], plain.steps["grad_norm"])
    assert same == (precision == "fp32")  # Ultralytics' own CPU training is fp32
    np.testing.assert_allclose(run.steps["loss"].iloc[0], plain.steps["loss"].iloc[0], rtol=0.05)


def test_every_option_on_leaves_training_bit_identical(small_yaml, tmp_path):
    everything = RecordConfig(1, 1, 1, 1, 1, (), 2)
    a, run = recorded(tmp_path / "a", small_yaml, record=everything)
    b, _ = recorded(tmp_path / "b", small_yaml, record=RecordConfig(every=1000, update_every=0))
    assert len(run.flow("activation_rms")) == STEPS
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name
    for name, value in a.ema.ema.state_dict().items():
        assert torch.equal(value, b.ema.ema.state_dict()[name]), name


def test_out_of_memory_retry_is_an_event(small_yaml, tmp_path):
    """Ultralytics halves the batch and begins the epoch again; steps go on counting."""
    calls = []

    def run_out(trainer):
        calls.append(1)
        if len(calls) == 2:
            model, forward = trainer.model, trainer.model.forward

            def fail(*words, **kwords):
                model.forward = forward
                raise RuntimeError("CUDA out of memory (as a test says)")

            model.forward = fail

    record = RecordConfig(flow_every=1)
    trainer, run = recorded(tmp_path, small_yaml, callbacks={"on_train_batch_start": run_out}, record=record)
    assert trainer.batch_size == 2
    event = next(e for e in run.events if e["event"] == "batch_reduced")
    assert event["batch"] == 2
    assert event["step"] == 1
    assert run.steps.index.is_unique
    assert run.steps.index.is_monotonic_increasing
    assert run.steps["images"].iloc[0] == 4
    # Two images a batch from here on, one or two batches a step: nothing of the batch that failed is counted.
    assert run.steps["images"].iloc[1] == 2
    assert set(run.steps["images"].iloc[1:]) <= {2, 4}


class Spy:
    """Sees by hooks of its own what each batch holds: images, boxes, and the squares that a module puts out."""

    def __init__(self, trainer) -> None:
        self.batches = []
        model = trainer.model
        next(iter(assigner_modules(model.criterion).values())).register_forward_hook(self.count_boxes)
        model.model[0].conv.register_forward_hook(self.count_squares)

    def count_squares(self, module, inputs, output) -> None:
        if torch.is_grad_enabled():
            squares = float(output.detach().double().square().sum())
            self.batches.append({"images": len(output), "squares": squares, "numbers": output.numel()})

    def count_boxes(self, module, inputs, outputs) -> None:
        if torch.is_grad_enabled():
            self.batches[-1]["boxes"] = float(inputs[5].sum())


def test_nothing_of_a_batch_that_ran_out_of_memory_is_counted(small_yaml, tmp_path, monkeypatch):
    """It fails after the forward pass, where images, boxes and flow are measured, in the middle of a step."""
    spies, failed = [], []
    build = BaseTrainer._build_train_pipeline

    def begin(trainer):
        spies.append(Spy(trainer))

    def run_out(trainer):
        if len(spies[0].batches) == 3 and not failed:  # the second batch of the second step
            model, forward = trainer.model, trainer.model.forward

            def fail(*words, **kwords):
                failed.append(forward(*words, **kwords))
                model.forward = forward
                raise RuntimeError("CUDA out of memory (as a test says)")

            model.forward = fail

    def rebuild(self):
        build(self)
        if failed:  # as some versions of Ultralytics do
            self.optimizer = copy.copy(self.optimizer)

    monkeypatch.setattr(BaseTrainer, "_build_train_pipeline", rebuild)
    trainer, run = recorded(
        tmp_path,
        small_yaml,
        callbacks={"on_train_start": begin, "on_train_batch_start": run_out},
        record=RecordConfig(flow_every=1, flow_modules=("model.0.conv",)),
        batch=2,
        epochs=1,
        warmup_epochs=0,
    )
    assert [e["step"] for e in run.events if e["event"] == "batch_reduced"] == [1]
    assert trainer._recorder._optimizer is trainer.optimizer
    batches = spies[0].batches
    assert [b["images"] for b in batches[:5]] == [2, 2, 2, 2, 1]
    counted = batches[:2] + batches[4:]  # two of the second step are dropped: the one before, and the one that failed
    rms = run.flow("activation_rms")["model.0.conv"]
    for step, images in run.steps["images"].items():
        mine = []
        while sum(b["images"] for b in mine) < images:
            mine.append(counted.pop(0))
        assert sum(b["images"] for b in mine) == images, step
        assert sum(b["boxes"] for b in mine) == run.steps["boxes"][step], step
        mean = sum(b["squares"] for b in mine) / sum(b["numbers"] for b in mine)
        assert rms[step] == pytest.approx(mean**0.5, rel=1e-4), step
    assert len(run.steps) >= 4


def test_batches_that_wait_for_their_step_are_dropped_with_a_nan(small_yaml, tmp_path):
    """Two batches a step and three an epoch: at the third epoch's end one is left, and it is not counted again."""
    expected, poisoned = [], []
    waiting, before = 0, -1

    def begin_epoch(trainer):
        nonlocal waiting, before
        if trainer.epoch == before:  # once more
            assert waiting == 4
            waiting = 0
        before = trainer.epoch

    def end_batch(trainer):
        nonlocal waiting
        waiting += 4
        if trainer._recorder.step > len(expected):
            expected.append(waiting)
            waiting = 0

    def poison(trainer):
        if trainer.epoch == 2 and not poisoned:
            poisoned.append(1)
            trainer.loss = torch.tensor(float("nan"))

    callbacks = {"on_train_epoch_start": begin_epoch, "on_train_batch_end": end_batch, "on_train_epoch_end": poison}
    _, run = recorded(tmp_path, small_yaml, callbacks=callbacks, epochs=4, nbs=8, warmup_epochs=0)
    (event,) = [e for e in run.events if e["event"] == "nan_recovery"]
    assert event["step"] == 4
    assert expected[:4] == [8] * 4
    assert len(expected) > 4
    assert run.steps["images"].tolist() == expected


def test_nan_recovery_is_an_event(small_yaml, tmp_path):
    """The second epoch's last loss is made NaN once; Ultralytics goes back to last.pt, and the run can be saved."""
    poisoned = []

    def poison(trainer):
        if trainer.epoch == 1 and not poisoned:
            poisoned.append(1)
            trainer.loss = torch.tensor(float("nan"))

    trainer, run = recorded(
        tmp_path, small_yaml, callbacks={"on_train_epoch_end": poison}, record=RecordConfig(flow_every=1)
    )
    assert [e["event"] for e in run.events] == ["started", "nan_recovery", "finished"]
    assert len(run.steps) == 3 * TRAIN // 4  # the second epoch twice
    assert run.steps.index.is_unique
    assert trainer.last.is_file()


def test_settings_survive_the_ddp_launcher(small_yaml, tmp_path):
    """Ultralytics pickles the trainer's class into a file that each worker loads in a fresh process."""
    pytest.importorskip(
        "cloudpickle", reason="Ultralytics' own launcher needs cloudpickle, which torch does not install"
    )
    from ultralytics.utils.dist import generate_ddp_file

    record = RecordConfig(every=3, flow_modules=("model.0*",))
    cls = GradStudyTrainer.using(record, ["no_batchnorm"], clip_norm=5.0, precision="bf16")
    place = {"project": str(tmp_path), "name": "run", "exist_ok": True}
    trainer = cls(overrides={"model": "yolo26n.yaml", "data": str(small_yaml), "device": "cpu", "imgsz": 64, **place})
    file = generate_ddp_file(trainer)
    code = f"""
import pathlib
from ultralytics.utils.patches import torch_load
state = torch_load({file.removesuffix(".py") + ".pt"!r}, map_location="cpu")
cls = state["trainer"]
trainer = cls(overrides=state["args"], _callbacks=state["callbacks"])
print("SETTINGS", cls.__name__, trainer.settings)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert f"SETTINGS GradStudyTrainer {trainer.settings}" in done.stdout, done.stderr
    assert trainer.settings.record == record
    assert not (tmp_path / "run" / "telemetry").exists()  # the launcher deletes save_dir: nothing may lie there yet


def test_threads_are_kept_though_ultralytics_sets_its_own(small_yaml, tmp_path):
    """`select_device` sets all cores but one, at most 8, whatever OMP_NUM_THREADS says."""
    before = torch.get_num_threads()
    seen = []
    try:
        trainer = GradStudyTrainer.using(threads=3)
        look = {"on_train_batch_end": lambda trainer: seen.append(torch.get_num_threads())}
        train(trainer, small_yaml, tmp_path / "run", epochs=1, callbacks=look)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {3}


def test_only_rank_0_records(small_yaml, tmp_path, monkeypatch):
    """Another rank takes the same steps and leaves no telemetry."""
    zero, _ = recorded(tmp_path / "zero", small_yaml, epochs=1)
    monkeypatch.setattr("yolo_gradstudy.trainer.trainer.RANK", 1)
    other = train(GradStudyTrainer, small_yaml, tmp_path / "other" / "run", epochs=1).trainer
    assert not (other.save_dir / "telemetry").exists()
    for name, value in zero.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
