# SPDX-License-Identifier: AGPL-3.0-or-later
"""One row an ablation: what it must change. The suite in test_ablations.py runs over every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from ultralytics.nn.modules.conv import Concat

from yolo_gradstudy.ablations import AdaptiveClip, Builtin, PercentileClip, ValueClip, ZScoreClip
from yolo_gradstudy.ablations.spec import SameAs

MODELS = ("yolo26n.yaml", "yolo11n.yaml", "yolov8n.yaml", "yolo12n.yaml", "rtdetr-l.yaml")


@dataclass(frozen=True)
class AblationCase:
    """What an ablation is expected to do.

    Attributes:
        changed: For each model YAML, how many modules it changes; empty for an ablation of training only.
        grows: For each of these models, by how much the parameter count moves.
        writes: Of each module that it names, the parameters that it gives new values.
        reshapes: Of each module that it names, the parameters that get another shape.
        adds: What parameters with a new name hold: ``zeros``, ``carried`` values of lost ones, or ``drawn`` ones.
        inert: Builds a model in which it finds nothing to change.
        arguments: Training arguments that it sets.
        trainer: Options of GradStudyTrainer.using that it sets.
        switches_off: What Ultralytics' trainer does of itself and it ends.
        parts: The ablations that it stands for.
        number: The number that it has where none is given; None where it takes none.
        calibrates: Whether it waits for a batch.
    """

    changed: Mapping[str, int] = field(default_factory=dict)
    grows: Mapping[str, int] = field(default_factory=dict)
    writes: tuple[str, ...] = ()
    reshapes: tuple[str, ...] = ()
    adds: str = ""
    inert: Callable[[], nn.Module] = Concat
    arguments: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    switches_off: Builtin | None = None
    parts: tuple[str, ...] = ()
    number: float | None = None
    calibrates: bool = False


def in_each(*numbers: int) -> dict[str, int]:
    """A number for each model, in the order of ``MODELS``."""
    return dict(zip(MODELS, numbers, strict=True))


def plain() -> nn.Module:
    """A convolution and a SiLU of torch."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())


def weightless() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), nn.SiLU())


def activation() -> AblationCase:
    return AblationCase(changed=in_each(105, 77, 57, 81, 24), inert=lambda: nn.Sequential(nn.Conv2d(3, 4, 3)))


def normalisation(adds: str, *grows: int) -> AblationCase:
    return AblationCase(in_each(114, 81, 57, 113, 122), in_each(*grows), adds=adds, inert=plain)


def initialisation(**more: Any) -> AblationCase:
    return AblationCase(in_each(126, 87, 63, 119, 179), writes=("weight",), inert=weightless, **more)


CASES: dict[str, AblationCase] = {
    "deepen": AblationCase(
        changed=in_each(9, 9, 8, 8, 10),
        grows=in_each(821520, 718064, 1052096, 1139088, 14510400),
        reshapes=("cv2.conv.weight", "sc.conv.weight"),
        adds="drawn",
        inert=plain,
        number=2,
    ),
    "replace_silu_by_relu": activation(),
    "replace_silu_by_leakyrelu": activation(),
    "replace_silu_by_tanh": activation(),
    "replace_silu_by_sigmoid": activation(),
    "replace_silu_by_identity": activation(),
    "no_batchnorm": normalisation("zeros", -9784, -7832, -5296, -11464, -823104),
    "replace_batchnorm_by_groupnorm": normalisation("carried", 0, 0, 0, 0, -792576),
    "replace_batchnorm_by_layernorm2d": normalisation("carried", 0, 0, 0, 0, -792576),
    "no_residuals": AblationCase(in_each(16, 12, 6, 18, 2), inert=plain),
    "scale_residuals": AblationCase(in_each(18, 13, 6, 26, 2), inert=plain, number=2**-0.5),
    "replace_init_by_xavier": initialisation(),
    "replace_init_by_xavier_normal": initialisation(),
    "replace_init_by_he": initialisation(),
    "replace_init_by_orthogonal": initialisation(),
    "replace_init_by_lsuv": initialisation(calibrates=True),
    "scale_init": initialisation(number=2.0),
    "no_head_bias_init": AblationCase(in_each(12, 6, 6, 6, 14), writes=("bias",), inert=plain),
    "zero_init_residuals": AblationCase(
        in_each(18, 13, 6, 26, 22), writes=("bn.weight", "weight", "bias"), inert=plain
    ),
    "freeze_batchnorm_statistics": AblationCase(switches_off=Builtin.BATCHNORM_STATISTICS),
    "no_clip": AblationCase(trainer={"clip_norm": None}),
    "replace_clip_by_norm": AblationCase(trainer={"clip_norm": float}, number=1.0),
    "replace_clip_by_value": AblationCase(trainer={"clip": ValueClip}, number=0.1),
    "replace_clip_by_agc": AblationCase(trainer={"clip": AdaptiveClip}, number=0.01),
    "replace_clip_by_autoclip": AblationCase(trainer={"clip": PercentileClip}, number=10.0),
    "replace_clip_by_zclip": AblationCase(trainer={"clip": ZScoreClip}, number=2.5),
    "replace_optimizer_by_sgd": AblationCase(arguments={"optimizer": "SGD"}),
    "replace_optimizer_by_adam": AblationCase(arguments={"optimizer": "Adam"}),
    "replace_optimizer_by_adamw": AblationCase(arguments={"optimizer": "AdamW"}),
    "replace_optimizer_by_rmsprop": AblationCase(arguments={"optimizer": "RMSprop"}),
    "replace_optimizer_by_musgd": AblationCase(arguments={"optimizer": "MuSGD"}),
    "no_momentum": AblationCase(arguments={"momentum": 0.0, "warmup_momentum": 0.0}),
    "no_weight_decay": AblationCase(arguments={"weight_decay": 0.0}),
    "no_warmup": AblationCase(arguments={"warmup_epochs": 0.0}),
    "no_rate_warmup": AblationCase(switches_off=Builtin.RATE_WARMUP),
    "no_momentum_warmup": AblationCase(switches_off=Builtin.MOMENTUM_WARMUP),
    "no_bias_rate_warmup": AblationCase(switches_off=Builtin.BIAS_RATE_WARMUP),
    "no_accumulation": AblationCase(arguments={"nbs": SameAs("batch")}),
    "no_ema": AblationCase(switches_off=Builtin.EMA),
    "no_nan_recovery": AblationCase(switches_off=Builtin.NAN_RECOVERY),
    "no_amp_scaling": AblationCase(switches_off=Builtin.AMP_SCALING),
    "no_target_score_normaliser": AblationCase(switches_off=Builtin.TARGET_SCORE_NORMALISER),
    "remove_everything": AblationCase(
        parts=(
            *("no_batchnorm", "no_residuals", "no_head_bias_init", "no_clip", "no_weight_decay", "no_warmup"),
            *("no_accumulation", "no_ema", "no_nan_recovery", "no_amp_scaling", "no_target_score_normaliser"),
        )
    ),
}
