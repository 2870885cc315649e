# SPDX-License-Identifier: AGPL-3.0-or-later
"""The verdicts on claims, against studies and networks whose answer is known, and the page that has them."""

import math
import runpy
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats
from synthetic import FakeRun, make_spec
from tables.cases import frame_of
from test_answer import C, N, S, U, grid, ladder, search

from yolo_gradstudy.report.claims import (
    CLAIMS,
    VERDICT_RULES,
    Claim,
    Evidence,
    Experiment,
    Mean,
    Share,
    flow_frame,
    judge_claims,
    verdict_rule,
)
from yolo_gradstudy.tables import PairedDifference

ROOT = Path(__file__).resolve().parent.parent
SIGNAL = ROOT / "results" / "signal"


def judged(results, tables, flow=None):
    """Claims of a study by number."""
    return {claim.number: claim for claim in judge_claims(Evidence(results, tables, flow))}


def experiment(estimate, holds=(0.0, math.inf), decides=True):
    return Experiment("It was tried", "and gave", estimate, holds, "seed", "file", decides=decides)


# Verdicts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "holds", "verdict"),
    [
        ([1.0, 1.1, 0.9], (0.0, math.inf), "supported"),
        ([-1.0, -1.1, -0.9], (0.0, math.inf), "contradicted"),
        ([-1.0, 1.0, 0.5], (0.0, math.inf), "not decided"),
        ([5.0], (0.0, math.inf), "not decided"),
        ([1.0, 1.01, 0.99], (0.95, 1.05), "supported"),
        ([1.2, 1.21, 1.19], (0.95, 1.05), "contradicted"),
        ([1.0, 1.1, 0.9], (0.95, 1.05), "not decided"),
        ([0.0, 0.0, 0.0], (0.0, math.inf), "not decided"),
    ],
)
def test_an_interval_in_the_claimed_range_supports_and_one_outside_contradicts(values, holds, verdict):
    assert experiment(Mean(values), holds).verdict == verdict


def test_a_claim_is_contradicted_by_one_experiment_and_supported_only_without():
    for_it, against = experiment(Mean([1.0, 1.1])), experiment(Mean([-1.0, -1.0]))
    open_, beside = experiment(Mean([-1.0, 1.0])), experiment(Mean([-1.0, -1.0]), decides=False)
    for_it = experiment(Mean([1.0, 1.0]))
    assert Claim(1, "x", (for_it, open_)).verdict == "supported"
    assert Claim(1, "x", (for_it, open_, against)).verdict == "contradicted"
    assert Claim(1, "x", (open_, beside)).verdict == "not decided"
    assert (Claim(1, "x", (beside,)).verdict, Claim(1, "x").verdict) == ("not tested", "not tested")
    assert Claim(1, "x", (for_it, against, against, open_)).tally == (
        "1 supports it, 2 contradict it, 1 decides nothing"
    )


def test_intervals_widen_with_their_level():
    """The adjusted verdict of three values is what Student's 99% point says of them."""
    values = [1.0, 2.0, 3.0]
    low, high = Mean(values).interval(0.99)
    half = stats.t.ppf(0.995, 2) / math.sqrt(3)
    assert (low, high) == pytest.approx((2 - half, 2 + half))
    one = experiment(Mean([1.0, 1.5, 2.0]))
    assert (one.verdict, one.judge(0.9999)) == ("supported", "not decided")
    for estimate in (
        Share(7, 9),
        PairedDifference([[1, 0, 0], [1, 0, -1], [0, 0, 0], [0, 1, 0]]),
        Mean([0.1, 0.4], geometric=True),
    ):
        (a, b), (c, d) = estimate.interval(0.95), estimate.interval(0.999)
        assert c < a <= estimate.point <= b < d


def test_a_factor_has_the_interval_of_its_logarithm():
    mean = Mean([math.log(2.0), math.log(8.0)], geometric=True)
    assert mean.point == pytest.approx(4.0)
    low, high = mean.interval(0.95)
    assert low * high == pytest.approx(16.0)


