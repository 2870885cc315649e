# SPDX-License-Identifier: AGPL-3.0-or-later
"""One row a figure: the frame that it draws, an empty frame of the same columns, and words it must show."""

from __future__ import annotations

from tables.cases import fake_run, mixed_precision, readings, search

from yolo_gradstudy.tables import (
    accuracy_table,
    gains_table,
    gradient_depth_table,
    incidence_table,
    layer_table,
    limit_ratios_table,
    limits_table,
    outcomes_table,
    results_table,
    sensitivity_curves_table,
    trajectories_table,
)


def results():
    return results_table(readings())


def outcomes():
    return outcomes_table(results())


def trajectories(lr0=0.1):
    frame = trajectories_table(readings())
    return frame[frame["lr0"] == lr0]


def layers():
    return layer_table(fake_run("nonfinite"))


def mixed():
    return trajectories_table(mixed_precision())


def depth(arm="no_clip"):
    frame = gradient_depth_table(readings())
    return frame[(frame["arm"] == arm) & (frame["lr0"] == 0.1)]


def gains():
    return gains_table(mixed_precision())


def incidence():
    frame = incidence_table(results())
    return frame[(frame["arm"] == "no_clip") & (frame["lr0"] == 0.1)]


def limits():
    edges = limits_table(search(), 2)
    answers = limit_ratios_table(edges).rename(columns={"n": "pairs"})
    return edges.merge(answers[["arm", "limit_median", "median_bound", "pairs", "log2_ratio", "t_low", "t_high"]])


def accuracies():
    return accuracy_table(search())


def curves():
    return sensitivity_curves_table(search())


CASES = {
    "plot_outcome_grid": (results, ["n = 8 runs", "collapsed", "control", "0.1", "learning rate"]),
    "plot_unhealthy_rate": (outcomes, ["Wilson", "n = 1 to 2", "no_clip", "learning rate", "share"]),
    "plot_gradient_norms": (trajectories, ["n = 2", "NaN or infinite", "optimizer step", "gradient norm"]),
    "plot_target_scores": (trajectories, ["n = 2", "control", "optimizer step", "ground-truth box"]),
    "plot_loss_and_scores": (
        trajectories,
        ["times the start", "training loss, control", "end of nonfinite runs", "2N"],
    ),
    "plot_clip_share": (mixed, ["share of clipped steps", "n = 2", "optimizer step"]),
    "plot_update_ratios": (mixed, ["0.001, a usual ratio", "update", "n = 2"]),
    "plot_amp_scale": (mixed, ["AMP loss scale", "skipped", "n = 2"]),
    "plot_gradient_depth": (depth, ["first (step 1)", "last (step 20)", "gradient norm", "0", "NaN or infinite"]),
    "plot_gains": (gains, ["forward gain, first (step 1)", "backward gain, last (step 11)", "1: the size is kept"]),
    "plot_incidence": (incidence, ["share gone wrong", "N  nonfinite", "95%", "optimizer step"]),
    "plot_limits": (limits, ["−2.0 octaves [−2.0, −2.0], n = 2", "no_clip", "learning rate", "median of seeds"]),
    "plot_accuracy": (accuracies, ["mAP50-95", "n = 2", "Student", "a run broke and counts as 0", "learning rate"]),
    "plot_sensitivity": (curves, ["nats an object", "untrained: 9", "n = 2", "learning rate"]),
    "plot_layer_heatmap": (layers, ["model.0", "NaN or infinite", "optimizer step", "log10"]),
}
"""Function's name → its frame, and words that stand in the figure."""
