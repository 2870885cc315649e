# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where it began: the step at which a run left its own band, and the layers in the order in which they left theirs."""

from __future__ import annotations

import numpy as np

from yolo_gradstudy.diagnoses.bands import Floats, deviations, log_size
from yolo_gradstudy.diagnoses.evidence import Evidence


def find_onset(evidence: Evidence) -> int | None:
    """The step at which the run left the band that its own gradient norms and losses had kept until then.

    Departures count that lead to the trouble which the outcome names: from one to the next, and from the last to the
    trouble, the run was not back within its band for ``calm_steps`` steps. Downwards only the norm counts: a falling
    loss is what training is for.

    Returns:
        The step of trouble itself where no departure leads to it; where no trouble is known, the first departure
        upwards, and None without one.
    """
    limit = evidence.thresholds.band_deviations
    norm, loss = evidence.norm_deviations, evidence.loss_deviations
    if evidence.trouble is None:
        return min((int(s.index[s > limit][0]) for s in (norm, loss) if (s > limit).any()), default=None)
    left = set(norm.index[norm.abs() > limit]) | set(loss.index[loss > limit])
    onset = evidence.trouble
    for step in sorted((int(s) for s in left if s <= evidence.trouble), reverse=True):
        if onset - step > evidence.thresholds.calm_steps:
            break
        onset = step
    return onset


def find_onset_layers(evidence: Evidence, onset: int | None) -> tuple[str, ...]:
    """Parameter tensors in the order in which their gradient norms left their own bands, up to the step of trouble.

    A tensor may have left before the total norm did, which the largest of them make up; then it must have stayed
    outside. Tensors that leave in the same step stand in the order of the backward pass where their gradients are not
    finite, which spread that way, and otherwise by how far they went.

    Args:
        evidence: What is known of the run.
        onset: What :func:`find_onset` returned.
    """
    if evidence.run is None or onset is None:
        return ()
    norms = evidence.run.layers("grad_norm")
    if not norms.shape[1] or onset not in evidence.steps.index:
        return ()
    steps = evidence.steps.index
    at = steps.get_loc(onset)
    last = steps.get_loc(evidence.trouble) if evidence.trouble in steps else at
    assert isinstance(at, int)
    assert isinstance(last, int)
    limits = evidence.thresholds
    # A slow blow-up of a long run needs no more than this to be told layer by layer.
    rows = slice(max(0, at - limits.layers_before), min(max(at, last), at + 4 * limits.band_window) + 1)
    # What no band reaches back to is left out.
    reach = slice(max(0, rows.start - limits.band_window - limits.band_lag), rows.stop)
    rows = slice(rows.start - reach.start, rows.stop - reach.start)
    at -= reach.start
    norms = norms.reindex(steps[reach])
    values = norms.to_numpy(dtype="float64")
    if evidence.images is not None:
        values = values / evidence.images.to_numpy(dtype="float64")[reach, None]
    logs = log_size(values)
    total = log_size(evidence.steps["grad_norm"].iloc[reach]) if "grad_norm" in evidence.steps else None
    # A gradient that is not there is missing too; it is a measurement where the total is not finite either.
    absent = np.isnan(values) & (np.isfinite(total)[:, None] if total is not None else True)
    logs[absent] = np.nan
    distance = deviations(logs, limits.band_norm_least, limits, rows)
    order = _left(distance, at - rows.start, limits.band_deviations)
    names = norms.columns.to_list()
    return tuple(str(names[i]) for i in order)


def _left(distance: Floats, onset: int, limit: float) -> list[int]:
    """Columns that left their bands, in order."""
    with np.errstate(invalid="ignore"):
        out = np.abs(distance) > limit
    found = []
    for column in np.flatnonzero(out[onset:].any(axis=0)):
        first = onset + int(np.argmax(out[onset:, column]))
        while first <= onset and first > 0 and out[first - 1, column]:  # back to where it went out for good
            first -= 1
        size = abs(float(distance[first, column]))
        found.append((first, (0, -int(column)) if np.isinf(size) else (1, -size), int(column)))
    return [column for _, _, column in sorted(found)]


def describe_layers(layers: tuple[str, ...], most: int = 3) -> str:
    """The first layers in words."""
    more = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", then ".join(layers[:most]) + more