def test_claims_say_how_they_are_judged():
    assert [claim.number for claim in CLAIMS] == list(range(1, len(CLAIMS) + 1))
    assert len(CLAIMS) >= 11
    told = verdict_rule() + " ".join(word for pair in VERDICT_RULES for word in pair)
    for words in ("supports", "contradicts", "not decided at this scale", "not adjusted", "within 5%"):
        assert words in told


# Studies --------------------------------------------------------------------------------------------------


def test_claims_are_judged_by_the_interval_of_the_difference():
    found = judged(
        *grid(
            {
                "control": {0.1: [S] * 8, 1.0: [N] * 8},
                "no_clip": {0.1: [N] * 8, 1.0: [N] * 8},
                "no_residuals": {0.1: [S] * 8, 1.0: [S] * 8},
                "no_warmup": {0.1: [S] * 7 + [C], 1.0: [N] * 8},
                "adamw": {0.1: [S] * 8, 1.0: [S] * 8},
            }
        )
    )
    verdicts = {number: claim.verdict for number, claim in found.items() if claim.experiments}
    assert verdicts == {
        2: "supported", 3: "supported", 6: "contradicted", 7: "supported", 10: "contradicted", 11: "not decided",
        12: "not decided",
    }  # fmt: skip
    clip = found[3].experiments[0]
    assert "difference of the shares of unhealthy runs +50%" in clip.evidence
    assert "8 and 0 of 8 at 0.1, 8 and 8 of 8 at 1" in clip.evidence
    assert (clip.n, clip.table) == ("16 pairs", "results")
    assert "1 collapsed with a loss that stayed finite" in found[2].experiments[0].evidence
    assert found[2].experiments[0].estimate.point == pytest.approx(32 / 33)
    assert "It prevents it up to a rate" in found[10].beyond[0]


def test_claims_of_a_search_are_judged_by_its_limits():
    low, high = (0.04, 0.04, 0.08), (0.32, 0.64, 0.64)
    found = judged(*search({"control": ladder(*high), "no_clip": ladder(*low)}))
    assert found[3].verdict == "supported"
    assert "octaves lost +3.33" in found[3].experiments[0].evidence
    assert found[2].verdict == "contradicted", "all collapsed in silence"
    assert "silent" in found[2].beyond[0]
    assert judged(*search({"control": ladder(*low), "no_clip": ladder(*high)}))[3].verdict == "contradicted"
    alone = judged(*search({"control": ladder(0.32), "no_clip": ladder(0.04)}))[3]
    assert (alone.verdict, "no interval" in alone.experiments[0].evidence) == ("not decided", True)


def test_a_limit_that_is_only_a_bound_is_no_number():
    found = judged(*search({"control": ladder(9, 0.64, 0.32), "no_clip": ladder(0.04, 0.04, 0.08)}))
    assert found[3].experiments[0].estimate.values == pytest.approx([4.0, 2.0])


def test_a_study_without_a_claims_arm_or_pairs_says_nothing_of_it():
    def tested(arms):
        return {number for number, claim in judged(*grid(arms)).items() if claim.experiments}

    assert tested({"control": {0.1: [S]}, "mine": {0.1: [S]}}) == {10}
    assert tested({"control": {0.1: [U]}, "no_clip": {0.1: [S]}}) == set()
    assert tested({"no_clip": {0.1: [S]}}) == set()


def test_a_stuck_run_did_not_break():
    assert not judged(*grid({"control": {0.1: [S]}, "no_clip": {0.1: ["stuck"]}}))[2].experiments


def test_a_run_that_a_guard_ended_had_no_time_for_a_nan():
    results, tables = grid({"control": {0.1: [C] * 9 + [N]}})
    assert judged(results, tables)[2].verdict == "contradicted"
    results.loc[9, "stopped_at"] = 30  # it ended by a NaN
    assert judged(results, tables)[2].verdict == "contradicted"
    results.loc[:7, "stopped_at"] = 30
    assert judged(results, tables)[2].experiments == (), "those that are left are those that were not seen in time"


