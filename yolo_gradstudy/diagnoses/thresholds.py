# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every number that a rule compares with, in one place, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the rules.

    Attributes:
        fewest_steps: Recorded steps below which start and end of a run overlap, so nothing is compared.
        start_steps: At most so many steps at the beginning stand for the run's own start,
        start_share: and at most this share of them: a short run can be dead by its tenth step.
        end_share: Share of the steps at the end that stand for how the run ended.
        end_steps: At least so many steps stand for the end; a single step's batch may be odd.
        exploded_loss: Factor over the start's median loss that is a spike. Healthy detection losses stay
            within a factor of two of their start over a run's first hundred steps; 10 is far outside.
        exploded_grad_norm: Factor over the start's median gradient norm that is a spike. Norms of healthy runs
            move by one or two orders of magnitude during warm-up, mostly down.
        recovered_scores: Share of the reference's target scores that a run which spiked must reach at its end
            to count as recovered.
        collapsed_scores: Share of the reference's target scores for each ground-truth box below which a
            branch is dead. That quantity tells how well the best predictions overlap the objects: about 0.2
            in the one-to-one and 0.5 in the one-to-many branch of an untrained YOLO26n, rising with training,
            and 0 to machine precision in every dead branch seen.
    """

    fewest_steps: int = 12
    start_steps: int = 10
    start_share: float = 0.25
    end_share: float = 0.1
    end_steps: int = 5
    exploded_loss: float = 10.0
    exploded_grad_norm: float = 1e4
    recovered_scores: float = 0.5
    collapsed_scores: float = 0.1


THRESHOLDS = Thresholds()
