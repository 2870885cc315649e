# SPDX-License-Identifier: AGPL-3.0-or-later
"""Study YAML → Study → RunSpecs: what is refused, with which sentence, and ids that stay."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ultralytics.cfg import DEFAULT_CFG_DICT

from yolo_gradstudy.ablations import ABLATIONS
from yolo_gradstudy.ablations import check_ablations as check_all
from yolo_gradstudy.arguments import OWN_ARGUMENTS
from yolo_gradstudy.plan import (
    CONTROL,
    StudyError,
    Vocabulary,
    compare_studies,
    describe_plan,
    differences,
    is_same_study,
    load_study,
    make_run_id,
    packaged_studies,
    parse_overrides,
)
from yolo_gradstudy.records import RecordConfig, RunSpec


def check_arguments(arguments):
    """Like Ultralytics' checks: a sentence an argument."""
    sentences = []
    if not isinstance(arguments.get("imgsz", 640), int):
        sentences.append(f"'imgsz={arguments['imgsz']}' is of invalid type.")
    if arguments.get("epochs", 100) == 0:
        sentences.append("'epochs=0' is an invalid value.")
    return sentences


def check_ablations(ablations, arguments):
    if {"replace_init_by_he", "replace_init_by_xavier"} <= set(ablations):
        raise ValueError("'replace_init_by_he' and 'replace_init_by_xavier' both set the initial weights.")


VOCABULARY = Vocabulary(
    ablations=(
        "no_batchnorm",
        "no_clip",
        "no_residuals",
        "no_warmup",
        "replace_init_by_he",
        "replace_init_by_xavier",
    ),
    arguments={
        **dict.fromkeys(("model", "data", "device", "project", "name", "save_dir", "exist_ok", "resume", "time")),
        **{"workers": 8, "mode": "train", "task": "detect", "cfg": None, "seed": 0, "lr0": 0.01, "optimizer": "auto"},
        **{"epochs": 100, "imgsz": 640, "batch": 16, "nbs": 64, "momentum": 0.937, "weight_decay": 0.0005},
        **{"warmup_epochs": 3.0, "amp": True, "pretrained": True, "deterministic": True, "patience": 100},
        **{"val": True, "plots": True, "freeze": None, "mosaic": 1.0, "save": True, "classes": None},
    },
    check_arguments=check_arguments,
    check_ablations=check_ablations,
)

# Packaged studies name what there really is.
PACKAGED = dataclasses.replace(
    VOCABULARY, ablations=tuple(ABLATIONS), arguments={**VOCABULARY.arguments, **OWN_ARGUMENTS}
)

BASE = {
    "name": "small",
    "model": "yolo26n.yaml",
    "data": "shapes",
    "arguments": {"epochs": 2, "imgsz": 96, "optimizer": "SGD"},
    "lr0": [0.01, 0.1],
    "seeds": [0, 1],
    "record": {"every": 1},
    "arms": {"control": {}, "no_clip": {"ablations": ["no_clip"]}},
}


@pytest.fixture
def load(tmp_path):
    """Load a study from a mapping or from text."""

    def load(study, overrides=None):
        path = tmp_path / "study.yaml"
        path.write_text(study if isinstance(study, str) else yaml.safe_dump(study, sort_keys=False))
        return load_study(path, VOCABULARY, overrides)

    return load


@pytest.fixture
def problems(load):
    """The sentences that a study is refused with."""

    def problems(study, overrides=None):
        with pytest.raises(StudyError) as caught:
            load(study, overrides)
        assert str(caught.value) == "\n".join(caught.value.problems)
        assert all(p.endswith(".") and not p.endswith("..") and "\n" not in p for p in caught.value.problems)
        return caught.value.problems

    return problems


def changed(*path_and_value):
    """BASE with one value set; `...` removes the key."""
    *path, last, value = path_and_value
    study = copy.deepcopy(BASE)
    target = study
    for key in path:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return study


# What a study gives


def test_runs_are_ordered_by_seed_then_rate_then_arm(load):
    runs = load(BASE).runs()
    assert [(r.seed, r.lr0, r.arm) for r in runs] == [
        (seed, lr0, arm) for seed in (0, 1) for lr0 in (0.01, 0.1) for arm in ("control", "no_clip")
    ]
    assert runs[1].ablations == ("no_clip",)
    assert runs[0].study == "small"
    assert len({r.run_id for r in runs}) == 8


