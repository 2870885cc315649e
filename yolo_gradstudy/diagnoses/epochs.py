# SPDX-License-Identifier: AGPL-3.0-or-later
"""What Ultralytics' ``results.csv`` tells where nothing else was recorded: an epoch's mean losses, and mAP."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from yolo_gradstudy.diagnoses.evidence import Evidence


def epoch_losses(epochs: pd.DataFrame) -> pd.DataFrame:
    """The training losses: a row an epoch, a column a loss item. ``val`` losses are 0 where nothing was validated."""
    return epochs[[c for c in epochs if str(c).startswith("train/") and str(c).endswith("loss")]]


def nonfinite_epochs(epochs: pd.DataFrame) -> pd.Index:
    """The epochs whose mean training loss is NaN or infinite."""
    losses = epoch_losses(epochs)
    bad: pd.Index = losses.index[~np.isfinite(losses.to_numpy(dtype="float64")).all(axis=1)]
    return bad


def map_of(epochs: pd.DataFrame) -> pd.Series | None:
    """mAP50-95 of each epoch, of boxes where there are several kinds; None where there is none."""
    name = map_name({str(c): 0.0 for c in epochs})
    return None if name is None else epochs[name].dropna()


def map_name(metrics: Mapping[str, float]) -> str | None:
    """The name under which Ultralytics tells mAP50-95."""
    names = [name for name in metrics if "mAP50-95(" in name]
    return next((name for name in names if name.endswith("(B)")), names[0] if names else None)


def find_epoch_spikes(evidence: Evidence) -> tuple[pd.Index, float, str] | None:
    """The epochs whose mean training loss was far above the first, or not finite.

    Returns:
        The epochs, the factor that counts as far, and a clause with the numbers; None where there are too few epochs
        or no losses.
    """
    losses = epoch_losses(evidence.epochs)
    if len(losses) < evidence.thresholds.fewest_epochs or not losses.shape[1]:
        return None
    total = losses.sum(axis=1, skipna=False).astype("float64").fillna(np.inf)
    factor = evidence.thresholds.exploded_loss
    if not total.iloc[0] > 0:
        return None
    told = (
        f"mean loss {total.iloc[0]:.3g} in the first epoch, at most {total.max():.3g} on the way, "
        f"{total.iloc[-1]:.3g} in the last"
    )
    return total.index[total > factor * total.iloc[0]], factor, told
