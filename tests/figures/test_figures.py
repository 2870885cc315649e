# SPDX-License-Identifier: AGPL-3.0-or-later
import math
from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from synthetic import parameter_names

from figures.cases import CASES, layers, outcomes, results, trajectories
from yolo_gradstudy.figures import FIGURES, palette, write_caption
from yolo_gradstudy.figures.layers import layer_blocks, layer_cells, plot_layer_heatmap
from yolo_gradstudy.figures.outcomes import outcome_cells, plot_outcome_grid
from yolo_gradstudy.figures.rates import plot_unhealthy_rate, unhealthy_points
from yolo_gradstudy.figures.trajectories import gradient_norm_lines, plot_gradient_norms, plot_target_scores
from yolo_gradstudy.records import Outcome


def drawn(plot, frame, **arguments):
    figure = Figure(layout="constrained")
    ax = figure.subplots()
    plot(frame, ax, **arguments)
    figure.canvas.draw()
    return figure, ax


def words(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


# ---- every figure


def test_every_figure_has_a_case_and_its_key_is_its_name():
    assert set(CASES) == set(FIGURES)
    assert all(function.__name__ == name for name, function in FIGURES.items())


@pytest.mark.parametrize("name", CASES)
def test_a_figure_shows_its_words_and_leaves_frame_and_style_alone(name):
    make, expected = CASES[name]
    frame, style = make(), dict(matplotlib.rcParams)
    before = frame.copy(deep=True)
    figure, _ = drawn(FIGURES[name], frame)
    shown = words(figure)
    assert [word for word in expected if word not in shown] == []
    pd.testing.assert_frame_equal(frame, before)
    assert dict(matplotlib.rcParams) == style


@pytest.mark.parametrize("name", CASES)
def test_a_figure_of_nothing_is_drawn(name):
    drawn(FIGURES[name], CASES[name][0]().iloc[:0])


@pytest.mark.parametrize("name", CASES)
def test_a_figure_can_be_drawn_from_its_csv(name, tmp_path):
    CASES[name][0]().to_csv(tmp_path / "t.csv", index=False)
    drawn(FIGURES[name], pd.read_csv(tmp_path / "t.csv"))


def test_a_caption_stands_at_the_foot():
    figure, _ = drawn(plot_outcome_grid, results())
    write_caption(figure, {"scale": "60 steps", "machine": "CPU"})
    assert "scale: 60 steps  ·  machine: CPU" in words(figure)


# ---- palette


def test_every_outcome_has_its_own_colour_and_letter():
    assert set(palette.OUTCOMES) == set(Outcome)
    for attribute in ("colour", "letter"):
        assert len({getattr(style, attribute) for style in palette.OUTCOMES.values()}) == len(Outcome)


def test_an_arm_looks_the_same_whichever_arms_are_drawn_and_no_two_look_alike():
    arms = ["control", *(f"arm{i}" for i in range(20))]
    styles = palette.arm_styles(arms)
    assert len({(s.colour, s.line) for s in styles.values()}) == len(arms)
    assert styles["control"].colour == palette.BLACK
    _, ax = drawn(plot_unhealthy_rate, outcomes(), arms=["control", "another", "no_clip"])
    drawn_colours = {c.get_label(): c.lines[0].get_color() for c in ax.containers}
    assert drawn_colours["no_clip"] == palette.arm_styles(["control", "another", "no_clip"])["no_clip"].colour


# ---- outcome grid


def test_a_part_of_a_cell_for_each_seed():
    cells = outcome_cells(results())
    assert len(cells) == 8
    cell = cells[(cells["arm"] == "no_clip") & (cells["lr0"] == 0.01)]
    assert cell["letter"].tolist() == ["S", "F"]
    assert cell["x"].tolist() == pytest.approx([-0.47, 0.0])
    _, ax = drawn(plot_outcome_grid, results())
    boxes = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert len(boxes) == 8
    assert matplotlib.colors.to_hex(boxes[2].get_facecolor()).upper() == palette.OUTCOMES[Outcome.COLLAPSED].colour


@pytest.mark.parametrize("seeds", [1, 3, 6, 7, 10, 13])
def test_parts_of_a_cell_do_not_overlap_or_leave_it(seeds):
    frame = pd.DataFrame({"arm": "a", "lr0": 0.1, "seed": range(seeds), "outcome": "stable"})
    cells = outcome_cells(frame)
    right, bottom = cells["x"] + cells["width"], cells["y"] + cells["height"]
    assert min(cells["x"].min(), cells["y"].min()) >= -0.5
    assert max(right.max(), bottom.max()) <= 0.5 + 1e-9
    for i in range(seeds):
        for j in range(i):
            apart_x = right[j] <= cells["x"][i] + 1e-9 or right[i] <= cells["x"][j] + 1e-9
            apart_y = bottom[j] <= cells["y"][i] + 1e-9 or bottom[i] <= cells["y"][j] + 1e-9
            assert apart_x or apart_y


# ---- rates


def test_points_of_a_rate_stand_apart_and_keep_to_their_rate():
    points = unhealthy_points(outcomes())
    assert len(points) == 4
    assert points["x"].is_unique
    for _, rows in points.groupby("lr0"):
        assert (np.abs(np.log10(rows["x"] / rows["lr0"])) < 0.5).all()


def test_rates_without_a_verdict_keep_their_place():
    frame = outcomes()
    frame.loc[frame["lr0"] == 0.1, ["share", "wilson_low", "wilson_high"]] = math.nan
    _, ax = drawn(plot_unhealthy_rate, frame)
    low, high = ax.get_xlim()
    assert low < unhealthy_points(frame)["x"].min()
    assert high > 0.1


def test_bars_are_wilsons():
    _, ax = drawn(plot_unhealthy_rate, outcomes())
    expected = unhealthy_points(outcomes())
    for container in ax.containers:
        rows = expected[expected["arm"] == container.get_label()]
        segments = np.array(container.lines[2][0].get_segments())
        assert segments[:, 0, 1] == pytest.approx(rows["low"].to_numpy())
        assert segments[:, 1, 1] == pytest.approx(rows["high"].to_numpy())


# ---- trajectories


def test_nonfinite_and_zero_norms_are_marked_at_the_edges():
    frame = trajectories()
    _, ax = drawn(plot_gradient_norms, frame, clip_norm=10.0)
    marks = {line.get_label(): line.get_xdata() for line in ax.lines}
    broken = frame[(frame["arm"] == "no_clip") & (frame["nonfinite"] > 0)]
    assert list(marks["_nonfinite no_clip"]) == broken["step"].tolist()
    zero = frame[(frame["arm"] == "control") & (frame["grad_norm_low"] == 0)]
    assert len(zero) > 0
    assert list(marks["_zero control"]) == zero["step"].tolist()
    assert "clip at 10" in marks
    assert ax.get_yscale() == "log"


def test_the_line_is_the_median_and_the_band_the_range():
    frame = trajectories(0.01)
    _, ax = drawn(plot_gradient_norms, frame)
    rows = frame[frame["arm"] == "control"]
    line = next(line for line in ax.lines if line.get_label().startswith("control"))
    assert line.get_ydata() == pytest.approx(rows["grad_norm_median"].to_numpy())
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(rows["grad_norm_low"].min())
    assert band.max() == pytest.approx(rows["grad_norm_high"].max())


def test_a_log_axis_gets_only_positive_numbers():
    lines = gradient_norm_lines(trajectories())
    for name in ("median", "low", "high"):
        assert (lines[name].dropna() > 0).all()


def test_target_scores_begin_at_zero_and_later_arms_are_not_cut():
    frame = trajectories(0.01).copy()
    frame.loc[frame["arm"] == "no_clip", ["target_scores_median", "target_scores_high"]] *= 5
    _, ax = drawn(plot_target_scores, frame)
    low, high = ax.get_ylim()
    assert low == 0
    assert high >= frame["target_scores_high"].max()


@pytest.mark.parametrize("plot", [plot_gradient_norms, plot_target_scores])
def test_several_learning_rates_are_refused(plot):
    frame = pd.concat([trajectories(0.01), trajectories(0.1)])
    with pytest.raises(ValueError, match=r"learning rates 0.01, 0.1; draw one"):
        plot(frame, Figure().subplots())


# ---- layers


def test_blocks_are_modules_in_order_and_a_head_is_split():
    blocks = list(dict.fromkeys(layer_blocks(parameter_names())))
    assert blocks[:3] == ["model.0", "model.1", "model.2"]
    assert blocks[-4:] == ["model.23.cv2", "model.23.cv3", "model.23.one2one_cv2", "model.23.one2one_cv3"]
    assert layer_blocks(["encoder.0.weight", "head"]) == ["encoder", "head"]
    assert layer_blocks(["module.model.3.conv.weight"]) == ["model.3"]


def test_cells_keep_the_order_of_the_model_and_know_what_is_not_finite():
    frame = pd.DataFrame(
        {
            "step": [1, 3, 5],
            "model.0.w": [1.0, 10.0, math.inf],
            "model.1.w": [0.0, 1.0, 100.0],
            "model.1.b": [math.nan, 1, 1],
        }
    )
    cells = layer_cells(frame)
    assert cells.log10[:, 0].tolist() == [0.0, 1.0, math.inf]
    assert cells.log10[0, 1] == -math.inf
    assert math.isnan(cells.log10[0, 2])
    assert cells.step_edges.tolist() == [1, 3, 5, 7]
    assert cells.blocks == ("model.0", "model.1")
    assert cells.block_edges == pytest.approx([0, 1, 1 + 2 ** (1 / 3)])
    assert (np.diff(cells.height_edges) > 0).all()
    figure, ax = drawn(plot_layer_heatmap, frame)
    mesh = ax.collections[0]
    assert np.ma.getmaskarray(mesh.get_array()).sum() == 1  # the infinite one
    assert mesh.get_clim() == (0.0, 2.0)
    assert {"NaN or infinite", "exactly 0", "no gradient"} <= set(words(figure).split(" | "))
    assert ax.yaxis_inverted()


def test_special_cells_are_drawn_in_their_own_colours():
    frame = pd.DataFrame({"step": [1, 2], "model.0.w": [0.0, math.nan], "model.1.w": [1.0, 100.0]})
    _, ax = drawn(plot_layer_heatmap, frame)
    mesh = ax.collections[0]
    shown = [matplotlib.colors.to_hex(c) for c in mesh.to_rgba(mesh.get_array()).reshape(-1, 4)]
    assert shown[:2] == ["#ffffff", "#bdbdbd"]  # exactly 0, no gradient
    assert len(set(shown)) == 4


def test_a_few_tiny_gradients_do_not_flatten_the_colours():
    frame = pd.DataFrame({"step": range(1, 101), "model.0.w": [1e-18, *np.geomspace(1, 100, 99)]})
    _, ax = drawn(plot_layer_heatmap, frame)
    low, high = ax.collections[0].get_clim()
    assert -0.1 < low < 0.1
    assert high == pytest.approx(2.0)
    _, ax = drawn(plot_layer_heatmap, frame, limits=(-3.0, 3.0))
    assert ax.collections[0].get_clim() == (-3.0, 3.0)


def test_names_of_blocks_do_not_overlap():
    names = parameter_names()
    frame = pd.DataFrame(np.ones((4, len(names))), columns=names)
    frame.insert(0, "step", range(1, 5))
    figure = Figure(figsize=(6.4, 5.4), dpi=120, layout="constrained")
    ax = figure.subplots()
    plot_layer_heatmap(frame, ax)
    figure.canvas.draw()
    boxes = sorted((t.get_window_extent() for t in ax.get_yticklabels()), key=lambda b: b.y0)
    assert len(boxes) >= 25
    assert all(lower.y1 <= upper.y0 + 2 for lower, upper in pairwise(boxes))


def test_layers_of_the_case_are_hatched_where_nan():
    _, ax = drawn(plot_layer_heatmap, layers())
    assert ax.patch.get_hatch() == "////"
