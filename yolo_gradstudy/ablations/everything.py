# SPDX-License-Identifier: AGPL-3.0-or-later
"""All that is built in, removed at once: the far end of the scale."""

from __future__ import annotations

from collections.abc import Iterable

from yolo_gradstudy.ablations.spec import AblationSpec

_NO_SAFEGUARD = ("no_momentum", "no_rate_warmup", "no_momentum_warmup", "no_bias_rate_warmup")
"""Removals that are no part: momentum speeds a training up, and ``no_warmup`` has the three warm-ups in it."""


def remove_everything(single: Iterable[AblationSpec]) -> AblationSpec:
    """The ablation that stands for every removal ``no_x`` of a safeguard.

    What can't be taken away but only exchanged is left as it is: the initial weights, the activation, the optimizer.

    Args:
        single: Every other ablation.
    """
    parts = [spec for spec in single if spec.name.startswith("no_") and spec.name not in _NO_SAFEGUARD]
    return AblationSpec(
        name="remove_everything",
        family="everything",
        summary=f"Removes all that is built in at once: {', '.join(spec.name for spec in parts)}.",
        source="ultralytics.engine.trainer.BaseTrainer, ultralytics.nn, ultralytics.utils.loss",
        targets=tuple(dict.fromkeys(target for spec in parts for target in spec.targets)),
        parts=tuple(spec.name for spec in parts),
    )
