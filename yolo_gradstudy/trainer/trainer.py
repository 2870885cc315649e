# SPDX-License-Identifier: AGPL-3.0-or-later
"""The trainer class.

``BaseTrainer.optimizer_step`` is the one place between the backward pass and the zeroing of gradients, so
the recorder is asked there. Everything else is a few overridden methods that call the base first.
"""

from __future__ import annotations

import inspect
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import ultralytics
from torch import Tensor, nn
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK
from ultralytics.utils.torch_utils import autocast, unwrap_model

from yolo_gradstudy.ablations import (
    Builtin,
    Clip,
    Clipper,
    apply_ablations,
    calibrate_ablations,
    combined_arguments,
    find_ablation,
    parts_of,
    switched_off,
)
from yolo_gradstudy.arguments import PRECISIONS
from yolo_gradstudy.recorder import GradRecorder
from yolo_gradstudy.records import ForensicsConfig, RecordConfig
from yolo_gradstudy.run_folder import INCIDENTS, TELEMETRY, RunFolder
from yolo_gradstudy.statistics import AssignmentSums, tensor_norms, total_norm
from yolo_gradstudy.trainer.assigners import assigner_modules, inference_branch
from yolo_gradstudy.trainer.batches import BatchSums
from yolo_gradstudy.trainer.forensics import RandomStates
from yolo_gradstudy.trainer.guard import Guard, agreed
from yolo_gradstudy.trainer.investigation import Investigator
from yolo_gradstudy.trainer.pulse import Pulse
from yolo_gradstudy.trainer.settings import ULTRALYTICS_CLIP_NORM, TrainerSettings
from yolo_gradstudy.trainer.switches import Switches
from yolo_gradstudy.trainer.trackers import Trackers
from yolo_gradstudy.trainer.validation import fixed_losses, watched_criterion

_MODEL_NOTE = "gradstudy"
"""Attribute of an ablated model, plain data that its checkpoints carry, so that resuming ablates again."""


def settings_of(model: object) -> Mapping[str, Any]:
    """What a checkpoint's model was trained with besides Ultralytics' arguments.

    Returns:
        ``ablations``, ``clip_norm``, ``clip``, ``precision`` and ``on_unhealthy`` as plain data; empty for a model
        that this package's trainer has not trained.
    """
    note: Mapping[str, Any] = getattr(model, _MODEL_NOTE, {})
    return note


