# SPDX-License-Identifier: AGPL-3.0-or-later
"""What Ultralytics' trainer does of itself, switched off where an ablation asks for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import unwrap_model

from yolo_gradstudy.ablations import Builtin, batchnorms
from yolo_gradstudy.trainer.assigners import assigner_modules


class Switches:
    """The built-in doings that a training is without.

    Args:
        off: What is switched off, and the ablation that asks for it.
        optional: Ablations that are passed over where there is nothing to switch off.
    """

    def __init__(self, off: Mapping[Builtin, str], optional: Collection[str] = ()) -> None:
        self._off = dict(off)
        self._optional = frozenset(optional)

    def __contains__(self, builtin: Builtin) -> bool:
        return builtin in self._off

    @property
    def names(self) -> list[str]:
        """What is off, in the order of :class:`Builtin`."""
        return [str(builtin) for builtin in Builtin if builtin in self._off]

    def apply(self, trainer: Any) -> None:
        """Switch off what a set-up trainer has; called when optimizer, scaler and EMA exist.

        Raises:
            ValueError: There is nothing to switch off.
        """
        for builtin in list(self._off):
            reason = _MISSING[builtin](trainer) if builtin in _MISSING else None
            if reason is None:
                continue
            if self._off[builtin] not in self._optional:
                raise ValueError(f"ablations: {self._off[builtin]!r} found nothing to change: {reason}.")
            del self._off[builtin]
        if Builtin.EMA in self:
            trainer.ema.decay = _no_average
        if Builtin.AMP_SCALING in self:
            trainer.scaler = torch.amp.GradScaler(trainer.device.type, enabled=False)
        if Builtin.TARGET_SCORE_NORMALISER in self:
            model = unwrap_model(trainer.model)
            model.criterion = without_normaliser(model.criterion)

    def set_rates(self, trainer: Any) -> None:
        """Put rates and momenta whose warm-up is off to their full value; called before each step is observed."""
        for group in trainer.optimizer.param_groups:
            of_biases = group.get("param_group") == "bias"
            if (Builtin.BIAS_RATE_WARMUP if of_biases else Builtin.RATE_WARMUP) in self:
                group["lr"] = group["initial_lr"] * trainer.lf(trainer.epoch)
            if Builtin.MOMENTUM_WARMUP in self and "momentum" in group:
                group["momentum"] = trainer.args.momentum

    def freeze_statistics(self, model: nn.Module) -> None:
        """Have BatchNorms normalise with their running statistics; called after the model is put into training mode."""
        if Builtin.BATCHNORM_STATISTICS in self:
            for name in batchnorms(model):
                model.get_submodule(name).eval()


def _no_average(updates: int) -> float:
    """The EMA's decay that makes the average the weights themselves."""
    return 0.0


def _no_warmup(trainer: Any) -> str | None:
    if hasattr(trainer, "_get_warmup_iterations"):
        warms = trainer._get_warmup_iterations(len(trainer.train_loader)) > 0
    else:  # the first versions of 8.4 warm up in the last epoch, too
        warms = trainer.args.warmup_epochs > 0
    return None if warms else "there is no warm-up with these epochs and warmup_epochs"


def _no_momentum_warmup(trainer: Any) -> str | None:
    if not any("momentum" in group for group in trainer.optimizer.param_groups):
        return f"Ultralytics warms up no momentum of {type(trainer.optimizer).__name__}"
    if trainer.args.warmup_momentum == trainer.args.momentum:
        return "warmup_momentum is momentum already"
    return _no_warmup(trainer)


def _no_scaler(trainer: Any) -> str | None:
    if trainer.scaler.is_enabled():
        return None
    return "only fp16 has a loss scaler; set precision=fp16"


def _no_assigner(trainer: Any) -> str | None:
    if trainer.args.task == "detect" and assigner_modules(getattr(unwrap_model(trainer.model), "criterion", None)):
        return None
    return f"the loss of {trainer.args.model} does not divide by target scores of a detector"


def _no_batchnorm(trainer: Any) -> str | None:
    return None if batchnorms(trainer.model) else f"{trainer.args.model} has no BatchNorm"


_MISSING = {
    Builtin.RATE_WARMUP: _no_warmup,
    Builtin.BIAS_RATE_WARMUP: _no_warmup,
    Builtin.MOMENTUM_WARMUP: _no_momentum_warmup,
    Builtin.AMP_SCALING: _no_scaler,
    Builtin.TARGET_SCORE_NORMALISER: _no_assigner,
    Builtin.BATCHNORM_STATISTICS: _no_batchnorm,
}
"""For each doing that a training may lack, a sentence that says so; None where it is there."""


# The target-score normaliser ------------------------------------------------------------------------------


class SummedLoss:
    """A detection loss without its division by the sum of target scores.

    Ultralytics divides each of its loss items by max(Σ target scores, 1). Multiplying with that number again takes the
    division out, whatever the items are. Everything else is the criterion's own.

    Args:
        criterion: A detection loss with an assigner.
    """

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion
        self._normaliser: Tensor | None = None
        criterion.assigner.register_forward_hook(self._take)

    def _take(self, assigner: nn.Module, inputs: Any, output: Any) -> None:
        self._normaliser = output[2].detach().sum().clamp(min=1)

    def loss(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """The loss of each item, summed over the targets, and the same for the log."""
        loss, items = self._criterion.loss(preds, batch)
        assert self._normaliser is not None, "the assigner was not asked"
        s = self._normaliser
        return loss * s, {key: value * s for key, value in items.items()} if isinstance(items, dict) else items * s

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """As :meth:`loss`, of what the model put out."""
        return self.loss(self._criterion.parse_output(preds), batch)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_criterion":  # a copy that has no attributes yet
            raise AttributeError(name)
        return getattr(self._criterion, name)


def without_normaliser(criterion: Any) -> Any:
    """The criterion without the division, in each of its branches."""
    branches = [branch for branch in ("one2many", "one2one") if hasattr(criterion, branch)]
    for branch in branches:
        setattr(criterion, branch, SummedLoss(getattr(criterion, branch)))
    return criterion if branches else SummedLoss(criterion)
