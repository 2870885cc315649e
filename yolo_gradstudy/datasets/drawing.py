# SPDX-License-Identifier: AGPL-3.0-or-later
"""The pictures of ``shapes``: a random generator becomes an image and the boxes of what is seen in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]
"""A number a pixel, float64, shape (side, side)."""

SHAPES = ("disc", "ring", "rectangle", "frame", "triangle", "cross", "star", "hourglass")
"""The classes of ``shapes``, in the order of their numbers."""

SIDE = 96
"""Pixels of a side of an image of ``shapes``: trained at ``imgsz=96``, nothing is resized."""


def draw_image(generator: np.random.Generator) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int, int]]]:
    """Draw one image of up to 5 shapes.

    An object is 24 to 60 pixels across, in a random colour that stands out from the background, turned by up to
    20 degrees, at most a tenth of it outside the image. A later object may cover at most 30 % of an earlier one:
    it is moved otherwise, and left out after 20 attempts. A box is the extent of what is visible, as COCO's are.

    Args:
        generator: The only source of chance.

    Returns:
        The image, uint8, shape (side, side, 3), and a row (class, x0, y0, x1, y1) an object, in pixels.
    """
    canvas, base = _draw_background(generator)
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    classes: list[int] = []
    whole: list[int] = []  # pixels of each object before others covered it
    visible: list[NDArray[np.bool_]] = []
    for _ in range(int(generator.integers(2, 6))):
        shape = int(generator.integers(len(SHAPES)))
        size = 24.0 * (60.0 / 24.0) ** generator.random()
        for _ in range(20):
            left, top = 0.4 * size + (SIDE - 0.8 * size) * generator.random(2)
            angle = math.radians(40.0 * generator.random() - 20.0)
            stretch = 0.6 + 0.4 * generator.random()
            cos, sin = math.cos(angle), math.sin(angle)
            u, v = (x - left) * (2.0 / size), (y - top) * (2.0 / size)
            distance = _distance(SHAPES[shape], cos * u + sin * v, cos * v - sin * u, stretch) * (size / 2.0)
            inside = distance < 0.0
            remaining = [mask & ~inside for mask in visible]
            if all(mask.sum() >= 0.7 * pixels for mask, pixels in zip(remaining, whole, strict=True)):
                break
        else:
            continue
        classes.append(shape)
        whole.append(int(inside.sum()))
        visible = [*remaining, inside]
        colour = generator.random(3)
        while np.abs(colour - base).max() < 0.45:
            colour = generator.random(3)
        cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
        rim = np.clip(distance + 2.0, 0.0, 1.0)[..., None]  # darker, so that objects of one colour stay apart
        canvas = canvas * (1.0 - cover) + cover * colour * (1.0 - 0.35 * rim)
    image = np.floor(np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    boxes = []
    for shape, mask in zip(classes, visible, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((shape, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return image, boxes


def _draw_background(generator: np.random.Generator) -> tuple[Plane, Plane]:
    """Blotches, stripes, checks or a slope between two near colours, under grain.

    Returns:
        The canvas, float64 in about 0 to 1, shape (side, side, 3), and its base colour, shape (3,).
    """
    base = 0.2 + 0.6 * generator.random(3)
    tint = 0.2 * (generator.random(3) - 0.5)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    kind = int(generator.integers(4))
    angle = math.pi * generator.random()
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    periods = 2.0 + 6.0 * generator.random()
    if kind == 0:
        mix = _blotches(generator.random((7, 7)), x, y)
    elif kind == 1:
        mix = 2.0 * np.abs((along * periods) % 1.0 - 0.5)
    elif kind == 2:
        mix = (np.floor(along * periods) + np.floor(across * periods)) % 2.0
    else:
        mix = (along - along.min()) / (along.max() - along.min())
    grain = 0.16 * generator.random() * (generator.random((SIDE, SIDE, 1)) - 0.5)
    return base + mix[..., None] * tint + grain, base


def _blotches(knots: Plane, x: Plane, y: Plane) -> Plane:
    """Interpolate a grid of numbers linearly at ``x`` and ``y``, both in 0 to below 1."""
    cells = len(knots) - 1
    row, column = (y * cells).astype(int), (x * cells).astype(int)
    v, u = y * cells - row, x * cells - column
    above = (1.0 - u) * knots[row, column] + u * knots[row, column + 1]
    below = (1.0 - u) * knots[row + 1, column] + u * knots[row + 1, column + 1]
    return np.asarray((1.0 - v) * above + v * below)


def _distance(shape: str, x: Plane, y: Plane, stretch: float) -> Plane:
    """Signed distance to the outline of a shape of about unit radius, negative inside.

    Args:
        shape: One of the classes.
        x: To the right, in units of the shape's radius.
        y: Downwards.
        stretch: Height over width, of a rectangle and a frame.
    """
    if shape in ("disc", "ring"):
        distance = np.sqrt(x * x + y * y) - 1.0
    else:
        distance = _polygon_distance(x, y, _corners(shape, stretch))
    if shape in ("ring", "frame"):  # a wall 0.4 wide along the inside of the outline
        distance = np.abs(distance + 0.2) - 0.2
    return np.asarray(distance)


def _corners(shape: str, stretch: float) -> list[tuple[float, float]]:
    """The corners of a shape with straight sides."""
    if shape in ("rectangle", "frame"):
        return [(-1.0, -stretch), (1.0, -stretch), (1.0, stretch), (-1.0, stretch)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "hourglass":
        return [(-0.85, -1.0), (0.85, -1.0), (-0.85, 1.0), (0.85, 1.0)]
    if shape == "cross":
        a = 0.34
        corners = [(-a, -1.0), (a, -1.0), (a, -a)]
        for _ in range(3):  # a quarter of it, turned thrice
            corners += [(-y, x) for x, y in corners[-3:]]
        return corners
    assert shape == "star", shape
    radii = [1.0, 0.45] * 5
    return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


def _polygon_distance(x: Plane, y: Plane, corners: Sequence[tuple[float, float]]) -> Plane:
    """Signed distance to a polygon, negative where a ray crosses an odd number of sides."""
    squared = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        dx, dy = px - along * ex, py - along * ey
        squared = np.minimum(squared, dx * dx + dy * dy)
        if ey:
            inside ^= ((ay > y) != (by > y)) & (px < py * ex / ey)
    return np.sqrt(squared) * np.where(inside, -1.0, 1.0)
