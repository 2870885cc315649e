# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is recorded → the loggers that Ultralytics has on: a summary each epoch, and every recorded step.

Ultralytics hands what ``label_loss_items`` returns to ``results.csv`` and to all its integrations, once an epoch: the
summary goes that way. None of them logs steps, so these go to each library itself, into the run that the integration
has begun. They are sent from the training's own thread, some at a time.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ultralytics.utils import LOGGER

PREFIX = "gradstudy"
"""Of the names under which steps are logged."""

SUMMARY = (
    "grad_norm",
    "grad_norm_max",
    "grad_nonfinite_steps",
    "clipped_share",
    "update_ratio",
    "target_scores",
)
"""What an epoch's summary holds, under ``train/``. Ultralytics plots what has ``loss`` or ``metric`` in its name."""

_LEFT_OUT = ("lr_pg", "momentum_pg", "wall_time_s", "epoch", "images")
"""Beginnings of the names of scalars that are not sent: Ultralytics logs rates itself."""

_TOGETHER = 50
"""Steps that wait to be sent; an epoch's last are sent at its end."""

_MLFLOW_MOST = 1000
"""Values that MLflow takes in one call."""

Steps = Sequence[tuple[int, Mapping[str, float]]]


def summarise(steps: Sequence[Mapping[str, float]], inference_branch: str | None) -> dict[str, float]:
    """An epoch in a few numbers.

    Args:
        steps: The scalars of each recorded step.
        inference_branch: The branch whose target scores count.

    Returns:
        The same names whatever there is, NaN where there is nothing. ``grad_norm`` is the median over the steps of the
        finite norms before clipping, ``grad_norm_max`` the largest; ``grad_nonfinite_steps`` counts steps with a NaN
        or infinite gradient; ``clipped_share`` is of the steps; ``update_ratio`` the median of the update's norm over
        the parameters'; ``target_scores`` those that a ground-truth box was given, the mean of the epoch.
    """

    def of(name: str) -> list[float]:
        return [value for step in steps if math.isfinite(value := step.get(name, math.nan))]

    norms, coefficients = of("grad_norm"), of("clip_coefficient")
    ratios = [
        step["update_norm"] / step["param_norm"]
        for step in steps
        if step.get("param_norm", 0.0) > 0 and math.isfinite(step.get("update_norm", math.nan))
    ]
    scores, boxes = sum(of(f"target_scores_{inference_branch}")), sum(of("boxes"))
    broken = [step.get("grad_nonfinite", 0.0) != 0 or not math.isfinite(step.get("grad_norm", 0.0)) for step in steps]
    found = (
        statistics.median(norms) if norms else math.nan,
        max(norms, default=math.nan),
        float(sum(broken)) if steps else math.nan,
        sum(value < 1 for value in coefficients) / len(coefficients) if coefficients else math.nan,
        statistics.median(ratios) if ratios else math.nan,
        scores / boxes if boxes else math.nan,
    )
    return dict(zip(SUMMARY, found, strict=True))


def _named(scalars: Mapping[str, float]) -> dict[str, float]:
    return {f"{PREFIX}/{name}": value for name, value in scalars.items()}


def _to_tensorboard(trainer: Any, steps: Steps) -> None:
    writer = sys.modules["ultralytics.utils.callbacks.tensorboard"].WRITER
    for step, scalars in steps if writer else ():
        for name, value in _named(scalars).items():
            writer.add_scalar(name, value, step)


def _to_wandb(trainer: Any, steps: Steps) -> None:
    import wandb

    run: Any = wandb.run
    if run is None:
        return
    run.define_metric(f"{PREFIX}/*", step_metric=f"{PREFIX}/step")  # Ultralytics' own axis is the epoch
    for step, scalars in steps:
        run.log({**_named(scalars), f"{PREFIX}/step": step})


def _to_mlflow(trainer: Any, steps: Steps) -> None:
    import mlflow

    if (run := mlflow.active_run()) is None:
        return
    now = int(time.time() * 1000)
    values = [
        mlflow.entities.Metric(name, float(value), now, step)
        for step, scalars in steps
        for name, value in _named(scalars).items()
    ]
    for start in range(0, len(values), _MLFLOW_MOST):
        mlflow.MlflowClient().log_batch(run.info.run_id, values[start : start + _MLFLOW_MOST])


