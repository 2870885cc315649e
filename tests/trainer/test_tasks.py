# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every task's trainer records: one short real training each."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer

from yolo_gradstudy import RecordConfig, diagnose, gradstudy_trainer, load_run
from yolo_gradstudy.records import Outcome

from .small import train

SIDE, IMAGES = 64, 8
LABELS = {
    "segment": "0 0.2 0.2 0.6 0.2 0.6 0.7 0.2 0.7",
    "obb": "0 0.2 0.2 0.6 0.25 0.55 0.7 0.15 0.65",
    "pose": "0 0.4 0.45 0.4 0.5 0.3 0.3 2 0.5 0.4 2 0.4 0.6 2",
}


def write_task(folder, task):
    """A few noisy images with one object each."""
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        image = random.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        cv2.rectangle(image, (13, 13), (38, 45), (0, 200, 255), -1)
        split = "train" if i < IMAGES - 2 else "val"
        if task == "classify":
            place = folder / split / f"class{i % 2}"
        else:
            place = folder / "images" / split
            (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
            (folder / "labels" / split / f"{i}.txt").write_text(LABELS[task] + "\n")
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{i}.png"), image)
    if task == "classify":
        return folder
    path = folder / "data.yaml"
    data = {"path": str(folder), "train": "images/train", "val": "images/val", "names": {0: "thing"}}
    path.write_text(yaml.safe_dump({**data, **({"kpt_shape": [3, 3]} if task == "pose" else {})}))
    return path


@pytest.mark.parametrize(
    ("task", "base", "model", "branches"),
    [
        ("segment", SegmentationTrainer, "yolo26n-seg.yaml", ["one2many", "one2one"]),
        ("pose", PoseTrainer, "yolo11n-pose.yaml", ["one2many"]),
        ("obb", OBBTrainer, "yolo26n-obb.yaml", ["one2many", "one2one"]),
        ("classify", ClassificationTrainer, "yolo11n-cls.yaml", []),
    ],
)
def test_task_trains_and_records(task, base, model, branches, tmp_path):
    trainer = gradstudy_trainer(base).using(RecordConfig(flow_every=2))
    assert trainer.__name__ == f"GradStudy{base.__name__}"
    yolo = train(trainer, write_task(tmp_path / "data", task), tmp_path / "run", model, epochs=2, batch=2, nbs=2)
    run = load_run(yolo.trainer.save_dir)
    assert list(run.steps.index) == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(run.steps["grad_norm"]).all()
    norms = run.layers("grad_norm")
    roots = np.sqrt((norms.astype("float64") ** 2).sum(axis=1))
    np.testing.assert_allclose(roots, run.steps["grad_norm"], rtol=1e-6)
    assert run.meta["task"] == task
    assert run.meta["branches"] == branches
    assert set(run.meta["flow_modules"]) >= set(run.flow("activation_rms").columns)
    assert list(run.flow("backward_gain").index) == [1, 3, 5]
    for name in yolo.trainer.loss_names:
        assert np.isfinite(run.steps[name]).all()
    for branch in branches:
        assert (run.steps[f"target_scores_{branch}"] > 0).any()
        assert (run.steps["boxes"] > 0).all()
    upright = branches if task in ("segment", "pose") else []
    assert {c for c in run.validations if c.startswith("fixed_loss")} == {f"fixed_loss_{b}" for b in upright}
    verdict = diagnose(run)
    assert verdict.outcome is Outcome.UNKNOWN  # six steps are too few to judge, and a classifier has no assigner
    assert any(f.rule == "is_collapsed" and f.state == "not checked" for f in verdict.findings)
