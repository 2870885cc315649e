# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ablated models through Ultralytics' whole life: train, validate, save, load, predict, resume."""

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules.block import Bottleneck

from yolo_gradstudy import GradStudyTrainer, load_run

from .small import train

SETS = [("no_batchnorm", "no_residuals"), ("replace_init_by_he",), ("no_clip", "no_warmup")]


def batchnorms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def shortcuts(model):
    return [name for name, module in model.named_modules() if isinstance(module, Bottleneck) and module.add]


def interrupt_in(epoch, batch=2):
    """A callback that presses Ctrl-C in an epoch (from 0), after so many batches."""
    seen = []

    def press(trainer):
        if trainer.epoch == epoch:
            seen.append(trainer.epoch)
            if len(seen) == batch:
                raise KeyboardInterrupt

    return {"on_train_batch_end": press}


@pytest.fixture(scope="module", params=[(m, s) for m in ("yolo26n.yaml", "yolo11n.yaml") for s in SETS[:2]], ids=str)
def lived(request, small_yaml, tmp_path_factory):
    """A run interrupted in its second epoch, and its checkpoint as it was then."""
    model, names = request.param
    folder = tmp_path_factory.mktemp("ablated") / "run"
    with pytest.raises(KeyboardInterrupt):
        train(
            GradStudyTrainer.using(ablations=names), small_yaml, folder, model,
            callbacks=interrupt_in(epoch=1), val=True, seed=3,
        )  # fmt: skip
    return names, folder


def resumed(trainer, folder):
    return train(trainer, None, folder, folder / "weights" / "last.pt", resume=True)


def test_interrupted_loaded_predicts_and_resumes(lived, small_yaml):
    names, folder = lived
    before = load_run(folder)
    assert [e["event"] for e in before.events] == ["started", "interrupted", "stopped"]
    assert before.steps.index.tolist() == [1, 2, 3, 4, 5]
    assert before.meta["ablations"] == list(names)
    assert (folder / "results.csv").is_file()  # validated after the first epoch

    loaded = YOLO(folder / "weights" / "last.pt")
    if "no_batchnorm" in names:
        assert not batchnorms(loaded.model)
    if "no_residuals" in names:
        assert not shortcuts(loaded.model)
    result = loaded.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)[0]
    assert torch.isfinite(result.boxes.data).all()

    with pytest.raises(ValueError, match="no_clip") as refused:
        resumed(GradStudyTrainer.using(ablations=["no_clip"]), folder)
    assert all(name in str(refused.value) for name in names)

    trainer = resumed(GradStudyTrainer, folder).trainer
    if "no_batchnorm" in names:
        assert not batchnorms(trainer.model)
    if "no_residuals" in names:
        assert not shortcuts(trainer.model)
    after = load_run(folder)
    assert [e["event"] for e in after.events][-2:] == ["resumed", "finished"]
    assert after.steps.index.tolist() == list(range(1, 9))  # 3 steps, 2 that the interruption lost, 3 again
    assert after.steps["epoch"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert after.meta["ablations"] == list(names)
    assert np.isfinite(after.steps["grad_norm"]).all()


def test_resumed_goes_on_as_the_uninterrupted_does(small_yaml, tmp_path):
    """The step after a resume starts from the weights of the checkpoint, not from ablated fresh ones."""
    trainer = GradStudyTrainer.using(ablations=["replace_init_by_he"])
    with pytest.raises(KeyboardInterrupt):
        train(trainer, small_yaml, tmp_path / "run", callbacks=interrupt_in(epoch=1, batch=1))
    kept = YOLO(tmp_path / "run" / "weights" / "last.pt").model.float().state_dict()
    began = {}

    def look(trainer):
        began.update({k: v.clone() for k, v in trainer.model.state_dict().items()})

    yolo = YOLO(tmp_path / "run" / "weights" / "last.pt")
    yolo.add_callback("on_train_start", look)
    yolo.train(resume=True, trainer=GradStudyTrainer)
    assert began.keys() == kept.keys()
    assert all(torch.equal(began[k].float(), kept[k].float()) for k in kept)


def test_clip_and_warmup_off_survive_a_resume(small_yaml, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(
            GradStudyTrainer.using(ablations=["no_clip", "no_warmup"]), small_yaml, tmp_path / "run",
            imgsz=32, callbacks=interrupt_in(epoch=1, batch=1), warmup_epochs=1,
        )  # fmt: skip
    trainer = resumed(GradStudyTrainer, tmp_path / "run").trainer
    run = load_run(tmp_path / "run")
    assert run.meta["clip_norm"] is None
    assert trainer.args.warmup_epochs == 0
    assert "clip_coefficient" not in run.steps
    assert run.steps["grad_norm"].equals(run.steps["grad_norm_clipped"].rename("grad_norm"))
    assert run.steps["lr_pg0"].iloc[0] == pytest.approx(0.01)


def test_a_run_of_ultralytics_own_can_not_be_resumed_ablated(small_yaml, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(DetectionTrainer, small_yaml, tmp_path / "run", imgsz=32, callbacks=interrupt_in(epoch=1, batch=1))
    with pytest.raises(ValueError, match="no_batchnorm"):
        resumed(GradStudyTrainer.using(ablations=["no_batchnorm"]), tmp_path / "run")


def test_pretrained_weights_and_another_init_contradict(small_yaml, tmp_path):
    train(GradStudyTrainer, small_yaml, tmp_path / "first", epochs=1, imgsz=32, batch=12)
    weights = tmp_path / "first" / "weights" / "last.pt"
    with pytest.raises(ValueError, match="replace_init_by_he"):
        train(
            GradStudyTrainer.using(ablations=["replace_init_by_he"]), small_yaml, tmp_path / "second", weights,
            pretrained=True,
        )  # fmt: skip


def test_ablated_metadata_counts_what_changed(small_yaml, tmp_path):
    names = ["no_batchnorm", "replace_init_by_he"]
    yolo = train(GradStudyTrainer.using(ablations=names), small_yaml, tmp_path / "run", epochs=1, imgsz=32, batch=12)
    assert not batchnorms(yolo.trainer.model)
    meta = load_run(tmp_path / "run").meta
    assert set(meta["changed"]) == set(names)
    assert all(count > 50 for count in meta["changed"].values())