class GradStudyMixin:
    """Recording and ablation for an Ultralytics trainer; :func:`gradstudy_trainer` puts it before one."""

    settings: ClassVar[TrainerSettings] = TrainerSettings()

    @classmethod
    def using(
        cls,
        record: RecordConfig | None = None,
        ablations: Sequence[str] = (),
        clip_norm: float | None = ULTRALYTICS_CLIP_NORM,
        clip: Clip | None = None,
        precision: str | None = None,
        threads: int | None = None,
        forensics: ForensicsConfig | None = None,
        on_unhealthy: str = "continue",
        pulse: bool = False,
    ) -> type[Any]:
        """This trainer class with other settings, to hand to ``YOLO(...).train(trainer=...)``.

        Args:
            record: What is recorded and how often.
            ablations: Names from ``ABLATIONS``, or ``module:function``, a person's own; order does not matter.
            clip_norm: Global gradient norm at which a step is clipped; None for no clipping.
            clip: Another way to clip, as ``yolo_gradstudy.ablations.AdaptiveClip(0.01)``, in place of ``clip_norm``.
            precision: ``fp32``, ``bf16`` or ``fp16``, also on a CPU; None leaves it to the argument ``amp``.
            threads: CPU threads of torch; None leaves them to Ultralytics.
            forensics: What is kept to replay the step at which a run went wrong; ``ForensicsConfig(every=0)`` for
                nothing.
            on_unhealthy: What is done about a run that is certainly lost: ``continue``, ``stop`` (what it saves is in
                the telemetry's events), or ``recover``, which goes back to the last healthy state and trains on with
                half the learning rate and a tighter clip.
            pulse: Whether ``progress.json`` in the run's folder says each second how far training is.

        Raises:
            ValueError: An unknown or contradicting ablation, a clip norm that is not above 0, no such precision.
        """
        settings = TrainerSettings(
            record or RecordConfig(),
            tuple(ablations),
            clip_norm,
            clip,
            precision,
            threads,
            forensics or ForensicsConfig(),
            on_unhealthy,
            pulse,
        )
        return type(cls.__name__, (cls,), {"settings": settings, "__doc__": cls.__doc__, "__module__": cls.__module__})

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
    ) -> None:
        self._recorder: GradRecorder | None = None
        self._trackers: Trackers | None = None
        self._pulse: Pulse | None = None
        self._active = self.settings.with_ablations()
        self._changed: dict[str, int] = {}
        self._validates_untrained = False
        self._dropped: list[str] = []
        self._assignments = AssignmentSums()
        self._batches = BatchSums()
        self._parameters: list[nn.Parameter] = []
        self._clipper: Clipper | None = None
        self._guard: Guard | None = None
        self._ended = False
        self._switches = Switches({})
        self._waits_for_images = False
        self._investigator: Investigator | None = None
        overrides = dict(overrides or {})
        if not overrides.get("resume"):  # a checkpoint's arguments are those that the ablations set
            overrides |= combined_arguments(self.settings.ablations, {**DEFAULT_CFG_DICT, **overrides})
        if self.settings.precision is not None:
            overrides["amp"] = PRECISIONS[self.settings.precision]
        super().__init__(cfg, overrides, _callbacks)  # type: ignore[call-arg]
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)  # select_device has just set its own

    # Building ---------------------------------------------------------------------------------------

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Build the model and ablate it, before optimizer, EMA and DDP exist.

        Raises:
            ValueError: Resuming a run with other ablations than it was started with, or an ablation that
                finds nothing to change.
        """
        base: Any = super()
        note = getattr(weights, _MODEL_NOTE, None)
        if self.resume:  # a checkpoint without a note is Ultralytics' own
            self._resume_settings(note or {"ablations": [], "clip_norm": self.settings.clip_norm})
        names = self._active.ablations
        if not names:
            model: nn.Module = base.get_model(cfg=cfg, weights=weights, verbose=verbose)
            self._note(model)
            return model
        if weights is not None and not self.resume:
            for name in names:
                if find_ablation(name).family == "initialisation":
                    raise ValueError(
                        f"{name} sets initial weights, and {self.args.model} has weights already: "
                        "set pretrained=False and name the model by its YAML, or leave the ablation out."
                    )
        # Weights of a model that was ablated alike fit after the operation; all others are operated on themselves.
        alike = weights is not None and (self.resume or set((note or {}).get("ablations", ())) == set(names))
        model = base.get_model(cfg=cfg, weights=None if alike else weights, verbose=verbose)
        before = {} if weights is None or alike else _copy_of(model, weights)
        changed = apply_ablations(model, names, seed=self.args.seed)
        self._changed = {name: len(modules) for name, modules in changed.items()}
        for name, count in self._changed.items():
            LOGGER.info(f"gradstudy: {name} changed {count} modules")
        if alike:
            model.load(weights)  # type: ignore[operator]
        elif before:
            self._dropped = _lost_tensors(before, model)
            kept = f"kept {len(before) - len(self._dropped)} of {len(before)} pretrained tensors"
            LOGGER.info(f"gradstudy: {kept}, dropped {_by_ending(self._dropped) or 'none'}")
        self._waits_for_images = not self.resume and any(s.calibration for s in map(find_ablation, names))
        self._note(model)
        return model

    def _note(self, model: nn.Module) -> None:
        active = self._active
        note = {
            "ablations": list(active.ablations),
            "clip_norm": active.clip_norm,
            "clip": _words(active.clip),
            "precision": active.precision,
            "on_unhealthy": active.on_unhealthy,
        }
        setattr(model, _MODEL_NOTE, note)

    def _resume_settings(self, note: Mapping[str, Any]) -> None:
        recorded = tuple(note["ablations"])
        if self.settings.ablations and set(self.settings.ablations) != set(recorded):
            raise ValueError(
                f"{self.args.model} was trained with ablations {list(recorded)}, "
                f"it can't be resumed with {list(self.settings.ablations)}."
            )
        self._active = replace(
            self.settings,
            ablations=recorded,
            precision=note.get("precision"),
            on_unhealthy=note.get("on_unhealthy", self.settings.on_unhealthy),
        ).with_ablations()
        self._active = replace(self._active, clip_norm=note["clip_norm"])  # tightened, it may be, since
        now = _words(self._active.clip)
        before = note.get("clip", now)  # a note is plain data: the clip itself is not in it
        if before != now:
            raise ValueError(
                f"{self.args.model} was trained with clip={before}, it can't be resumed with clip={now}; "
                "give GradStudyTrainer.using(clip=...) that clip again."
            )

    def _setup_train(self) -> None:
        super()._setup_train()  # type: ignore[misc]
        if self.device.type == "cpu" and self._active.precision in ("bf16", "fp16") and not self.amp:
            raise ValueError(_old_autocast(str(self._active.precision)))
        self._parameters = list(self.model.parameters())  # walking the modules in each step costs as much as the norms
        if self._active.clip is not None:
            self._clipper = self._active.clip.begin(self._parameters)
        model = unwrap_model(self.model)
        if getattr(model, "criterion", None) is None:  # Ultralytics makes it at the first loss
            model.criterion = model.init_criterion()
        names = self._active.ablations
        self._switches = Switches(switched_off(names), parts_of(names))
        self._switches.apply(self)
        if RANK != -1 and self._active.on_unhealthy == "recover":
            raise ValueError(
                "on_unhealthy=recover goes back on one device only; the nearest for several is on_unhealthy=stop."
            )
        if RANK not in {-1, 0}:
            return
        assigners = assigner_modules(model.criterion)
        for i, (branch, assigner) in enumerate(assigners.items()):
            assigner.register_forward_hook(self._assignments.hook(branch, counts_boxes=i == 0))
        if not self.resume:  # with exist_ok the folder may hold another training's
            shutil.rmtree(self.save_dir / TELEMETRY, ignore_errors=True)
            shutil.rmtree(self.save_dir / INCIDENTS, ignore_errors=True)
        meta = {
            "model": str(self.args.model),
            "task": self.args.task,
            "ablations": list(self._active.ablations),
            "changed": self._changed,
            "dropped": self._dropped,
            "switched_off": self._switches.names,
            "clip_norm": None if self._active.clip is not None else self._active.clip_norm,
            "clip": _words(self._active.clip),
            "branches": list(assigners),
            "inference_branch": inference_branch(assigners, getattr(self.args, "nms", None), model),
            "nbs": self.args.nbs,
            "batch": self.args.batch,
            "seed": self.args.seed,
            "amp": bool(self.amp),
            "precision": self._active.precision,
            "ultralytics": ultralytics.__version__,
            "on_unhealthy": self._active.on_unhealthy,
        }
        self._recorder = GradRecorder(
            self.model,
            self.optimizer,
            self.save_dir,
            self._active.record,
            meta=meta,
            watch_ahead=False,  # Ultralytics copies and saves the model between steps
            listener=self._listen,
        )
        self._trackers = Trackers(self, meta["inference_branch"])
        if self._active.pulse:
            self._pulse = Pulse(RunFolder(self.save_dir), len(self.train_loader) * self.epochs, meta["clip_norm"])
        self._guard = Guard(self, self._recorder, self._active.on_unhealthy, meta)
        self._investigator = Investigator(self, self._recorder, self._active.forensics)
        # The loader of one process of several has a share of the images.
        self._validates_untrained = self._active.record.untrained and not self.resume and RANK == -1

    def _listen(self, step: int, scalars: Mapping[str, float]) -> None:
        """A step is recorded; on an accelerator another thread tells so."""
        if self._trackers is not None:
            self._trackers.see(step, scalars)
        if self._pulse is not None:
            self._pulse.see(step, scalars)
        if self._guard is not None:
            self._guard.see(step, scalars)

    def _build_train_pipeline(self) -> None:
        if getattr(self, "optimizer", None) is None and self.device.type == "cpu":
            self._set_cpu_precision()
        super()._build_train_pipeline()  # type: ignore[misc]
        if self._recorder is not None:  # only an out-of-memory retry comes here again
            self._drop_batches()
            self._recorder.follow(self.optimizer)  # some versions of Ultralytics rebuild it here
            self._recorder.mark("batch_reduced", batch=self.args.batch)

    def _drop_batches(self) -> None:
        """Forget batches whose step will not come: Ultralytics begins anew."""
        self._batches = BatchSums()
        self._assignments.take()
        if self._recorder is not None:
            self._recorder.forget()
        if self._investigator is not None:
            self._investigator.restart()

    def _set_cpu_precision(self) -> None:
        """Mixed precision on a CPU, which Ultralytics offers on accelerators only.

        Its ``autocast(self.amp, device="cpu")`` takes a dtype as well as a truth value, and bf16 is what
        torch's own autocast does on a CPU where it is only told to.
        """
        precision = self._active.precision
        if precision in (None, "fp32"):
            return
        if "dtype" not in str(inspect.signature(autocast).parameters["enabled"].annotation):
            raise ValueError(_old_autocast(precision))
        if precision == "bf16":
            self.args.amp, self.amp = False, True
        else:
            self.amp = torch.float16
            self.scaler = torch.amp.GradScaler("cpu")

    # Training ---------------------------------------------------------------------------------------

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Count the batch's images into the step."""
        investigator = self._investigator
        if investigator is not None and investigator.replaying:
            replayed: dict[str, Any] = super().preprocess_batch(batch)  # type: ignore[misc]
            return replayed
        if investigator is not None:
            investigator.begin_batch(batch)
        batch = super().preprocess_batch(batch)  # type: ignore[misc]
        if self._waits_for_images:
            self._waits_for_images = False
            self._calibrate(batch["img"])
        if self._validates_untrained:
            self._validates_untrained = False
            self._validate_untrained()
        if investigator is not None:
            investigator.begin_training()
        if self._recorder is not None:
            self._batches.add_images(len(batch["img"]))
            self._recorder.watch()
        return batch

    def optimizer_step(self) -> None:
        """``BaseTrainer.optimizer_step`` with the clip norm set and the norm it computes kept."""
        self.scaler.unscale_(self.optimizer)
        self._switches.set_rates(self)
        norm = self._observe()
        if self._investigator is not None:
            self._investigator.look()
        if self._clipper is not None:
            left = self._clipper(norm)
            if self._recorder is not None:
                self._recorder.clipped(left)
        elif self._active.clip_norm is not None:
            foreach = False if self.device.type == "npu" else None  # as Ultralytics does
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._active.clip_norm, norm, foreach=foreach)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._recorder is not None:
            self._recorder.stepped()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.model)

    def _observe(self) -> Tensor:
        if self._recorder is None:  # another rank than 0: gradients are reduced, the norm is the same
            return total_norm(tensor_norms([p.grad for p in self._parameters if p.grad is not None]))
        images, losses = self._batches.take(self.loss, self._loss_items())
        amp: dict[str, Tensor | float] = {"amp_scale": 1.0, "skipped": 0.0}
        if self.scaler.is_enabled():
            found = self.scaler._found_inf_per_device(self.optimizer)
            amp = {
                "amp_scale": self.scaler._scale,
                "skipped": torch.stack([f.to(self.device) for f in found.values()]).amax(),
            }
        return self._recorder.observe(
            images=images * max(self.world_size, 1),  # gradients are sums over the images of every rank
            epoch=self.epoch,
            clip_norm=None if self._clipper is not None else self._active.clip_norm,
            **losses,
            **self._assignments.take(),
            **amp,
        )

    def _loss_items(self) -> dict[str, Tensor]:
        """The last batch's loss items by name; the first versions of 8.4 have a tensor of them."""
        items = self.loss_items
        if items is None or isinstance(items, Mapping):
            return dict(items or {})
        return dict(zip(self.loss_names, items.reshape(-1).unbind(), strict=False))

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Ultralytics' loss items by name, and among those of training a summary of the epoch's recorded steps.

        What this returns reaches ``results.csv`` and every logger.
        """
        labelled = super().label_loss_items(loss_items, prefix)  # type: ignore[misc]
        if prefix != "train" or loss_items is None or self._trackers is None:
            return labelled
        return {**labelled, **{f"train/{name}": value for name, value in self._trackers.summary.items()}}

    def train(self) -> Any:
        """Train, and close the telemetry at the end, also after an error."""
        try:
            return super().train()  # type: ignore[misc]
        except KeyboardInterrupt:
            if self._recorder is not None:
                self._recorder.mark("interrupted")
            raise
        finally:
            if self._recorder is not None:
                self._recorder.close(finished=False)

    def run_callbacks(self, event: str) -> None:
        """Follow the batches, and close the telemetry where training came to its end."""
        if self._investigator is not None and event == "on_train_batch_end":
            self._investigator.end_batch()  # before a callback changes anything
        if self._trackers is not None and self._recorder is not None and event == "on_train_epoch_end":
            self._recorder.flush()
            self._trackers.end_epoch(self.epoch, self._recorder.layer_norms() if self._trackers.wants_layers else ())
        super().run_callbacks(event)  # type: ignore[misc]
        if event == "on_train_epoch_end" and self._active.on_unhealthy == "stop":  # every rank comes here
            self._ended = agreed(self._guard is not None and self._guard.ended)
            self.stop: bool = self.stop or self._ended
        if self._recorder is None:
            return
        if event == "on_train_batch_end":
            self._batches.end_batch(self.loss, self._loss_items())
            if self._trackers is not None:
                self._trackers.end_batch()
            if self._pulse is not None:
                self._pulse.end_batch()
            if self._guard is not None:
                self._guard.act()
        elif event == "on_train_start" and self._guard is not None and not self._waits_for_images:
            self._guard.begin()
        elif event == "on_train_end":
            self._recorder.close()
            assert self._investigator is not None
            self._investigator.look_back()

    def _calibrate(self, images: Tensor) -> None:
        """Set the weights that depend on data, by the first batch; the EMA begins with them."""
        model = unwrap_model(self.model)
        with torch.autocast(self.device.type, enabled=False):
            calibrate_ablations(model, self._active.ablations, images.float())
        if RANK != -1:  # every rank has seen another batch
            for parameter in model.parameters():
                torch.distributed.broadcast(parameter.data, src=0)
        self.ema.ema.load_state_dict(model.state_dict())

    def _validate_untrained(self) -> None:
        """Record the loss of a fixed assignment before the first step, as of an epoch -1."""
        states = RandomStates.taken(self.device)  # a loader may draw from them
        found = fixed_losses(self.ema.ema, self.args.task, self.test_loader)
        states.restore(self.device)
        if found and self._recorder is not None:
            self._recorder.validated(-1, **found)

    def validate(self) -> Any:
        """Validate, and record the loss of a fixed assignment, which a dead detector cannot make small."""
        base: Any = super()
        if self._recorder is None:
            return base.validate()
        with watched_criterion(self.ema.ema if self.ema else unwrap_model(self.model), self.args.task) as watched:
            answer = base.validate()
        if watched is not None:
            self._recorder.validated(self.epoch, **watched.values())
        return answer

    def _model_train(self) -> None:
        super()._model_train()  # type: ignore[misc]
        self._switches.freeze_statistics(self.model)

    def build_optimizer(
        self,
        model: nn.Module,
        name: str = "auto",
        lr: float = 0.001,
        momentum: float = 0.9,
        decay: float = 1e-5,
        iterations: float = 1e5,
    ) -> torch.optim.Optimizer:
        """``BaseTrainer.build_optimizer``, also without momentum, with which torch builds no Nesterov SGD."""
        base: Any = super()
        optimizer: torch.optim.Optimizer = base.build_optimizer(
            model, name=name, lr=lr, momentum=momentum or 0.9, decay=decay, iterations=iterations
        )
        for group in optimizer.param_groups if momentum == 0 else ():
            group.update({"momentum": 0.0} if "momentum" in group else {"betas": (0.0, *group["betas"][1:])})
        return optimizer

    def _handle_nan_recovery(self, epoch: int) -> bool:
        if Builtin.NAN_RECOVERY in self._switches or self._ended:
            return False
        if RANK == -1 and self._guard is not None and self._guard.end_epoch_on_nan():
            return False
        recovered: bool = super()._handle_nan_recovery(epoch)  # type: ignore[misc]
        if recovered and self._recorder is not None:
            self._drop_batches()
            self._recorder.mark("nan_recovery", epoch=epoch, attempt=self.nan_recovery_attempts)
        return recovered

    # Attributes of BaseTrainer that the methods above read.
    args: Any
    model: Any
    optimizer: Any
    scaler: Any
    device: Any
    ema: Any
    loss: Any
    loss_items: Any
    loss_names: Any
    train_loader: Any
    test_loader: Any
    epochs: int
    epoch: int
    amp: Any
    save_dir: Path
    resume: bool
    world_size: int
    lf: Any
    nan_recovery_attempts: int


@cache
def gradstudy_trainer(base: type[BaseTrainer]) -> type[Any]:
    """An Ultralytics trainer class that records and ablates.

    Args:
        base: Any task's trainer, as ``ultralytics.models.yolo.segment.SegmentationTrainer``.

    Returns:
        A subclass named ``GradStudy<base's name>``; the name has ``Trainer`` in it, without which
        Ultralytics attaches no logger.
    """
    if issubclass(base, GradStudyMixin):
        return base
    return type(f"GradStudy{base.__name__}", (GradStudyMixin, base), {"__doc__": base.__doc__, "__module__": __name__})


class GradStudyTrainer(GradStudyMixin, DetectionTrainer):
    """Ultralytics' detection trainer, recorded: same weights, same losses, and the gradients on disk.

    ``YOLO("yolo26n.yaml").train(data="coco128.yaml", trainer=GradStudyTrainer)`` writes
    ``<save_dir>/telemetry``, which :func:`yolo_gradstudy.load_run` and :func:`yolo_gradstudy.diagnose` read.
    :meth:`using` gives the class other settings.
    """


def _words(clip: Clip | None) -> str | None:
    """A clip as plain data."""
    return None if clip is None else repr(clip)


def _copy_of(model: nn.Module, weights: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that it has from pretrained weights, copied."""
    theirs = weights.state_dict()
    return {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name in theirs and theirs[name].shape == tensor.shape
    }


def _lost_tensors(before: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Names of the tensors that an ablated model has no more, under no name."""
    after = model.state_dict()
    fresh: dict[tuple[int, ...], list[Tensor]] = {}
    for name, tensor in after.items():
        if name not in before:
            fresh.setdefault(tuple(tensor.shape), []).append(tensor)

    def lost(name: str, tensor: Tensor) -> bool:
        if name in after and after[name].shape == tensor.shape:
            return False
        return not any(torch.equal(tensor, other) for other in fresh.get(tuple(tensor.shape), ()))

    return [name for name, tensor in before.items() if lost(name, tensor)]


def _by_ending(names: Sequence[str]) -> str:
    """Names of tensors in few words: ``114 of *.bn.weight``."""
    endings = Counter(".".join(name.split(".")[-2:]) for name in names)
    return ", ".join(f"{count} of *.{ending}" for ending, count in endings.items())


def _old_autocast(precision: str) -> str:
    return (
        f"precision={precision} on a CPU needs an Ultralytics whose autocast takes a dtype, this one is "
        f"{ultralytics.__version__}; the nearest valid is 'fp32'."
    )