def test_an_arm_changes_arguments(load):
    study = load(changed("arms", "adam", {"arguments": {"optimizer": "AdamW", "momentum": 0.9}}))
    adam = next(r for r in study.runs() if r.arm == "adam")
    assert adam.arguments == {"epochs": 2, "imgsz": 96, "optimizer": "AdamW", "momentum": 0.9}
    assert "lr0" not in adam.arguments


def test_describe_plan(load):
    assert describe_plan(load(BASE)) == "2 arms × 2 learning rates × 2 seeds = 8 runs of 2 epochs"
    one = {**changed("arguments", "epochs", 1), "lr0": 1, "seeds": 3, "arms": {"control": None}}
    assert describe_plan(load(one)) == "1 arm × 1 learning rate × 1 seed = 1 run of 1 epoch"
    two = changed("arms", "long", {"arguments": {"epochs": 9}})
    assert describe_plan(load(two)).endswith("of 2 or 9 epochs")
    assert describe_plan(load(changed("arguments", "epochs", ...))).endswith("8 runs")


@pytest.mark.parametrize("name", packaged_studies())
def test_packaged_study_loads_and_comes_back(name, tmp_path):
    study = load_study(name, PACKAGED)
    assert study.name == name
    assert study.description
    assert study.arguments["patience"] == 0, "early stopping must not end a run"
    assert next(iter(study.arms)) == CONTROL
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(study.to_dict(), sort_keys=False))
    assert load_study(path, PACKAGED) == study
    assert load_study(path, PACKAGED).runs() == study.runs()


def test_the_study_of_all_ablations_has_an_arm_for_each():
    """At its default number; SGD is the control's own optimizer."""
    study = load_study("ablations", PACKAGED)
    alone = {arm.ablations[0]: name for name, arm in study.arms.items() if len(arm.ablations) == 1}
    assert alone.keys() == ABLATIONS.keys() - {"replace_optimizer_by_sgd"}
    assert all(name == ablation for ablation, name in alone.items())
    for arm in study.arms.values():
        check_all(arm.ablations, {**DEFAULT_CFG_DICT, **study.arguments, **arm.arguments})


def test_packaged_studies_are_the_four():
    assert packaged_studies() == ("ablations", "accuracy", "quick", "stabilisation")
    assert len(load_study("quick", VOCABULARY).runs()) <= 12
    assert len(load_study("stabilisation", PACKAGED).runs()) == 14 * 5 * 5
    assert len(load_study("accuracy", PACKAGED).runs()) == 6 * 4 * 5


def test_a_packaged_study_loads_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_study("quick", VOCABULARY).name == "quick"


def test_ultralytics_knows_every_argument_of_the_packaged_studies():
    from ultralytics.cfg import check_cfg

    for name in packaged_studies():
        study = load_study(name, PACKAGED)
        theirs = {key: value for key, value in study.arguments.items() if key not in OWN_ARGUMENTS}
        assert set(theirs) <= set(DEFAULT_CFG_DICT)
        check_cfg(theirs, hard=True)


def test_spec_comes_back_from_json(load):
    for spec in load(BASE).runs():
        assert RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-03", "1.e-3", ".1e-2", "0.001", "1.0e-3", "1e-3 # a comment"])
def test_scientific_notation_is_a_number(load, text):
    study = load(yaml.safe_dump(changed("lr0", ...), sort_keys=False) + f"lr0: [{text}\n ]\n")
    assert study.lr0 == (0.001,)


def test_scientific_notation_is_a_number_among_the_arguments(load):
    study = load(yaml.safe_dump(changed("arguments", ...)) + "arguments: {optimizer: SGD, weight_decay: 5e-4}\n")
    assert study.arguments["weight_decay"] == 0.0005


def test_empty_sections_are_nothing(load):
    text = yaml.safe_dump({**BASE, "arms": ...} | {"arms": 0}, sort_keys=False).replace("arms: 0", "")
    text = text.replace("record:\n  every: 1", "record:")
    study = load(text + "description:\narms:\n  control:\n  no_clip:\n    ablations: [no_clip]\n    arguments:\n")
    assert study.record == {}
    assert study.arms["no_clip"].arguments == {}


