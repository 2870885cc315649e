# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a trainer does about trouble: warn where it seems to come, and end or mend a run that is certainly lost."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from ultralytics.utils import LOGGER, RANK

from yolo_gradstudy.diagnoses import Certainty, EarlyWarning, LiveVerdict, Sign
from yolo_gradstudy.recorder import GradRecorder
from yolo_gradstudy.trainer.forensics import cloned, copied_clipper
from yolo_gradstudy.trainer.settings import ULTRALYTICS_CLIP_NORM

SNAPSHOT_EVERY = 50
"""Optimizer steps between two states that ``recover`` can go back to."""

MARGIN = 10
"""Steps before the onset that a state must lie to count as healthy: layers leave their bands before the norm does."""

KEPT = 3
"""States that are kept besides that of the beginning."""

MOST_RECOVERIES = 5
"""Recoveries after which a run is ended: its rate is a thirty-second of what it was, and it is lost again."""

GENTLER = 0.5
"""Factor of learning rate and clip norm at each recovery."""


@dataclass(frozen=True)
class State:
    """All that a training needs to go on from a step.

    Attributes:
        step: The last optimizer step that it has.
        model: Parameters and buffers.
        optimizer: What the optimizer remembers of each parameter; rates and momenta follow the schedule.
        ema: Parameters and buffers of the EMA, and its number of updates.
        scaler: The loss scaler's state.
        clipper: A clipping that remembers.
    """

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    ema: tuple[Mapping[str, Tensor], int] | None
    scaler: Mapping[str, Any]
    clipper: Any