def test_arms_of_one_kind_are_compared_with_each_other():
    found = judged(
        *grid({"control": {0.1: [S] * 8}, "no_batchnorm_he": {0.1: [S] * 8}, "no_batchnorm_he_no_clip": {0.1: [N] * 8}})
    )
    assert found[3].verdict == "supported"
    assert "no_batchnorm_he_no_clip against no_batchnorm_he" in found[3].experiments[0].what


def flows(first, last):
    """A run whose backbone has these factors of the values' second moment, and twice that backwards."""
    names = [f"model.{i}" for i in range(12)]
    steps = pd.Index([1, 41], name="step")
    rms = [[factor ** (i / 2) for i in range(12)] for factor in (first, last)]
    quantities = {"activation_rms": rms, "forward_gain": [[first] * 12] * 2, "backward_gain": [[2 * first] * 12] * 2}
    return FakeRun(
        pd.DataFrame({"loss": [1.0, 1.0]}, index=steps),
        flows={name: pd.DataFrame(rows, index=steps, columns=names) for name, rows in quantities.items()},
    )


def test_what_layers_did_in_training_is_read_from_their_flow():
    arms = {"control": (1.0, 1.0), "no_batchnorm_he": (0.5, 0.5), "no_batchnorm_he_no_clip": (1.0, 4.0)}
    arms |= {"no_residuals": (5.0, 5.0)}
    runs = [(make_spec(arm, 0.01, seed), flows(*ends)) for arm, ends in arms.items() for seed in range(3)]
    flow = flow_frame([*runs, (make_spec("control", 1.0, 0), flows(9.0, 9.0)), (make_spec(seed=7), None)])
    assert set(flow["seed"]) == {0, 1, 2}
    found = judged(*grid({"control": {0.01: [S] * 3}}), flow)
    kept = {one.what.split(",")[0]: one for one in found[5].experiments}
    assert kept["YOLO26n without BatchNorm"].estimate.point == pytest.approx(0.5)
    assert kept["YOLO26n as it is built"].verdict == "supported"
    grown = next(one for one in found[4].experiments if "grew the most" in one.what)
    assert grown.estimate.point == pytest.approx(4.0 ** (11 / 2))
    saved = next(one for one in found[6].experiments if "shortcuts" in one.what)
    assert saved.estimate.point == pytest.approx(5 * (math.log10(10) - math.log10(2)))
    assert flow_frame([(make_spec(), FakeRun(pd.DataFrame({"loss": [1.0]}, index=[1])))]) is None


# Networks that are not trained ----------------------------------------------------------------------------


def signal():
    return {path.stem: pd.read_csv(path) for path in SIGNAL.glob("*.csv")}


def test_committed_signals_are_as_theory_has_them():
    tables = signal()
    depth = tables["depth"]
    relu = depth[depth["network"] == "ReLU MLP"]
    means = relu.groupby(["parameter", "depth"])[["decades", "decades_theory"]].mean()
    off = means["decades"] - means["decades_theory"]
    assert off.abs().max() < 0.15, "He et al. 2015: √(σ_w²/2) a layer"
    linear = depth[depth["network"] == "linear RNN"]
    assert (linear["decades"] - linear["decades_theory"]).abs().max() < 1e-5
    normalised = tables["batchnorm"][tables["batchnorm"]["batchnorm"]]
    assert normalised["backward_gain"].mean() == pytest.approx(math.pi / (math.pi - 1), rel=0.02)
    variance = tables["variance"].groupby(["initialisation", "activation"])[["moment_ratio", "moment_theory"]].mean()
    known = variance.dropna()
    assert ((known["moment_ratio"] / known["moment_theory"] - 1).abs() < 0.03).all()
    sgd = tables["loss_scale"][tables["loss_scale"]["optimizer"] == "SGD"]
    assert (sgd["log2_update"] - sgd["exponent"]).abs().max() < 1e-9


