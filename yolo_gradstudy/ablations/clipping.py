# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gradient clipping removed, or done in another way.

A clip is a small frozen description, which a trainer class carries; ``begin`` makes of it what acts in each step and
holds the history that it needs. Nothing is read back from the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolo_gradstudy.ablations.spec import AblationSpec, Number

_TARGETS = ("gradient clipping",)


class Clipper(ABC):
    """Clips the gradients of each step of one training.

    Args:
        parameters: The model's parameters; those without a gradient in a step are passed over.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)

    @torch.no_grad()
    def __call__(self, norm: Tensor) -> Tensor:
        """Clip, in place.

        Args:
            norm: 0-d, global norm of the unscaled gradients.

        Returns:
            0-d, the global norm that is left.
        """
        parameters = [p for p in self.parameters if p.grad is not None]
        return self._clip(parameters, norm) if parameters else norm

    @abstractmethod
    def _clip(self, parameters: Sequence[Tensor], norm: Tensor) -> Tensor: ...


class Clip(ABC):
    """How gradients are clipped: what ``GradStudyTrainer.using(clip=...)`` takes."""

    @abstractmethod
    def begin(self, parameters: Sequence[Tensor]) -> Clipper:
        """What clips the steps of a training that begins now, without history.

        Args:
            parameters: The model's parameters.
        """


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _norm_of(parameters: Sequence[Tensor], like: Tensor) -> Tensor:
    norms = torch._foreach_norm(_gradients(parameters), 2.0)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([n.to(like.device) for n in norms]), 2.0)
    return norm


def _scale_to(parameters: Sequence[Tensor], norm: Tensor, threshold: Tensor) -> Tensor:
    """Scale to a global norm of at most ``threshold``, as ``torch.nn.utils.clip_grads_with_norm_``; the norm left."""
    coefficient = torch.clamp(threshold / (norm + 1e-6), max=1.0)
    for gradient in _gradients(parameters):
        gradient.mul_(coefficient.to(gradient.device, gradient.dtype))
    return norm * coefficient


# A fixed norm, a fixed value --------------------------------------------------------------------------


class _ValueClipper(Clipper):
    def __init__(self, parameters: Sequence[Tensor], limit: float) -> None:
        super().__init__(parameters)
        self._limit = limit

    def _clip(self, parameters: Sequence[Tensor], norm: Tensor) -> Tensor:
        torch.nn.utils.clip_grad_value_(parameters, self._limit)
        return _norm_of(parameters, norm)


@dataclass(frozen=True)
class ValueClip(Clip):
    """Every element of every gradient into [−limit, limit]: the direction changes, too.

    Attributes:
        limit: Largest absolute element that passes.

    References:
        Mikolov 2012, "Statistical Language Models Based on Neural Networks", §3.2.2; ``clip_grad_value_`` of torch.
    """

    limit: float

    def begin(self, parameters: Sequence[Tensor]) -> Clipper:
        """See :meth:`Clip.begin`."""
        return _ValueClipper(parameters, self.limit)


# Adaptive, by unit ------------------------------------------------------------------------------------


def unitwise_norms(tensor: Tensor) -> Tensor:
    """Norm of each unit: of what an output channel reads, and of a bias or scale as a whole.

    Args:
        tensor: A weight of shape (out, ...), or a vector or number.

    Returns:
        Shape (out, 1, ...) for a weight, 0-d for a vector or number.
    """
    if tensor.ndim <= 1:
        whole: Tensor = torch.linalg.vector_norm(tensor)
        return whole
    units: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
    return units


class _AdaptiveClipper(Clipper):
    def __init__(self, parameters: Sequence[Tensor], factor: float, eps: float) -> None:
        super().__init__(parameters)
        self._factor = factor
        self._eps = eps

    def _clip(self, parameters: Sequence[Tensor], norm: Tensor) -> Tensor:
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            largest = self._factor * unitwise_norms(parameter.detach()).clamp(min=self._eps)
            units = unitwise_norms(gradient)
            gradient.mul_(torch.where(units > largest, largest / units.clamp(min=1e-6), 1.0))
        return _norm_of(parameters, norm)


@dataclass(frozen=True)
class AdaptiveClip(Clip):
    """Adaptive gradient clipping (AGC): no unit's gradient is longer than a share of its weight.

    With W_i and G_i the weight and gradient of unit i, G_i ← λ·max(‖W_i‖, ε)/‖G_i‖ · G_i where ‖G_i‖ is larger than
    λ·max(‖W_i‖, ε). Brock et al. leave out a classifier's last layer; a detector's head has no one such layer, so that
    here every parameter is clipped.

    Attributes:
        factor: λ. The paper has 0.01 for batches of 4096 images, and more for smaller ones.
        eps: ε, so that a weight that is zero can leave it.

    References:
        Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization",
        arXiv:2102.06171, eq. 3.
    """

    factor: float
    eps: float = 1e-3

    def begin(self, parameters: Sequence[Tensor]) -> Clipper:
        """See :meth:`Clip.begin`."""
        return _AdaptiveClipper(parameters, self.factor, self.eps)


# By the norms of the steps before -----------------------------------------------------------------------


class _PercentileClipper(Clipper):
    def __init__(self, parameters: Sequence[Tensor], percentile: float) -> None:
        super().__init__(parameters)
        self._share = percentile / 100.0
        self._history = torch.zeros(0)
        self._steps = 0

    def _clip(self, parameters: Sequence[Tensor], norm: Tensor) -> Tensor:
        if self._steps == len(self._history):  # eight bytes a step, in room that doubles
            room = norm.new_full((max(1024, 2 * self._steps),), float("nan"))
            room[: self._steps] = self._history.to(room)
            self._history = room
        self._history[self._steps] = torch.where(norm.isfinite(), norm, float("nan"))
        self._steps += 1
        return _scale_to(parameters, norm, torch.nanquantile(self._history[: self._steps], self._share))


@dataclass(frozen=True)
class PercentileClip(Clip):
    """AutoClip: to a percentile of all global norms so far, the step's own among them.

    Norms that are not finite are no part of the history, which a resumed training begins anew.

    Attributes:
        percentile: From 0, the least norm so far, to 100, no clipping at all. The paper has 10.

    References:
        Seetharaman et al. 2020, "AutoClip: Adaptive Gradient Clipping for Source Separation Networks",
        arXiv:2007.14469, algorithm 1.
    """

    percentile: float

    def begin(self, parameters: Sequence[Tensor]) -> Clipper:
        """See :meth:`Clip.begin`."""
        return _PercentileClipper(parameters, self.percentile)


class _ZScoreClipper(Clipper):
    def __init__(self, parameters: Sequence[Tensor], clip: ZScoreClip) -> None:
        super().__init__(parameters)
        self._settings = clip
        self._first: list[Tensor] = []
        self._mean: Tensor | None = None
        self._variance: Tensor | None = None

    def _clip(self, parameters: Sequence[Tensor], norm: Tensor) -> Tensor:
        settings = self._settings
        if self._mean is None or self._variance is None:
            self._first.append(norm)
            if len(self._first) == settings.warmup_steps:
                norms = torch.stack(self._first)
                kept = norms.isfinite()
                count = kept.sum().clamp(min=1)
                self._mean = torch.where(kept, norms, 0.0).sum() / count
                self._variance = torch.where(kept, (norms - self._mean).square(), 0.0).sum() / count
                self._first.clear()
            return norm
        deviation = self._variance.sqrt()
        z = (norm - self._mean) / (deviation + settings.eps)
        high = z > settings.z_threshold
        threshold = torch.where(high, self._mean + settings.z_threshold**2 / z * deviation, norm)
        left = torch.where(high, threshold, norm)
        known = left.isfinite()  # a norm that is not finite leaves the history as it is
        mean = torch.where(known, settings.alpha * self._mean + (1 - settings.alpha) * left, self._mean)
        spread = settings.alpha * self._variance + (1 - settings.alpha) * (left - mean).square()
        self._mean, self._variance = mean, torch.where(known, spread, self._variance)
        coefficient = torch.where(high, (threshold / norm).clamp(max=1.0), 1.0)
        for gradient in _gradients(parameters):
            gradient.mul_(coefficient.to(gradient.device, gradient.dtype))
        return norm * coefficient


@dataclass(frozen=True)
class ZScoreClip(Clip):
    """ZClip: a global norm that is an outlier among those before is brought back, the more the farther out.

    With μ and σ the moving mean and deviation of the norms, z = (‖g‖ − μ)/σ. Where z > z*, the norm becomes μ +
    (z*²/z)·σ. Then μ ← αμ + (1−α)‖g‖ and σ² ← ασ² + (1−α)(‖g‖ − μ)², with the norm as it was clipped. The first steps
    are not clipped; they give μ and σ their first values. A resumed training begins so, too.

    Attributes:
        z_threshold: z*, in standard deviations; the paper has 2.5.
        alpha: Share of the old mean and variance in the new.
        warmup_steps: Steps without clipping.
        eps: Added to σ in z.

    References:
        Kumar et al. 2025, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv:2504.02507, algorithm 1.
    """

    z_threshold: float
    alpha: float = 0.97
    warmup_steps: int = 25
    eps: float = 1e-6

    def begin(self, parameters: Sequence[Tensor]) -> Clipper:
        """See :meth:`Clip.begin`."""
        return _ZScoreClipper(parameters, self)


# The ablations ------------------------------------------------------------------------------------------

NO_CLIP = AblationSpec(
    name="no_clip",
    family="clipping",
    summary="Takes every step with the gradient as it is, where Ultralytics clips its global norm at 10.",
    source="Pascanu et al. 2013, arXiv:1211.5063; ultralytics.engine.trainer.BaseTrainer.optimizer_step",
    trainer={"clip_norm": None},
    targets=_TARGETS,
)

REPLACE_CLIP_BY_NORM = AblationSpec(
    name="replace_clip_by_norm",
    family="clipping",
    summary="Clips the global norm at another threshold than Ultralytics' 10.",
    source="Pascanu et al. 2013, arXiv:1211.5063, algorithm 1",
    trainer={"clip_norm": float},
    number=Number("the largest global norm", default=1.0, least=1e-12),
    targets=_TARGETS,
)

REPLACE_CLIP_BY_VALUE = AblationSpec(
    name="replace_clip_by_value",
    family="clipping",
    summary="Clips every element of the gradient instead of its global norm.",
    source="Mikolov 2012, §3.2.2; torch.nn.utils.clip_grad_value_",
    trainer={"clip": ValueClip},
    number=Number("the largest absolute element", default=0.1, least=1e-12),
    targets=_TARGETS,
)

REPLACE_CLIP_BY_AGC = AblationSpec(
    name="replace_clip_by_agc",
    family="clipping",
    summary="Clips the gradient of each unit at a share of its weight's norm instead of the global norm (AGC).",
    source="Brock et al. 2021, arXiv:2102.06171, eq. 3",
    trainer={"clip": AdaptiveClip},
    number=Number("the largest ratio of gradient to weight", default=0.01, least=1e-12),
    targets=_TARGETS,
)

REPLACE_CLIP_BY_AUTOCLIP = AblationSpec(
    name="replace_clip_by_autoclip",
    family="clipping",
    summary="Clips the global norm at a percentile of all norms so far instead of a fixed one (AutoClip).",
    source="Seetharaman et al. 2020, arXiv:2007.14469, algorithm 1",
    trainer={"clip": PercentileClip},
    number=Number("the percentile", default=10.0, least=0.0, most=100.0),
    targets=_TARGETS,
)

REPLACE_CLIP_BY_ZCLIP = AblationSpec(
    name="replace_clip_by_zclip",
    family="clipping",
    summary="Clips the global norm where it is an outlier among those before instead of at a fixed one (ZClip).",
    source="Kumar et al. 2025, arXiv:2504.02507, algorithm 1",
    trainer={"clip": ZScoreClip},
    number=Number("the z-score from which a norm is an outlier", default=2.5, least=1e-6),
    targets=_TARGETS,
)
