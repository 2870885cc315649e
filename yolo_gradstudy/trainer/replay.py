# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs the step at which a training went wrong once more, on a copy with hooks, and names the module.

The training itself is not touched: the model is a copy, random generators are put back, and hooks of others are copies
with the state that they had at the beginning of the step.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import autocast

from yolo_gradstudy.recorder import Observation, outlying
from yolo_gradstudy.statistics import tensor_norms, total_norm
from yolo_gradstudy.trainer.assigners import assigner_modules
from yolo_gradstudy.trainer.forensics import (
    REFERENCES,
    BlackBox,
    RandomStates,
    Snapshot,
    StepInputs,
    parameters_by_name,
)
from yolo_gradstudy.trainer.hooks import KINDS, is_own, put_hooks, strip_hooks
from yolo_gradstudy.trainer.tracing import Event, Trace, root_mean_square

TOLD = 40
"""Most places of an incident's order."""

LEAST_WEIGHT = 1e-2
"""Root mean square that counts as usual of a parameter at least: a bias begins at 0."""


@dataclass(frozen=True)
class Pass:
    """A batch's way through the model and back.

    Attributes:
        events: What passed through the modules.
        loss: The loss, unscaled.
        images: Root mean square of the images.
    """

    events: list[Event]
    loss: float
    images: float


class Rerun:
    """A copy of a trainer's model on which steps are run once more.

    Args:
        trainer: A trainer of this package, or what stands for one.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.model = copied_model(trainer.model)
        self._originals = dict(trainer.model.named_modules())
        self.left_out: list[str] = []

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the copy weights and buffers."""
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(tensors[name])

    def step(self, inputs: StepInputs, scale: float, traced: bool = True) -> list[Pass]:
        """Run a step's batches forward and backward; the copy has their gradients, still scaled.

        Args:
            inputs: The step.
            scale: Factor on the loss.
            traced: Whether modules are followed.
        """
        trainer = self._trainer
        criterion = getattr(self.model, "criterion", None)
        for key, value in inputs.criterion.items():
            setattr(criterion, key, value)
        for parameter in self.model.parameters():
            parameter.grad = None
        passes = []
        for batch in inputs.batches:
            strip_hooks(self.model)
            if batch.hooks is not None:
                put_hooks(self.model, batch.hooks, self._originals)
                self.left_out = batch.hooks.left_out
            batch.states.restore(trainer.device)
            amp = torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp
            trace = Trace(self.model, scale)
            with trace if traced else _nothing(), torch.enable_grad():
                with autocast(amp, device=trainer.device.type):
                    ready = trainer.preprocess_batch(dict(batch.raw))
                    loss = self.model(ready)[0].sum()
                (loss * scale).backward()
            passes.append(Pass(trace.events, float(loss.detach()), root_mean_square(ready["img"])))
        return passes


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def undisturbed(trainer: Any, box: BlackBox) -> Iterator[None]:
    """Put back what a replay draws from, and keep nothing of it."""
    states, box.replaying = RandomStates.taken(trainer.device), True
    try:
        yield
    finally:
        states.restore(trainer.device)
        box.replaying = False


def copied_model(model: nn.Module) -> nn.Module:
    """A copy of a model and of its criterion, without anyone's hooks but those that the criterion needs."""
    hooks = [hook for module in model.modules() for kind in KINDS for hook in getattr(module, kind).values()]
    memo = {id(hook): hook for hook in hooks}  # they are not to be copied with what they hold
    made: nn.Module = copy.deepcopy(model, memo)
    strip_hooks(made)
    for assigner in assigner_modules(getattr(made, "criterion", None)).values():
        for key in [key for key, hook in assigner._forward_hooks.items() if is_own(hook)]:
            del assigner._forward_hooks[key]
    return made


# Replaying ------------------------------------------------------------------------------------------------


Save = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Sequence[StepInputs], float], None]
"""Gets the weights of the fatal step, those before, the steps to compare with and the fatal one, and the loss scale."""


def replay_at_once(trainer: Any, box: BlackBox, save: Save | None = None) -> dict[str, Any]:
    """Replay the step that is not done yet: the weights that made it are still the trainer's.

    Args:
        trainer: The trainer.
        box: Its black box.
        save: Keeps the step for later.

    Returns:
        Facts for the incident: ``replay``, and where it reproduced the step ``cause`` and ``order``.
    """
    fatal = box.open_step
    assert fatal is not None
    started = time.perf_counter()
    scale = float(trainer.scaler._scale) if trainer.scaler.is_enabled() else 1.0
    with undisturbed(trainer, box):
        rerun = Rerun(trainer)
        usual: dict[Any, float] = {}
        if box.snapshots:
            rerun.load(box.snapshots[-1].model)
            for inputs in list(box.steps)[-REFERENCES:]:
                merge_usual(usual, rerun.step(inputs, scale))
        rerun.load(trainer.model.state_dict())
        passes = rerun.step(fatal, scale)
        theirs = [p.grad for _, p in parameters_by_name(trainer.model)]
        ours = [None if p.grad is None else p.grad / scale for _, p in parameters_by_name(rerun.model)]
        before = box.snapshots[-1].model if box.snapshots else {}
        facts = explain(passes, usual, rerun.model, before, same_norms(ours, theirs))
        if save is not None:
            save(trainer.model.state_dict(), before, [*list(box.steps)[-REFERENCES:], fatal], scale)
    return _told(facts, rerun, len(box.steps), 1, started)


