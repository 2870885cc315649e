# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a rule may look at, and the few views of it that several rules share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from yolo_gradstudy.diagnoses.bands import Floats, deviations, log_size
from yolo_gradstudy.diagnoses.thresholds import THRESHOLDS, Thresholds
from yolo_gradstudy.records import Finding, Run, RunResult


@dataclass(frozen=True)
class Evidence:
    """Everything known of one run.

    Attributes:
        run: Its telemetry; None where nothing was recorded.
        result: How its process ended; None where it has not, or where the run belongs to no study.
        control: The paired control, a run that the caller holds to be healthy; None without one.
        thresholds: Numbers to compare with.
        trouble: The step that the outcome's rule named, for the rules that explain it; None where it named none.
    """

    run: Run | None
    result: RunResult | None = None
    control: Run | None = None
    thresholds: Thresholds = THRESHOLDS
    trouble: int | None = None

    def with_trouble(self, step: int | None) -> Evidence:
        """The same evidence with the step that the outcome's rule named; what was derived of it stays derived."""
        told = replace(self, trouble=step)
        told.__dict__.update({name: value for name, value in self.__dict__.items() if name not in told.__dict__})
        return told

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What several rules ask for and another module derives of all this but the trouble, by its function's name."""
        return {}

    @cached_property
    def steps(self) -> pd.DataFrame:
        """The recorded steps, without those that the AMP scaler skipped; empty where there are none."""
        if self.run is None:
            return pd.DataFrame()
        return taken_steps(self.run.steps)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """Ultralytics' ``results.csv``, a row an epoch; empty where there is none."""
        return pd.DataFrame() if self.run is None else self.run.epochs

    @cached_property
    def only_epochs(self) -> bool:
        """Whether a plain Ultralytics folder is all there is: epochs, and nothing of a recorder's."""
        return self.run is not None and not len(self.steps) and not self.run.events and len(self.epochs) > 0

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The training arguments as far as they are on record."""
        return {} if self.run is None else training_arguments(self.run)

    @cached_property
    def last_event(self) -> str | None:
        """The last event of the telemetry that tells how recording ended."""
        events = [] if self.run is None else [str(e.get("event")) for e in self.run.events]
        told = ("finished", "stopped", "started", "resumed")
        last = next((e for e in reversed(events) if e in told), None)
        return "interrupted" if last == "stopped" and events[-2:-1] == ["interrupted"] else last

    @cached_property
    def first_nonfinite(self) -> int | None:
        """First step that was taken with a NaN or infinite loss or gradient element."""
        bad = np.zeros(len(self.steps), dtype=bool)
        if "loss" in self.steps:
            bad |= recorded_nonfinite(self.steps["loss"]).to_numpy()
        if "grad_nonfinite" in self.steps:
            bad |= self.steps["grad_nonfinite"].to_numpy() > 0
        return int(self.steps.index[bad][0]) if bad.any() else None

    @cached_property
    def last_is_nonfinite(self) -> bool:
        """Whether the last recorded step is non-finite."""
        if self.first_nonfinite is None:
            return False
        last = self.steps.iloc[-1]
        return not np.isfinite(last.get("loss", 0.0)) or last.get("grad_nonfinite", 0) > 0

    @cached_property
    def images(self) -> pd.Series | None:
        """Images of each step; None where the loop gave none."""
        images = self.column("images")
        return None if images is None or not (images > 0).all() or len(images) < len(self.steps) else images

    @cached_property
    def norm_deviations(self) -> pd.Series:
        """Distance of the gradient norm from its own band, in robust deviations; a missing column gives none."""
        return self._deviations("grad_norm", self.thresholds.band_norm_least)

    @cached_property
    def loss_deviations(self) -> pd.Series:
        """Distance of the loss from its own band, in robust deviations; a missing column gives none."""
        return self._deviations("loss", self.thresholds.band_loss_least)

    def _deviations(self, column: str, least: float) -> pd.Series:
        if column not in self.steps:
            return pd.Series(dtype="float64")
        logs = log_size(self.per_image(self.steps[column]))
        found: Floats = deviations(logs[:, None], least, self.thresholds)[:, 0]
        return pd.Series(found, index=self.steps.index)

    def per_image(self, series: pd.Series) -> pd.Series:
        """A sum over the images of a step, an image: accumulation changes how many they are."""
        return series if self.images is None else series / self.images

    def as_first(self, series: pd.Series) -> pd.Series:
        """A sum over the images of a step, as if each step had those of the first."""
        return series if self.images is None else series / (self.images / self.images.iloc[0])

    def column(self, name: str) -> pd.Series | None:
        """The recorded values of a scalar; None where there are none."""
        if name not in self.steps:
            return None
        values = self.steps[name].dropna()
        return values if len(values) else None

    def start(self, series: pd.Series) -> float:
        """Median of the run's start, over finite values."""
        count = min(self.thresholds.start_steps, int(len(series) * self.thresholds.start_share))
        return finite_median(series.iloc[: max(1, count)])

    def end(self, series: pd.Series) -> float:
        """Median of the run's end, over finite values."""
        return finite_median(self.end_window(series))

    def end_window(self, series: pd.Series) -> pd.Series:
        """The steps that stand for how the run ended."""
        share = 0.0 if self.ended_early else self.thresholds.end_share
        count = max(self.thresholds.end_steps, round(len(series) * share))
        return series.iloc[-count:]

    @cached_property
    def ended_early(self) -> bool:
        """Whether the trainer ended the run as lost: its end is what it was ended for, however long it was."""
        events = [] if self.run is None else [str(e.get("event")) for e in self.run.events]
        return "ended_early" in events and "resumed" not in events[events.index("ended_early") :]

    def before_trouble(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The steps before the trouble, for what would else tell of its consequences; all where there are none."""
        before = frame if self.trouble is None else frame.loc[: self.trouble - 1]
        return before if len(before) else frame

    def too_short(self, rule: str) -> Finding | None:
        """The answer of a rule that compares start and end of a run that has too few steps for it."""
        if self.run is None or not len(self.steps):
            return Finding(rule, "not checked", "no step was recorded")
        if len(self.steps) < self.thresholds.fewest_steps:
            return Finding(
                rule,
                "not checked",
                f"{len(self.steps)} steps were recorded, start and end are compared from "
                f"{self.thresholds.fewest_steps} on",
            )
        if self.lost_end is not None:
            return Finding(rule, "not checked", self.lost_end)
        return None

    @cached_property
    def lost_end(self) -> str | None:
        """That the run's last steps are missing: a damaged part, a full disk. What is left has no end to judge."""
        if self.run is None or not len(self.run.steps):
            return None
        last, every = int(self.run.steps.index.max()), int(self.run.meta.get("record", {}).get("every", 1))
        told = [event.get("step") for event in self.run.events if event.get("event") in ("finished", "stopped")]
        steps = [step for step in told if isinstance(step, int)]
        if not steps or last > max(steps) - every:
            return None
        return f"steps {last + 1} to {max(steps)} were made and can't be read: how the run ended is not known"


def training_arguments(run: Run) -> dict[str, Any]:
    """The training arguments of a run: Ultralytics' ``args.yaml``, else what its study set."""
    spec = run.spec
    planned = {} if spec is None else {**spec.arguments, "lr0": spec.lr0, "seed": spec.seed}
    return {**planned, **run.arguments}


def taken_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """The steps that the optimizer took: an AMP scaler's skipped steps overflowed on purpose."""
    skipped = _skipped(steps)
    return steps[~skipped] if skipped.any() else steps


def _skipped(steps: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether the AMP scaler skipped each step; none, where that is not known."""
    return steps["skipped"].to_numpy() > 0 if "skipped" in steps else np.zeros(len(steps), dtype=bool)


def recorded_nonfinite(series: pd.Series) -> pd.Series:
    """Where a value is NaN or infinite. For columns that every step records, where NaN is a measurement."""
    return pd.Series(~np.isfinite(series.to_numpy(dtype="float64")), index=series.index)


def finite_median(series: pd.Series) -> float:
    """Median over finite values; NaN where there are none."""
    values = series.to_numpy(dtype="float64")
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")


def scores_per_box(run: Run, branch: str | None = None) -> pd.Series | None:
    """Target scores of a branch for each ground-truth box.

    They tell how well the best predictions overlap the objects, whatever the batch: see
    ``statistics.assignment``. Steps without a box are left out.

    Args:
        run: A recorded run.
        branch: The branch; the one that inference uses where None.

    Returns:
        Indexed by step; None for a run that recorded no assigner.
    """
    branch = branch or run.meta.get("inference_branch")
    name, steps = f"target_scores_{branch}", run.steps
    if branch is None or name not in steps or "boxes" not in steps:
        return None
    boxes, scores = steps["boxes"].to_numpy(), steps[name].to_numpy()
    told = ~_skipped(steps) & (boxes > 0)
    return pd.Series(scores[told] / boxes[told], index=steps.index[told])
