# SPDX-License-Identifier: AGPL-3.0-or-later
"""How many runs have gone wrong by which step, and how: the outcomes compete."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables.frames import arms_and_rates, typed
from yolo_gradstudy.tables.intervals import MISSING, NORMAL, Floats, Interval
from yolo_gradstudy.tables.outcomes import UNHEALTHY
from yolo_gradstudy.tables.times import Curve, counts_of, curve_of, times_of

_COLUMNS = {
    "arm": "str", "lr0": "float64", "cause": "str", "step": "Int64",
    **dict.fromkeys(("n", "n_excluded", "at_risk", "events"), "Int64"),
    **dict.fromkeys(("incidence", "se", "low", "high", "healthy"), "float64"),
}  # fmt: skip


def incidence_table(results: pd.DataFrame) -> pd.DataFrame:
    """The share of runs that have gone wrong by a step, by cause.

    An unhealthy outcome ends a run, so that no other can come after it: causes compete, and the shares are those of
    Aalen and Johansen (1978), Scandinavian Journal of Statistics 5, 141–150. With one cause alone it is one less the
    Kaplan–Meier estimate; without censoring, a count over n. A run's event is at its onset, ``stuck`` at its last
    step. Healthy runs are censored at their last step, and so are runs that failed or were interrupted.

    Args:
        results: :func:`results_table`.

    Returns:
        A row an arm, learning rate, step and cause: each unhealthy outcome that occurs anywhere in ``results``, then
        ``unhealthy``, all together. Steps are 0 and each at which a run of the arm at that rate goes wrong or
        is censored. ``at_risk`` of the ``n`` runs are followed and healthy just before the step, at which
        ``events`` of the cause occur; ``n_excluded`` are unknown runs and those without a step.
        ``incidence`` is the share from this step on, ``healthy`` the share that has not gone wrong by any cause, so
        that with all incidences but ``unhealthy`` it sums to 1. ``se`` is by the delta method (Marubini and
        Valsecchi 1995, §10.3), which is Greenwood's with one cause and the binomial's without censoring;
        ``low`` and ``high`` bound the share at 95% on the scale of log(−log) (Kalbfleisch and Prentice 2002,
        §1.4), missing where the share is 0 or 1, or the estimate has no spread.
    """
    causes = [str(o) for o in Outcome if o.unhealthy and (results["outcome"] == str(o)).any()]
    groups = {**{cause: [cause] for cause in causes}, UNHEALTHY: causes}
    rows: list[list[object]] = []
    for arm, lr0, runs in arms_and_rates(results):
        times = times_of(runs)
        n, curve = len(times.causes), curve_of(times)
        told = {}
        for name, members in groups.items():
            events = counts_of(times, curve.steps, members)
            share = np.cumsum(curve.before * events / curve.at_risk)
            told[name] = (events, share, _standard_errors(curve, events, share))
        if n:
            rows += [[arm, lr0, name, 0, n, len(runs) - n, n, 0, 0.0, 0.0, *MISSING, 1.0] for name in groups]
        for i, step in enumerate(curve.steps):
            for name, (events, share, se) in told.items():
                counts = [int(step), n, len(runs) - n, int(curve.at_risk[i]), int(events[i])]
                bounds = _interval(float(share[i]), float(se[i]))
                rows.append([arm, lr0, name, *counts, share[i], se[i], *bounds, curve.after[i]])
    return typed(rows, _COLUMNS)


def _standard_errors(curve: Curve, events: Floats, share: Floats) -> Floats:
    """The standard error of a cumulative incidence at each step of the curve."""
    survivors = curve.at_risk - curve.events
    with np.errstate(divide="ignore"):
        # Where nobody is left, the share changes no more and the weight is 0.
        any_cause = np.where(survivors > 0, curve.events / (curve.at_risk * survivors), 0.0)
    own = curve.before**2 * events * (curve.at_risk - events) / curve.at_risk**3
    mixed = curve.before * events / curve.at_risk**2
    variances = []
    for i in range(len(share)):
        gap = share[i] - share[: i + 1]
        variances.append(gap**2 @ any_cause[: i + 1] + own[: i + 1].sum() - 2 * gap @ mixed[: i + 1])
    found: Floats = np.sqrt(np.maximum(np.array(variances, dtype="float64"), 0.0))
    return found


def _interval(share: float, se: float) -> Interval:
    if not 0 < share < 1 - 1e-12 or se < 1e-12:
        return MISSING
    factor = math.exp(NORMAL * se / (share * abs(math.log(share))))
    return share**factor, share ** (1 / factor)
