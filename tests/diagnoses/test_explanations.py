# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every explanation of the table matches its case, spares a run that is nearly the same, and says what it lacks."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from tests.diagnoses.cases import (
    EXPLANATION_CASES,
    FINISHED,
    PARAMETERS,
    SPIKING,
    STEPS,
    depth_run,
    from_step,
    head_run,
    incidents_run,
    make_run,
    rich_run,
    spike,
    vector,
    warmed_run,
    with_,
)
from yolo_gradstudy.ablations import ABLATIONS
from yolo_gradstudy.arguments import check_words
from yolo_gradstudy.diagnoses import EXPLANATIONS, RULES, Evidence, diagnose, diagnose_run
from yolo_gradstudy.records import Outcome

EXPLANATION = {rule.__name__: rule for rule in EXPLANATIONS}
NAMES = list(EXPLANATION_CASES)


def test_every_explanation_has_a_case_and_no_name_is_used_twice():
    assert set(EXPLANATION_CASES) == set(EXPLANATION)
    assert not set(EXPLANATION) & {rule.__name__ for _, rule in RULES}
    assert all(re.match(r"is_[a-z_]+$", name) for name in EXPLANATION)


@pytest.mark.parametrize("name", NAMES)
def test_explanation_matches_its_case(name):
    case = EXPLANATION_CASES[name]
    finding = EXPLANATION[name](Evidence(case.matches))
    assert (finding.rule, finding.state, finding.step) == (name, "matched", case.step), finding.evidence
    assert case.says in finding.evidence
    assert finding.advice is not None
    assert dict(finding.advice.arguments) == pytest.approx(case.advises)


@pytest.mark.parametrize("name", NAMES)
def test_explanation_spares_what_is_nearly_the_same(name):
    finding = EXPLANATION[name](Evidence(EXPLANATION_CASES[name].spared))
    assert finding.state == "not matched", finding.evidence


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["case", "nothing"])
def test_explanation_says_what_it_lacks(name, what):
    finding = EXPLANATION[name](Evidence(EXPLANATION_CASES[name].unchecked if what == "case" else None))
    assert finding.state == "not checked", finding.evidence
    assert finding.evidence


@pytest.mark.parametrize("name", NAMES)
def test_advice_is_a_sentence_with_its_evidence_and_valid_arguments(name):
    advice = EXPLANATION[name](Evidence(EXPLANATION_CASES[name].matches)).advice
    check_words(dict(advice.arguments))
    assert re.search(r"\d", advice.text), "no number leads there"
    for key, value in advice.arguments.items():
        words = f"{value:g}" if isinstance(value, float) else str(value)
        assert f"{key}={words}" in advice.text
    for ablation in re.findall(r"--ablate (\w+)", advice.text):
        assert ablation in ABLATIONS


@pytest.mark.parametrize("name", NAMES)
def test_an_explanation_decides_no_outcome(name):
    """It stands among the findings behind the rules of the outcome, and the outcome's sentence is not its own."""
    verdict = diagnose_run(EXPLANATION_CASES[name].matches, FINISHED)
    kinds = [f.explains for f in verdict.findings]
    assert kinds == sorted(kinds)
    assert [f.rule for f in verdict.findings if f.explains] == list(EXPLANATION)
    finding = next(f for f in verdict.findings if f.rule == name)
    assert finding.state == "matched"
    assert finding.evidence not in verdict.evidence
    assert json.loads(json.dumps(verdict.to_dict()))["findings"][-1]["explains"] is True


def test_advice_of_explanations_follows_that_of_the_outcome_and_is_given_once():
    run = make_run(loss=from_step(40, 1e5, 150.0), clip_coefficient=np.full(STEPS, 0.01), **SPIKING)
    verdict = diagnose(run)
    assert verdict.outcome is Outcome.EXPLODED
    assert "passed 10 times its start" in verdict.advice[0].text
    assert any("the clip scales" in a.text for a in verdict.advice)
    told = [dict(a.arguments) for a in verdict.advice if a.arguments]
    assert all(told.count(one) == 1 for one in told)