def test_anchors_and_merges_are_understood(load):
    text = yaml.safe_dump(changed("arms", ...), sort_keys=False)
    text += (
        "arms:\n  control: {}\n  a: &a\n    ablations: [no_clip]\n    arguments: {momentum: 0.5}\n"
        "  b:\n    <<: *a\n    arguments: {momentum: 0.6}\n"
    )
    study = load(text)
    assert study.arms["b"].ablations == ("no_clip",)
    assert study.arms["b"].arguments == {"momentum": 0.6}


# Ids


def test_id_is_pinned(load):
    assert load(BASE).runs()[1].run_id == "no_clip-lr0.01-s0-d4ae613d"


def test_id_is_the_same_in_another_process(load, tmp_path):
    ids = [r.run_id for r in load(BASE).runs()]
    code = (
        "import sys, tests_plan_vocabulary as v; from yolo_gradstudy.plan import load_study;"
        "print([r.run_id for r in load_study(sys.argv[1], v.VOCABULARY).runs()])"
    )
    (tmp_path / "tests_plan_vocabulary.py").write_text(
        "from yolo_gradstudy.plan import Vocabulary\n"
        f"VOCABULARY = Vocabulary({VOCABULARY.ablations!r}, {dict(VOCABULARY.arguments)!r})\n"
    )
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "study.yaml")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(ids)


plain_values = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-1000, 1000),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.text("abcxyz", max_size=5),
    st.lists(st.integers(0, 5), max_size=3),
)
argument_maps = st.dictionaries(st.text("abcdefgh_", min_size=1, max_size=8), plain_values, max_size=6)


def spec(**changes):
    whole = {
        "run_id": "",
        "study": "small",
        "arm": "control",
        "ablations": (),
        "model": "yolo26n.yaml",
        "data": "shapes",
        "lr0": 0.1,
        "seed": 0,
        "arguments": {"epochs": 2},
        "record": {},
    }
    return RunSpec(**{**whole, **changes})


@given(arguments=argument_maps, record=st.permutations([("every", 2), ("flow_every", 5)]), data=st.data())
def test_id_does_not_depend_on_the_order_of_keys(arguments, record, data):
    permuted = dict(data.draw(st.permutations(list(arguments.items()))))
    one = make_run_id(spec(arguments=arguments, record={"every": 2, "flow_every": 5}))
    assert one == make_run_id(spec(arguments=permuted, record=dict(record)))


@given(one=argument_maps, two=argument_maps)
def test_different_arguments_have_different_ids(one, two):
    # json tells True from 1, which Python's == does not; 1 and 1.0 train alike
    def key(arguments):
        return json.dumps(
            {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in arguments.items()}, sort_keys=True
        )

    same = make_run_id(spec(arguments=one)) == make_run_id(spec(arguments=two))
    assert same == (key(one) == key(two))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "yolo11n.yaml"},
        {"data": "coco128"},
        {"lr0": 0.2},
        {"lr0": 0.1000000001},
        {"seed": 1},
        {"ablations": ("no_clip",)},
        {"ablations": ("no_clip", "no_batchnorm")},
        {"ablations": ("no_batchnorm", "no_clip")},
        {"arguments": {"epochs": 3}},
        {"arguments": {"epochs": 2, "val": False}},
        {"record": {"every": 2}},
    ],
    ids=str,
)
def test_what_decides_a_run_decides_its_id(change):
    assert make_run_id(spec(**change)).rsplit("-", 1)[1] != make_run_id(spec()).rsplit("-", 1)[1]


@pytest.mark.parametrize(
    "change",
    [{"study": "other"}, {"record": {"every": 1}}, {"record": {"flow_modules": []}}, {"arguments": {"epochs": 2.0}}],
    ids=str,
)
def test_what_decides_nothing_leaves_the_id(change):
    assert make_run_id(spec(**change)) == make_run_id(spec())


def test_growing_a_study_keeps_the_ids(load):
    before = {r.run_id for r in load(BASE).runs()}
    bigger = {**BASE, "seeds": [5, 0, 1], "arms": {"no_warmup": {"ablations": ["no_warmup"]}, **BASE["arms"]}}
    assert before < {r.run_id for r in load(bigger).runs()}


