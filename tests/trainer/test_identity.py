# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recording changes nothing: the weights, bit by bit, of Ultralytics' own trainer."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_gradstudy import GradStudyTrainer, RecordConfig, load_run

from .small import train

ROOT = Path(__file__).parents[2]
COCO128 = Path(os.environ.get("GRADSTUDY_COCO128") or ROOT.parent / "shared" / "coco" / "coco128.yaml")


@pytest.fixture(scope="module")
def coco128_yaml(tmp_path_factory):
    if not COCO128.is_file():
        pytest.skip(f"{COCO128} is not there; GRADSTUDY_COCO128 names the data YAML of coco128")
    source = yaml.safe_load(COCO128.read_text())
    root = Path(source.get("path") or COCO128.parent)
    root = root if root.is_absolute() else COCO128.parent / root
    copy = tmp_path_factory.mktemp("coco128")  # Ultralytics writes caches beside the labels
    for kind in ("images", "labels"):
        shutil.copytree(root / kind, copy / kind, copy_function=shutil.copyfile)
    for folder, folders, files in os.walk(copy):
        for name in (*folders, *files):
            (Path(folder) / name).chmod(0o755)
    path = copy / "coco128.yaml"
    path.write_text(yaml.safe_dump({**source, "path": str(copy)}))
    return path


def assert_same(one, other, where="state"):
    """Equal bit by bit, through any nesting; NaN equals NaN of the same bits."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert one.shape == other.shape, where
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
        assert torch.equal(*bits), f"{where} differs by up to {(one - other).abs().max():g}"
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other or (one != one and other != other), where


def assert_identical(data, folder, trainer=GradStudyTrainer, **arguments):
    plain = train(DetectionTrainer, data, folder / "plain", imgsz=96, epochs=2, **arguments).trainer
    ours = train(trainer, data, folder / "ours", imgsz=96, epochs=2, **arguments).trainer
    assert_same(plain.model.state_dict(), ours.model.state_dict(), "model")
    assert_same(plain.ema.ema.state_dict(), ours.ema.ema.state_dict(), "ema")
    assert plain.ema.updates == ours.ema.updates > 1
    assert_same(plain.optimizer.state_dict(), ours.optimizer.state_dict(), "optimizer")
    csvs = [pd.read_csv(folder / run / "results.csv").drop(columns="time") for run in ("plain", "ours")]
    pd.testing.assert_frame_equal(csvs[0], csvs[1][csvs[0].columns], check_exact=True)  # ours has a few more columns
    assert len(csvs[0]) == 2
    run = load_run(folder / "ours")
    assert run.steps.index.tolist() == list(range(1, ours.ema.updates + 1))  # it was recorded all the while
    return run


# What no argument says here is Ultralytics' default: optimizer, nbs, warm-up, augmentation.
DEFAULTS = {"batch": 16, "nbs": 64, "optimizer": "auto", "warmup_epochs": 3.0}


def test_weights_are_those_of_ultralytics_on_shapes(shapes_yaml, tmp_path):
    assert_identical(shapes_yaml, tmp_path, fraction=0.5, **DEFAULTS)


def test_weights_are_those_of_ultralytics_on_coco128(coco128_yaml, tmp_path):
    assert_identical(coco128_yaml, tmp_path, **DEFAULTS)


def test_everything_recorded_changes_nothing_either(small_yaml, tmp_path):
    trainer = GradStudyTrainer.using(RecordConfig(every=1, parameter_every=1, update_every=1, flush_every=2))
    run = assert_identical(small_yaml, tmp_path, trainer, lr0=0.5, val=True, momentum=0.9)
    assert run.layers("update_ratio").notna().any(axis=None)
