# SPDX-License-Identifier: AGPL-3.0-or-later
"""One suite over the whole table of ablations: it fails where cases.py lacks a row."""

import copy
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from ultralytics import YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg

from yolo_gradstudy.ablations import (
    ABLATIONS,
    Builtin,
    apply_ablation,
    apply_ablations,
    check_ablations,
    combined_arguments,
    combined_trainer_options,
    describe_ablations,
    find_ablation,
    switched_off,
)
from yolo_gradstudy.ablations.spec import FAMILIES

from .cases import CASES, MODELS
from .models import RTDETR_SMALL, build, control, count, generator_states, images, same, weight

NAMES = list(ABLATIONS)
ARGUMENTS = {**DEFAULT_CFG_DICT, "optimizer": "NAdam", "batch": 16}
SURGERIES = [name for name, spec in ABLATIONS.items() if spec.surgery is not None]
TRAINING_ONLY = [name for name, spec in ABLATIONS.items() if spec.surgery is None and not spec.parts]
DRAWING = ["replace_init_by_xavier", "replace_init_by_xavier_normal", "replace_init_by_he"]
DRAWING += ["replace_init_by_orthogonal", "replace_init_by_lsuv"]


# The table


def test_every_ablation_has_a_case():
    assert list(CASES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_row_of_the_table(name):
    spec, case = ABLATIONS[name], CASES[name]
    assert spec.name == name
    assert spec.family in FAMILIES
    assert spec.summary.endswith(".")
    assert spec.source
    assert spec.targets
    assert dict(spec.arguments) == case.arguments
    assert dict(spec.trainer) == case.trainer
    assert spec.switches_off == case.switches_off
    assert spec.parts == case.parts
    assert bool(spec.surgery) == bool(case.changed)
    assert bool(spec.calibration) == case.calibrates
    assert set(case.changed) == (set(MODELS) if case.changed else set())
    assert pickle.loads(pickle.dumps(spec)) == spec
    if spec.surgery is not None:
        assert spec.surgery.__name__ == name
    get_cfg(overrides=spec.resolved_arguments(ARGUMENTS))  # Ultralytics knows the arguments and takes the values


@pytest.mark.parametrize("name", NAMES)
def test_number_of_an_ablation(name):
    spec, number = ABLATIONS[name], CASES[name].number
    assert (spec.number.default if spec.number else None) == spec.value == number
    assert spec.label == name
    if number is None:
        with pytest.raises(ValueError, match=f"'{name}' takes no number; the nearest valid is '{name}'"):
            find_ablation(f"{name}(2)")
        return
    other = find_ablation(f"{name}({spec.number.least:g})")
    assert other.value == spec.number.least
    assert find_ablation(other.label) == other
    for wrong in ("-1", "nan", "ten", ""):
        with pytest.raises(ValueError, match="the nearest valid is"):
            find_ablation(f"{name}({wrong})")


@pytest.mark.parametrize("name", [name for name in SURGERIES if ABLATIONS[name].number])
def test_an_endless_number_is_refused(name):
    with pytest.raises(ValueError, match="the nearest valid is"):
        find_ablation(f"{name}(inf)")


def test_deepen_takes_whole_numbers():
    with pytest.raises(ValueError, match="is a whole number from 2 to 16; the nearest valid is 2"):
        find_ablation("deepen(2.5)")
    with pytest.raises(ValueError, match="the nearest valid is 2"):
        find_ablation("deepen(1)")


def test_order_of_the_surgeries():
    """Depth first, then what modules are made of, then how they connect, then their weights, at last zeros."""
    families = list(dict.fromkeys(ABLATIONS[name].family for name in SURGERIES if name != "deepen"))
    assert families == ["activation", "normalisation", "connections", "initialisation"]
    assert SURGERIES[0] == "deepen"
    assert SURGERIES[-1] == "zero_init_residuals"
    assert SURGERIES.index("scale_init") > max(map(SURGERIES.index, DRAWING))
    assert NAMES[: len(SURGERIES)] == SURGERIES


def test_what_is_switched_off_is_all_that_can_be():
    assert set(switched_off([name for name in NAMES if ABLATIONS[name].switches_off])) == set(Builtin)


# Every surgery on every family of models


def test_a_model_is_built_alike_each_time():
    for name in ("yolo26n.yaml", "tiny", RTDETR_SMALL):
        same(control(name).state_dict(), build(name).state_dict())


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", SURGERIES)
def test_surgery_changes_what_the_case_says(name, model_name):
    case, model = CASES[name], control(model_name)
    before = count(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    changed = apply_ablations(model, [name])[name]
    assert len(changed) == len(set(changed)) == case.changed[model_name]
    assert set(changed) <= modules.keys()
    assert count(model) - before == case.grows.get(model_name, 0)


@pytest.mark.parametrize("model_name", [*MODELS[:-1], RTDETR_SMALL])
@pytest.mark.parametrize("name", SURGERIES)
def test_surgery_keeps_what_pairs(name, model_name):
    case, before, model = CASES[name], control(model_name), control(model_name)
    changed = apply_ablations(model, [name], seed=3)[name]
    written = {f"{module}.{ending}" for module in changed for ending in case.writes}
    reshaped = {f"{module}.{ending}" for module in changed for ending in case.reshapes}
    old, new = dict(before.named_parameters()), dict(model.named_parameters())
    kept = [key for key in new if key in old and new[key].shape == old[key].shape]
    if case.adds in ("", "drawn"):
        assert old.keys() - set(kept) <= reshaped
        assert bool(old.keys() - set(kept)) == bool(reshaped)
    elif "rtdetr" not in model_name:  # which has branches to merge
        assert {key for key in old if ".bn." not in key} == set(kept)
    for key in kept:
        if key not in written:
            assert torch.equal(old[key], new[key]), key
        assert new[key].requires_grad == old[key].requires_grad, key
    for module in changed if case.writes else ():
        names = [key for key in (f"{module}.{ending}" for ending in case.writes) if key in old]
        assert any(not torch.equal(old[key], new[key]) for key in names), module
    lost = {tuple(v.flatten().tolist()) for key, v in old.items() if key not in kept and case.adds == "carried"}
    for key in new.keys() - old.keys():
        if case.adds == "zeros" and key.endswith(".bias"):
            assert not new[key].any(), key
        elif case.adds == "carried" and "rtdetr" not in model_name:
            assert tuple(new[key].flatten().tolist()) in lost, key
    assert bool(new.keys() - old.keys()) == bool(case.adds)
    same(
        {key: value for key, value in before.named_buffers() if key in dict(model.named_buffers())},
        {key: value for key, value in model.named_buffers() if key in dict(before.named_buffers())},
    )


@pytest.mark.parametrize("name", SURGERIES)
def test_surgery_leaves_the_global_generators_alone(name):
    for model in (control("tiny"), control(RTDETR_SMALL), control("yolov10n.yaml")):
        states = generator_states()
        apply_ablations(model, [name], seed=5)
        assert generator_states() == states


@pytest.mark.parametrize("name", SURGERIES)
def test_surgery_refuses_to_do_nothing(name):
    model = CASES[name].inert()
    with pytest.raises(ValueError, match=f"'{name}' found nothing to change in {type(model).__name__}"):
        apply_ablations(model, [name])
    with pytest.raises(ValueError, match="found nothing to change"):
        apply_ablation(model, name, images=images())


@pytest.mark.parametrize("name", [name for name in SURGERIES if name.split("_")[0] in ("no", "zero")] + SURGERIES[1:9])
def test_a_removal_applied_twice_is_refused(name):
    if name == "no_head_bias_init":  # draws the same biases again
        return
    model = control()
    apply_ablation(model, name)
    with pytest.raises(ValueError, match=rf"'{name}' found nothing to change in DetectionModel \(yolo26n.yaml\)"):
        apply_ablation(model, name)


@pytest.mark.parametrize("model_name", ["yolo26n.yaml", RTDETR_SMALL])
@pytest.mark.parametrize("name", SURGERIES)
def test_ablated_model_trains_copies_and_fuses(name, model_name):
    model = control(model_name)
    apply_ablations(model, [name])
    model.args, model.nc = get_cfg(), 80
    labels = {
        "img": images(),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[3.0], [7.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.6, 0.4], [0.4, 0.5, 0.3, 0.5]]),
    }
    model.train()
    model(labels)[0].sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.criterion = None
    with torch.no_grad():
        model.double().eval()
        expected = model(images().double())[0]
        twin = copy.deepcopy(model)
        for parameter in model.parameters():  # a copy that still reads the original's weights would show
            parameter.zero_()
        assert expected.isfinite().all()
        assert torch.equal(twin(images().double())[0], expected)
        assert torch.allclose(twin.fuse(verbose=False)(images().double())[0], expected, rtol=1e-4, atol=1e-9)
        assert twin.is_fused()