study_maps = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b_1", "c.d-e"]),
        "model": st.sampled_from(["yolo26n.yaml", "yolo11n.yaml"]),
        "data": st.sampled_from(["shapes", "some where/data.yaml", "true", "ümlaut.yaml"]),
        "description": st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20).map(
            lambda text: f"about {text}"
        ),
        "arguments": st.fixed_dictionaries(
            {"optimizer": st.sampled_from(["SGD", "AdamW"])},
            optional={
                "momentum": st.floats(1e-9, 1),
                "epochs": st.integers(1, 5),
                "freeze": st.lists(st.integers(0, 9)),
            },
        ),
        "lr0": st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=3, unique=True),
        "seeds": st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3, unique=True),
        "record": st.fixed_dictionaries(
            {}, optional={"every": st.integers(1, 9), "flow_modules": st.just(["model.*"])}
        ),
        "arms": st.just({"control": {}, "x": {"ablations": ["no_clip", "no_warmup"], "arguments": {"imgsz": 64}}}),
    }
)


@given(raw=study_maps)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_resolved_study_comes_back(raw, load):
    study = load(raw)
    again = load(study.to_dict())
    assert again == study
    assert [r.run_id for r in again.runs()] == [r.run_id for r in study.runs()]
    assert differences(study.to_dict(), again.to_dict()) == []


# What is refused: what is set, and what the sentence must name


