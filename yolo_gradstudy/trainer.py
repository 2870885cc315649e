# SPDX-License-Identifier: AGPL-3.0-or-later
"""The only door to Ultralytics' training engine: any of its task trainers, recorded and ablated.

``BaseTrainer.optimizer_step`` is the one place between the backward pass and the zeroing of gradients, so
the recorder is asked there. Everything else is a few overridden methods that call the base first.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import ultralytics
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK
from ultralytics.utils.torch_utils import autocast, unwrap_model

from yolo_gradstudy.ablations import (
    ABLATIONS,
    apply_ablations,
    check_ablations,
    combined_arguments,
    combined_trainer_options,
)
from yolo_gradstudy.arguments import OWN_ARGUMENTS, PRECISIONS, no_precision
from yolo_gradstudy.recorder import GradRecorder
from yolo_gradstudy.records import Branch, RecordConfig
from yolo_gradstudy.run_folder import TELEMETRY
from yolo_gradstudy.statistics import AssignmentSums, tensor_norms, total_norm

ULTRALYTICS_CLIP_NORM = 10.0
"""The global norm at which ``BaseTrainer.optimizer_step`` clips, written there as a literal."""

_MODEL_NOTE = "gradstudy"
"""Attribute of an ablated model, plain data that its checkpoints carry, so that resuming ablates again."""


@dataclass(frozen=True)
class TrainerSettings:
    """What a trainer class of this package adds to Ultralytics' own arguments.

    Attributes:
        record: What is recorded and how often.
        ablations: Names from ``ABLATIONS``.
        clip_norm: Global gradient norm at which a step is clipped; None for no clipping.
        precision: ``fp32``, ``bf16`` or ``fp16`` (with loss scaling), also on a CPU, where Ultralytics trains
            in fp32 whatever ``amp`` says; None leaves it to Ultralytics' argument ``amp``.
        threads: CPU threads of torch; None leaves them to Ultralytics, which takes all but one, at most 8.

    Raises:
        ValueError: An unknown or contradicting ablation, a clip norm that is not above 0, no such precision.
    """

    record: RecordConfig = field(default_factory=RecordConfig)
    ablations: tuple[str, ...] = ()
    clip_norm: float | None = ULTRALYTICS_CLIP_NORM
    precision: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ablations", tuple(self.ablations))
        check_ablations(self.ablations)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm={self.clip_norm!r} is not above 0; "
                f"Ultralytics clips at {ULTRALYTICS_CLIP_NORM}, None is for no clipping."
            )
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(no_precision(self.precision))

    def with_ablations(self) -> TrainerSettings:
        """The settings with those that the ablations set."""
        return TrainerSettings(**{**self.__dict__, **combined_trainer_options(self.ablations)})


class GradStudyMixin:
    """Recording and ablation for an Ultralytics trainer; :func:`gradstudy_trainer` puts it before one."""

    settings: ClassVar[TrainerSettings] = TrainerSettings()

    @classmethod
    def using(
        cls,
        record: RecordConfig | None = None,
        ablations: Sequence[str] = (),
        clip_norm: float | None = ULTRALYTICS_CLIP_NORM,
        precision: str | None = None,
        threads: int | None = None,
    ) -> type[Any]:
        """This trainer class with other settings, to hand to ``YOLO(...).train(trainer=...)``.

        Args:
            record: What is recorded and how often.
            ablations: Names from ``ABLATIONS``; order does not matter.
            clip_norm: Global gradient norm at which a step is clipped; None for no clipping.
            precision: ``fp32``, ``bf16`` or ``fp16``, also on a CPU; None leaves it to the argument ``amp``.
            threads: CPU threads of torch; None leaves them to Ultralytics.

        Raises:
            ValueError: An unknown or contradicting ablation, a clip norm that is not above 0, no such precision.
        """
        settings = TrainerSettings(record or RecordConfig(), tuple(ablations), clip_norm, precision, threads)
        return type(cls.__name__, (cls,), {"settings": settings, "__doc__": cls.__doc__, "__module__": cls.__module__})

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
    ) -> None:
        self._recorder: GradRecorder | None = None
        self._active = self.settings.with_ablations()
        self._changed: dict[str, int] = {}
        self._assignments = AssignmentSums()
        self._batches = _BatchSums()
        self._parameters: list[nn.Parameter] = []
        overrides = {**(overrides or {}), **combined_arguments(self.settings.ablations)}
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
            lost = [name for name in names if ABLATIONS[name].family == "initialisation"]
            if lost:
                raise ValueError(
                    f"{lost[0]} replaces initial weights, which pretrained weights would overwrite: "
                    "set pretrained=False and name the model by its YAML, or leave the ablation out."
                )
        model = base.get_model(cfg=cfg, weights=None, verbose=verbose)
        changed = apply_ablations(model, names, seed=self.args.seed)
        self._changed = {name: len(modules) for name, modules in changed.items()}
        for name, count in self._changed.items():
            LOGGER.info(f"gradstudy: {name} changed {count} modules")
        if weights is not None:
            model.load(weights)  # type: ignore[operator]
        self._note(model)
        return model

    def _note(self, model: nn.Module) -> None:
        active = self._active
        note = {"ablations": list(active.ablations), "clip_norm": active.clip_norm, "precision": active.precision}
        setattr(model, _MODEL_NOTE, note)

    def _resume_settings(self, note: Mapping[str, Any]) -> None:
        recorded = tuple(note["ablations"])
        if self.settings.ablations and set(self.settings.ablations) != set(recorded):
            raise ValueError(
                f"{self.args.model} was trained with ablations {list(recorded)}, "
                f"it can't be resumed with {list(self.settings.ablations)}."
            )
        self._active = replace(
            self.settings, ablations=recorded, clip_norm=note["clip_norm"], precision=note.get("precision")
        )

    def _setup_train(self) -> None:
        super()._setup_train()  # type: ignore[misc]
        if self.device.type == "cpu" and self._active.precision in ("bf16", "fp16") and not self.amp:
            raise ValueError(_old_autocast(str(self._active.precision)))
        self._parameters = list(self.model.parameters())  # walking the modules in each step costs as much as the norms
        if RANK not in {-1, 0}:
            return
        model = unwrap_model(self.model)
        if getattr(model, "criterion", None) is None:  # Ultralytics makes it at the first loss
            model.criterion = model.init_criterion()
        assigners = assigner_modules(model.criterion)
        for i, (branch, assigner) in enumerate(assigners.items()):
            assigner.register_forward_hook(self._assignments.hook(branch, counts_boxes=i == 0))
        if not self.resume:  # with exist_ok the folder may hold another training's
            shutil.rmtree(self.save_dir / TELEMETRY, ignore_errors=True)
        self._recorder = GradRecorder(
            self.model,
            self.optimizer,
            self.save_dir,
            self._active.record,
            meta={
                "model": str(self.args.model),
                "task": self.args.task,
                "ablations": list(self._active.ablations),
                "changed": self._changed,
                "clip_norm": self._active.clip_norm,
                "branches": list(assigners),
                "inference_branch": inference_branch(assigners, getattr(self.args, "nms", None), model),
                "nbs": self.args.nbs,
                "batch": self.args.batch,
                "seed": self.args.seed,
                "amp": bool(self.amp),
                "precision": self._active.precision,
                "ultralytics": ultralytics.__version__,
            },
            watch_ahead=False,  # Ultralytics copies and saves the model between steps
        )

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
        self._batches = _BatchSums()
        self._assignments.take()
        if self._recorder is not None:
            self._recorder.forget()

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
        batch = super().preprocess_batch(batch)  # type: ignore[misc]
        if self._recorder is not None:
            self._batches.add_images(len(batch["img"]))
            self._recorder.watch()
        return batch

    def optimizer_step(self) -> None:
        """``BaseTrainer.optimizer_step`` with the clip norm set and the norm it computes kept."""
        self.scaler.unscale_(self.optimizer)
        norm = self._observe()
        if self._active.clip_norm is not None:
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
            images=images,
            epoch=self.epoch,
            clip_norm=self._active.clip_norm,
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
        super().run_callbacks(event)  # type: ignore[misc]
        if self._recorder is None:
            return
        if event == "on_train_batch_end":
            self._batches.end_batch(self.loss, self._loss_items())
        elif event == "on_train_end":
            self._recorder.close()

    def _handle_nan_recovery(self, epoch: int) -> bool:
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
    epoch: int
    amp: Any
    save_dir: Path
    resume: bool
    nan_recovery_attempts: int


class _BatchSums:
    """Images and losses of the batches that one optimizer step accumulates, on the device."""

    def __init__(self) -> None:
        self._images = 0
        self._losses: dict[str, Tensor] = {}
        self._stepped = False

    def add_images(self, count: int) -> None:
        self._images += count
        self._stepped = False

    def end_batch(self, loss: Tensor | None, items: Mapping[str, Tensor] | None) -> None:
        """A batch ended; its loss waits for the step, unless the step took it already."""
        if not self._stepped and loss is not None:
            self._add(loss, items or {})

    def take(self, loss: Tensor, items: Mapping[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        """The step's images and losses, with the batch that is on its way; begin anew."""
        self._add(loss, items)
        images, losses = self._images, self._losses
        self._images, self._losses, self._stepped = 0, {}, True
        return images, losses

    def _add(self, loss: Tensor, items: Mapping[str, Tensor]) -> None:
        for name, value in {"loss": loss, **items}.items():
            value = value.detach()
            self._losses[name] = self._losses[name] + value if name in self._losses else value


