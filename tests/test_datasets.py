# SPDX-License-Identifier: AGPL-3.0-or-later
"""Datasets by name, their checks, the drawing of ``shapes`` and the build of a COCO subset from a local server."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_gradstudy.datasets import (
    Dataset,
    build_dataset,
    cache_labels,
    catalogue,
    check_data_yaml,
    choose_subset,
    coco,
    datasets_dir,
    drawing,
    is_present,
    list_datasets,
    load_datasets,
    resolve_dataset,
)

SHAPES_DIGEST = "2176806cde75d2018c52623968ad00c3fbfb0197f55c0fcc39a98f4519b5db57"
"""Of the pixels and labels of drawing version 1; published figures were measured on exactly these."""


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("YOLO_OFFLINE", "1")
    monkeypatch.setenv("GRADSTUDY_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr("ultralytics.utils.DATASETS_DIR", tmp_path / "ultralytics")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The folder of ``shapes``, drawn once; read only."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("GRADSTUDY_DATASETS", str(tmp_path_factory.mktemp("datasets")))
        return resolve_dataset("shapes").parent


@pytest.fixture
def few_shapes(monkeypatch, tmp_path):
    """``shapes`` with 5 images in place of 320."""
    file = tmp_path / "datasets.yaml"
    entries = yaml.safe_load(catalogue._packaged_file().read_text())
    entries["shapes"].update(train=3, val=2)
    file.write_text(yaml.safe_dump(entries, sort_keys=False))
    monkeypatch.setattr(catalogue, "_packaged_file", lambda: file)


def digests(folder):
    """The SHA-256 of every file of a folder, by its path in there."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def write_dataset(folder, images=("a.png", "b.png"), labels=("a.txt",), **keys):
    """A small dataset on disk; returns its data YAML."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name in images:
        cv2.imwrite(str(folder / "images" / name), np.zeros((32, 32, 3), np.uint8))
    for name in labels:
        (folder / "labels" / name).write_text("0 0.5 0.5 0.5 0.5\n")
    data = {"train": "images", "val": "images", "names": ["thing"], **keys}
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return path


def refusal(call, *arguments):
    """The one sentence that a bad input gets."""
    with pytest.raises(ValueError, match=r".") as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", ")"))
    return message


# shapes


def test_shapes_are_the_same_bytes_at_every_build(shapes, tmp_path):
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    again = resolve_dataset("shapes")
    assert again == tmp_path / "datasets" / "gradstudy-shapes" / "shapes.yaml"
    assert digests(again.parent) == digests(shapes)
    assert (np.random.get_state()[1] == state).all()


def test_shapes_are_those_that_figures_were_published_for(shapes):
    digest = hashlib.sha256()
    for path in sorted(shapes.rglob("*.png")):
        digest.update(cv2.imread(str(path)).tobytes())
        digest.update(Path(str(path).replace("images", "labels")).with_suffix(".txt").read_bytes())
    assert digest.hexdigest() == SHAPES_DIGEST, "a changed drawing needs a higher _DRAWING and new figures in the docs"


def test_shapes_hold_what_they_promise(shapes):
    entry = load_datasets()["shapes"]
    assert len(list((shapes / "images/train").iterdir())) == entry.train >= 256
    assert len(list((shapes / "images/val").iterdir())) == entry.val >= 64
    rows = {
        split: np.vstack([np.loadtxt(p, ndmin=2) for p in sorted((shapes / "labels" / split).iterdir())])
        for split in ("train", "val")
    }
    for split, least in (("train", 80), ("val", 10)):
        counts = np.bincount(rows[split][:, 0].astype(int), minlength=8)
        assert len(counts) == 8
        assert counts.min() >= least, counts
    widths = rows["train"][:, 3] * 96
    assert widths.min() < 26 < 52 < widths.max()


def test_ultralytics_accepts_every_label_of_shapes(shapes):
    from ultralytics.data.utils import img2label_paths, verify_image_label

    images = sorted(str(p) for p in shapes.rglob("*.png"))
    for image, label in zip(images, img2label_paths(images), strict=True):
        found, boxes, shape, *_, missing, _, empty, corrupt, message = verify_image_label(
            (image, label, "", False, 8, 0, 0, False)
        )
        assert (found, missing, empty, corrupt, message) == (image, 0, 0, 0, ""), message
        assert shape == (96, 96)
        corners = np.hstack([boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2]) * 96
        assert np.allclose(corners, corners.round(), atol=1e-3)  # whole pixels
        assert corners.min() > -1e-3
        assert corners.max() < 96 + 1e-3


def test_shapes_really_overlap(shapes):
    overlapping = 0
    for path in (shapes / "labels/train").iterdir():
        rows = np.loadtxt(path, ndmin=2)
        low, high = rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2
        shared = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
        overlapping += bool(np.triu((shared > 0.02).all(axis=-1), 1).any())
    assert overlapping > 60


def test_boxes_of_shapes_are_tight(monkeypatch):
    """On a flat background every pixel that differs belongs to an object."""
    flat = np.full((96, 96, 3), 0.5), np.full(3, 0.5)
    monkeypatch.setattr(drawing, "_draw_background", lambda generator: flat)
    for seed in range(40):
        image, boxes = drawing.draw_image(np.random.default_rng(seed))
        changed = (np.abs(image.astype(int) - 128) > 2).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        corners = np.array(boxes)[:, 1:]
        union = np.concatenate([corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)])
        assert np.abs(union - extent).max() <= 2, seed  # the soft tip of a star
        for _, x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 96
            assert 0 <= y0 < y1 <= 96
            inside = changed[y0:y1, x0:x1]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_classes_of_shapes_differ_in_form():
    y, x = np.mgrid[-1.2:1.2:97j, -1.2:1.2:97j]
    masks = [drawing._distance(shape, x, y, 0.8) < 0 for shape in drawing.SHAPES]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert (a & b).sum() < 0.85 * (a | b).sum()


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("disc", np.pi),
        ("ring", np.pi * (1 - 0.36)),
        ("rectangle", 2 * 1.6),
        ("frame", 2 * 1.6 - 1.2 * 0.8),
        ("triangle", 1.85),
        ("cross", 4 - 4 * 0.66**2),
        ("star", 10 * 0.5 * 0.45 * np.sin(np.pi / 5)),
        ("hourglass", 1.7),
    ],
)
def test_area_of_a_shape(shape, area):
    y, x = np.mgrid[-1.2:1.2:801j, -1.2:1.2:801j]
    assert (drawing._distance(shape, x, y, 0.8) < 0).mean() * 2.4**2 == pytest.approx(area, rel=0.01)


@pytest.mark.usefixtures("few_shapes")
@pytest.mark.parametrize("lost", ["labels/val/0001.txt", "images/train/0000.png", "shapes.yaml"])
def test_a_damaged_drawing_is_drawn_again(lost):
    path = resolve_dataset("shapes")
    before = digests(path.parent)
    (path.parent / lost).unlink()
    assert not is_present(load_datasets()["shapes"])
    drawing = path.parent.with_name(".gradstudy-shapes.drawing")  # what a killed process leaves
    (drawing / "images").mkdir(parents=True)
    assert resolve_dataset("shapes") == path
    assert digests(path.parent) == before
    assert not drawing.exists()


@pytest.mark.usefixtures("few_shapes")
def test_a_drawing_of_another_version_is_drawn_again(monkeypatch):
    path = resolve_dataset("shapes")
    monkeypatch.setattr("yolo_gradstudy.datasets.shapes._DRAWING", 2)
    assert not is_present(load_datasets()["shapes"])
    (path.parent / "images/train/0000.png").write_bytes(b"of another version")
    resolve_dataset("shapes")
    assert cv2.imread(str(path.parent / "images/train/0000.png")).shape == (96, 96, 3)
    assert is_present(load_datasets()["shapes"])


def test_two_processes_draw_at_once(shapes, tmp_path):
    code = (
        "from yolo_gradstudy.datasets import resolve_dataset\n"
        "print('ready', flush=True)\n"
        "path = resolve_dataset('shapes')\n"
        "print(path.parent.stat().st_ino, path)\n"
    )
    root = tmp_path / "datasets"
    root.mkdir()
    with FileLock(root / ".gradstudy-shapes.lock"):  # both are held at the door, then let go together
        processes = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
    answers = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    assert digests(root / "gradstudy-shapes") == digests(shapes)
    assert [p.name for p in root.iterdir() if p.is_dir()] == ["gradstudy-shapes"]


def test_a_whole_drawing_needs_no_write(shapes, monkeypatch):
    monkeypatch.setenv("GRADSTUDY_DATASETS", str(shapes.parent))
    monkeypatch.setattr("yolo_gradstudy.datasets.shapes.FileLock", lambda path: pytest.fail("locked"))
    assert resolve_dataset("shapes").parent == shapes


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADSTUDY_DATASETS", str(tmp_path / "file"))
    message = refusal(resolve_dataset, "shapes")
    assert str(tmp_path / "file") in message
    assert "GRADSTUDY_DATASETS" in message


# datasets.yaml and names


def test_the_named_datasets():
    named = load_datasets()
    assert list(named) == ["shapes", "coco8", "coco128", "coco", "coco-1pct", "coco-10pct"]
    assert named["coco-1pct"].seed == named["coco-10pct"].seed  # else they are not nested
    assert named["coco-1pct"].train == round(named["coco-1pct"].share * named["coco"].train)
    assert named["coco-10pct"].train == round(named["coco-10pct"].share * named["coco"].train)
    assert named["coco-1pct"].val_share == named["coco-10pct"].val_share == 1.0


def test_datasets_dir_falls_back_to_ultralytics(monkeypatch, tmp_path):
    assert datasets_dir() == tmp_path / "datasets"
    monkeypatch.delenv("GRADSTUDY_DATASETS")
    assert datasets_dir() == tmp_path / "ultralytics"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not a mapping of names"),
        ("a: [", "not valid YAML"),
        ("a: 1", "a is not a mapping of keys"),
        ("a: {summary: s, how: drawn, train: 1, val: 1, sed: 1}", "unknown key 'sed'; the nearest is 'seed'"),
        ("a: {summary: s, how: drawn, train: 1}", "lacks the key 'val'"),
        ("a: {summary: s, how: drown, train: 1, val: 1}", "how='drown'; the nearest valid is 'drawn'"),
        ("a: {summary: s, how: drawn, train: 1, val: 1, share: 0}", "share=0"),
        ("a: {summary: s, how: drawn, train: 1, val: 1, val_share: 1.5}", "val_share=1.5"),
    ],
)
def test_a_bad_datasets_yaml(tmp_path, text, words):
    path = tmp_path / "datasets.yaml"
    path.write_text(text)
    message = refusal(load_datasets, path)
    assert words in message
    assert str(path) in message


def test_a_missing_datasets_yaml(tmp_path):
    assert refusal(load_datasets, tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'} does not exist."


@pytest.mark.usefixtures("few_shapes")
def test_list_datasets(tmp_path):
    rows = {row["name"]: row for row in list_datasets()}
    assert set(rows["shapes"]) == {"name", "summary", "how", "train", "val", "present", "path"}
    assert {name: row["present"] for name, row in rows.items()} == dict.fromkeys(rows, False)
    assert rows["coco128"]["path"] == str(tmp_path / "ultralytics" / "coco128")
    assert rows["coco-1pct"]["path"] == str(tmp_path / "datasets" / "gradstudy-coco")
    resolve_dataset("shapes")
    assert {row["name"]: row["present"] for row in list_datasets()}["shapes"]


def test_an_ultralytics_dataset_that_is_there(tmp_path):
    for split in ("train", "val"):
        write_dataset(tmp_path / "ultralytics/coco8")
        for kind, suffix in (("images", "png"), ("labels", "txt")):
            folder = tmp_path / "ultralytics/coco8" / kind / split
            folder.mkdir()
            (folder.parent / f"a.{suffix}").rename(folder / f"a.{suffix}")
    path = resolve_dataset("coco8")
    assert path.name == "coco8.yaml"
    assert path == resolve_dataset("coco8.yaml") == build_dataset("coco8")
    assert {row["name"]: row["present"] for row in list_datasets()}["coco8"]


@pytest.mark.parametrize("call", [resolve_dataset, build_dataset])
@pytest.mark.parametrize("name", ["coco8", "coco128", "coco"])
def test_an_ultralytics_dataset_offline(call, name, monkeypatch, tmp_path):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("waited on the network"))
    message = refusal(call, name)
    assert name in message
    assert "no network" in message
    assert str(tmp_path / "ultralytics" / name) in message


def test_an_ultralytics_dataset_with_a_network(monkeypatch):
    monkeypatch.setattr("ultralytics.utils.is_online", lambda: True)
    assert resolve_dataset("coco8").name == "coco8.yaml"  # which Ultralytics downloads on first use


def test_an_ultralytics_dataset_is_downloaded_by_build(monkeypatch, tmp_path):
    monkeypatch.setattr("ultralytics.utils.is_online", lambda: True)

    def download(path):
        assert Path(path).name == "coco8.yaml"
        for split in ("train", "val"):
            for kind, name, text in (("images", "a.png", ""), ("labels", "a.txt", "0 0.5 0.5 1 1\n")):
                file = tmp_path / "ultralytics/coco8" / kind / split / name
                file.parent.mkdir(parents=True)
                file.write_text(text)

    monkeypatch.setattr("ultralytics.data.utils.check_det_dataset", download)
    assert build_dataset("coco8").name == "coco8.yaml"


def test_a_failed_ultralytics_download(monkeypatch):
    monkeypatch.setattr("ultralytics.utils.is_online", lambda: True)

    def download(path):
        raise ConnectionError("Download failure\nfor it.")

    monkeypatch.setattr("ultralytics.data.utils.check_det_dataset", download)
    assert "coco8 can't be downloaded: Download failure for it." in refusal(build_dataset, "coco8")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("shape", "'shapes'"),
        ("COCO_128", "'coco128'"),
        ("coco-2pct", "'coco-1pct'"),
        ("", "''"),
        ("https://example.com/data.yaml", "neither"),
        ("coco-1pct", "`gradstudy data build coco-1pct`"),
        ("coco-10pct", "`gradstudy data build coco-10pct`"),
        ("coco129.yaml", "nearest data YAML is coco128.yaml"),
    ],
)
def test_a_name_that_cannot_be_resolved(data, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = refusal(resolve_dataset, data)
    assert words in message
    assert data in message


def test_a_name_that_cannot_be_built():
    assert "'coco-1pc' is not a dataset's name; the nearest is 'coco-1pct'" in refusal(build_dataset, "coco-1pc")


# Data YAMLs


def test_good_data_yamls(tmp_path, monkeypatch):
    path = write_dataset(tmp_path / "set")
    assert resolve_dataset(str(path)) == check_data_yaml(path) == path
    assert resolve_dataset(str(path.parent)) == path  # its folder
    path = write_dataset(tmp_path / "validation", val=None, validation="images")
    assert check_data_yaml(path) == path
    path = write_dataset(tmp_path / "ultralytics/root", path="root", train=["images"], names=None, nc=1)
    assert check_data_yaml(path) == path  # relative to Ultralytics' datasets folder
    monkeypatch.chdir(tmp_path)
    assert resolve_dataset("set/data.yaml") == Path("set/data.yaml")


def test_list_files(tmp_path):
    path = write_dataset(tmp_path / "set", train="train.txt", val="val.txt")
    (path.parent / "train.txt").write_text("./images/b.png\n./images/a.png\n")
    (path.parent / "val.txt").write_text(f"{path.parent}/images/b.png\n")
    assert check_data_yaml(path) == path
    (path.parent / "train.txt").write_text("./images/b.png\n")  # the only one without a label
    assert "has a label file" in refusal(check_data_yaml, path)
    (path.parent / "train.txt").write_text("./images/c.png\n")
    assert f"no image listed in {path.parent / 'train.txt'} exists" in refusal(check_data_yaml, path)
    (path.parent / "train.txt").write_bytes(b"\xff\xfe\x00")
    assert "neither a folder of images nor a list" in refusal(check_data_yaml, path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train": None}, "names no 'train' images"),
        ({"val": None}, "names no 'val' images"),
        ({"train": None, "trian": "images"}, "names no 'train' images; the nearest key there is 'trian'"),
        ({"train": 3}, "'train' must be str or list, not int"),
        ({"names": None}, "'names' or 'nc' is needed"),
        ({"nc": 2}, "'nc' is 2, but 'names' has 1 classes"),
        ({"nc": "abc"}, "'nc' is 'abc', not a number of classes"),
        ({"nc": "abc", "names": None}, "'nc' is 'abc', not a number of classes"),
        ({"nc": 1.5, "names": None}, "'nc' is 1.5"),
        ({"nc": 0, "names": None}, "'nc' is 0"),
        ({"nc": True, "names": None}, "'nc' is True"),
        ({"nc": [3], "names": None}, "'nc' is [3]"),
        ({"names": []}, "'names' is not valid"),
        ({"names": {1: "a", 7: "b"}}, "'names' is not valid"),
        ({"train": "image"}, "image does not exist; the nearest in"),
        ({"val": ["images", "imags"]}, "the nearest in"),
        ({"train": "labels"}, "labels holds no image"),
        ({"val": "labels"}, "val: "),
        ({"path": "nowhere"}, "nowhere/images does not exist"),
    ],
)
def test_bad_data_yamls(tmp_path, keys, words):
    path = write_dataset(tmp_path / "set", **keys)
    message = refusal(check_data_yaml, path)
    assert words in message
    assert str(path) in message


def test_a_missing_folder_names_the_nearest(tmp_path):
    path = write_dataset(tmp_path / "set", train="image/train")
    message = refusal(check_data_yaml, path)
    assert f"train: {path.parent}/image/train does not exist; the nearest in {path.parent} is 'images'" in message


def test_no_label_at_all(tmp_path):
    path = write_dataset(tmp_path / "set", labels=())
    message = refusal(check_data_yaml, path)
    assert str(path) in message
    assert "no image in" in message
    assert str(path.parent / "labels" / "a.txt") in message


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_no_label_that_holds_anything(tmp_path, text):
    path = write_dataset(tmp_path / "set", labels=("a.txt", "b.txt"))
    for name in ("a.txt", "b.txt"):
        (path.parent / "labels" / name).write_text(text)
    message = refusal(check_data_yaml, path)
    assert f"every label file of {path.parent / 'images'} is empty" in message
    assert str(path.parent / "labels" / "a.txt") in message
    (path.parent / "labels" / "b.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert check_data_yaml(path) == path


@pytest.mark.parametrize("count", [1, 1.0, "1", "1.0"])
def test_a_number_of_classes_as_ultralytics_takes_it(tmp_path, count):
    path = write_dataset(tmp_path / "set", nc=count)
    assert check_data_yaml(path) == path
    cache_labels(path)


def spoil_labels(path):
    for label in (path.parent / "labels").iterdir():
        label.write_text("99 0.5 0.5 0.5 0.5\n")


def spoil_images(path):
    for image in (path.parent / "images").iterdir():
        image.write_bytes(b"no image")


def unlabel_the_first(path):
    (path.parent / "labels" / "a.txt").write_text("")


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (spoil_labels, {}, "No valid images found"),
        (spoil_images, {}, "No valid images found"),
        (unlabel_the_first, {"fraction": 0.5}, "no object is labelled in the 1 images that are used"),
        (lambda path: (path.parent / "images" / "a.png").unlink(), {"fraction": 1}, ""),
    ],
    ids=["labels", "images", "empty fraction", "none"],
)
def test_labels_that_can_not_be_trained_on(tmp_path, capsys, spoil, arguments, words):
    path = write_dataset(tmp_path / "set", labels=("a.txt", "b.txt"))
    spoil(path)
    if words:
        message = refusal(cache_labels, path, arguments)
        assert str(path) in message
        assert words in message
    else:
        cache_labels(path, arguments)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [{}, {"fraction": 0.5}, {"fraction": 2}, {"single_cls": True}], ids=str)
def test_a_training_finds_the_cache_of_its_arguments(tmp_path, monkeypatch, arguments):
    """It reads the labels that were read for it, and no others."""
    from ultralytics.data import dataset
    from ultralytics.models.yolo.detect import DetectionTrainer

    images = ("a.png", "b.png", "c.png", "d.png")
    val = write_dataset(tmp_path / "val").parent / "images"
    path = write_dataset(tmp_path / "set", images, labels=("a.txt", "b.txt"), names=["thing", "other"], val=str(val))
    cache_labels(path, {"fraction": 1.0 if arguments else 0.5})  # of other arguments
    cache_labels(path, arguments)
    monkeypatch.setattr(dataset.YOLODataset, "cache_labels", lambda *_: pytest.fail("the labels are read again"))
    overrides = {"data": str(path), "model": "yolo26n.yaml", "project": str(tmp_path), "name": "run", "device": "cpu"}
    trainer = DetectionTrainer(overrides={**overrides, **arguments})
    trainer.model = SimpleNamespace(stride=np.array([32]))
    sizes = [len(trainer.build_dataset(trainer.data[split], mode=split, batch=1)) for split in ("train", "val")]
    assert sizes == [2 if "fraction" in arguments else 4, 2]


def test_absent_images_with_a_download(tmp_path, monkeypatch):
    path = write_dataset(tmp_path / "set", path="later", download="http://example.com/later.zip")
    assert "no network" in refusal(check_data_yaml, path)
    monkeypatch.setattr("ultralytics.utils.is_online", lambda: True)
    assert check_data_yaml(path) == path
    path = write_dataset(tmp_path / "set", train="later", download="http://example.com/later.zip")
    assert "train: " in refusal(check_data_yaml, path)  # Ultralytics downloads only where val is absent


def test_no_such_data_yaml(tmp_path):
    path = write_dataset(tmp_path / "set")
    wrong = path.with_name("dota.yaml")
    assert refusal(resolve_dataset, str(wrong)) == f"data: {wrong} does not exist; the nearest data YAML is {path}."
    wrong = tmp_path / "none" / "deep" / "data.yaml"
    assert f"the nearest folder that exists is {tmp_path}." in refusal(resolve_dataset, str(wrong))
    (tmp_path / "empty").mkdir()
    assert "'coco128'" in refusal(resolve_dataset, str(tmp_path / "empty" / "coco12.yaml"))
    assert "folder without one data YAML" in refusal(resolve_dataset, str(tmp_path / "empty"))
    assert "is not a data YAML" in refusal(resolve_dataset, str(path.parent / "images" / "a.png"))


@pytest.mark.parametrize("text", ["train: [", "just words", "- a\n- b\n"])
def test_a_file_that_is_no_data_yaml(tmp_path, text):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    assert str(path) in refusal(check_data_yaml, path)


# Subsets of COCO


@settings(deadline=None)
@given(
    ids=st.lists(st.integers(1, 600_000), min_size=1, max_size=200),
    shares=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted),
    seed=st.integers(0, 5),
    chance=st.randoms(use_true_random=False),
)
def test_subsets_are_nested_and_know_no_order(ids, shares, seed, chance):
    small, large = (choose_subset(ids, share, seed) for share in shares)
    assert set(small) <= set(large) <= set(ids)
    assert large == sorted(set(large))
    assert len(large) == max(1, round(shares[1] * len(set(ids))))
    shuffled = list(ids)
    chance.shuffle(shuffled)
    assert choose_subset(shuffled, shares[1], seed) == large


def test_subsets_are_random_and_fixed():
    ids = range(1, 118_288)
    drawn = choose_subset(ids, 0.01, 0)
    assert len(drawn) == 1183
    assert drawn[:3] == [46, 87, 282]  # fixed for ever: published results rest on it
    assert abs(np.mean(drawn) - 59_144) < 4 * 34_146 / np.sqrt(1183)
    other = choose_subset(ids, 0.01, 1)
    assert len(set(drawn) & set(other)) < 40  # by chance 12


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none(share):
    assert f"share={share!r}" in refusal(choose_subset, [1], share, 0)


class Server:
    """A tiny COCO on 127.0.0.1 that writes down what is asked for."""

    def __init__(self, folder):
        self.folder, self.asked, self.refused = folder, [], set()
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(folder))

            def do_GET(self):
                outer.asked.append(self.path)
                if self.path in outer.refused:
                    self.send_error(404)
                else:
                    super().do_GET()

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def datasets(self, **changes):
        """The named subsets, had from here, as large as suits 20 images."""
        named = load_datasets()
        changes = {"images_url": self.url, "annotations_url": f"{self.url}/annotations/tiny.zip", **changes}
        return {
            name: dataclasses.replace(named[name], share=share, **changes)
            for name, share in (("coco-1pct", 0.25), ("coco-10pct", 0.6))
        }


def instances(split, count):
    """Annotations as COCO writes them: image 3 has no object, image 4 only a crowd, the others two."""
    images, annotations = [], []
    for number in range(1, count + 1):
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": 64, "height": 32})
        if number == 3:
            continue
        crowd = {"iscrowd": int(number == 4), "area": 1, "segmentation": []}
        for category, box in ((90, [0, 0, 32, 16]), (13, [16, 8, 32, 16])):
            annotations.append({"image_id": number, "category_id": category, "bbox": box, **crowd})
    return {"images": images, "annotations": annotations, "split": split}


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    (folder / "annotations").mkdir(parents=True)
    with zipfile.ZipFile(folder / "annotations/tiny.zip", "w") as zipped:
        for split, count in (("train2017", 20), ("val2017", 5)):
            zipped.writestr(f"annotations/instances_{split}.json", json.dumps(instances(split, count)))
            zipped.writestr(f"annotations/captions_{split}.json", json.dumps({"annotations": [{"caption": "x"}]}))
            (folder / split).mkdir()
            for number in range(1, count + 1):
                image = np.full((32, 64, 3), number * 10, np.uint8)
                cv2.imwrite(str(folder / split / f"{number:012d}.jpg"), image)
    server = Server(folder)
    yield server
    server.http.shutdown()
    server.http.server_close()


def listed(file):
    """The numbers of the images in a list file."""
    return [
        int(re.fullmatch(r"\./images/(?:train|val)2017/(\d{12})\.jpg", line)[1]) for line in file.open().read().split()
    ]


def test_a_coco_subset(server, tmp_path):
    named = server.datasets()
    small, large = (build_dataset(name, named) for name in named)
    root = tmp_path / "datasets" / "gradstudy-coco"
    assert (small, large) == (root / "coco-1pct.yaml", root / "coco-10pct.yaml")
    assert resolve_dataset("coco-1pct") == small
    train = {path: listed(path.with_suffix(".txt")) for path in (small, large)}
    assert train[small] == choose_subset(range(1, 21), 0.25, 0)
    assert len(train[large]) == 12
    assert set(train[small]) < set(train[large])
    assert listed(root / "coco-1pct-val.txt") == listed(root / "coco-10pct-val.txt") == [1, 2, 3, 4, 5]
    asked = [path for path in server.asked if "2017" in path]
    assert len(asked) == len(set(asked)) == 12 + 5  # what is not needed is not downloaded, nor anything twice
    assert server.asked.count("/annotations/tiny.zip") == 1
    for file in (root / "images").rglob("*.jpg"):
        assert file.read_bytes() == (server.folder / file.parent.name / file.name).read_bytes()
    assert sorted(p.name for p in root.iterdir() if p.name.startswith(".")) == []
    assert not (tmp_path / "datasets/coco").exists()  # Ultralytics would take it for its own, already unpacked


def test_ultralytics_reads_a_coco_subset(server):
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    named = server.datasets()
    path = build_dataset("coco-10pct", named)
    data = check_det_dataset(str(path), autodownload=False)
    assert (data["nc"], data["names"][0], data["names"][79]) == (80, "person", "toothbrush")
    for split, ids in (("train", choose_subset(range(1, 21), 0.6, 0)), ("val", [1, 2, 3, 4, 5])):
        read = YOLODataset(img_path=data[split], data=data, task="detect", imgsz=64, augment=False)
        assert [int(Path(label["im_file"]).stem) for label in read.labels] == ids
        for number, label in zip(ids, read.labels, strict=True):
            rows = sorted([int(c), *b] for c, b in zip(label["cls"][:, 0], label["bboxes"].tolist(), strict=True))
            whole = [] if number in (3, 4) else [[11, 0.5, 0.5, 0.5, 0.5], [79, 0.25, 0.25, 0.5, 0.5]]
            assert rows == whole, number


def test_a_coco_subset_that_is_there_costs_nothing(server):
    named = server.datasets()
    path = build_dataset("coco-1pct", named)
    before = digests(path.parent)
    server.asked.clear()
    assert build_dataset("coco-1pct", named) == path
    assert server.asked == []
    assert digests(path.parent) == before


def test_a_coco_subset_is_resumed(server):
    named = server.datasets()
    chosen = choose_subset(range(1, 21), 0.25, 0)
    bad = f"/train2017/{chosen[-1]:012d}.jpg"
    server.refused.add(bad)
    message = refusal(build_dataset, "coco-1pct", named)
    assert f"{server.url}{bad}" in message
    assert str(datasets_dir() / "gradstudy-coco/images" / bad[1:]) in message
    assert "data build" in refusal(resolve_dataset, "coco-1pct")  # not built
    had = {path.name for path in (datasets_dir() / "gradstudy-coco/images/train2017").iterdir()}
    assert had == {f"{number:012d}.jpg" for number in chosen[:-1]}
    server.refused.clear()
    server.asked.clear()
    path = build_dataset("coco-1pct", named)
    assert [p for p in server.asked if p.startswith("/train2017/")] == [bad]
    assert "/annotations/tiny.zip" not in server.asked
    assert listed(path.with_suffix(".txt")) == chosen
    labels = [len(p.read_text().splitlines()) for p in (path.parent / "labels").rglob("*.txt")]
    assert max(labels) == 2  # converted twice, written once


def test_lost_images_are_fetched_again(server):
    named = server.datasets()
    path = build_dataset("coco-1pct", named)
    (path.parent / "images/val2017/000000000002.jpg").unlink()
    server.asked.clear()
    build_dataset("coco-1pct", named)
    assert server.asked == ["/val2017/000000000002.jpg"]


def test_another_share_builds_again(server):
    path = build_dataset("coco-1pct", server.datasets())
    build_dataset("coco-1pct", server.datasets(val_share=0.4))
    assert len(listed(path.with_name("coco-1pct-val.txt"))) == 2
    assert "0.4 of val2017" in path.read_text()


def test_a_rebuild_that_fails_leaves_no_data_yaml(server):
    named = server.datasets()
    build_dataset("coco-1pct", named)
    server.refused |= {f"/train2017/{number:012d}.jpg" for number in range(1, 21)}
    larger = {"coco-1pct": dataclasses.replace(named["coco-1pct"], share=1.0)}
    refusal(build_dataset, "coco-1pct", larger)
    assert "is not built yet" in refusal(resolve_dataset, "coco-1pct")


def test_ultralytics_coco_is_used_where_it_is(server, tmp_path):
    coco = tmp_path / "datasets/coco"
    for split, count in (("train2017", 20), ("val2017", 5)):
        (coco / "annotations").mkdir(parents=True, exist_ok=True)
        (coco / f"annotations/instances_{split}.json").write_text(json.dumps(instances(split, count)))
        (coco / "images" / split).mkdir(parents=True)
        for file in (server.folder / split).iterdir():
            (coco / "images" / split / file.name).write_bytes(file.read_bytes())
    path = build_dataset("coco-1pct", server.datasets())
    assert server.asked == []
    first = path.parent / path.with_suffix(".txt").read_text().split()[0]
    assert first.samefile(coco / "images/train2017" / first.name)  # no second copy


def test_no_hard_links(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "a").write_text("image")
    assert coco._link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "image"
    assert not coco._link(tmp_path / "none", tmp_path / "c")


def test_a_coco_subset_offline(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("waited on the network"))
    message = refusal(build_dataset, "coco-1pct")
    folder = datasets_dir() / "gradstudy-coco"
    assert "http://images.cocodataset.org/annotations/annotations_trainval2017.zip" in message
    assert str(folder / "annotations_trainval2017.zip") in message
    assert str(folder / "annotations/instances_train2017.json") in message


def test_the_annotations_put_by_hand(server):
    """Offline, the archive put where the sentence says is used; then the images are asked for."""
    folder = datasets_dir() / "gradstudy-coco"
    folder.mkdir(parents=True)
    (folder / "annotations_trainval2017.zip").write_bytes((server.folder / "annotations/tiny.zip").read_bytes())
    named = {"coco-1pct": dataclasses.replace(load_datasets()["coco-1pct"], share=0.25)}
    message = refusal(build_dataset, "coco-1pct", named)
    first = choose_subset(range(1, 21), 0.25, 0)[0]
    assert f"http://images.cocodataset.org/train2017/{first:012d}.jpg" in message
    assert "lacks 5 of 5 images of train2017" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', "is not valid JSON"),
        ("[]", "not a file of COCO instances"),
        ('{"images": []}', "not a file of COCO instances"),
    ],
)
def test_bad_annotations(text, words):
    file = datasets_dir() / "coco/annotations/instances_train2017.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    message = refusal(build_dataset, "coco-1pct")
    assert words in message
    assert str(file) in message


def test_a_bad_archive(server):
    (server.folder / "annotations/tiny.zip").write_bytes(b"not a zip file")
    message = refusal(build_dataset, "coco-1pct", server.datasets())
    assert f"{datasets_dir() / 'gradstudy-coco/tiny.zip'} is not a valid zip file" in message


def test_an_archive_without_instances(server):
    with zipfile.ZipFile(server.folder / "annotations/tiny.zip", "w") as zipped:
        zipped.writestr("annotations/captions_train2017.json", "{}")
    assert "holds no annotations/instances_train2017.json" in refusal(build_dataset, "coco-1pct", server.datasets())


def test_a_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_datasets()["shapes"].seed = 1
    assert isinstance(load_datasets()["shapes"], Dataset)