class Guard:
    """Judges a training while it goes on, and acts where it is lost.

    Args:
        trainer: A set-up trainer of this package.
        recorder: Its recorder.
        action: ``continue``, which only warns, ``stop`` or ``recover``.
        meta: What the recorder was told of the run.
    """

    def __init__(self, trainer: Any, recorder: GradRecorder, action: str, meta: Mapping[str, Any]) -> None:
        self._trainer = trainer
        self._recorder = recorder
        self._recovers = action == "recover"
        self._verdict = None if action == "continue" else LiveVerdict(meta, vars(trainer.args))
        self._branch = meta.get("inference_branch")
        self._warning = EarlyWarning(self._branch)
        self._arrived: deque[tuple[int, Mapping[str, float]]] = deque()
        self._states: list[State] = []
        self._back_at: State | None = None
        self._gentleness = 1.0
        self._recoveries = 0
        self._first = recorder.step
        self._batches = 0
        self.ended = False
        """Whether the run was ended."""

    def see(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take a step's scalars; called by the recorder, on an accelerator in its writer's thread."""
        self._arrived.append((step, scalars))

    def act(self) -> None:
        """A batch is done: judge what has arrived, and end or mend the training where it is lost."""
        if self.ended:
            return
        self._batches += 1
        lost = None
        while self._arrived and lost is None:
            step, scalars = self._arrived.popleft()
            if (warning := self._warning.see(step, scalars)) is not None:
                self._warn(warning)
            lost = None if self._verdict is None else self._verdict.see(step, scalars)
        if lost is None:
            self._keep_state()
        elif self._recovers and self._recoveries < MOST_RECOVERIES:
            self._go_back(lost)
        else:
            self._end(lost)

    def end_epoch(self) -> None:
        """An epoch is done: what was to be ended between its batches is ended now."""
        if self.ended:
            self._trainer.stop = True

    def _warn(self, warning: Sign) -> None:
        facts = {"detector": warning.detector, "statistic": warning.statistic, "threshold": warning.threshold}
        self._recorder.mark("warning", at_step=warning.step, **facts)
        LOGGER.warning(f"gradstudy: step {warning.step} looks like trouble to come ({warning.told})")

    # Ending ------------------------------------------------------------------------------------------

    def _end(self, lost: Certainty) -> None:
        trainer, step = self._trainer, self._recorder.step
        self.ended = True
        total = max(self._batches, (trainer.epochs - trainer.start_epoch) * len(trainer.train_loader))
        done = self._batches / total
        planned = self._first + round((step - self._first) / done)
        self._recorder.mark(
            "ended_early",
            outcome=str(lost.outcome),
            evidence=lost.evidence,
            onset_step=lost.onset,
            planned_steps=planned,
            saved_share=round(1 - done, 4),
        )
        LOGGER.warning(f"gradstudy: {lost.outcome}, ended after step {step} of about {planned}: {lost.evidence}")
        trainer.args.save = True  # of the epoch that ends here: without any checkpoint Ultralytics raises
        if RANK == -1:  # several processes must leave their loops in the same batch: Ultralytics does so after an epoch
            trainer.stop = True

    # Going back --------------------------------------------------------------------------------------

    def _keep_state(self) -> None:
        step = self._recorder.step
        if not self._recovers or (self._states and step - self._states[-1].step < SNAPSHOT_EVERY):
            return
        trainer = self._trainer
        self._states.append(
            State(
                step,
                cloned(trainer.model.state_dict()),
                cloned(trainer.optimizer.state_dict()["state"]),
                (cloned(trainer.ema.ema.state_dict()), trainer.ema.updates) if trainer.ema else None,
                copy.deepcopy(trainer.scaler.state_dict()),
                copied_clipper(trainer, trainer._clipper),
            )
        )
        if len(self._states) > KEPT + 1:
            del self._states[1]

    def _go_back(self, lost: Certainty) -> None:
        trainer = self._trainer
        self._recoveries += 1
        self._gentleness *= GENTLER
        healthy = [s for s in self._states if s.step <= lost.onset - MARGIN and s is not self._back_at]
        state = self._back_at = healthy[-1] if healthy else self._states[0]
        self._states = [kept for kept in self._states if kept.step <= state.step]
        trainer.model.load_state_dict(state.model)
        groups = trainer.optimizer.state_dict()["param_groups"]
        trainer.optimizer.load_state_dict({"state": cloned(state.optimizer), "param_groups": groups})
        for group in trainer.optimizer.param_groups:
            group["lr"] *= GENTLER
            group["initial_lr"] *= GENTLER
        trainer.scheduler.base_lrs = [rate * GENTLER for rate in trainer.scheduler.base_lrs]
        trainer.args.warmup_bias_lr *= GENTLER
        if trainer.ema and state.ema is not None:
            trainer.ema.ema.load_state_dict(state.ema[0])
            trainer.ema.updates = state.ema[1]
        if state.scaler:
            trainer.scaler.load_state_dict(copy.deepcopy(dict(state.scaler)))
        clip = self._tighten(state)
        trainer.optimizer.zero_grad()
        trainer._drop_batches()
        assert self._verdict is not None
        self._verdict.forget_after(lost.onset - 1)
        self._warning = EarlyWarning(self._branch)
        self._arrived.clear()
        self._recorder.mark(
            "went_back",
            outcome=str(lost.outcome),
            evidence=lost.evidence,
            onset_step=lost.onset,
            to_step=state.step,
            lr_factor=self._gentleness,
            clip_norm=clip,
        )
        LOGGER.warning(
            f"gradstudy: {lost.outcome} since step {lost.onset}, went back to the state after step {state.step}; from "
            f"now on {self._gentleness:g} of the learning rate" + (f", clipped at {clip:g}" if clip else "")
        )

    def _tighten(self, state: State) -> float | None:
        """The clip norm from now on; None where another way of clipping is in force, which stays."""
        trainer = self._trainer
        if trainer._clipper is not None:
            trainer._clipper = copied_clipper(trainer, state.clipper)
            return None
        before = trainer._active.clip_norm
        clip: float = ULTRALYTICS_CLIP_NORM if before is None else before * GENTLER
        trainer._active = replace(trainer._active, clip_norm=clip)
        return clip