def test_advice_names_the_optimizer_where_auto_would_ignore_lr0():
    run = with_(make_run(loss=from_step(40, 1e5, 150.0)), arguments={"optimizer": "auto", "lr0": 0.01})
    run.meta["optimizer"] = "RMSprop"
    assert dict(diagnose(run).advice[0].arguments) == {"lr0": pytest.approx(0.01), "optimizer": "RMSProp"}
    run.arguments["optimizer"] = "SGD"
    assert dict(diagnose(run).advice[0].arguments) == {"lr0": pytest.approx(0.01)}


@pytest.mark.parametrize(
    ("arguments", "lower"), [({"cls": 0.4}, 0.2), ({"cls": 0.5}, 0.25), ({}, 0.25), ({"cls": 2.0}, 0.5)]
)
def test_gain_that_is_halved_is_the_one_that_was_set_and_a_raised_one_goes_back_to_the_default(arguments, lower):
    run = make_run(box_loss=np.ones(STEPS), cls_loss=np.full(STEPS, 99.0))
    finding = EXPLANATION["is_one_loss_dominating"](Evidence(with_(run, arguments=arguments)))
    assert finding.advice.arguments == {"cls": lower}


@pytest.mark.parametrize("name", ["is_head_dominating", "is_one_loss_dominating", "is_living_on_clip"])
def test_what_follows_a_death_does_not_explain_it(name):
    """Once a detector is dead, one item is all of the loss, the head all of the gradient, and nothing is clipped."""
    columns = {
        "box_loss": from_step(20, 0.0, 3.0),
        "cls_loss": from_step(20, 1e-3, 4.0),
        "clip_coefficient": from_step(20, 1.0, 0.1),
    }
    run = make_run(**columns)
    run.norms.loc[20:, list(PARAMETERS[:2])] = 0.0
    whole, before = (EXPLANATION[name](Evidence(run, trouble=t)).state for t in (None, 20))
    assert {whole, before} == {"matched", "not matched"}
    assert before == ("matched" if name == "is_living_on_clip" else "not matched")


def test_lost_gradient_after_a_death_is_told_without_advice():
    run = with_(make_run(), norms=vector([[1.0, 1.0, 0.0 if t > 30 else 1.0] for t in range(1, STEPS + 1)]))
    finding = EXPLANATION["is_without_gradient"](Evidence(run, trouble=25))
    assert finding.state == "matched"
    assert finding.advice is None
    assert "after the run went wrong" in finding.evidence


def test_parameters_without_any_gradient_are_found_by_their_names():
    run = rich_run("param_norm", [[1.0] * 5])
    run.norms = vector([[1.0] * 4] * STEPS, names=[p["name"] for p in run.meta["parameters"][:4]])
    finding = EXPLANATION["is_without_gradient"](Evidence(run))
    assert (finding.state, finding.layer) == ("matched", "model.2.bias")
    run.meta["parameters"] = [*run.meta["parameters"][:4], {"name": "model.2.dfl.conv.weight", "group": 0}]
    assert EXPLANATION["is_without_gradient"](Evidence(run)).state == "not matched"  # Ultralytics' own, a fixed average


@pytest.mark.parametrize("share", [0.985, 0.995])
def test_head_is_judged_by_its_share(share):
    assert EXPLANATION["is_head_dominating"](Evidence(head_run(share))).state == (
        "matched" if share > 0.99 else "not matched"
    )


def test_images_shared_as_chance_has_it_are_no_finding():
    """Two incidents of half of all images share a quarter of them."""
    names = [f"{i}.jpg" for i in range(60)]
    random = np.random.default_rng(0)
    halves = [list(random.permutation(names)[:30]) for _ in range(3)]
    run = incidents_run(*halves)
    assert EXPLANATION["is_repeating_with_images"](Evidence(run)).state == "not matched"
    run.steps = run.steps.drop(columns="images")  # without the number of images it takes three that share few
    assert EXPLANATION["is_repeating_with_images"](Evidence(run)).state in ("not matched", "matched")
    batches = with_(
        run, incidents=tuple({**i, "images": None, "batches": [{"images": i["images"]}]} for i in run.incidents)
    )
    assert EXPLANATION["is_repeating_with_images"](Evidence(batches)).state != "not checked"


