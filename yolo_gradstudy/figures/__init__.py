# SPDX-License-Identifier: AGPL-3.0-or-later
"""DataFrame → matplotlib Axes. Nothing here reads or saves a file, or touches matplotlib's global state."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from yolo_gradstudy.figures.answers import plot_incidence, plot_limits, plot_sensitivity
from yolo_gradstudy.figures.depth import plot_gains, plot_gradient_depth
from yolo_gradstudy.figures.layers import plot_layer_heatmap
from yolo_gradstudy.figures.outcomes import plot_outcome_grid
from yolo_gradstudy.figures.rates import plot_accuracy, plot_unhealthy_rate
from yolo_gradstudy.figures.safeguards import plot_amp_scale, plot_clip_share, plot_update_ratios
from yolo_gradstudy.figures.trajectories import plot_gradient_norms, plot_loss_and_scores, plot_target_scores

__all__ = [
    "FIGURES",
    "plot_accuracy",
    "plot_amp_scale",
    "plot_clip_share",
    "plot_gains",
    "plot_gradient_depth",
    "plot_gradient_norms",
    "plot_incidence",
    "plot_layer_heatmap",
    "plot_limits",
    "plot_loss_and_scores",
    "plot_outcome_grid",
    "plot_sensitivity",
    "plot_target_scores",
    "plot_unhealthy_rate",
    "plot_update_ratios",
    "write_caption",
]

FIGURES: dict[str, Callable[..., None]] = {
    "plot_outcome_grid": plot_outcome_grid,
    "plot_unhealthy_rate": plot_unhealthy_rate,
    "plot_incidence": plot_incidence,
    "plot_sensitivity": plot_sensitivity,
    "plot_accuracy": plot_accuracy,
    "plot_limits": plot_limits,
    "plot_gradient_norms": plot_gradient_norms,
    "plot_target_scores": plot_target_scores,
    "plot_loss_and_scores": plot_loss_and_scores,
    "plot_clip_share": plot_clip_share,
    "plot_update_ratios": plot_update_ratios,
    "plot_amp_scale": plot_amp_scale,
    "plot_gradient_depth": plot_gradient_depth,
    "plot_gains": plot_gains,
    "plot_layer_heatmap": plot_layer_heatmap,
}
"""Every figure, by its function's name; each is called with a DataFrame and an Axes."""


def write_caption(figure: Figure, caption: Mapping[str, str]) -> None:
    """Write at the figure's foot what was run and on what machine.

    Args:
        figure: A figure with a constrained layout, which makes room.
        caption: Words and what they say, such as ``{"scale": "yolo26n.yaml …", "machine": "CPU"}``.
    """
    text = "  ·  ".join(f"{word}: {said}" for word, said in caption.items())
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color="#555555")