FRESH = """
import sys
import numpy as np
from ultralytics import YOLO
from ultralytics.nn.tasks import torch_safe_load
image = (np.random.default_rng(0).random((64, 96, 3)) * 255).astype("uint8")
for path in sys.argv[1:]:
    model = YOLO(path)
    homes = {type(m).__module__.split(".")[0] for m in model.model.modules()}
    assert homes <= {"ultralytics", "torch", "torchvision"}, path
    result = model.predict(image, imgsz=64, verbose=False, conf=0.0)[0]
    assert result.orig_shape == (64, 96), path
    if "torchvision" not in homes:  # whose LayerNorm2d Ultralytics' restricted loading does not know
        torch_safe_load(path, safe_only=True)
assert not [name for name in sys.modules if name.startswith("yolo_gradstudy")]
print("loaded", len(sys.argv) - 1)
"""

TOGETHER = (
    ["no_batchnorm", "no_residuals", "replace_init_by_he"],
    ["deepen", "replace_silu_by_relu", "replace_batchnorm_by_groupnorm", "scale_residuals"],
    ["deepen(3)", "replace_silu_by_tanh", "replace_batchnorm_by_layernorm2d", "zero_init_residuals", "scale_init"],
)


def test_saved_models_load_where_this_package_is_not(tmp_path):
    saved = [("tiny", [name]) for name in SURGERIES]
    saved += [(model_name, TOGETHER[0]) for model_name in [*MODELS[:4], "yolov9t.yaml", "yolov10n.yaml"]]
    saved += [(model_name, TOGETHER[1]) for model_name in ("yolo26n.yaml", RTDETR_SMALL)]
    saved += [(model_name, TOGETHER[2]) for model_name in ("yolo12n.yaml", RTDETR_SMALL)]
    paths = []
    for model_name, names in saved:
        model = control(model_name)
        apply_ablations(model, names)
        paths.append(str(tmp_path / f"{len(paths)}-{'rtdetr' if 'rtdetr' in model_name else 'yolo'}.pt"))
        torch.save({"model": copy.deepcopy(model).half(), "train_args": {}}, paths[-1])
        loaded = torch.load(paths[-1], weights_only=False)["model"].float()
        same(model.half().float().state_dict(), loaded.state_dict())
    script = tmp_path / "fresh.py"
    script.write_text(FRESH)
    done = subprocess.run([sys.executable, str(script), *paths], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"loaded {len(paths)}" in done.stdout


@pytest.mark.parametrize("names", TOGETHER, ids="+".join)
def test_weights_go_through_a_state_dict(names):
    one, other = control("tiny"), control("tiny")
    apply_ablations(one, names, seed=1)
    apply_ablations(other, names, seed=2)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.01)
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.eval()(images())[0], other.eval()(images())[0])


