# SPDX-License-Identifier: AGPL-3.0-or-later
"""Courses of runs, packed and unpacked."""

import base64
import math
import zlib

import numpy as np
import pandas as pd
import pytest

from yolo_gradstudy.readings import RunCourse
from yolo_gradstudy.report.heatmap import BROKEN, FEWEST_BINS, FIRST, MISSING, ZERO, encode, pack_courses


def make_course(values, names, steps=None, points=7):
    frame = pd.DataFrame(values, columns=names)
    frame.insert(0, "step", np.arange(1, len(values) + 1) if steps is None else steps)
    lines = pd.DataFrame({"step": np.arange(1, points + 1), "loss": np.arange(points) * 1.5})
    lines["grad_norm"], lines["target_scores"] = [math.inf, *[2.5] * (points - 1)], [math.nan, *[0.25] * (points - 1)]
    return RunCourse(frame, lines, 60, 10.0, ({"step": 3, "kind": "spike", "evidence": "", "images": []},))


def unpack(run, names):
    """What the page's script does, step by step."""
    data, at = zlib.decompress(base64.b64decode(run["data"])), 0

    def take(kind, count):
        nonlocal at
        part = np.frombuffer(data, kind, count, at)
        at += part.nbytes
        return part

    b, m, p = run["b"], run["m"], run["p"]
    starts, layers = np.cumsum(take("<u4", b), dtype="u4"), take("<u2", m)
    high, low = take("u1", m * b).astype("u2"), take("u1", m * b).astype("u2")
    codes = np.cumsum(((high << 8) + low).reshape(m, b), axis=1, dtype="u2").T
    points, lines = np.cumsum(take("<u4", p), dtype="u4"), take("<f4", 3 * p).reshape(3, p)
    assert at == len(data)
    values = 10 ** (run["low"] + (codes.astype(float) - FIRST) * run["step"])
    values = np.select([codes == MISSING, codes == ZERO, codes == BROKEN], [math.nan, 0.0, math.inf], values)
    return starts, [names[n] for n in layers], values, points, lines


def test_numbers_come_back_to_three_digits_and_what_is_no_number_as_itself():
    random = np.random.default_rng(0)
    values = 10 ** random.uniform(-12, 8, (40, 9))
    values[3, 2], values[4:6, 0], values[7, :], values[:, 5] = 0.0, math.nan, math.inf, 1e-30
    names = [f"model.{n}.weight" for n in range(9)]
    packed = pack_courses({"a": make_course(values, names)}, 10**6)
    starts, layers, found, points, lines = unpack(packed.runs["a"], packed.names)
    assert (list(starts), layers, list(points)) == (list(range(1, 41)), names, list(range(1, 8)))
    np.testing.assert_allclose(found, values, rtol=2.4e-3)
    np.testing.assert_array_equal(found == 0, values == 0)
    np.testing.assert_array_equal(lines[0], np.arange(7) * 1.5)
    assert (lines[1, 0], lines[1, 1], lines[2, 1]) == (math.inf, 2.5, 0.25)
    assert math.isnan(lines[2, 0])
    assert (packed.runs["a"]["clip"], packed.runs["a"]["last"]) == (10.0, 60)


def test_a_range_of_hundreds_of_decades_still_fits():
    values = np.array([[1e-300, 1e300], [1.0, 0.0]])
    codes, scale = encode(values)
    assert int(codes.max()) == 2**16 - 1
    assert scale["low"] == pytest.approx(-300)
    assert 10 ** (scale["low"] + (codes[1, 0] - FIRST) * scale["step"]) == pytest.approx(1, rel=0.03)


def test_colours_end_where_a_dying_gradient_would_flatten_the_rest():
    values = np.concatenate([np.full(60, 1.0), np.full(40, 1e-27)])
    assert encode(values)[1]["dark"] == -6
    assert encode(np.linspace(1, 10, 1000))[1]["dark"] == pytest.approx(math.log10(1.18), abs=0.01)
    assert encode(np.full(5, 3.0))[1]["bright"] > encode(np.full(5, 3.0))[1]["dark"]
    assert encode(np.full(5, math.nan))[0].tolist() == [MISSING] * 5


def test_runs_share_names_and_keep_their_own_order():
    one = make_course(np.ones((5, 2)), ["b", "a"])
    two = make_course(np.full((5, 3), 2.0), ["a", "c", "b"])
    packed = pack_courses({"one": one, "two": two}, 10**6)
    assert packed.names == ("b", "a", "c")
    assert unpack(packed.runs["one"], packed.names)[1] == ["b", "a"]
    assert unpack(packed.runs["two"], packed.names)[1] == ["a", "c", "b"]


def test_a_small_budget_takes_time_bins_first_then_the_last_runs():
    random = np.random.default_rng(1)
    names = [f"model.{n}.weight" for n in range(50)]
    courses = {f"run{n}": make_course(10 ** random.normal(0, 0.3, (96, 50)), names) for n in range(12)}
    whole = pack_courses(courses, 10**7)
    assert (whole.bins, len(whole.runs)) == (96, 12)
    half = pack_courses(courses, whole.size // 2)
    assert half.size <= whole.size // 2
    assert half.size > 0.4 * whole.size
    assert len(half.runs) == 12
    few = pack_courses(courses, whole.size // 12)
    assert few.bins == FEWEST_BINS
    assert list(few.runs) == list(courses)[: len(few.runs)]
    assert 0 < len(few.runs) < 12
    # A bin has the largest value of its steps.
    starts, _, found, *_ = unpack(half.runs["run3"], half.names)
    values = courses["run3"].layers[names].to_numpy()
    for n, start in enumerate(starts):
        end = starts[n + 1] - 1 if n + 1 < len(starts) else 96
        np.testing.assert_allclose(found[n], values[start - 1 : end].max(axis=0), rtol=2.4e-3)


def test_the_same_courses_give_the_same_text_and_none_gives_none():
    course = make_course(np.ones((5, 2)), ["b", "a"])
    assert pack_courses({"a": course}, 10**6) == pack_courses({"a": course}, 10**6)
    assert pack_courses({}, 10**6).runs == {}
    bare = make_course(np.ones((0, 0)), [])
    run = pack_courses({"a": bare}, 10**6).runs["a"]
    assert (run["b"], run["m"], run["p"]) == (0, 0, 7)