def _to_comet(trainer: Any, steps: Steps) -> None:
    import comet_ml

    experiment: Any = comet_ml.get_running_experiment()
    for step, scalars in steps if experiment else ():
        experiment.log_metrics(_named(scalars), step=step)


def _to_clearml(trainer: Any, steps: Steps) -> None:
    import clearml

    task: Any = clearml.Task.current_task()
    for step, scalars in steps if task else ():
        for name, value in scalars.items():
            task.get_logger().report_scalar(PREFIX, name, value, iteration=step)


def _layers_to_tensorboard(trainer: Any, logs: Sequence[float]) -> None:
    import numpy as np

    writer = sys.modules["ultralytics.utils.callbacks.tensorboard"].WRITER
    if writer:
        writer.add_histogram(f"{PREFIX}/layer_grad_norm_log10", np.array(logs), trainer.epoch + 1)


def _layers_to_wandb(trainer: Any, logs: Sequence[float]) -> None:
    import wandb

    run: Any = wandb.run
    if run is not None:
        histogram = wandb.Histogram(list(logs))
        run.log({f"{PREFIX}/layer_grad_norm_log10": histogram, "epoch": trainer.epoch + 1}, commit=False)


SENDERS: Mapping[str, Callable[[Any, Steps], None]] = {
    "tensorboard": _to_tensorboard,
    "wb": _to_wandb,
    "mlflow": _to_mlflow,
    "comet": _to_comet,
    "clearml": _to_clearml,
}
"""Who sends steps to a library, by the name of Ultralytics' module for it."""

LAYER_SENDERS: Mapping[str, Callable[[Any, Sequence[float]], None]] = {
    "tensorboard": _layers_to_tensorboard,
    "wb": _layers_to_wandb,
}
"""Who sends a histogram of the layers' gradient norms, as their log10."""


class Trackers:
    """Collects what is recorded and sends it to the loggers that are on.

    Args:
        trainer: An Ultralytics trainer, whose integrations have been added.
        inference_branch: The branch whose target scores count.
    """

    def __init__(self, trainer: Any, inference_branch: str | None) -> None:
        self._trainer = trainer
        self._branch = inference_branch
        modules = {callback.__module__ for several in trainer.callbacks.values() for callback in several}
        on = {name.rpartition(".")[2] for name in modules if name.startswith("ultralytics.utils.callbacks.")}
        self._senders = {name: send for name, send in SENDERS.items() if name in on}
        self._layer_senders = {name: send for name, send in LAYER_SENDERS.items() if name in on}
        self._waiting: deque[tuple[int, dict[str, float]]] = deque()  # another thread puts steps here
        self._epochs: dict[int, list[Mapping[str, float]]] = {}
        self.summary = summarise([], None)
        """Of the epoch that ended last."""

    @property
    def wants_layers(self) -> bool:
        """Whether a logger is on that takes a histogram."""
        return bool(self._layer_senders)

    def see(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take a recorded step; may be called by another thread."""
        self._epochs.setdefault(int(scalars.get("epoch", 0)), []).append(scalars)
        if self._senders:
            self._waiting.append((step, {k: v for k, v in scalars.items() if not k.startswith(_LEFT_OUT)}))

    def end_batch(self) -> None:
        """Send what waits, where it is enough."""
        if len(self._waiting) >= _TOGETHER:
            self._send()

    def end_epoch(self, epoch: int, layer_norms: Sequence[float] = ()) -> None:
        """Summarise an epoch whose steps have all been seen, and send what waits.

        Args:
            epoch: Counted from 0.
            layer_norms: Gradient norms of the parameter tensors in its last recorded step.
        """
        self.summary = summarise(self._epochs.pop(epoch, []), self._branch)
        self._send()
        logs = [math.log10(norm) for norm in layer_norms if norm > 0 and math.isfinite(norm)]
        if logs:
            self._all(self._layer_senders, logs)

    def _send(self) -> None:
        steps = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if steps:
            self._all(self._senders, steps)

    def _all(self, senders: dict[str, Callable[[Any, Any], None]], what: Any) -> None:
        for name, send in list(senders.items()):
            try:
                send(self._trainer, what)
            except Exception as error:  # a logger must not end a training
                del senders[name]
                LOGGER.warning(f"gradstudy: {name} takes no more of what is recorded: {type(error).__name__}: {error}")