REFUSED = [
    # unknown keys
    (("modle", "x"), ["modle", "'model'"]),
    (("learning_rates", [1]), ["'learning_rates'"]),
    (("seed", 0), ["'seed'", "'seeds'"]),
    (("momentum", 0.9), ["'momentum'", "`arguments`"]),
    (("arms", "no_clip", "ablation", ["no_clip"]), ["arms.no_clip.ablation", "'ablations'"]),
    (("arms", "no_clip", "momentum", 0.9), ["arms.no_clip.momentum", "`arguments`"]),
    (("arms", "no_clip", "lr0", 0.9), ["arms.no_clip.lr0"]),
    (("record", "evry", 1), ["record.evry", "'every'"]),
    # names
    (("arms", "no_clip", "ablations", ["no_clp"]), ["arms.no_clip.ablations", "'no_clp'", "'no_clip'"]),
    (("arms", "no_clip", "ablations", ["NO_CLIP"]), ["'NO_CLIP'", "'no_clip'"]),
    (("arms", "no_clip", "ablations", ["zzzzz"]), ["'zzzzz'", "valid are no_batchnorm, no_clip"]),
    (("arms", "no_clip", "ablations", [3]), ["no_clip", "3"]),
    (("arms", "no_clip", "ablations", "no_clip"), ["'no_clip' is not a list", "[no_clip]"]),
    (("arms", "no_clip", "ablations", ["no_clip", "no_clip"]), ["'no_clip' stands in the list twice"]),
    (
        ("arms", "no_clip", "ablations", ["replace_init_by_he", "replace_init_by_xavier"]),
        ["arms.no_clip.ablations", "both set the initial weights"],
    ),
    (("arguments", "momentun", 0.9), ["arguments.momentun", "'momentum'"]),
    (("arms", "no_clip", "arguments", {"momentun": 1}), ["arms.no_clip.arguments.momentun", "'momentum'"]),
    (("arms", "no/clip", {"ablations": ["no_warmup"]}), ["'no/clip'", "'no_clip'", "folder"]),
    (("arms", "..", {"ablations": ["no_warmup"]}), ["'..'", "plain name"]),
    (("arms", 1, {"ablations": ["no_warmup"]}), ["1 is not a plain name", "'_1'"]),
    (("arms", "x" * 200, {"ablations": ["no_warmup"]}), ["plain name"]),
    (("name", "a study"), ["'a study'", "'a_study'"]),
    (("name", 5), ["name", "5"]),
    # values
    (("lr0", [0]), ["lr0.0", "0 is no learning rate"]),
    (("lr0", [0.1, -0.1]), ["lr0.1", "-0.1 is no learning rate"]),
    (("lr0", [float("nan")]), ["nan is no learning rate"]),
    (("lr0", [float("inf")]), ["inf is no learning rate"]),
    (("lr0", [10**400]), ["is no learning rate"]),
    (("lr0", ["fast"]), ["'fast' is not a number"]),
    (("lr0", "fast"), ["'fast' is not a number"]),
    (("lr0", [True]), ["True is not a number"]),
    (("lr0", [None]), ["None is not a number"]),
    (("lr0", [0.1, 1e-1]), ["lr0", "0.1 stands in the list twice"]),
    (("lr0", []), ["lr0", "at least one"]),
    (("lr0", {"a": 1}), ["lr0", "not a list"]),
    (("seeds", [0.5]), ["seeds.0", "0.5 is no seed"]),
    (("seeds", [-1]), ["-1 is no seed"]),
    (("seeds", ["0"]), ["'0' is no seed"]),
    (("seeds", [True]), ["True is no seed"]),
    (("seeds", [2**31]), ["is no seed"]),
    (("seeds", [0, 0]), ["seeds", "0 stands in the list twice"]),
    (("seeds", []), ["seeds", "at least one"]),
    (("record", "every", 0), ["record.every", "every=0"]),
    (("record", "every", True), ["record.every", "every=True"]),
    (("record", "flow_modules", "x"), ["record.flow_modules", "['x']"]),
    (("record", "flow_modules", 3), ["record.flow_modules", "3 is not a list"]),
    (("record", "flow_modules", [3]), ["record.flow_modules", "[3]"]),
    (("record", [1]), ["record", "not a section"]),
    (("arguments", "batch", -1), ["arguments.batch", "-1", "free memory"]),
    (("arguments", "batch", 0.7), ["arguments.batch", "0.7"]),
    (("arguments", "momentum", float("nan")), ["arguments.momentum", "nan", "finite"]),
    (("arguments", "momentum", {"a": 1}), ["arguments.momentum"]),
    (("arguments", "epochs", 0), ["arguments.epochs", "'epochs=0'"]),
    (("arms", "no_clip", "arguments", {"imgsz": "x"}), ["arms.no_clip.arguments.imgsz", "imgsz=x"]),
    (("arguments", [1]), ["arguments", "[1] is not a section"]),
    (("model", ""), ["model", "`model: yolo26n.yaml`"]),
    (("model", 3), ["model", "3 is not text", "quotes"]),
    (("data", None), ["data"]),
    # what a study needs
    (("name", ...), ["name", "'name'"]),
    (("model", ...), ["'model'"]),
    (("data", ...), ["'data'", "`data: shapes`"]),
    (("lr0", ...), ["'lr0'"]),
    (("seeds", ...), ["'seeds'"]),
    (("arms", ...), ["'arms'"]),
    (("arms", {}), ["control"]),
    (("arms", "control", ...), ["'control'", "`control: {}`"]),
    (("arms", {"contrl": {}}), ["'control'", "'contrl'"]),
    (("arms", "control", {"ablations": ["no_warmup"]}), ["arms.control", "ablations", "must change nothing"]),
    (("arms", "control", {"arguments": {"momentum": 0.1}}), ["arms.control", "arguments", "must change nothing"]),
    (("arms", ["control"]), ["arms", "not a section"]),
    (("arms", "no_clip", 5), ["arms.no_clip", "5 is not a section"]),
    (("arms", "empty", {}), ["arms.empty", "'control'", "trains exactly"]),
    (("arms", "same", {"arguments": {"epochs": 2.0}}), ["arms.same", "'control'"]),
    (("arms", "again", {"ablations": ["no_clip"]}), ["arms.again", "'no_clip'"]),
    # the optimizer
    (("arguments", "optimizer", ...), ["arguments.optimizer", "ignores lr0", "'SGD'"]),
    (("arguments", "optimizer", "auto"), ["arguments.optimizer", "ignores lr0", "'SGD'"]),
    (("arguments", "optimizer", "Auto"), ["ignores lr0"]),
    (("arguments", "optimizer", "AdmW"), ["'AdmW'", "'AdamW'"]),
    (("arguments", "optimizer", None), ["arguments.optimizer", "None"]),
    (("arms", "no_clip", "arguments", {"optimizer": "auto"}), ["arms.no_clip.arguments.optimizer", "ignores lr0"]),
    # what a study owns
    (("arguments", "lr0", 0.1), ["arguments.lr0", "list `lr0`"]),
    (("arguments", "seed", 0), ["arguments.seed", "list `seeds`"]),
    (("arms", "no_clip", "arguments", {"lr0": 0.1}), ["arms.no_clip.arguments.lr0", "list `lr0`"]),
    (("arguments", "device", "0"), ["arguments.device", "--device"]),
    (("arguments", "project", "x"), ["arguments.project", "--out"]),
    *(
        (("arguments", key, "x"), [f"arguments.{key}", "no argument of a study"])
        for key in ("name", "save_dir", "exist_ok", "resume", "workers", "mode", "task", "model", "data", "cfg", "time")
    ),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=lambda value: ".".join(map(str, value))[:60])