def test_verdicts_follow_the_tables():
    """Where the numbers are turned round, so is the verdict."""
    tables = signal()
    before = {claim.number: claim.verdict for claim in judge_claims(Evidence(signal=tables))}
    assert (before[1], before[5], before[7], before[9]) == ("supported", "contradicted", "supported", "supported")
    turned = {**tables, "depth": tables["depth"].assign(decades=-tables["depth"]["decades"])}
    turned["told_apart"] = tables["told_apart"].assign(
        activation_gradients=-tables["told_apart"]["activation_gradients"]
    )
    turned["variance"] = tables["variance"].assign(moment_ratio=1.0)
    turned["yolo26n"] = tables["yolo26n"].assign(activation_rms=1.0)
    after = {claim.number: claim.verdict for claim in judge_claims(Evidence(signal=turned))}
    assert (after[1], after[5], after[9]) == ("contradicted", "supported", "contradicted")


def test_measuring_gives_the_committed_numbers(tmp_path, capsys, monkeypatch):
    """The quickest family, anew: the same numbers as committed, and the same bytes twice."""
    script = runpy.run_path(str(ROOT / "scripts" / "measure_signal.py"))
    for name in ("one", "two"):
        script["write"](["loss_scale"], tmp_path / name)
    one, two = (tmp_path / name / "loss_scale.csv" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(one), pd.read_csv(SIGNAL / "loss_scale.csv"), rtol=1e-3, atol=1e-6)
    monkeypatch.setattr(sys, "argv", ["measure_signal.py", "loss"])
    with pytest.raises(SystemExit):
        script["main"]()
    assert "'loss' is none of depth" in capsys.readouterr().err


@pytest.fixture
def signals(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import signals

    return signals


def test_the_instrument_sees_a_known_gain(signals):
    """An orthogonal layer times 3 has a squared gain of 9 both ways, and its weights no part in it."""
    import torch
    from signals.instrument import measure
    from torch import nn

    layers = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)))
    for layer in layers:
        nn.init.orthogonal_(layer.weight, 3.0)
    x = torch.randn(4, 8).requires_grad_()
    found = measure(layers, lambda: layers(x).square().sum())
    assert found.flow["forward_gain"].tolist() == pytest.approx([9.0] * 4, rel=1e-5)
    assert found.flow["backward_gain"].tolist() == pytest.approx([9.0] * 4, rel=1e-5)


def test_a_landscape_of_known_curvature(signals):
    """Of λ‖w‖²/2 the effective smoothness is λ over any stride, and the weights are left where they were."""
    import torch
    from signals.normalisation import STRIDES, _along
    from torch import nn

    model = nn.Linear(4, 4, bias=False).double()
    start = model.weight.detach().clone()
    rows = _along(model, lambda: 3.5 * model.weight.square().sum())
    assert [row[0] for row in rows] == list(STRIDES)
    assert [row[3] for row in rows] == pytest.approx([7.0] * len(STRIDES))
    assert [row[2] for row in rows] == pytest.approx(list(STRIDES)), "the gradient is 7w: it changes as w does"
    assert torch.equal(model.weight, start)


# The page -------------------------------------------------------------------------------------------------