# Sets of ablations


def compatible(names):
    """The names that can stand together, each with those before it."""
    kept: list[str] = []
    for name in names:
        try:
            check_ablations([*kept, name])
        except ValueError:
            continue
        kept.append(name)
    return kept


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.permutations(NAMES), st.integers(1, 14), st.randoms(use_true_random=False))
def test_sets_apply_in_any_order_with_one_result(names, size, shuffle):
    names = compatible(names[:size])
    permutation = shuffle.sample(names, len(names))
    reference, model = control("tiny"), control("tiny")
    expected = apply_ablations(reference, sorted(names, key=NAMES.index), seed=1)
    states = generator_states()
    changed = apply_ablations(model, permutation, seed=1)
    assert generator_states() == states
    assert changed == expected
    single = {part for name in names for part in ABLATIONS[name].parts or [name]}
    assert list(changed) == [name for name in SURGERIES if name in single]
    same(reference.state_dict(), model.state_dict())
    for name in single & set(DRAWING):  # what a draw gives does not depend on what else is ablated
        check_drawn(name, changed[name], model, single)
    model.train()(images())["scores"].sum().backward()
    assert combined_arguments(permutation, ARGUMENTS) == combined_arguments(sorted(names), ARGUMENTS)
    assert combined_trainer_options(permutation) == combined_trainer_options(sorted(names))
    assert switched_off(permutation) == switched_off(sorted(names))


def check_drawn(name, modules, model, names):
    alone = control("tiny")
    kept = set(apply_ablations(alone, [name], seed=1)[name]) & set(modules)
    kept = [key for key in kept if weight(alone, key).shape == weight(model, key).shape]
    assert len(kept) > 40
    for key in kept:
        drawn = weight(alone, key) * (2 if "scale_init" in names else 1)
        zeroed = "zero_init_residuals" in names and not weight(model, key).any()
        assert zeroed or torch.equal(weight(model, key), drawn), key