def test_refused(change, words, problems, tmp_path):
    found = problems(changed(*change))
    assert len(found) == 1, found
    assert str(tmp_path / "study.yaml") in found[0]
    for word in words:
        assert word in found[0]


def test_everything_wrong_is_said_at_once(problems):
    found = problems(
        """
name: two words
modle: yolo26n.yaml
data: shapes
arguments: {optimizer: auto, momentun: 0.9, device: cpu, epochs: 0}
lr0: [0, 0.1, 0.1]
seeds: [-1, 1.5]
record: {evry: 1, every: -1}
arms:
  control: {ablations: [no_clp]}
  a: {arg: 1}
  b: {ablations: no_clip}
"""
    )
    for word in (
        "'two words'",
        "'modle'",
        "'model'",
        "'auto'",
        "'momentun'",
        "'device'",
        "epochs=0",
        "0 is no learning rate",
        "0.1 stands in the list twice",
        "-1 is no seed",
        "1.5 is no seed",
        "'evry'",
        "every=-1",
        "must change nothing",
        "'no_clp'",
        "'arg'",
        "[no_clip]",
    ):
        assert sum(word in sentence for sentence in found) >= 1, word


def test_an_arm_with_a_wrong_key_is_not_called_another_ones_twin(problems):
    """What the arm was to change stands under the wrong key."""
    (found,) = problems(changed("arms", "mine", {"ablation": ["no_warmup"]}))
    assert "arms.mine.ablation" in found
    (found,) = problems(changed("arms", "mine", {"ablations": None}))
    assert "trains exactly what the arm 'control' does" in found


def test_a_sentence_names_the_line(problems, tmp_path):
    found = problems(
        yaml.safe_dump(changed("arms", ...), sort_keys=False) + "\n\narms:\n  control:\n  b: {ablations: [x]}\n"
    )
    lines = (tmp_path / "study.yaml").read_text().splitlines()
    assert f"line {lines.index('  b: {ablations: [x]}') + 1}, arms.b.ablations" in found[0]


def test_a_problem_of_the_base_is_said_once(problems):
    assert len(problems(changed("arguments", "epochs", 0))) == 1


# Files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [1, 2", ["line 1", "not valid YAML"]),
        ("name: x\n\tmodel: y\n", ["line 2", "not valid YAML"]),
        ("a: *b\n", ["line 1", "not valid YAML"]),
        ("a: !!python/object:os.system {}\n", ["not valid YAML"]),
        ("? [a]\n: 1\n", ["line 1", "not valid YAML"]),
        ("a: 1\n---\nb: 2\n", ["not valid YAML"]),
        ("a: \x00", ["not valid YAML"]),
        ("", ["is empty"]),
        ("# only a comment\n", ["is empty"]),
        ("- 1\n- 2\n", ["not keys with values"]),
        ("quick\n", ["not keys with values"]),
        ("name: x\nlr0: [1]\nname: y\n", ["line 3", "'name'", "twice", "line 1"]),
        ("arms:\n  a: {}\n  b: {}\n  a: {}\n", ["line 4", "'arms.a'", "twice", "line 2"]),
        ("arguments: {epochs: 1, epochs: 2}\n", ["line 1", "'arguments.epochs'", "twice"]),
    ],
)
def test_a_file_that_is_no_study(text, words, problems):
    found = problems(text)
    assert len(found) == 1
    for word in (*words, "study.yaml"):
        assert word in found[0]


def test_a_study_that_holds_itself(problems):
    found = problems(yaml.safe_dump(changed("arguments", ...)) + "arguments: &a {optimizer: SGD, freeze: [*a]}\n")
    assert any("arguments.freeze" in sentence for sentence in found)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match="can't be read as text"):
        load_study(path, VOCABULARY)


