# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a trainer class of this package adds to Ultralytics' own arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from yolo_gradstudy.ablations import Clip, check_ablations, combined_trainer_options
from yolo_gradstudy.arguments import ON_UNHEALTHY, PRECISIONS, no_choice, no_precision
from yolo_gradstudy.records import ForensicsConfig, RecordConfig

ULTRALYTICS_CLIP_NORM = 10.0
"""The global norm at which ``BaseTrainer.optimizer_step`` clips, written there as a literal."""


@dataclass(frozen=True)
class TrainerSettings:
    """What a trainer class of this package adds to Ultralytics' own arguments.

    Attributes:
        record: What is recorded and how often.
        ablations: Names from ``ABLATIONS``.
        clip_norm: Global gradient norm at which a step is clipped; None for no clipping.
        clip: Another way to clip, which takes the place of ``clip_norm``.
        precision: ``fp32``, ``bf16`` or ``fp16`` (with loss scaling), also on a CPU, where Ultralytics trains
            in fp32 whatever ``amp`` says; None leaves it to Ultralytics' argument ``amp``.
        threads: CPU threads of torch; None leaves them to Ultralytics, which takes all but one, at most 8.
        forensics: What is kept to replay the step at which a run went wrong.
        on_unhealthy: What is done about a run that is certainly lost: ``continue``, ``stop``, or ``recover``, which
            goes back to the last healthy state and trains on with half the learning rate and a tighter clip.
        pulse: Whether the run's folder says how far training is, for whoever watches a study.

    Raises:
        ValueError: An unknown or contradicting ablation, a clip norm that is not above 0, no such precision or action.
    """

    record: RecordConfig = field(default_factory=RecordConfig)
    ablations: tuple[str, ...] = ()
    clip_norm: float | None = ULTRALYTICS_CLIP_NORM
    clip: Clip | None = None
    precision: str | None = None
    threads: int | None = None
    forensics: ForensicsConfig = field(default_factory=ForensicsConfig)
    on_unhealthy: str = "continue"
    pulse: bool = False

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
        if self.on_unhealthy not in ON_UNHEALTHY:
            raise ValueError(no_choice("on_unhealthy", self.on_unhealthy, ON_UNHEALTHY))

    def with_ablations(self) -> TrainerSettings:
        """The settings with those that the ablations set."""
        return TrainerSettings(**{**self.__dict__, **combined_trainer_options(self.ablations)})
