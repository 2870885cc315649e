# SPDX-License-Identifier: AGPL-3.0-or-later
import math
from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from synthetic import make_reading, parameter_names
from tables.cases import fake_run, frame_of

from figures.cases import (
    CASES,
    accuracies,
    curves,
    depth,
    gains,
    layers,
    limits,
    mixed,
    outcomes,
    results,
    trajectories,
)
from yolo_gradstudy.figures import FIGURES, palette, write_caption
from yolo_gradstudy.figures.answers import plot_incidence, plot_limits, plot_sensitivity
from yolo_gradstudy.figures.depth import drawn_modules, plot_gains, plot_gradient_depth
from yolo_gradstudy.figures.layers import layer_blocks, layer_cells, plot_layer_heatmap
from yolo_gradstudy.figures.outcomes import outcome_cells, plot_outcome_grid
from yolo_gradstudy.figures.rates import plot_accuracy, plot_unhealthy_rate, unhealthy_points
from yolo_gradstudy.figures.safeguards import plot_amp_scale, plot_clip_share, plot_update_ratios
from yolo_gradstudy.figures.trajectories import (
    gradient_norm_lines,
    plot_gradient_norms,
    plot_loss_and_scores,
    plot_target_scores,
)
from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables import incidence_table, trajectories_table


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


# ---- where runs end


def test_runs_that_did_not_stay_healthy_have_their_letter_where_they_end():
    readings = [make_reading(seed=s, outcome="collapsed", run=fake_run("collapsed", s, 50)) for s in (0, 1)]
    readings += [
        make_reading(seed=2, outcome="nonfinite", run=fake_run("nonfinite", 2, 30)),
        make_reading(seed=3, run=fake_run(seed=3, steps=60)),
    ]
    frame = trajectories_table(readings)
    for plot in (plot_gradient_norms, plot_target_scores, plot_loss_and_scores, plot_clip_share):
        figure, ax = drawn(plot, frame)
        told = {text.get_text(): text.xy[0] for text in ax.texts if text.get_visible()}
        assert told == {"2C": 50, "N": 30}, plot.__name__
        assert "end of collapsed runs" in words(figure)
        faces = [matplotlib.colors.to_hex(t.get_bbox_patch().get_facecolor()).upper() for t in ax.texts]
        assert sorted(faces) == sorted(palette.OUTCOMES[o].colour for o in (Outcome.COLLAPSED, Outcome.NONFINITE))


def test_letters_of_ends_close_together_do_not_hide_each_other():
    readings = [
        make_reading(seed=s, outcome=o, run=fake_run(seed=s, steps=60))
        for s, o in enumerate(("collapsed", "exploded", "stuck"))
    ]
    _, ax = drawn(plot_target_scores, trajectories_table(readings))
    boxes = sorted((t.get_window_extent() for t in ax.texts), key=lambda box: box.y0)
    assert len(boxes) == 3
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))


# ---- loss beside scores


def test_the_collapse_that_the_loss_hides_is_hatched():
    steps = np.arange(1, 61)
    scores = np.where(steps <= 30, 2.0, 0.0)
    run = fake_run(steps=60, loss=100.0 / steps, target_scores_one2one=scores * 40, boxes=np.full(60, 40.0))
    _, ax = drawn(plot_loss_and_scores, trajectories_table([make_reading(outcome="collapsed", run=run)]))
    (dead,) = [p for p in ax.patches if p.get_hatch()]
    assert (dead.get_x(), dead.get_x() + dead.get_width()) == (31, 60)
    lines = {line.get_label().split(",")[0]: line for line in ax.lines}
    assert lines["training loss"].get_ydata()[-1] == pytest.approx(1 / 60)
    assert lines["target scores"].get_ydata()[[0, -1]].tolist() == [1.0, 0.01]
    assert lines["training loss"].get_linestyle() != lines["target scores"].get_linestyle()
    healthy = trajectories_table([make_reading(run=fake_run())])
    _, ax = drawn(plot_loss_and_scores, healthy)
    assert [p for p in ax.patches if p.get_hatch()] == []


# ---- safeguards


def test_an_arm_that_does_not_clip_says_so_and_the_share_is_the_tables():
    free = fake_run()
    free.meta = {**free.meta, "clip_norm": None}
    frame = trajectories_table([make_reading(run=fake_run()), make_reading("no_clip", run=free)])
    figure, ax = drawn(plot_clip_share, frame)
    assert "no_clip: nothing clips" in words(figure)
    (line,) = [line for line in ax.lines if line.get_label().startswith("control")]
    assert line.get_ydata().tolist() == frame.loc[frame["arm"] == "control", "clipped_share_median"].tolist()


def test_the_scale_has_an_axis_of_powers_of_two_and_skipped_steps_are_marked():
    frame = mixed()
    _, ax = drawn(plot_amp_scale, frame)
    assert ax.yaxis.get_transform().base == 2
    marks = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert list(marks["_skipped control"]) == [5, 6]


def test_update_ratios_are_drawn_at_the_steps_that_have_them():
    _, ax = drawn(plot_update_ratios, mixed())
    line = next(line for line in ax.lines if line.get_label().startswith("control"))
    assert line.get_xdata().tolist() == [1, 6, 11, 16]
    assert ax.get_yscale() == "log"
    assert [line.get_ydata()[0] for line in ax.lines if "usual" in line.get_label()] == [1e-3]


# ---- depth