@pytest.mark.parametrize(
    ("source", "nearest"),
    [("quik", "quick"), ("Stabilisation", "stabilisation"), ("xxxxxxxx", "ablations, accuracy, quick, stabilisation")],
)
def test_no_such_study(source, nearest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=nearest) as caught:
        load_study(source, VOCABULARY)
    assert source in str(caught.value)


def test_no_such_file_names_the_nearest(tmp_path):
    (tmp_path / "warmup_study.yaml").touch()
    with pytest.raises(StudyError, match=r"warmup_study\.yaml"):
        load_study(tmp_path / "warmup_stdy.yaml", VOCABULARY)


def test_a_folder_is_no_study(tmp_path):
    (tmp_path / "study.yaml").touch()
    with pytest.raises(StudyError, match=r"a folder, .*study\.yaml"):
        load_study(tmp_path, VOCABULARY)


# The command line


def test_parse_overrides():
    pairs = [
        *("epochs=3", "lr0=1e-3", "amp=False", "val=true", "seeds=0,1", "arms=control,no_clip", "freeze=[0, 1]"),
        *("data=a/b.yaml", "momentum=nan", "classes=None", "model=x=y.yaml"),
    ]
    assert parse_overrides(pairs) == {
        "epochs": 3,
        "lr0": 0.001,
        "amp": False,
        "val": True,
        "seeds": [0, 1],
        "arms": ["control", "no_clip"],
        "freeze": [0, 1],
        "data": "a/b.yaml",
        "momentum": "nan",
        "classes": None,
        "model": "x=y.yaml",
    }


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["epochs"], ["'epochs'", "'epochs=...'"]),
        (["=3"], ["'=3'"]),
        (["a=1", "a=2"], ["'a'", "twice"]),
        (["a=[1"], ["'a=[1'", "not YAML"]),
        (["lr0="], ["'lr0'", "has no value", "lr0=VALUE"]),
        (["model= "], ["'model'", "has no value", "model=VALUE"]),
    ],
)
def test_parse_overrides_refuses(pairs, words):
    with pytest.raises(ValueError, match="command line") as caught:
        parse_overrides(pairs)
    for word in words:
        assert word in str(caught.value)


def test_overrides_win(load):
    study = load(BASE, parse_overrides(["lr0=0.3", "seed=7", "model=yolo11n.yaml", "data=coco8", "epochs=1"]))
    assert (study.lr0, study.seeds, study.model, study.data) == ((0.3,), (7,), "yolo11n.yaml", "coco8")
    assert study.arguments["epochs"] == 1
    assert load(study.to_dict()) == study


def test_chosen_arms_keep_the_control_and_their_order(load):
    three = changed("arms", "no_warmup", {"ablations": ["no_warmup"]})
    assert list(load(three, {"arms": ["no_warmup", "no_clip"]}).arms) == ["control", "no_clip", "no_warmup"]
    assert list(load(three, {"arms": "no_warmup"}).arms) == ["control", "no_warmup"]
    assert list(load(three, {"arms": "control"}).arms) == ["control"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"epochss": 3}, ["epochss", "'epochs'"]),
        ({"epochs": 0}, ["epochs", "'epochs=0'"]),
        ({"lr0": 0}, ["lr0", "0 is no learning rate"]),
        ({"lr0": "nan"}, ["lr0", "'nan' is not a number"]),
        ({"seeds": [1, 1]}, ["seeds", "twice"]),
        ({"seed": 1, "seeds": [1]}, ["seed", "same list"]),
        ({"arms": ["no_clop"]}, ["arms", "'no_clop'", "'no_clip'"]),
        ({"arms": []}, ["arms", "empty"]),
        ({"optimizer": "auto"}, ["optimizer", "ignores lr0"]),
        ({"device": "cpu"}, ["device", "--device"]),
        ({"name": "x"}, ["name", "run id"]),
        ({"model": 3}, ["model", "3 is not text"]),
    ],
    ids=str,
)
def test_overrides_refused(overrides, words, problems):
    found = problems(BASE, overrides)
    assert len(found) == 1, found
    for word in ("the command line", *words):
        assert word in found[0]


# Comparing