def test_depth_needs_most_samples():
    """A single sample in the middle of a blow-up is no property of the network."""
    run = EXPLANATION_CASES["is_vanishing_with_depth"].matches
    calm = EXPLANATION_CASES["is_vanishing_with_depth"].spared
    mixed = pd.concat([calm.flow("output_grad_rms")] * 2 + [run.flow("output_grad_rms").iloc[:1]])
    mixed.index = pd.Index(range(1, 1 + len(mixed)), name="step")
    both = with_(make_run(), vectors={"output_grad_rms": mixed})
    assert EXPLANATION["is_vanishing_with_depth"](Evidence(both)).state == "not matched"


def test_depth_names_the_module_from_which_on_towards_the_input_it_is_lost():
    gradient = np.ones(20)
    gradient[:7] = 1e-5
    gradient[10] = 1e-5  # a module aside, behind which the gradient is back
    run = with_(make_run(), vectors={"output_grad_rms": vector([gradient] * 3, 20, [f"model.{i}" for i in range(20)])})
    assert EXPLANATION["is_vanishing_with_depth"](Evidence(run)).layer == "model.6"


def ratio_run(value):
    return rich_run("update_ratio", [[value] * 5] * 9)


def falling_run(share):
    """Leaves its course in step 40, where the rate is down to a share of its peak."""
    return warmed_run(from_step(40, 0.1 * share, 0.1), grad_norm=from_step(40, 1e6, 30.0))


def unclipped_run(factor):
    run = make_run(grad_norm=spike(40, 30.0 * factor, 30.0))
    run.meta |= {"clip_norm": None}
    return run


def items_run(share):
    return make_run(box_loss=np.full(STEPS, share), cls_loss=np.full(STEPS, 1 - share))


def still_run(count):
    """Ten BatchNorms, of which some stand still."""
    names = ["model.0.weight", *(f"model.{i}.bn.weight" for i in range(10))]
    rows = [[1.0] * 11, [2.0] + [1.0] * count + [2.0] * (10 - count)]
    return with_(make_run(), vectors={"param_norm": vector(rows, 10, names)})


EDGES = {
    "is_living_on_clip": [
        (lambda c: make_run(clip_coefficient=np.full(STEPS, c)), 0.49, 0.51),
        (lambda s: make_run(clip_coefficient=np.where(np.arange(STEPS) < s, 0.1, 1.0)), 31, 29),
    ],
    "is_unclipped": [(unclipped_run, 101.0, 99.0)],
    "is_vanishing_with_depth": [(depth_run, 6e-4, 2e-3)],
    "is_exploding_with_depth": [(depth_run, 1.3e4, 1.0e4)],
    "is_update_too_large": [(ratio_run, 0.11, 0.09)],
    "is_update_too_small": [(ratio_run, 0.9e-6, 1.1e-6)],
    "is_one_loss_dominating": [(items_run, 0.91, 0.89)],
    "is_at_rate_peak": [(falling_run, 0.81, 0.79)],
    "is_at_bias_rate": [(lambda f: warmed_run(np.full(STEPS, 0.1), np.full(STEPS, 0.1 * f), **SPIKING), 3.1, 2.9)],
    "is_accumulation_moving": [(lambda f: make_run(images=from_step(21, 16.0 * f, 16.0)), 1.6, 1.4)],
    "is_activation_dead": [
        (lambda s: with_(make_run(), vectors={"dead_share": vector([[s, 0, 0]] * 2, 20)}), 0.51, 0.49)
    ],
    "is_batchnorm_still": [(still_run, 5, 4)],
}


@pytest.mark.parametrize("name", EDGES)
def test_thresholds_stand_where_they_are_said_to_stand(name):
    for build, beyond, within in EDGES[name]:
        states = [EXPLANATION[name](Evidence(build(value))).state for value in (beyond, within)]
        assert states == ["matched", "not matched"], (beyond, within)