def test_studies_that_decide_nothing_alone_may_decide_together():
    """Two seeds of a study are two coins; those of six are twelve, as a seed of one study is not that of another."""
    results, tables = grid({"control": {1: [S, S], 2: [S, S]}, "no_clip": {1: [S, S], 2: [N, N]}})
    evidences = [Evidence(results, tables, name=name, pool="coco") for name in "abcdef"]
    alone = {claim.number: claim for claim in judge_claims(*evidences[:1])}[3]
    assert [one.verdict for one in alone.deciding] == ["not decided"]
    two = {claim.number: claim for claim in judge_claims(*evidences[:2])}[3].experiments[-1]
    assert two.what == "no_clip against control, where all have runs (a, b)"
    assert (two.n, two.verdict, two.decides) == ("8 pairs", "not decided", True)
    limits = Evidence(*search({"control": ladder(0.32), "no_clip": ladder(0.04)}), name="limits")
    other = Evidence(results, tables, name="shapes", pool="shapes")
    together = {claim.number: claim for claim in judge_claims(*evidences, limits, other)}[3].experiments[-1]
    assert together.what.endswith("where all have runs (a, b, c, d, e, f)")
    assert (together.n, together.point, together.verdict) == ("24 pairs", "+50%", "supported")
    assert "12 seeds" in together.evidence
    less, tables = grid({"control": {2: [S], 3: [C]}, "no_clip": {2: [N], 3: [N]}})
    some = judge_claims(evidences[0], Evidence(less, tables, name="less", pool="coco"))
    assert {claim.number: claim for claim in some}[3].experiments[-1].n == "2 pairs", "both have one rate and seed"
    assert not [one for one in judge_claims(*evidences)[5].experiments if "all have" in one.what], "no such arm"


def test_the_page_is_what_the_results_say(monkeypatch):
    """Run `python scripts/write_claims.py` where this fails."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = runpy.run_path(str(ROOT / "scripts" / "write_claims.py"))
    text = script["page"](ROOT / "results")
    assert (ROOT / "docs" / "claims.md").read_text() == text
    assert text == script["page"](ROOT / "results")
    for question in CLAIMS:
        assert f"{question.number}. {question.text}\n" in text
    tables = set(script["FAMILIES"])
    assert tables == {path.stem for path in SIGNAL.glob("*.csv")}
    assert sum(path.stat().st_size for path in SIGNAL.iterdir()) < 300_000


def test_accuracy_lost_is_paired_at_the_controls_best_rate():
    runs = [(arm, lr0, s, S) for arm in ("control", "no_clip") for lr0 in (0.1, 0.2) for s in (0, 1, 2)]
    runs[-1] = ("no_clip", 0.2, 2, C)  # counts as 0, whatever was validated
    values = [0.2, 0.2, 0.2, 0.4, 0.5, 0.6, 0.2, 0.2, 0.2, 0.35, 0.4, 0.5]
    results = frame_of(runs, map50_95=values)
    one = next(e for e in judged(results, {})[3].experiments if "mAP50-95" in e.quantity)
    assert one.estimate.values == pytest.approx([0.05, 0.1, 0.6])
    assert "best rate, 0.2" in one.what
    assert not one.decides
    unlearned = judged(results.assign(map50_95=0.05), {})
    assert not [e for claim in unlearned.values() for e in claim.experiments if "mAP50-95" in e.quantity]


def test_a_study_is_asked_of_its_claims_only():
    results = pd.read_csv(ROOT / "results" / "coco128-cpu" / "results.csv")
    whole, only = (judge_claims(Evidence(results, asked=asked)) for asked in (None, frozenset({2})))
    assert only[1].experiments == whole[1].experiments != ()
    assert [claim.number for claim in only if claim.experiments] == [2]
    assert len([claim for claim in whole if claim.experiments]) > 5


def test_the_page_says_not_tested_where_nothing_is_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = runpy.run_path(str(ROOT / "scripts" / "write_claims.py"))
    study = tmp_path / "limit-coco-cpu"
    study.mkdir(parents=True)
    for name in ("results.csv", "plan.json", "study.yaml"):
        shutil.copy(ROOT / "results" / "limit-coco-cpu" / name, study)
    text = script["page"](tmp_path)
    assert (
        "| [1](#claim-1) | Gradients explode when the factors of the chain rule are above 1. | **not tested** |" in text
    )
    assert "no result here has the arm that it takes" in text
