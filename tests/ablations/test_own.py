# SPDX-License-Identifier: AGPL-3.0-or-later
"""A person's own ablation, named in a study as ``module:function``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.modules.block import Attention

from yolo_gradstudy.ablations import apply_ablation, apply_ablations, check_ablations, find_ablation

DOCS = (Path(__file__).parents[2] / "docs" / "ablations.md").read_text()
MINE = (
    re.search(r"```python\n# my_ablations.py\n(.*?)```", DOCS, re.DOTALL)[1]
    + """

def random_scale(model):
    weight = model.model[0].conv.weight
    weight.data.copy_(__import__("torch").randn(weight.shape))
    return ["model.0.conv"]


def nothing(model):
    return []


def wrong(model):
    return "model.0"


NUMBER = 3
"""
)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module that can be imported."""
    (tmp_path / "my_ablations.py").write_text(MINE)
    (tmp_path / "broken_ablations.py").write_text("import no_such_thing_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_ablations"
    sys.modules.pop("my_ablations", None)


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return YOLO("yolo26n.yaml").model


def test_it_is_applied_and_names_what_it_changed(mine):
    ours = model()
    changed = apply_ablation(ours, f"{mine}:no_attention")
    assert len(changed) >= 2
    assert not [m for m in ours.modules() if isinstance(m, Attention)]
    spec = find_ablation(f"{mine}:no_attention")
    assert spec.summary == "Takes the attention out of every PSABlock."
    assert spec.family == "own"


def test_it_stands_in_a_set_with_others_in_any_order(mine):
    names = [f"{mine}:no_attention", "no_residuals", "replace_init_by_he", f"{mine}:random_scale"]
    one, other = model(), model()
    changed = apply_ablations(one, names, seed=4)
    assert apply_ablations(other, names[::-1], seed=4) == changed
    assert list(changed)[:2] == sorted([f"{mine}:no_attention", f"{mine}:random_scale"])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_its_draws_depend_on_the_seed_and_leave_the_generator_alone(mine):
    ours = [model() for _ in range(3)]
    state = torch.get_rng_state()
    for each, seed in zip(ours, (1, 1, 2), strict=True):
        torch.rand(seed)  # whatever was drawn before
        here = torch.get_rng_state()
        apply_ablation(each, f"{mine}:random_scale", seed=seed)
        assert torch.equal(torch.get_rng_state(), here)
    torch.set_rng_state(state)
    weights = [each.model[0].conv.weight for each in ours]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("my_ablations:no_atention", "names no function of 'my_ablations'; the nearest is 'my_ablations:no_attention'"),
        ("my_ablations:NUMBER", "names no function"),
        ("no_such_module_here:f", "can't be imported .*No module named.*PYTHONPATH"),
        ("broken_ablations:f", "can't be imported .*no_such_thing_at_all"),
        (":f", "can't be imported"),
    ],
)
def test_names_that_are_refused(mine, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_ablations([name])


def test_answers_that_are_refused(mine):
    with pytest.raises(ValueError, match="returned str; it must return the names"):
        apply_ablation(model(), f"{mine}:wrong")
    with pytest.raises(ValueError, match="found nothing to change in DetectionModel"):
        apply_ablation(model(), f"{mine}:nothing")
    with pytest.raises(ValueError, match="given twice"):
        check_ablations([f"{mine}:nothing", f"{mine}:nothing"])


def test_a_study_names_one_of_the_folder_it_is_started_in(mine, tmp_path):
    study = tmp_path / "mine.yaml"
    study.write_text(
        "name: mine\nmodel: yolo26n.yaml\ndata: shapes\nlr0: [0.01]\nseeds: [0]\n"
        "arguments: {optimizer: SGD, epochs: 1, imgsz: 64, batch: 16}\n"
        "arms:\n  control: {}\n  mine: {ablations: ['my_ablations:no_attention', 'deepen(3)']}\n"
    )
    command = [str(Path(sys.executable).with_name("gradstudy")), "plan", str(study)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "my_ablations:no_attention" in done.stdout.replace("\n", "")
