# SPDX-License-Identifier: AGPL-3.0-or-later
"""One row a figure: the frame that it draws, an empty frame of the same columns, and words it must show."""

from __future__ import annotations

from tables.cases import fake_run, readings

from yolo_gradstudy.tables import layer_table, outcomes_table, results_table, trajectories_table


def results():
    return results_table(readings())


def outcomes():
    return outcomes_table(results())


def trajectories(lr0=0.1):
    frame = trajectories_table(readings())
    return frame[frame["lr0"] == lr0]


def layers():
    return layer_table(fake_run("nonfinite"))


CASES = {
    "plot_outcome_grid": (results, ["n = 8 runs", "collapsed", "control", "0.1", "learning rate"]),
    "plot_unhealthy_rate": (outcomes, ["Wilson", "n = 1 to 2", "no_clip", "learning rate", "share"]),
    "plot_gradient_norms": (trajectories, ["n = 2", "NaN or infinite", "optimizer step", "gradient norm"]),
    "plot_target_scores": (trajectories, ["n = 2", "control", "optimizer step", "ground-truth box"]),
    "plot_layer_heatmap": (layers, ["model.0", "NaN or infinite", "optimizer step", "log10"]),
}
"""Function's name → its frame, and words that stand in the figure."""