def test_many_sets_are_compatible():
    """The sets that the test above samples hold surgeries of all kinds, and more than a few."""
    assert compatible(NAMES)[0] == "deepen"
    assert len(compatible(NAMES)) > 15
    assert compatible(reversed(NAMES))[0] == "remove_everything"
    assert len(compatible(reversed(NAMES))) > 5


def test_sets_of_surgeries_cover_every_pair_of_kinds():
    kinds = Counter(target for name in SURGERIES for target in ABLATIONS[name].targets)
    assert kinds == {
        "depth": 1,
        "activation": 5,
        "BatchNorm": 3,
        "residual connections": 3,
        "weight initialisation": 5,
        "the scale of initial weights": 2,
        "head bias initialisation": 1,
    }


def test_settings_of_a_set():
    names = ["no_warmup", "no_clip", "replace_init_by_he", "no_ema"]
    assert combined_arguments(names, ARGUMENTS) == {"warmup_epochs": 0.0}
    assert combined_trainer_options(names) == {"clip_norm": None}
    assert switched_off(names) == {Builtin.EMA: "no_ema"}
    assert combined_arguments(["no_accumulation"], ARGUMENTS) == {"nbs": 16}
    assert combined_arguments([], ARGUMENTS) == combined_trainer_options([]) == switched_off([]) == {}
    assert apply_ablations(control(), []) == {}
    assert apply_ablations(control(), TRAINING_ONLY[:1]) == {}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["no_batchnrom"], "'no_batchnrom' is not an ablation; the nearest is 'no_batchnorm'"),
        (["no_clip", "he"], "'he' is not an ablation; the nearest is"),
        (["no_clip", "no_warmup", "no_clip"], "'no_clip' is given twice"),
        (["deepen", "deepen(3)"], "'deepen' is given twice"),
        (
            ["replace_init_by_he", "no_clip", "replace_init_by_xavier"],
            "'replace_init_by_he' and 'replace_init_by_xavier' contradict each other, both change weight init",
        ),
        (["no_residuals", "scale_residuals"], "contradict each other, both change residual connections"),
        (["zero_init_residuals", "scale_residuals"], "contradict each other, both change residual connections"),
        (["no_batchnorm", "replace_batchnorm_by_groupnorm"], "contradict each other, both change BatchNorm"),
        (["replace_silu_by_relu", "replace_silu_by_tanh"], "contradict each other, both change activation"),
        (["replace_init_by_lsuv", "scale_init"], "contradict each other, both change the scale of initial weights"),
        (["no_residuals", "remove_everything"], "'no_residuals' is a part of 'remove_everything'; leave it out"),
        (["remove_everything", "scale_residuals"], "contradict each other, both change residual connections"),
        ("no_clip", r"'no_clip' is one string; write a list of names, \['no_clip'\]"),
    ],
)
def test_sets_that_are_refused(names, sentence):
    model = control()
    for refuse in (
        check_ablations,
        lambda names: combined_arguments(names, ARGUMENTS),
        combined_trainer_options,
        lambda names: apply_ablations(model, names),
    ):
        with pytest.raises(ValueError, match=sentence):
            refuse(names)
    same(model.state_dict(), control().state_dict())


def test_everything_is_the_sum_of_its_parts():
    whole, parts = control(), control()
    changed = apply_ablations(whole, ["remove_everything"], seed=2)
    assert changed == apply_ablations(parts, list(CASES["remove_everything"].parts), seed=2)
    assert list(changed) == ["no_batchnorm", "no_residuals", "no_head_bias_init"]
    same(whole.state_dict(), parts.state_dict())
    assert apply_ablation(control(), "remove_everything", seed=2) == [n for names in changed.values() for n in names]
    off = {part for part in CASES["remove_everything"].parts if ABLATIONS[part].switches_off}
    assert set(switched_off(["remove_everything"]).values()) == off


def test_a_part_that_finds_nothing_is_passed_over():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert apply_ablations(model, ["remove_everything"]) == {"no_batchnorm": ["1"]}


@pytest.mark.parametrize("name", TRAINING_ONLY)
def test_an_ablation_of_training_is_not_applied_to_a_model(name):
    case = CASES[name]
    if case.arguments:
        key, value = next(iter(case.arguments.items()))
        where = rf"set {key}={value!r}.* in the training arguments"
    elif case.trainer:
        where = rf"set {next(iter(case.trainer))}=.* in GradStudyTrainer.using"
    else:
        where = rf"set ablations=\['{name}'\] in GradStudyTrainer.using"
    with pytest.raises(ValueError, match=f"changes training and not the model; {where}"):
        apply_ablation(control(), name)


