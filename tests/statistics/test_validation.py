# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fixed-assignment loss against loops over plain numbers, and what it is for: a dead detector is worse."""

import math

import pytest
import torch

from yolo_gradstudy.statistics import FixedAssignmentSums, cells_of

SIZES, STRIDES = [(8, 12), (4, 6), (2, 3)], [8.0, 16.0, 32.0]
CELLS = sum(rows * columns for rows, columns in SIZES)
CENTRES = torch.tensor(
    [
        ((column + 0.5) * stride, (row + 0.5) * stride)
        for (rows, columns), stride in zip(SIZES, STRIDES, strict=True)
        for row in range(rows)
        for column in range(columns)
    ]
)
TRUTH = torch.tensor(
    [[10.0, 4.0, 30.0, 20.0], [0.0, 0.0, 95.0, 63.0], [40.0, 20.0, 90.0, 62.0], [60.0, 10.0, 70.0, 18.0]]
)
IMAGE, CLASSES = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 0, 1, 2])
IMAGES, NAMES = 3, 4  # the last image has no object, the last class no box


def add(scores, boxes, sums=None):
    sums = sums or FixedAssignmentSums()
    sums.add(scores, boxes, CENTRES, IMAGE, CLASSES, TRUTH, cells_of(TRUTH, SIZES, STRIDES))
    return sums


def test_a_box_has_the_cell_that_its_centre_lies_in_on_the_level_of_its_size():
    boxes = torch.tensor([
        [0.0, 0.0, 10.0, 10.0],  # 10 px: stride 8, row 0, column 0
        [80.0, 40.0, 90.0, 50.0],  # row 5, column 10
        [0.0, 0.0, 63.9, 63.9],  # below 64 px: still the first level
        [0.0, 0.0, 64.0, 64.0],  # 64 px: stride 16, row 2, column 2
        [0.0, 0.0, 128.0, 128.0],  # 128 px: stride 32, beyond the grid's last row and column
        [200.0, 200.0, 210.0, 210.0],  # outside: the last cell
    ])  # fmt: skip
    got = cells_of(boxes, SIZES, STRIDES).tolist()
    assert got == [0, 5 * 12 + 10, 3 * 12 + 3, 96 + 2 * 6 + 2, 96 + 24 + 1 * 3 + 2, 95]
    for box, cell in zip(boxes[:4], got[:4], strict=True):
        x, y = CENTRES[cell]
        assert box[0] <= x <= box[2]
        assert box[1] <= y <= box[3]


def oracle(scores, boxes):
    """The docstring in loops: class, box and chance."""
    own = {}
    for image, name, cell in zip(
        IMAGE.tolist(), CLASSES.tolist(), cells_of(TRUTH, SIZES, STRIDES).tolist(), strict=True
    ):
        own.setdefault((image, cell), set()).add(name)
    class_sum, counted, wanted = 0.0, 0, [0] * NAMES
    for image in range(IMAGES):
        for cell in range(CELLS):
            x, y = CENTRES[cell].tolist()
            inside = any(
                i == image and b[0] <= x <= b[2] and b[1] <= y <= b[3]
                for i, b in zip(IMAGE.tolist(), TRUTH.tolist(), strict=True)
            )
            if inside and (image, cell) not in own:
                continue
            counted += 1
            for name in range(NAMES):
                p = 1 / (1 + math.exp(-scores[image, cell, name].item()))
                hit = name in own.get((image, cell), ())
                wanted[name] += hit
                class_sum -= math.log(p if hit else 1 - p)
    box_sum = 0.0
    for image, truth, cell in zip(
        IMAGE.tolist(), TRUTH.tolist(), cells_of(TRUTH, SIZES, STRIDES).tolist(), strict=True
    ):
        a, b = boxes[image, cell].tolist(), truth
        w, h = (max(min(a[k + 2], b[k + 2]) - max(a[k], b[k]), 0) for k in (0, 1))
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        box_sum += 1 - w * h / (sum(areas) - w * h)
    chance = 0.0
    for n in wanted:
        for share in (n / counted, 1 - n / counted):
            chance -= counted * share * math.log(share) if share > 0 else 0.0
    count = len(TRUTH)
    return {"class": class_sum / count, "box": box_sum / count, "chance": chance / count}


def predictions(seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(IMAGES, CELLS, NAMES, generator=generator, dtype=torch.float64)
    corner = 60 * torch.rand(IMAGES, CELLS, 2, generator=generator)
    boxes = torch.cat((corner, corner + 1 + 30 * torch.rand(IMAGES, CELLS, 2, generator=generator)), 2)
    return scores, boxes


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_its_docstring_says(seed):
    scores, boxes = predictions(seed)
    got, want = add(scores, boxes).values(), oracle(scores, boxes)
    for key, value in want.items():
        assert got[key] == pytest.approx(value, rel=1e-5), key
    assert got["loss"] == pytest.approx(want["class"] + want["box"], rel=1e-5)


def test_chance_is_the_least_that_a_fixed_probability_reaches():
    scores = torch.zeros(IMAGES, CELLS, NAMES)
    sums = add(scores, torch.zeros(IMAGES, CELLS, 4))
    share = sums.wanted / sums.counted
    best = torch.logit(share.clamp(1e-7, 1 - 1e-7)).float().expand_as(scores)
    boxes = torch.zeros(IMAGES, CELLS, 4)
    assert add(best, boxes).values()["class"] == pytest.approx(sums.values()["chance"], rel=1e-3)
    for shift in (-0.5, 0.5):
        assert add(best + shift, boxes).values()["class"] > sums.values()["chance"]


def perfect():
    scores = torch.full((IMAGES, CELLS, NAMES), -9.0)
    boxes = torch.zeros(IMAGES, CELLS, 4)
    cells = cells_of(TRUTH, SIZES, STRIDES)
    scores[IMAGE, cells, CLASSES] = 6.0
    boxes[IMAGE, cells] = TRUTH
    return scores, boxes


@pytest.mark.parametrize("logit", [-1e30, -1e4, -100.0, -20.0, 0.0, 20.0, 1e30, math.nan])
def test_a_detector_that_says_one_thing_everywhere_is_worse_than_one_that_finds_the_objects(logit):
    dead = add(torch.full((IMAGES, CELLS, NAMES), logit), torch.zeros(IMAGES, CELLS, 4)).values()
    alive = add(*perfect()).values()
    assert alive["loss"] < 0.5 * alive["chance"]
    assert alive["box"] == pytest.approx(0.0, abs=1e-6)
    assert not dead["loss"] <= alive["chance"]  # nor is a NaN


def test_batches_add_up():
    first, second = predictions(0), predictions(1)
    both = add(*second, sums=add(*first)).values()
    alone = [add(*p).values() for p in (first, second)]
    assert both["class"] == pytest.approx(sum(v["class"] for v in alone) / 2)
    assert both["box"] == pytest.approx(sum(v["box"] for v in alone) / 2)
    assert both["chance"] == pytest.approx(alone[0]["chance"])


def test_without_objects_there_is_no_loss():
    sums = FixedAssignmentSums()
    none = torch.zeros(0, dtype=torch.long)
    sums.add(*predictions(), CENTRES, none, none, torch.zeros(0, 4), none)
    assert sums.values() == {}