def test_a_line_a_moment_in_the_order_of_the_network():
    frame = depth("control")
    _, ax = drawn(plot_gradient_depth, frame)
    lines = {line.get_label(): line for line in ax.lines if "step" in line.get_label()}
    assert list(lines) == ["first (step 1)", "quarter (step 13)", "half (step 25)", "last (step 50)"]
    first = frame[frame["moment"] == "first"]
    assert lines["first (step 1)"].get_ydata() == pytest.approx(first["grad_norm_median"].to_numpy())
    assert len({line.get_linestyle() if isinstance(line.get_linestyle(), str) else "" for line in lines.values()}) >= 3
    shades = [matplotlib.colors.rgb_to_hsv(line.get_color()[:3])[2] for line in lines.values()]
    assert shades == sorted(shades), "later is lighter, in grey too"
    zeros = [line for line in ax.lines if line.get_marker() == "v" and len(line.get_xdata())]
    assert [line.get_label() for line in zeros] == ["_v last"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1"]


def test_a_long_name_of_a_block_leaves_the_figure_its_room():
    _, ax = drawn(plot_gradient_depth, depth("control").replace({"tensor": {"model.0.weight": f"{'x' * 200}.weight"}}))
    assert [t.get_text() for t in ax.get_xticklabels()] == [f"{'x' * 17}…", "1"]


def test_of_an_ultralytics_model_the_gains_of_numbered_layers_are_drawn():
    assert drawn_modules(gains()) == ["model.0", "model.1", "model.2"]
    plain = gains().replace({"module": {"model.0": "a", "model.0.conv": "b", "model.1": "c", "model.2": "d"}})
    assert drawn_modules(plain) == ["a", "b", "c", "d"]
    _, ax = drawn(plot_gains, gains())
    lines = {line.get_label(): line.get_ydata() for line in ax.lines if "gain" in line.get_label()}
    assert lines["forward gain, last (step 11)"].tolist() == pytest.approx([0.75, 3.0, 1.5])
    assert lines["backward gain, last (step 11)"][1:].tolist() == pytest.approx([3.0, 1.5])
    assert ax.get_yscale() == "log"
    assert [line.get_ydata()[0] for line in ax.lines if line.get_label().startswith("1:")] == [1]


# ---- answers


def test_incidence_steps_up_and_ends_at_its_share_with_its_interval():
    outcomes = ["collapsed", "collapsed", "nonfinite", "stable"]
    frame = incidence_table(frame_of([("x", 0.1, s, o) for s, o in enumerate(outcomes)], onset_step=[5, 9, 7, None]))
    _, ax = drawn(plot_incidence, frame)
    ends = {line.get_label().split()[-1]: line.get_ydata()[-1] for line in ax.lines}
    assert ends == {"collapsed": 0.5, "nonfinite": 0.25, "band": 0.75}
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in ax.lines}) == 3
    at_nine = frame[(frame["cause"] == "unhealthy") & (frame["step"] == 9)].iloc[0]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(at_nine["high"])
    with pytest.raises(ValueError, match="arms a, b; draw one"):
        plot_incidence(pd.concat([frame.assign(arm="a"), frame.assign(arm="b")]), Figure().subplots())


def test_a_seeds_bar_runs_from_its_stable_to_its_broken_rate_and_bounds_are_arrows():
    frame = limits()
    frame.loc[0, ["first_broken", "bound"]] = [math.nan, "at least"]
    frame.loc[3, ["largest_stable", "bound"]] = [math.nan, "below"]
    _, ax = drawn(plot_limits, frame)
    bars = [
        tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata()) == 0
    ]
    assert bars == [(0.4, 0.8), (0.1, 0.2)]
    arrows = {text.xyann[0]: text.xy[0] for text in ax.texts if isinstance(text, Annotation)}
    assert arrows[0.4] > 0.4
    assert arrows[0.2] < 0.2
    medians = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) == 0]
    assert medians == [0.4, 0.1]
    assert ax.xaxis.get_transform().base == 2


def test_accuracy_is_drawn_with_its_interval_and_broken_marks_are_hollow():
    frame = accuracies()
    _, ax = drawn(plot_accuracy, frame)
    hollow = sorted(y for line in ax.lines if line.get_markerfacecolor() == "white" for y in line.get_ydata())
    assert hollow == sorted(frame.loc[frame["n_broken"] > 0, "map50_95"]) != []
    heights = sorted(y for container in ax.containers for y in container.lines[0].get_ydata())
    assert heights == sorted(frame["map50_95"])


def test_sensitivity_is_drawn_with_its_range_and_capped_marks_are_hollow():
    frame = curves()
    _, ax = drawn(plot_sensitivity, frame)
    marks = [line for line in ax.lines if line.get_marker() in "os^" and len(line.get_xdata()) == 1]
    hollow = [line.get_markerfacecolor() == "white" for line in marks]
    assert hollow == (frame["n_capped"] > 0).tolist()
    assert [line.get_ydata()[0] for line in marks] == frame["loss_median"].tolist()
    for line, rate in zip(marks, frame["lr0"], strict=True):
        assert line.get_xdata()[0] == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("name", [n for n in CASES if "trajectories" in FIGURES[n].__code__.co_varnames])
def test_arms_and_quantities_are_told_apart_without_colour(name):
    frame = pd.concat([CASES[name][0]().assign(arm=arm) for arm in ("control", *(f"arm{i}" for i in range(7)))])
    _, ax = drawn(FIGURES[name], frame, arms=list(dict.fromkeys(frame["arm"])))
    assert len({(matplotlib.colors.to_hex(line.get_color()), str(line.get_linestyle())) for line in ax.lines}) >= 8