def assigner_modules(criterion: Any) -> dict[str, nn.Module]:
    """The assigners of a detection criterion by branch; empty for a criterion that has none."""
    branches = {b: getattr(criterion, b) for b in ("one2many", "one2one") if hasattr(criterion, b)}
    if not branches:
        branches = {"one2many": criterion}
    found = {branch: getattr(part, "assigner", None) for branch, part in branches.items()}
    return {branch: assigner for branch, assigner in found.items() if isinstance(assigner, nn.Module)}


def inference_branch(
    assigners: Mapping[str, nn.Module], nms: bool | None, model: nn.Module | None = None
) -> Branch | None:
    """The branch whose predictions validation and inference use; None for a model without assigners.

    A head with two branches (YOLO26) answers from ``one2one`` where the argument ``nms`` is False, and
    from ``one2many`` with non-maximum suppression otherwise: ``ultralytics.engine.validator`` and
    ``predictor`` set ``model.end2end = args.nms is False``. In the first versions of 8.4, where ``nms`` is
    False by default and counts for export only, the model itself says which.
    """
    if not assigners:
        return None
    first_versions = DEFAULT_CFG_DICT.get("nms", False) is False
    end2end = getattr(model, "end2end", True) if first_versions else nms is False
    return "one2one" if "one2one" in assigners and end2end else "one2many"


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


