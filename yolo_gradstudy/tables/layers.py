# SPDX-License-Identifier: AGPL-3.0-or-later
"""Quantities of every parameter tensor."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Run
from yolo_gradstudy.tables.results import column
from yolo_gradstudy.tables.trajectories import bins


def layer_table(run: Run, quantity: str = "grad_norm", points: int = 100) -> pd.DataFrame:
    """A quantity of every parameter tensor at every step, for a heatmap.

    Args:
        run: A recorded run.
        quantity: ``grad_norm``, ``param_norm`` or ``update_ratio``.
        points: Most rows; a longer run is cut into so many bins of consecutive steps, of which a row has
            the first step and the largest value.

    Returns:
        ``step``, then a column a parameter tensor in the order of the model; no rows where the run has
        none of the quantity. Infinite where the value was NaN or infinite; missing where the tensor had no
        gradient, as the box convolutions of a head without positives. Tensors that never had one are left
        out. A NaN is told from a missing value by the step's global norm, which a NaN makes NaN.

    Raises:
        ValueError: ``points`` is below 1, or there is no such quantity.
    """
    if points < 1:
        raise ValueError(f"points={points!r} is too few to draw; the nearest valid is 1.")
    layers = run.layers(quantity)
    layers = layers[~layers.index.duplicated(keep="last")]
    norms = column(run.steps, "grad_norm")
    norms = norms[~norms.index.duplicated(keep="last")].reindex(layers.index)
    values = layers.to_numpy(dtype="float64")
    broken = np.isinf(values) | (np.isnan(values) & ~np.isfinite(norms.to_numpy())[:, None])
    values = np.where(broken, math.inf, values)
    starts = np.unique(bins(len(values), points), return_index=True)[1]
    if len(starts):
        values = np.fmax.reduceat(values, starts, axis=0)
    present = ~np.isnan(values).all(axis=0)
    frame = pd.DataFrame(values[:, present], columns=layers.columns[present])
    frame.insert(0, "step", pd.Series(layers.index.to_numpy()[starts], dtype="Int64"))
    return frame
