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
        returned_loss: Times the lowest median of ten steps that the loss of a run which is well is at, at most, at its
            end. Of 106 runs that stayed healthy the highest was 1.05; of heads whose outputs were killed, 1.6 to 3.5.
        collapsed_scores: Share of the reference's target scores for each ground-truth box below which a
            branch is dead. That quantity tells how well the best predictions overlap the objects: about 0.2
            in the one-to-one and 0.5 in the one-to-many branch of an untrained YOLO26n, rising with training,
            and 0 to machine precision in every dead branch seen.
        band_deviations: Robust deviations beyond which a value has left its band. Gaussian noise does so once in
            10¹¹ steps; the largest in 63 runs of 96 steps that stayed healthy was 6.7.
        band_window: Steps before a step that make its band: long enough for a median, short enough to follow
            warm-up.
        band_lag: Newest steps that make no band, where there are twice as many: a blow-up of several steps must
            not hide itself.
        band_fewest: Steps below which there is no band.
        band_norm_least: Smallest robust deviation of log10 of a gradient norm, so that 7 of them are at least a
            factor of 11: what healthy norms do now and then (14 and 28 were seen) is no spike.
        band_loss_least: The same of a loss, at least a factor of 2.2; healthy ones moved by 1.2.
        band_most: Largest robust deviation that is believed: those of healthy runs were at most 0.4, and a band
            that a blow-up has widened sees nothing any more.
        calm_steps: Steps within its band after which a run is back: what lay before does not belong to what follows.
        layers_before: Steps before the onset in which a layer may have left its band already.
        learned_class: Share of chance that the class loss of a detector which has learned something is below. That
            loss is at chance by definition for the best detector which does not look at the image; 2% for noise.
        learned_class_clearly: Share of chance from which on a control has learned so much that it tells of another run.
        stuck_map: Share of the control's mAP that is nothing. Runs that detect nothing have exactly 0; this and the
            threshold before were set on the corpus of docs/diagnosis.md.
        learned_map: mAP50-95 above which a detector has learned. Runs that learned nothing had up to 0.005.
        stuck_epochs: Validated epochs below which a run without control is not called stuck. A healthy YOLO26n on
            `shapes` had class losses 1000 times chance from epoch 3 to 9, while its BatchNorm averages lagged.
        stuck_window: Epochs at the end, and before those, that are compared to see whether a loss still improves.
        stuck_improvement: Share by which the best loss must fall from one window to the next to count as improving.
        fewest_epochs: Epochs below which epoch losses are not compared.
        clip_share: Share of clipped steps from which on the clip is no safeguard any more but sets the step size.
        clip_coefficient: and the median coefficient that goes with it: it takes half of the gradient or more.
        unclipped_factor: Largest over median gradient norm of a run that nothing clips, from which on a clip matters.
        depth_share: Share of the modules, at the input, that the gradient must reach.
        depth_factor: Times that it may differ there from the largest in the last quarter of the network. Healthy
            YOLO26n stayed within 16; without BatchNorm and with PyTorch's initial weights it was 10⁴.
        update_usual: Update-to-weight ratio of a training that goes well (Karpathy 2015, after Bottou).
        usual_lr0: Ultralytics' default learning rate, to which advice raises one at once.
        update_large: Ratio that is too large in a single step: a tenth of the weights' norm. 10⁻² was seen at the
            peak of healthy warm-ups with SGD.
        update_lowered: Times that advice lowers a rate at once, at most, for an update that was too large: 8 times the
            weights was a first step at too high a rate, 10⁵ times a blow-up, which tells nothing of the rate.
        update_small: Median ratio that is too small: a thousandth of what is usual moves nothing in 10⁴ steps.
        loss_item_share: Share of one item in the sum of loss items that dominates. Healthy runs had at most 0.6.
        head_share: Share of the squared gradient that lies in the head, so that the rest of the network learns
            at a tenth of its step at most once the norm is clipped. Healthy runs had at most 0.9.
        bias_rate_factor: Times the weights' learning rate that is a bias rate of its own.
        peak_share: Share of the run's highest learning rate from which on it is at its peak.
        skipped_share: Share of steps that the AMP scaler skips. It tries a larger scale every 2000 steps, and so
            skips one in 2000 where all is well,
        skipped_after: after so many steps in which it finds its scale.
        images_chance: Probability below which images that incidents share are no coincidence.
        images_incidents: Incidents that must share an image where the number of images is not known.
        dead_share: Share of a module's channels without output from which on it is dead.
        still_share: Share of BatchNorm's parameters whose norms must stand still.
        accumulation_factor: Factor between the images of early and late steps from which on norms are not comparable.
        parting: Relative difference from which on two runs part: rounding of float32 sums stays below.
        parted_factor: Factor between two runs' losses or norms that is no noise.
    """

    fewest_steps: int = 12
    start_steps: int = 10
    start_share: float = 0.25
    end_share: float = 0.1
    end_steps: int = 5
    exploded_loss: float = 10.0
    exploded_grad_norm: float = 1e4
    recovered_scores: float = 0.5
    returned_loss: float = 1.3
    collapsed_scores: float = 0.1
    band_deviations: float = 7.0
    band_window: int = 50
    band_lag: int = 3
    band_fewest: int = 5
    band_norm_least: float = 0.15
    band_loss_least: float = 0.05
    band_most: float = 0.4
    calm_steps: int = 10
    layers_before: int = 10
    learned_class: float = 0.98
    learned_class_clearly: float = 0.9
    stuck_map: float = 0.02
    learned_map: float = 0.01
    stuck_epochs: int = 20
    stuck_window: int = 5
    stuck_improvement: float = 0.02
    fewest_epochs: int = 3
    clip_share: float = 0.5
    clip_coefficient: float = 0.5
    unclipped_factor: float = 100.0
    depth_share: float = 0.1
    depth_factor: float = 1e3
    update_usual: float = 1e-3
    usual_lr0: float = 0.01
    update_large: float = 0.1
    update_lowered: float = 200.0
    update_small: float = 1e-6
    loss_item_share: float = 0.9
    head_share: float = 0.99
    bias_rate_factor: float = 3.0
    peak_share: float = 0.8
    skipped_share: float = 0.01
    skipped_after: int = 30
    images_chance: float = 0.01
    images_incidents: int = 3
    dead_share: float = 0.5
    still_share: float = 0.5
    accumulation_factor: float = 1.5
    parting: float = 1e-3
    parted_factor: float = 2.0


THRESHOLDS = Thresholds()