def test_what_an_ablation_of_training_acts_on():
    assert ABLATIONS["freeze_batchnorm_statistics"].acts_on(control()) == [
        name for name, module in control().named_modules() if isinstance(module, nn.BatchNorm2d)
    ]


def test_unknown_ablation_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'no_residual' is not an ablation; the nearest is 'no_residuals'"):
        apply_ablation(control(), "no_residual")


def test_a_yolo_object_is_refused_since_its_train_builds_anew():
    with pytest.raises(ValueError, match=r"pass its \.model"):
        apply_ablation(YOLO("yolo26n.yaml"), "no_batchnorm")


# Description


def test_description_without_a_model():
    rows = describe_ablations()
    assert [row.name for row in rows] == NAMES
    assert all(row.changed is None and row.parameters_before is None and row.note == "" for row in rows)
    sets = {row.name: row.sets for row in rows}
    assert {name for name, words in sets.items() if words} == set(TRAINING_ONLY)
    assert sets["no_clip"] == "clip_norm=None"
    assert sets["no_warmup"] == "warmup_epochs=0.0"
    assert sets["no_accumulation"] == "nbs=batch"
    assert sets["no_ema"] == "ema off"
    assert sets["replace_clip_by_norm"] == "clip_norm=1.0"


def test_description_of_a_model():
    states = generator_states()
    rows = {row.name: row for row in describe_ablations("yolo26n.yaml")}
    assert generator_states() == states
    for name in SURGERIES:
        assert rows[name].changed == CASES[name].changed["yolo26n.yaml"]
        assert rows[name].parameters_before == count(control())
        assert rows[name].parameters_after - rows[name].parameters_before == CASES[name].grows.get("yolo26n.yaml", 0)
    assert rows["no_clip"].changed is None
    assert rows["freeze_batchnorm_statistics"].changed == CASES["no_batchnorm"].changed["yolo26n.yaml"]
    parts = [n for n in CASES["remove_everything"].parts if n in SURGERIES]
    assert rows["remove_everything"].changed == sum(rows[name].changed for name in parts)


def write_model(folder, *backbone):
    """A model YAML of a few layers and a head."""
    layers = [[-1, 1, "Conv", [16, 3, 2]], *backbone]
    path = folder / f"model{len(layers)}.yaml"
    head = [[[len(layers) - 1], 1, "Detect", ["nc"]]]
    path.write_text(yaml.safe_dump({"nc": 3, "backbone": layers, "head": head}))
    return str(path)


def test_description_says_what_cannot_be_changed(tmp_path):
    rows = {row.name: row for row in describe_ablations(write_model(tmp_path))}
    assert rows["no_residuals"].changed == rows["deepen"].changed == 0
    assert rows["no_residuals"].parameters_before == rows["no_residuals"].parameters_after
    assert "found nothing to change" in rows["no_residuals"].note
    rows = {
        row.name: row
        for row in describe_ablations(write_model(tmp_path, [-1, 2, "C2f", [16, True]], [-1, 1, "PSA", [16]]))
    }
    assert rows["no_residuals"].changed == 2
    assert rows["no_residuals"].note == "keeps the residuals of model.2"


def test_the_documentation_has_the_whole_table_and_its_numbers():
    text = (Path(__file__).parents[2] / "docs" / "ablations.md").read_text()
    for name, spec in ABLATIONS.items():
        label = name if spec.number is None else f"{name}({spec.number.default:g})"
        said = spec.summary.split(" The learning rate stays")[0]
        sets = f"`{spec.settings}`" if spec.settings else ""
        assert f"| `{label}` | {spec.family} | {said} | {sets} | " in text
        if CASES[name].changed:
            numbers = " | ".join(str(CASES[name].changed[model_name]) for model_name in MODELS)
            assert f"| `{name}` | {numbers} |" in text
    rows = [line.split("`")[1].split("(")[0] for line in text.splitlines() if line.startswith("| `")]
    assert set(rows) == set(NAMES)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("yolo62n.yaml", "yolo"),
        ("yolo26n", "yolo26n.yaml"),
        ("yolo26m.pt", "yolo26m.yaml"),
        ("yolov11n.yaml", "yolo11n"),
    ],
)
def test_description_of_a_model_that_is_not_there(name, nearest):
    with pytest.raises(ValueError, match=f"'{name}' .*; the nearest is '{nearest}"):
        describe_ablations(name)