def test_growth_shrinking_and_change_are_told_apart():
    old = BASE
    grown = {**BASE, "seeds": [0, 1, 2], "lr0": [0.01, 0.1, 1], "arms": {**BASE["arms"], "x": {"ablations": ["y"]}}}
    found = compare_studies(old, grown)
    assert found.grown == ("lr0 1 is new", "seed 2 is new", "arm x is new")
    assert (found.shrunk, found.changed) == ((), ())
    found = compare_studies(grown, old)
    assert found.shrunk == ("lr0 1 is gone", "seed 2 is gone", "arm x is gone")
    assert (found.grown, found.changed) == ((), ())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("arguments", "epochs", 10), "arguments.epochs was 2, is 10"),
        (("arguments", "momentum", 0.9), "arguments.momentum was not set, is 0.9"),
        (("arguments", "epochs", ...), "arguments.epochs was 2, is not set"),
        (("record", "every", 3), "record.every was 1, is 3"),
        (("model", "x"), "model was 'yolo26n.yaml', is 'x'"),
        (("data", "x"), "data was 'shapes', is 'x'"),
        (("arms", "no_clip", "ablations", []), "arms.no_clip.ablations was ['no_clip'], is []"),
        (("arms", "no_clip", "arguments", {"momentum": 1}), "arms.no_clip.arguments.momentum was not set, is 1"),
    ],
)
def test_what_changed(change, sentence):
    assert compare_studies(BASE, changed(*change)).changed == (sentence,)
    assert differences(BASE, changed(*change)) == [sentence]


def test_no_difference():
    assert not compare_studies(BASE, {**copy.deepcopy(BASE), "description": "other words"})
    assert differences({}, {}) == []


def test_is_same_study():
    assert is_same_study(BASE, changed("arguments", "epochs", 10))
    assert not is_same_study(BASE, changed("name", "other"))


# The documentation


def test_the_documented_study_loads(load):
    text = (Path(__file__).parents[1] / "docs" / "studies.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    study = load(example)
    assert study.lr0 == (0.01, 0.1, 1.0)
    assert set(study.to_dict()) == set(yaml.safe_load(example))
    for key in (*study.to_dict(), *RecordConfig.field_names()):
        assert f"| `{key}` |" in text, f"docs/studies.md says nothing of {key}"


# Crossed factors ------------------------------------------------------------------------------------------


def crossed(tmp_path, **changes):
    base = {
        "name": "crossed", "model": "yolo26n.yaml", "data": "shapes", "arguments": {"optimizer": "SGD"}, "lr0": 0.01,
        "seeds": [0], "cross": {"clip": ["no_clip"], "init": ["replace_init_by_he", "replace_init_by_xavier"]},
    }  # fmt: skip
    path = tmp_path / "crossed.yaml"
    path.write_text(yaml.safe_dump({**base, **changes}))
    return load_study(path, VOCABULARY)


def test_factors_are_crossed(tmp_path):
    study = crossed(tmp_path)
    assert {name: arm.ablations for name, arm in study.arms.items()} == {
        "control": (),
        "replace_init_by_he": ("replace_init_by_he",),
        "replace_init_by_xavier": ("replace_init_by_xavier",),
        "no_clip": ("no_clip",),
        "no_clip.replace_init_by_he": ("no_clip", "replace_init_by_he"),
        "no_clip.replace_init_by_xavier": ("no_clip", "replace_init_by_xavier"),
    }
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(study.to_dict(), sort_keys=False))
    assert load_study(tmp_path / "again.yaml", VOCABULARY) == study  # as resolved, it is itself


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"no_clip": {"arguments": {"epochs": 2}}}}, "crossed, the arm 'no_clip' is"),
        ({"cross": {"clip": ["no_clip"], "other": ["no_clip"]}}, "'no_clip' is a level twice"),
        ({"cross": {"clip": ["no_clp"]}}, "there is no ablation 'no_clp'; the nearest valid is 'no_clip'"),
        ({"cross": {"clip": []}}, "there is no value; give at least one"),
        ({"cross": ["no_clip"]}, "is not a section of keys with values"),
    ],
    ids=str,
)
def test_what_can_not_be_crossed_is_said(tmp_path, changes, said):
    with pytest.raises(StudyError) as refused:
        crossed(tmp_path, **changes)
    assert any(said in problem for problem in refused.value.problems), refused.value.problems