# Training a run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What a training left behind.

    Attributes:
        metrics: Final validation metrics by Ultralytics' names.
        weights_finite: Whether every weight and BatchNorm statistic of the trained model, not its EMA, is finite.
        changed: How many modules each ablation changed.
        parameters: Number of parameters.
        steps: Optimizer steps.
    """

    metrics: Mapping[str, float]
    weights_finite: bool
    changed: Mapping[str, int]
    parameters: int
    steps: int


def train(model: str, arguments: Mapping[str, Any], save_dir: Path, settings: TrainerSettings) -> Trained:
    """Train a model as ``YOLO(model).train`` does, with this package's trainer for the model's task.

    Args:
        model: An Ultralytics model name or path.
        arguments: Ultralytics training arguments, and this package's own (``OWN_ARGUMENTS``).
        save_dir: Where Ultralytics and the recorder write.
        settings: Recording, ablations and clip.
    """
    yolo = YOLO(model)
    own = {key: value for key, value in arguments.items() if key in OWN_ARGUMENTS}
    trainer_class = gradstudy_trainer(yolo.task_map[yolo.task]["trainer"]).using(**{**settings.__dict__, **own})
    place = {"project": str(save_dir.parent.resolve()), "name": save_dir.name, "exist_ok": True}
    theirs = {key: value for key, value in arguments.items() if key not in OWN_ARGUMENTS}
    yolo.train(trainer=trainer_class, **{**theirs, **place})
    trainer: Any = yolo.trainer
    trained = unwrap_model(trainer.model)
    metrics = getattr(trainer, "metrics", None) or {}
    return Trained(
        metrics={str(k): float(v) for k, v in metrics.items()},
        weights_finite=all(bool(t.isfinite().all()) for t in trained.state_dict().values() if t.is_floating_point()),
        changed=dict(trainer._changed),
        parameters=sum(p.numel() for p in trained.parameters()),
        steps=trainer._recorder.step if trainer._recorder is not None else 0,
    )


def _old_autocast(precision: str) -> str:
    return (
        f"precision={precision} on a CPU needs an Ultralytics whose autocast takes a dtype, this one is "
        f"{ultralytics.__version__}; the nearest valid is 'fp32'."
    )
