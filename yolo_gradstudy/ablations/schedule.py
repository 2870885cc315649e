# SPDX-License-Identifier: AGPL-3.0-or-later
"""What Ultralytics does over the course of a training to keep it alive, switched off."""

from __future__ import annotations

from yolo_gradstudy.ablations.spec import AblationSpec, Builtin, SameAs

_WARMUP = "Goyal et al. 2017, arXiv:1706.02677; ultralytics.engine.trainer.BaseTrainer._do_train"

NO_WARMUP = AblationSpec(
    name="no_warmup",
    family="schedule",
    summary="Starts at the full learning rate, momentum and accumulation, for weights and biases alike.",
    source=_WARMUP,
    arguments={"warmup_epochs": 0.0},
    targets=("learning-rate warm-up", "momentum warm-up", "bias-rate warm-up"),
)

NO_RATE_WARMUP = AblationSpec(
    name="no_rate_warmup",
    family="schedule",
    summary="Starts weights and scales at their full learning rate; biases and momentum warm up as ever.",
    source=_WARMUP,
    switches_off=Builtin.RATE_WARMUP,
    targets=("learning-rate warm-up",),
)

NO_MOMENTUM_WARMUP = AblationSpec(
    name="no_momentum_warmup",
    family="schedule",
    summary="Starts at the full momentum, where Ultralytics rises to it from warmup_momentum=0.8.",
    source=_WARMUP,
    switches_off=Builtin.MOMENTUM_WARMUP,
    targets=("momentum warm-up",),
)

NO_BIAS_RATE_WARMUP = AblationSpec(
    name="no_bias_rate_warmup",
    family="schedule",
    summary="Starts biases at their full learning rate, where Ultralytics comes down to it from warmup_bias_lr=0.1.",
    source=_WARMUP,
    switches_off=Builtin.BIAS_RATE_WARMUP,
    targets=("bias-rate warm-up",),
)

NO_ACCUMULATION = AblationSpec(
    name="no_accumulation",
    family="schedule",
    summary="Takes an optimizer step each batch, where Ultralytics sums gradients up to nbs=64 images.",
    source="ultralytics.engine.trainer.BaseTrainer._build_train_pipeline",
    arguments={"nbs": SameAs("batch")},
    targets=("gradient accumulation",),
)

NO_EMA = AblationSpec(
    name="no_ema",
    family="schedule",
    summary="Validates and saves the weights as they are, where Ultralytics takes their moving average.",
    source="Polyak and Juditsky 1992; ultralytics.utils.torch_utils.ModelEMA",
    switches_off=Builtin.EMA,
    targets=("the moving average of weights",),
)

NO_NAN_RECOVERY = AblationSpec(
    name="no_nan_recovery",
    family="schedule",
    summary="Trains on after a NaN, where Ultralytics goes back to last.pt at the end of the epoch.",
    source="ultralytics.engine.trainer.BaseTrainer._handle_nan_recovery",
    switches_off=Builtin.NAN_RECOVERY,
    targets=("NaN recovery",),
)

NO_AMP_SCALING = AblationSpec(
    name="no_amp_scaling",
    family="schedule",
    summary="Trains in fp16 without a loss scaler: small gradients are lost, and no overflowing step is skipped.",
    source="Micikevicius et al. 2018, arXiv:1710.03740, §3.2; torch.amp.GradScaler",
    switches_off=Builtin.AMP_SCALING,
    targets=("the AMP loss scaler",),
)

NO_TARGET_SCORE_NORMALISER = AblationSpec(
    name="no_target_score_normaliser",
    family="loss",
    summary="Sums the loss over its targets, where Ultralytics divides it by the sum of target scores, at least 1.",
    source="Feng et al. 2021, arXiv:2108.07755; ultralytics.utils.loss.v8DetectionLoss",
    switches_off=Builtin.TARGET_SCORE_NORMALISER,
    targets=("the target-score normaliser",),
)