def replay_later(
    trainer: Any, box: BlackBox, step: int, norms: Mapping[str, float], save: Save | None = None
) -> dict[str, Any] | None:
    """Replay a step that is past, from the snapshot before it.

    Args:
        trainer: The trainer.
        box: Its black box.
        step: The optimizer step.
        norms: Gradient norms that were recorded of it, by parameter.
        save: Keeps the step for later.

    Returns:
        As :func:`replay_at_once`; None where the box does not go back so far.
    """
    snapshot = next((s for s in reversed(box.snapshots) if s.step < step), None)
    inputs = [s for s in box.steps if snapshot is not None and snapshot.step < s.step <= step]
    if snapshot is None or not inputs or inputs[-1].step != step or inputs[0].step != snapshot.step + 1:
        return None
    started = time.perf_counter()
    with undisturbed(trainer, box):
        rerun = Rerun(trainer)
        rerun.load(snapshot.model)
        stepper = _Stepper(trainer, rerun.model, snapshot)
        usual: dict[Any, float] = {}
        earlier = [s for s in box.steps if s.step <= snapshot.step][-REFERENCES:]
        if len(inputs) == 1:  # nothing else to compare with
            for past in earlier:
                merge_usual(usual, rerun.step(past, stepper.scale))
            rerun.load(snapshot.model)
        # Tracing changes the order of sums, and what a step rounds otherwise grows: steps are made without it.
        for past in inputs[:-1]:
            if past.step >= step - REFERENCES:
                merge_usual(usual, rerun.step(past, stepper.scale))
            rerun.step(past, stepper.scale, traced=False)
            stepper.step(past)
        rerun.step(inputs[-1], stepper.scale, traced=False)
        ours = {n: p.grad for n, p in parameters_by_name(rerun.model) if p.grad is not None}
        found = dict(zip(ours, (tensor_norms(list(ours.values())) / stepper.scale).tolist(), strict=True))
        alike = set(found) == set(norms) and alike_norms(list(found.values()), [norms[n] for n in found])
        passes = rerun.step(inputs[-1], stepper.scale)
        facts = explain(passes, usual, rerun.model, snapshot.model, alike)
        if save is not None:
            compared = (inputs[:-1] or earlier)[-REFERENCES:]
            save(rerun.model.state_dict(), snapshot.model, [*compared, inputs[-1]], stepper.scale)
    return _told(facts, rerun, min(REFERENCES, len(inputs) - 1) or len(earlier), len(inputs), started)


class _Stepper:
    """The optimizer's steps, on the copy."""

    def __init__(self, trainer: Any, model: nn.Module, snapshot: Snapshot) -> None:
        memo: dict[int, Any] = {
            id(theirs): ours for theirs, ours in zip(trainer.model.parameters(), model.parameters(), strict=True)
        }
        self._parameters = list(model.parameters())
        # Not the attribute `step`: a scheduler puts one there that acts on the training's own optimizer.
        self._optimizer = copy.deepcopy(trainer.optimizer, memo)
        for name, value in vars(trainer.optimizer).items():
            if type(value) in (bool, int, float, str) and name not in vars(self._optimizer):  # MuSGD's shares
                setattr(self._optimizer, name, value)
        assert snapshot.optimizer is not None
        self._optimizer.load_state_dict(copy.deepcopy(snapshot.optimizer))
        self._scaler = copy.deepcopy(trainer.scaler)
        for name, tensor in snapshot.scaler.items():
            setattr(self._scaler, name, tensor.clone())
        self._clipper = copy.deepcopy(snapshot.clipper, memo)
        self._clip_norm = trainer._active.clip_norm

    @property
    def scale(self) -> float:
        """Factor on the loss."""
        return float(self._scaler._scale) if self._scaler.is_enabled() else 1.0

    def step(self, inputs: StepInputs) -> None:
        """As ``GradStudyMixin.optimizer_step``, without recording."""
        for group, numbers in zip(self._optimizer.param_groups, inputs.groups, strict=False):
            group.update(numbers)
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimizer)
        norm = total_norm(tensor_norms([p.grad for p in self._parameters if p.grad is not None]))
        if self._clipper is not None:
            self._clipper(norm)
        elif self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()


