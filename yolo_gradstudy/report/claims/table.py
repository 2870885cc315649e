# SPDX-License-Identifier: AGPL-3.0-or-later
"""``CLAIMS``: what people hold to be true of training's safeguards, and by what each is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from yolo_gradstudy.report.claims.experiments import ABOVE_1, KEPT, Across, Claim, Evidence, Make, Verdict
from yolo_gradstudy.report.claims.flow import grows_in_training, keeps_values, less_growth
from yolo_gradstudy.report.claims.normalisation import (
    far_change,
    first_norms,
    normalised_gradient,
    normalised_values,
    smoothness,
)
from yolo_gradstudy.report.claims.optimisers import falls_further, scale_slope
from yolo_gradstudy.report.claims.signals import (
    gain,
    grows,
    kept,
    softens,
    told_apart,
)
from yolo_gradstudy.report.claims.training import (
    at_smallest,
    breaks_by_nan,
    control_at,
    detects_less,
    first_gradient,
    in_all,
    limits_by_arm,
    raising_breaks,
    without,
)
from yolo_gradstudy.tables.intervals import Interval

BELOW_KEPT: Interval = (0.0, KEPT[0])


@dataclass(frozen=True)
class Beyond:
    """What is more interesting than a claim, told only where the numbers say it.

    Attributes:
        text: A sentence without numbers.
        make: The experiment that has them.
        verdict: What that must say for the sentence to be true.
    """

    text: str
    make: Make
    verdict: Verdict


@dataclass(frozen=True)
class Question:
    """A claim before anything judged it.

    Attributes:
        number: Its place.
        text: As people make it.
        makes: What tests it, each where its evidence is there.
        beyond: What may be more interesting.
        across: What tests it where several studies do.
    """

    number: int
    text: str
    makes: tuple[Make, ...]
    beyond: tuple[Beyond, ...] = ()
    across: tuple[Across, ...] = ()

    def judge(self, evidences: Sequence[Evidence]) -> Claim:
        """The claim with every experiment that its evidence gives."""
        evidences = [one for one in evidences if one.asked is None or self.number in one.asked]
        found = [experiment for make in self.makes for evidence in evidences for experiment in make(evidence)]
        found += [experiment for make in self.across for experiment in make(evidences)]
        told = []
        for beyond in self.beyond:
            shown = [one for evidence in evidences for one in beyond.make(evidence) if one.verdict == beyond.verdict]
            if shown:
                told.append(f"{beyond.text} {' '.join(one.evidence for one in shown)}")
        return Claim(self.number, self.text, tuple(found), tuple(told))


def judge_claims(*evidences: Evidence) -> list[Claim]:
    """Every claim of ``CLAIMS``, also those that nothing of the evidence tests."""
    return [question.judge(evidences) for question in CLAIMS]


_relu = partial(grows, "ReLU MLP")
_tanh_rnn = partial(grows, "tanh RNN")
_turned = falls_further(
    "Adam",
    "SGD, momentum 0.9",
    "turned",
    4,
    "The same curvatures, directions turned at random, SGD with momentum",
    False,
)

CLAIMS: tuple[Question, ...] = (
    Question(
        1,
        "Gradients explode when the factors of the chain rule are above 1.",
        (
            _relu(2.2, 50, True, "ReLU network of 50 layers, σ_w² = 2.2, a factor of 1.05 a layer"),
            _relu(4.0, 50, True, "ReLU network of 50 layers, σ_w² = 4, a factor of 1.41 a layer"),
            grows("linear RNN", 1.1, 100, True, "Linear recurrent network, 100 steps, ρ = 1.1"),
            _relu(1.8, 50, False, "ReLU network of 50 layers, σ_w² = 1.8, a factor of 0.95 a layer", False),
            grows("linear RNN", 0.9, 100, False, "Linear recurrent network, 100 steps, ρ = 0.9", False),
            _tanh_rnn(3.0, 100, True, "tanh recurrent network, 100 steps, ρ = 3", False),
            _tanh_rnn(1.1, 100, True, "tanh recurrent network, 100 steps, ρ = 1.1", False),
        ),
        (
            Beyond(
                "A weight above 1 is not yet a factor above 1: the slope of the activation belongs to it, and a state "
                "that grows saturates until the product shrinks.",
                _tanh_rnn(1.1, 100, True, "tanh recurrent network, 100 steps, ρ = 1.1", False),
                "contradicted",
            ),
            Beyond(
                "What saturates explodes too where weights are large enough, and by far less than they say.",
                _tanh_rnn(3.0, 100, True, "tanh recurrent network, 100 steps, ρ = 3", False),
                "supported",
            ),
        ),
    ),
    Question(
        2,
        "The loss becomes NaN.",
        (breaks_by_nan(), breaks_by_nan("largest"), breaks_by_nan("lower")),
        (
            Beyond("Most deaths are silent: the loss stays finite.", breaks_by_nan(), "contradicted"),
            Beyond(
                "Below the largest rate a NaN is the exception.",
                breaks_by_nan("lower"),
                "contradicted",
            ),
        ),
    ),
    Question(
        3,
        "Clipping the gradient’s norm keeps training stable.",
        (
            without("no_clip"),
            without("no_batchnorm_he_no_clip", against="no_batchnorm_he"),
            at_smallest("no_clip"),
            detects_less("no_clip"),
        ),
        (
            Beyond(
                "At the smallest rate nothing shows that the clip is needed.",
                at_smallest("no_clip"),
                "not decided",
            ),
        ),
        (in_all("no_clip"),),
    ),
    Question(
        4,
        "Batch normalisation keeps values from growing and smooths the landscape.",
        (
            normalised_values,
            smoothness("MLP", "He", 60, "ReLU network of 10 layers, He init, after 60 steps of SGD"),
            smoothness("MLP", "He", 0, "ReLU network of 10 layers, He init, untrained"),
            smoothness("YOLO26n", "PyTorch default", 0, "YOLO26n, untrained"),
            smoothness("YOLO26n", "PyTorch default", 0, "YOLO26n, untrained, He init without BatchNorm", "He"),
            grows_in_training("no_batchnorm_he_no_clip"),
            without("no_batchnorm_he"),
            without("no_batchnorm", decides=False),
            detects_less("no_batchnorm"),
            detects_less("no_batchnorm_he"),
            normalised_gradient,
            first_norms("control", "no_batchnorm", "YOLO26n, untrained, with BatchNorm against without"),
            first_norms("control", "no_batchnorm_he", "YOLO26n, untrained, with BatchNorm against He init without"),
            first_gradient("control", "no_batchnorm"),
            far_change("YOLO26n", "PyTorch default", "He"),
        ),
        (
            Beyond(
                "It raises the gradient at the start, by orders of magnitude, and the clip works from the first step "
                "because of it.",
                first_norms("control", "no_batchnorm", "YOLO26n, untrained, with BatchNorm against without"),
                "supported",
            ),
            Beyond("So it is in the study’s trainings.", first_gradient("control", "no_batchnorm"), "supported"),
            Beyond(
                "In a plain network gradients explode with depth because of it, whatever the weights.",
                normalised_gradient,
                "contradicted",
            ),
            Beyond(
                "Where it goes, vanishing takes its place: under PyTorch’s default init values fade from layer to "
                "layer, and a gradient that is hardly there is smooth.",
                keeps_values("no_batchnorm", "YOLO26n without BatchNorm, PyTorch default", False),
                "contradicted",
            ),
            Beyond(
                "What it does bound is how far things can go wrong: a long stride leaves the gradient as large as it "
                "was, where without it the gradient runs away.",
                far_change("YOLO26n", "PyTorch default", "He"),
                "supported",
            ),
        ),
        (in_all("no_batchnorm_he"),),
    ),
    Question(
        5,
        "Xavier or He initialisation keeps the variance the same from layer to layer.",
        (
            kept("He", "ReLU"),
            kept("Xavier", "identity"),
            kept("Xavier", "tanh"),
            kept("He", "SiLU"),
            kept("Xavier", "SiLU"),
            keeps_values("no_batchnorm_he", "YOLO26n without BatchNorm, He"),
            keeps_values("no_batchnorm_xavier", "YOLO26n without BatchNorm, Xavier"),
            keeps_values("no_batchnorm", "YOLO26n without BatchNorm, PyTorch default", False),
            keeps_values("control", "YOLO26n as it is built, with BatchNorm", False),
            kept("LSUV", "SiLU", False),
            kept("PyTorch default", "SiLU", False),
            kept("He", "ReLU", False, "batch_variance_ratio"),
        ),
        (
            Beyond(
                "Each keeps it for the activation that it was derived for, and YOLO’s is another.",
                kept("He", "SiLU"),
                "contradicted",
            ),
            Beyond("A scale set by data keeps it for any activation.", kept("LSUV", "SiLU", False), "supported"),
            Beyond(
                "Of the size of values that is kept, ever less tells one input from another.",
                kept("He", "ReLU", False, "batch_variance_ratio"),
                "contradicted",
            ),
            Beyond(
                "In YOLO as it is built, it is not the init but BatchNorm that keeps it.",
                keeps_values("control", "YOLO26n as it is built, with BatchNorm", False),
                "supported",
            ),
        ),
    ),
    Question(
        6,
        "Residual connections soften the multiplicative effect.",
        (
            softens("plain, BatchNorm", "residual, BatchNorm", 2.0, 50, "50 blocks with BatchNorm"),
            softens("plain", "residual", 2.0, 50, "50 blocks without normalisation, He init"),
            softens("plain", "residual", 1.0, 50, "50 blocks without normalisation, σ_w² = 1", False),
            softens("plain", "residual, branch over √depth", 1.0, 50, "50 blocks, branch over √depth, σ_w² = 1", False),
            less_growth("control", "no_residuals", "YOLO26n with its shortcuts against without"),
            less_growth("deepened", "deepened_no_residuals", "YOLO26n three times as deep, with against without"),
            without("no_residuals"),
            without("no_batchnorm_no_residuals", against="no_batchnorm"),
            detects_less("no_residuals"),
        ),
        (
            Beyond(
                "Without normalisation a shortcut adds to each factor instead of softening it: a product that would "
                "stay at 1 explodes.",
                softens("plain", "residual", 2.0, 50, "50 blocks without normalisation, He init"),
                "contradicted",
            ),
            Beyond(
                "What softens is a branch that is small against what it is added to, as a normalised one is of itself "
                "with depth, and a scaled one by design.",
                softens("plain", "residual, branch over √depth", 1.0, 50, "50 blocks, branch over √depth, σ_w² = 1"),
                "supported",
            ),
        ),
        (in_all("no_residuals"),),
    ),
    Question(
        7,
        "Adam and its kin handle varying gradient scales better than SGD.",
        (
            scale_slope("Adam"),
            falls_further("Adam", "SGD", "along the axes", 4, "Curvatures over 4 decades along the axes, best rates"),
            falls_further(
                "Adam",
                "SGD, momentum 0.9",
                "along the axes",
                4,
                "Curvatures over 4 decades along the axes, best rates, SGD with momentum",
            ),
            _turned,
            without("adamw", helps=False),
            without("musgd", helps=False, decides=False),
        ),
        (
            Beyond(
                "It handles scales that differ from one number to the next, not curvatures: turned, so that no number "
                "has a scale of its own, the same problem leaves it no lead over momentum.",
                _turned,
                "contradicted",
            ),
            Beyond(
                "It handles scales that differ from one number to the next, not curvatures: turned, so that no number "
                "has a scale of its own, the same problem shows no lead over momentum.",
                _turned,
                "not decided",
            ),
        ),
    ),
    Question(
        8,
        "ReLU and its kin prevent vanishing; saturating activations do not.",
        (
            gain("He", "ReLU", (KEPT[0], float("inf"))),
            gain("PyTorch default", "ReLU", (KEPT[0], float("inf"))),
            gain("He", "SiLU", (KEPT[0], float("inf"))),
            gain("Xavier", "sigmoid", BELOW_KEPT),
            gain("Xavier", "tanh", BELOW_KEPT),
            gain("He", "tanh", BELOW_KEPT),
            gain("Xavier × 3", "tanh", BELOW_KEPT),
            gain("PyTorch default", "tanh", BELOW_KEPT, False),
            less_growth("control", "sigmoid", "YOLO26n with SiLU against sigmoid, both with BatchNorm", False),
            without("sigmoid"),
            without("relu", helps=False, decides=False),
        ),
        (
            Beyond(
                "It is the product of weights and slopes that decides: under PyTorch’s default init ReLU vanishes, "
                "faster than tanh.",
                gain("PyTorch default", "ReLU", (KEPT[0], float("inf"))),
                "contradicted",
            ),
            Beyond(
                "With large weights a saturating activation explodes: the weights outweigh what its slopes take away.",
                gain("Xavier × 3", "tanh", ABOVE_1, False),
                "supported",
            ),
            Beyond(
                "BatchNorm keeps a sigmoid where it has a slope: in YOLO26n the gradient passes by it more evenly than "
                "by SiLU.",
                less_growth("control", "sigmoid", "YOLO26n with SiLU against sigmoid, both with BatchNorm", False),
                "contradicted",
            ),
        ),
    ),
    Question(
        9,
        "Exploding and vanishing are told apart by the same measurement.",
        (
            told_apart("activation_gradients", "Slope by depth of the gradient with respect to activations"),
            told_apart("weight_gradients", "Slope by depth of the weights’ gradients", False),
            told_apart("activations", "Slope by depth of the activations", False),
        ),
        (
            Beyond(
                "By the gradient of activations, that is. The gradient of the weights, which most tools log, is "
                "flat at any weight variance and tells nothing.",
                told_apart("weight_gradients", "Slope by depth of the weights’ gradients", False),
                "not decided",
            ),
        ),
    ),
    Question(
        10,
        "YOLO26 trains without tuning a gradient threshold; the built-in stabilisation prevents divergence.",
        (
            control_at(largest=False),
            control_at(largest=True),
            without("no_batchnorm_no_residuals_no_clip"),
            at_smallest("no_batchnorm_no_residuals_no_clip"),
        ),
        (
            Beyond(
                "It prevents it up to a rate, and no further.",
                control_at(largest=True),
                "contradicted",
            ),
            Beyond(
                "At the usual rate nothing shows that staying alive needs it: with three safeguards gone, training "
                "lives too. Whether a detector learns without them is asked in claim 4.",
                at_smallest("no_batchnorm_no_residuals_no_clip"),
                "not decided",
            ),
        ),
    ),
    Question(
        11,
        "Raising the learning rate breaks it: how far each safeguard moves the limit.",
        (raising_breaks, limits_by_arm),
    ),
    Question(
        12,
        "Warming the learning rate up keeps training stable.",
        (without("no_warmup"), detects_less("no_warmup")),
    ),
)
"""All claims, in the order of the page."""

__all__ = ["CLAIMS", "Beyond", "Question", "judge_claims"]
