# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a trainer does about trouble: warn where it seems to come, and end or mend a run that is certainly lost."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from yolo_gradstudy.diagnoses import Certainty, EarlyWarning, LiveVerdict, Sign
from yolo_gradstudy.recorder import GradRecorder
from yolo_gradstudy.records import Outcome
from yolo_gradstudy.trainer.forensics import cloned, copied_clipper
from yolo_gradstudy.trainer.settings import ULTRALYTICS_CLIP_NORM

SNAPSHOT_EVERY = 50
"""Optimizer steps between two states that ``recover`` can go back to, at least; as many as a flush holds, at least."""

MARGIN = 10
"""Steps before the onset that a state must lie to count as healthy: layers leave their bands before the norm does."""

KEPT = 3
"""States that are kept besides that of the beginning."""

MOST_RECOVERIES = 5
"""Recoveries after which a run is ended: its rate is a thirty-second of what it was, and it is lost again."""

GENTLER = 0.5
"""Factor of learning rate and clip norm at each recovery."""

NOTE = "gradstudy_guard"
"""Attribute of a model by which a checkpoint tells a resumed training how gently it went on."""


@dataclass(frozen=True)
class State:
    """All that a training needs to go on from a step, in the host's memory.

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
    optimizer: Mapping[Any, Any]
    ema: tuple[Mapping[str, Tensor], int] | None
    scaler: Mapping[str, Any]
    clipper: Any

    @property
    def finite(self) -> bool:
        """Whether every weight and BatchNorm statistic is."""
        return all(bool(t.isfinite().all()) for t in self.model.values() if t.is_floating_point())


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
        self._action = action
        self._verdict = None if action == "continue" else LiveVerdict(meta, vars(trainer.args))
        self._branch = meta.get("inference_branch")
        self._warning = EarlyWarning(self._branch)
        self._arrived: deque[tuple[int, Mapping[str, float]]] = deque()
        self._ignored = 0
        self._states: list[State] = []
        self._back_at: State | None = None
        lag = 0 if recorder.at_once else recorder.config.flush_every * recorder.config.every
        self._spacing = max(SNAPSHOT_EVERY, lag)
        self._gentleness = 1.0
        self._recoveries = 0
        self._first = recorder.step
        self._batches = 0
        self.ended = False
        """Whether the run was ended."""
        note = getattr(unwrap_model(trainer.model), NOTE, None) if trainer.resume else None
        if note is not None:  # the groups' rates came with the checkpoint, the schedule's are new
            self._gentleness = float(note["lr_factor"])
            trainer.scheduler.base_lrs = [rate * self._gentleness for rate in trainer.scheduler.base_lrs]

    def see(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take a step's scalars; called by the recorder, on an accelerator in its writer's thread."""
        self._arrived.append((step, scalars))

    def begin(self) -> None:
        """Training begins: the weights are as they were made or loaded."""
        self._try(self._keep_state)

    def act(self) -> None:
        """A batch is done: judge what has arrived, and end or mend the training where it is lost."""
        if self.ended:
            return
        self._batches += 1
        lost = self._try(self._judge)
        if lost is None:
            if self._verdict is not None and not self._verdict.suspects:
                self._try(self._keep_state)
        else:
            self._act_on(lost)

    def end_epoch_on_nan(self) -> bool:
        """Act on a loss that is not finite at an epoch's end, where Ultralytics would replay the epoch unchanged.

        Returns:
            Whether Ultralytics is to leave it.
        """
        if self.ended:
            return True
        if self._verdict is None:
            return False
        loss, step = self._trainer.loss, self._recorder.step
        corrupted = isinstance(loss, Tensor) and not bool(loss.isfinite().all())
        again = getattr(self._trainer, "nan_recovery_attempts", 0) > 0
        if corrupted and (self._action == "recover" or again):
            self._act_on(Certainty(step, Outcome.NONFINITE, "the loss is not finite at the end of an epoch", step))
        return self.ended or self._action == "recover"

    def _try(self, act: Any) -> Any:
        """What it gives; None, and no more judging, where it raises: a training must not end by our mistake."""
        try:
            return act()
        except Exception as error:  # whatever it is
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            LOGGER.warning(f"gradstudy: the guard is off, {reason}")
            self._recorder.mark("guard_off", reason=reason)
            self._verdict, self._warning = None, None  # type: ignore[assignment]
            self._states.clear()
            return None

    def _judge(self) -> Certainty | None:
        while self._arrived:
            step, scalars = self._arrived.popleft()
            if step <= self._ignored:  # on its way when the training went back
                continue
            if self._warning is not None and (sign := self._warning.see(step, scalars)) is not None:
                self._warn(sign)
            lost = None if self._verdict is None else self._verdict.see(step, scalars)
            if lost is not None:
                return lost
        return None

    def _warn(self, sign: Sign) -> None:
        facts = {"detector": sign.detector, "statistic": sign.statistic, "threshold": sign.threshold}
        self._recorder.mark("warning", at_step=sign.step, **facts)
        LOGGER.warning(f"gradstudy: step {sign.step} looks like trouble to come ({sign.told})")

    def _act_on(self, lost: Certainty) -> None:
        if self._action == "recover" and self._recoveries < MOST_RECOVERIES and self._healthy_states(lost):
            self._go_back(lost)
        else:
            self._end(lost)

    # Ending ------------------------------------------------------------------------------------------

    def _end(self, lost: Certainty) -> None:
        trainer, step = self._trainer, self._recorder.step
        self.ended = True
        total = max(self._batches, 1, (trainer.epochs - trainer.start_epoch) * len(trainer.train_loader))
        done = max(self._batches, 1) / total
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
        if RANK == -1:  # several processes must leave their loops together: see `agreed`
            trainer.stop = True

    # Going back --------------------------------------------------------------------------------------

    def _keep_state(self) -> None:
        step = self._recorder.step
        if self._action != "recover" or (self._states and step - self._states[-1].step < self._spacing):
            return
        trainer = self._trainer
        if len(self._states) > KEPT:
            del self._states[1]
        self._states.append(
            State(
                step,
                cloned(trainer.model.state_dict(), "cpu"),
                cloned(trainer.optimizer.state_dict()["state"], "cpu"),
                (cloned(trainer.ema.ema.state_dict(), "cpu"), trainer.ema.updates) if trainer.ema else None,
                copy.deepcopy(trainer.scaler.state_dict()),
                copied_clipper(trainer, trainer._clipper),
            )
        )

    def _healthy_states(self, lost: Certainty) -> list[State]:
        """States that may be gone back to, the newest last; that of the beginning where no other is."""
        finite = [state for state in self._states if state.finite]
        early = [s for s in finite if s.step <= lost.onset - MARGIN and s is not self._back_at]
        return early or finite[:1]

    def _go_back(self, lost: Certainty) -> None:
        trainer = self._trainer
        self._recoveries += 1
        self._gentleness *= GENTLER
        state = self._back_at = self._healthy_states(lost)[-1]
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
        self._forget_losses()
        assert self._verdict is not None
        self._verdict.forget_after(lost.onset - 1)
        self._warning = EarlyWarning(self._branch)
        self._arrived.clear()
        self._ignored = self._recorder.step
        self._write_notes(clip)
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

    def _forget_losses(self) -> None:
        """The loss that was undone must not look like trouble to Ultralytics at the epoch's end."""
        trainer = self._trainer
        if isinstance(trainer.loss, Tensor):
            trainer.loss = torch.zeros_like(trainer.loss.detach())
        if isinstance(trainer.tloss, Tensor):
            trainer.tloss = trainer.tloss.nan_to_num(posinf=0.0, neginf=0.0)
        elif isinstance(trainer.tloss, Mapping):
            trainer.tloss = {
                name: torch.as_tensor(value).nan_to_num(posinf=0.0, neginf=0.0) for name, value in trainer.tloss.items()
            }

    def _write_notes(self, clip: float | None) -> None:
        """Have the checkpoints to come tell how gently training went on."""
        trainer = self._trainer
        for model in (unwrap_model(trainer.model), trainer.ema.ema if trainer.ema else None):
            if model is not None:
                setattr(model, NOTE, {"lr_factor": self._gentleness})
                trainer._note(model)


def agreed(ended: bool) -> bool:
    """Whether rank 0 has ended the run: every rank asks at the same place, and hears the same."""
    if RANK == -1:
        return ended
    answer = [ended if RANK == 0 else None]
    dist.broadcast_object_list(answer, 0)
    return bool(answer[0])