def same_norms(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> bool:
    """Whether two sets of gradients have the same norms, NaN equal to NaN."""
    if [g is None for g in ours] != [g is None for g in theirs]:
        return False
    one, other = ([g for g in gradients if g is not None] for gradients in (ours, theirs))
    return alike_norms(tensor_norms(one).tolist(), tensor_norms(other).tolist())


def alike_norms(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether norms agree to a thousandth, and the same ones are not finite.

    A gradient that is zero but for rounding (of a bias before a softmax) agrees with another such.
    """
    least = 1e-5 * max((norm for norm in theirs if math.isfinite(norm)), default=0.0)

    def alike(one: float, other: float) -> bool:
        if not (math.isfinite(one) and math.isfinite(other)):
            return not (math.isfinite(one) or math.isfinite(other))
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=least)

    return all(map(alike, ours, theirs))


def merge_usual(usual: dict[Any, float], passes: Sequence[Pass]) -> None:
    """Keep the largest finite value of everything that passes."""
    for one in passes:
        for event in one.events:
            if math.isfinite(event.rms):
                usual[event.key] = max(usual.get(event.key, 0.0), event.rms)
        usual["images"] = max(usual.get("images", 0.0), one.images)


def _told(facts: dict[str, Any], rerun: Rerun, references: int, steps: int, started: float) -> dict[str, Any]:
    facts["replay"] |= {
        **{"steps": steps, "references": references, "hooks_left_out": rerun.left_out},
        "duration_s": round(time.perf_counter() - started, 3),
    }
    return facts


# Naming ---------------------------------------------------------------------------------------------------


def explain(
    passes: Sequence[Pass],
    usual: Mapping[Any, float],
    model: nn.Module,
    before: Mapping[str, Tensor],
    reproduced: bool,
) -> dict[str, Any]:
    """Name the module in which a step went wrong.

    Args:
        passes: The step's batches.
        usual: What is usual of each event.
        model: The copy, with the weights of the step.
        before: Earlier weights.
        reproduced: Whether the gradients came out as they were recorded.
    """
    weights = _bad_weights(model, before)
    bad = [event for one in passes for event in one.events if outlying(event.rms, usual.get(event.key))]
    order = [*weights, *(Observation(e.passed, e.module, e.rms, usual.get(e.key)) for e in bad)]
    facts: dict[str, Any] = {"replay": {"reproduced": reproduced}}
    cause = _cause(passes, usual, weights, bad, model)
    if cause is None:
        facts["replay"]["found"] = "nothing out of range"
        return facts
    cause |= {"found_by": "replayed", "certainty": "certain" if reproduced else "unknown"}
    if reproduced:
        return {**facts, "cause": cause, "order": [asdict(o) for o in order[:TOLD]]}
    facts["replay"]["found"] = cause  # what was recorded stays the better guess
    return facts


def _bad_weights(model: nn.Module, before: Mapping[str, Tensor]) -> list[Observation]:
    named = list(parameters_by_name(model))
    norms = tensor_norms([p.detach() for _, p in named], torch.float64).tolist()
    earlier = tensor_norms([before[n] for n, _ in named], torch.float64).tolist() if before else [None] * len(named)
    found = []
    for (name, parameter), norm, usual in zip(named, norms, earlier, strict=True):
        if outlying(norm, usual, LEAST_WEIGHT * math.sqrt(parameter.numel())):
            found.append(Observation("param_norm", name, norm, usual))
    return found


def _cause(
    passes: Sequence[Pass],
    usual: Mapping[Any, float],
    weights: Sequence[Observation],
    bad: Sequence[Event],
    model: nn.Module,
) -> dict[str, Any] | None:
    if any(outlying(one.images, usual.get("images")) for one in passes):
        return _found(None, None, "input", "the images are out of range before the model sees them")
    if weights:
        called = [e.module for one in passes for e in one.events]
        first = min(weights, key=lambda o: _place(called, str(o.name)))
        evidence = f"the norm of {first.name} is {first.value:.3g} at the beginning of the step{_usually(first.usual)}"
        return _found(str(first.name).rpartition(".")[0], first.name, "weight", evidence)
    forward = next((e for e in bad if e.passed in ("input", "output")), None)
    if forward is not None:
        where = forward.module if forward.passed == "output" else forward.parent or forward.module
        evidence = f"the {forward.passed} of {forward.module} has root mean square {forward.rms:.3g}"
        return _found(
            where, None, "output", evidence + _usually(usual.get(forward.key)) + ", what it is made of is not"
        )
    loss = next((one.loss for one in passes if not math.isfinite(one.loss)), None)
    if loss is not None:
        return _found(None, None, "loss", f"the loss is {loss:g} of outputs that are as usual")
    if not bad:
        return None
    first_bad = bad[0]
    what = "output" if first_bad.passed == "output_grad" else "input"
    evidence = f"the gradient of the {what} of {first_bad.module} has root mean square {first_bad.rms:.3g}"
    evidence += _usually(usual.get(first_bad.key)) + ", the forward pass and the gradients before it are as usual"
    last = [name for name, _ in model.named_modules() if name.startswith("model.") and name.count(".") == 1][-1:]
    if [first_bad.module] == last and first_bad.passed == "output_grad":
        return _found(None, None, "loss", evidence)
    return _found(first_bad.module, None, "gradient", evidence)


def _place(called: Sequence[str], parameter: str) -> int:
    module = parameter.rpartition(".")[0]
    return called.index(module) if module in called else len(called)


def _found(module: str | None, parameter: str | None, what: str, evidence: str) -> dict[str, Any]:
    return {"module": module, "parameter": parameter, "what": what, "evidence": evidence}


def _usually(usual: float | None) -> str:
    return "" if usual is None else f" where {usual:.3g} is usual"
