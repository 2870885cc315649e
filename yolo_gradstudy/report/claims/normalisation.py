# SPDX-License-Identifier: AGPL-3.0-or-later
"""What networks that are not trained say of batch normalisation: values, gradients and the landscape."""

from __future__ import annotations

import math

import numpy as np

from yolo_gradstudy.report.claims.experiments import ABOVE_1, KEPT, Evidence, Experiment, Make, Mean
from yolo_gradstudy.report.claims.signals import paired, seeds_of, select


def normalised_values(evidence: Evidence) -> list[Experiment]:
    """That normalised values keep their size where unnormalised ones would grow fourfold a layer."""
    frame = evidence.signal.get("batchnorm")
    if frame is None:
        return []
    most = float(frame["sigma_w2"].max())
    without = np.exp(np.mean(np.log(seeds_of(frame, "forward_factor", batchnorm=False, sigma_w2=most))))
    values = seeds_of(frame, "forward_factor", batchnorm=True, sigma_w2=most)
    return [
        Experiment(
            f"BatchNorm in a ReLU network, σ_w² = {most:g}, 20 layers",
            "factor of a layer to the second moment of its values",
            Mean([math.log(v) for v in values], geometric=True),
            KEPT,
            "seed",
            "batchnorm",
            note=f"{without:.3g} without",
        )
    ]


def normalised_gradient(evidence: Evidence) -> list[Experiment]:
    """What normalisation does to the gradient of a plain network; stands beside."""
    frame = evidence.signal.get("batchnorm")
    if frame is None:
        return []
    rows = select(frame, batchnorm=True)
    values = rows.groupby("seed")["backward_gain"].apply(lambda gains: float(np.log(gains).mean())).tolist()
    theory = float(rows["gain_theory"].iloc[0])
    note = f"π/(π−1) = {theory:.3f} in theory, at any σ_w², which is {theory**25:.2g} times the norm over 50 layers"
    return [
        Experiment(
            "BatchNorm in a ReLU network, three weight variances",
            "factor of a layer to the gradient’s square",
            Mean(values, geometric=True),
            KEPT,
            "seed",
            "batchnorm",
            note=note,
            decides=False,
        )
    ]


def smoothness(network: str, initialisation: str, steps: int, what: str, without: str = "") -> Make:
    """That the gradient changes less along itself with BatchNorm: effective smoothness, the most over the strides."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("landscape")
        if frame is None:
            return []
        where = {"network": network, "steps": steps}
        most = [
            select(frame, batchnorm=normalised, initialisation=init, **where).groupby("seed")["beta"].max()
            for normalised, init in ((True, initialisation), (False, without or initialisation))
        ]
        logs = [float(value) for value in np.log(most[1] / most[0])]
        return [
            Experiment(
                what,
                "ratio of the effective smoothness β without to with",
                Mean(logs, geometric=True),
                ABOVE_1,
                "seed",
                "landscape",
                note=f"β {most[1].median():.3g} without, {most[0].median():.3g} with (medians)",
            )
        ]

    return made


def far_change(network: str, initialisation: str, without: str) -> Make:
    """How much the gradient changes over the longest stride, without BatchNorm over with; stands beside."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("landscape")
        if frame is None:
            return []
        where = {"network": network, "steps": 0, "stride": float(frame["stride"].max())}
        pairs = paired(
            frame,
            "gradient_change",
            {"batchnorm": False, "initialisation": without, **where},
            {"batchnorm": True, "initialisation": initialisation, **where},
        )
        medians = np.median(pairs, axis=0)
        return [
            Experiment(
                f"{network}, untrained, {without} init without BatchNorm, one stride of {where['stride']:.0%} of the "
                "weights’ norm",
                "ratio of the gradient’s relative change without to with",
                Mean([math.log(one / two) for one, two in pairs], geometric=True),
                ABOVE_1,
                "seed",
                "landscape",
                note=f"{medians[0]:.3g} times the gradient without, {medians[1]:.3g} with (medians)",
                decides=False,
            )
        ]

    return made


def first_norms(arm: str, against: str, what: str) -> Make:
    """How many times larger the first gradient of YOLO26n is with one arm than with another; stands beside."""

    def made(evidence: Evidence) -> list[Experiment]:
        frame = evidence.signal.get("yolo26n")
        if frame is None:
            return []
        totals = frame.assign(square=frame["grad_norm"] ** 2).groupby(["arm", "seed"])["square"].sum().pow(0.5)
        one, two = totals.loc[arm], totals.loc[against]
        return [
            Experiment(
                what,
                "ratio of the first gradient’s norms",
                Mean(np.log(one / two).tolist(), geometric=True),
                ABOVE_1,
                "seed",
                "yolo26n",
                note=f"{one.median():.4g} against {two.median():.4g} (medians)",
                decides=False,
            )
        ]

    return made
