# SPDX-License-Identifier: AGPL-3.0-or-later
"""The scripts that are examples do what they say."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

from yolo_gradstudy import load_run

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clipping():
    return load_script("explicit_clipping")


@pytest.fixture(scope="module")
def compared(clipping, tmp_path_factory):
    """Two seeds with and without clipping, shorter than the script's own."""
    out = tmp_path_factory.mktemp("clipping")
    task = clipping.Task(steps=400, length=40, rho=1.1)
    return out, clipping.compare(task, [0, 1], out)


def test_the_gradient_grows_as_rho_to_the_length(clipping):
    """Back through time the first step's gradient grows by rho a time step: the recorder's norms show it."""
    norms = []
    for length in (40, 60):
        model = clipping.RecallRNN(16, 1.1, clipping.torch.Generator().manual_seed(0)).double()
        inputs, _ = clipping.recall_batch(16, length, clipping.torch.Generator().manual_seed(0))
        inputs = inputs.double().requires_grad_(True)
        model(inputs).sum().backward()
        norms.append(inputs.grad[:, 0].norm().item())
    assert norms[1] / norms[0] == pytest.approx(1.1**20, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_clipping_it_diverges_and_with_it_learns(compared, seed):
    _, rows = compared
    found = {row["arm"]: row for row in rows if row["seed"] == seed}
    assert found["unclipped"]["first_nonfinite"] is not None
    assert found["unclipped"]["first_nonfinite"] < 50
    assert math.isnan(found["unclipped"]["loss_last"])
    assert found["unclipped"]["largest_norm"] > 1e3
    assert found["unclipped"]["clipped_share"] == 0
    assert found["clipped"]["first_nonfinite"] is None
    assert found["clipped"]["largest_norm"] > 1e3
    assert found["clipped"]["clipped_share"] > 0.5
    variance = 1 / 3  # of the number that is wanted: the loss of a network that does not look at its input
    assert found["clipped"]["loss_last"] < variance / 2


def test_both_start_from_the_same_weights_and_batches(compared):
    out, _ = compared
    first = [load_run(out / f"{arm}-0").steps.iloc[0] for arm in ("clipped", "unclipped")]
    assert first[0]["loss"] == first[1]["loss"]
    assert first[0]["grad_norm"] == first[1]["grad_norm"]
    assert first[0]["grad_norm_clipped"] == pytest.approx(1.0, rel=1e-4)


def test_telemetry_opens_with_the_weights_norms(compared):
    out, _ = compared
    layers = load_run(out / "clipped-0").layers("param_norm")
    assert len(layers) == 400
    assert "rnn.weight_hh_l0" in layers


def test_a_folder_with_telemetry_is_left_alone(clipping, compared, capsys):
    out, _ = compared
    with pytest.raises(SystemExit):
        clipping.main(["--steps", "1", "--out", str(out)])
    assert "choose another --out" in capsys.readouterr().err


def test_the_table_names_both_arms(clipping, tmp_path, capsys):
    assert clipping.main(["--steps", "3", "--length", "10", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "| unclipped | 0 |" in printed
    assert "| clipped | 0 |" in printed
