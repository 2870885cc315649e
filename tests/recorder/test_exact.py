# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is on disk, against oracles that sum in float64 or count in Python."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from yolo_gradstudy import GradRecorder, RecordConfig, load_run

from .loop import convnet, everything, images, record_gradients, record_step, sgd, summed_norm

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FLOAT32_EPS = float(torch.finfo(torch.float32).eps)


def torch_total(gradients) -> torch.Tensor:
    """What clipping returns: torch's own function on copies."""
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return torch.nn.utils.clip_grad_norm_(parameters, 1.0)


# Overflow and underflow ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e38, 3e38, 1e20, 1.0, 1e-15, 1e-20, 1e-25, 1e-38, 1e-44])
def test_finite_gradients_have_finite_norms_that_are_not_zero(tmp_path, size):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(50, 7, generator=generator).clamp(-1, 1) * size, torch.full((9,), size)]
    total, run = record_gradients(tmp_path, gradients)
    norms = run.layers("grad_norm").loc[1]
    oracle = [float(g.double().norm()) for g in gradients]
    assert norms.tolist() == pytest.approx(oracle, rel=1e-6, abs=0)
    assert run.steps.grad_norm[1] == pytest.approx(math.hypot(*oracle), rel=1e-6, abs=0)
    assert run.steps.grad_nonfinite[1] == 0
    assert run.steps.grad_max_abs[1] == pytest.approx(
        max(float(g.double().abs().max()) for g in gradients), rel=1e-6, abs=0
    )
    assert torch.equal(total, torch_total(gradients)), "training must see the number that it always saw"
    assert math.isinf(total) == (size >= 1e20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_are_not_rounded_to_it(tmp_path, dtype):
    gradients = [torch.full((1000,), 1.001).to(dtype), torch.full((70_000,), 300.0).to(dtype)]
    total, run = record_gradients(tmp_path / "half", gradients)
    assert torch.equal(total, torch_total(gradients))
    oracle = [float(g.double().norm()) for g in gradients]
    assert run.layers("grad_norm").loc[1].tolist() == pytest.approx(oracle, rel=1e-6)
    assert run.steps.grad_norm[1] == pytest.approx(math.hypot(*oracle), rel=1e-6)
    # also beside parameters of float32, whose dtype all norms take
    _, run = record_gradients(tmp_path / "mixed", [*gradients, torch.ones(3)])
    assert run.layers("grad_norm").loc[1].tolist() == pytest.approx([*oracle, math.sqrt(3)], rel=1e-6)
    assert run.steps.grad_norm[1] == pytest.approx(math.hypot(*oracle, math.sqrt(3)), rel=1e-6)


def test_clipped_norm_is_the_norm_after_clipping(tmp_path):
    for name, size in {"small": 1e-3, "large": 1e3, "overflows": 1e30}.items():
        model = nn.ParameterList([nn.Parameter(torch.zeros(40)), nn.Parameter(torch.zeros(3, 5))])
        generator = torch.Generator().manual_seed(0)
        for parameter in model:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * size
        recorder = GradRecorder(model, sgd(model), tmp_path / name)
        total = recorder.observe(clip_norm=10.0)
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), 10.0, total)
        recorder.close()
        steps = load_run(tmp_path / name).steps.loc[1]
        assert steps.grad_norm_clipped == pytest.approx(summed_norm([p.grad for p in model]), rel=1e-5), name
        ratio = 0.0 if math.isinf(total) else steps.grad_norm_clipped / steps.grad_norm
        assert steps.clip_coefficient == pytest.approx(ratio, rel=1e-5), name


def test_without_clipping_both_norms_are_one(tmp_path):
    _, run = record_gradients(tmp_path, [torch.full((4,), 1e30)])
    assert run.steps.grad_norm_clipped[1] == run.steps.grad_norm[1] == pytest.approx(2e30)
    assert "clip_coefficient" not in run.steps


# Counting -------------------------------------------------------------------------------------------------

BAD = (math.nan, math.inf, -math.inf)
shapes = st.lists(st.integers(1, 6), min_size=0, max_size=3).map(tuple)


@st.composite
def gradient_tensors(draw):
    """A finite tensor of any shape, dtype and size, and bad values at some of its places."""
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    count = math.prod(shape)
    largest = float(torch.finfo(dtype).max)
    exponent = draw(st.integers(-6, int(math.log10(largest)) - 1))
    values = draw(st.lists(st.floats(-9, 9, width=16), min_size=count, max_size=count))
    flat = (torch.tensor(values, dtype=torch.float64) * 10.0 ** min(exponent, 150)).to(dtype)
    places = draw(st.sets(st.integers(0, count - 1), max_size=4)) if draw(st.booleans()) else set()
    for place in places:
        flat[place] = draw(st.sampled_from(BAD))
    return flat.reshape(shape)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A new folder at each call: hypothesis asks for many within one test."""
    root = tmp_path_factory.mktemp("examples")
    return lambda: root / str(len(list(root.iterdir())))


@given(gradients=st.lists(st.none() | gradient_tensors(), min_size=1, max_size=4))
@settings(max_examples=50)
def test_counts_norms_and_extremes_of_any_gradients(folders, gradients):
    total, run = record_gradients(folders(), gradients)
    there = [g for g in gradients if g is not None]
    steps, norms = run.steps.loc[1], run.layers("grad_norm")
    if not there:
        assert steps.grad_norm == total == 0
        assert norms.empty
        assert "grad_nonfinite" not in steps
        return
    assert steps.grad_nonfinite == sum(not math.isfinite(x) for g in there for x in g.double().reshape(-1).tolist())
    assert list(norms) == [str(i) for i, g in enumerate(gradients) if g is not None]
    for name, value in norms.loc[1].items():
        expected = gradients[int(name)].double().norm().item()
        assert value == pytest.approx(expected, rel=1e-5, nan_ok=True), name
        assert math.isfinite(value) == bool(gradients[int(name)].isfinite().all())
    whole = torch.cat([g.double().reshape(-1) for g in there])
    assert steps.grad_norm == pytest.approx(whole.norm().item(), rel=1e-5, nan_ok=True)
    assert steps.grad_max_abs == pytest.approx(whole.abs().max().item(), rel=1e-6, nan_ok=True)
    assert total.dtype == torch_total(there).dtype
    assert float(total) == pytest.approx(float(torch_total(there)), rel=1e-6, nan_ok=True)


def test_an_empty_parameter_is_no_obstacle(tmp_path):
    _, run = record_gradients(tmp_path, [torch.zeros(0, 3), torch.full((2,), -7.0)], everything())
    assert run.steps.grad_max_abs[1] == 7
    assert run.layers("grad_norm").loc[1].tolist() == pytest.approx([0, math.sqrt(98)])


# Missing is not zero, and not NaN -------------------------------------------------------------------------


def test_a_missing_gradient_is_missing_and_a_measured_nan_is_there(tmp_path):
    model = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(3)])
    given_ = [
        [torch.ones(2), None, torch.zeros(2)],
        [None, torch.tensor([math.nan, 1.0]), None],
        [None, None, torch.tensor([math.inf, 1.0])],
        [torch.full((2,), 2.0), torch.ones(2), torch.ones(2)],
    ]
    with GradRecorder(model, sgd(model), tmp_path) as recorder:
        for gradients in given_:
            for parameter, gradient in zip(model, gradients, strict=True):
                parameter.grad = gradient
            recorder.observe()
            recorder.stepped()
    nan, root2 = math.nan, math.sqrt(2)
    wide = load_run(tmp_path).layers("grad_norm")
    np.testing.assert_allclose(
        wide.to_numpy(),
        [[root2, nan, 0.0], [nan, nan, nan], [nan, nan, math.inf], [2 * root2, root2, root2]],
        rtol=1e-6,
    )
    (part,) = (tmp_path / "telemetry").glob("grad_norm-*.parquet")
    long = pd.read_parquet(part)
    assert list(zip(long.step, long.name, strict=True)) == [
        (1, "0"), (1, "2"), (2, "1"), (3, "2"), (4, "0"), (4, "1"), (4, "2")
    ]  # fmt: skip
    assert math.isnan(long.grad_norm[2])
    assert load_run(tmp_path).steps.grad_nonfinite.tolist() == [0, 1, 1, 0]


def test_steps_without_any_gradient_are_recorded(tmp_path):
    _, run = record_gradients(tmp_path, [None, None], everything())
    assert run.steps.index.tolist() == [1]
    assert run.layers("param_norm").loc[1].tolist() == [1, 1]
    assert run.layers("grad_norm").empty


# Updates --------------------------------------------------------------------------------------------------


def test_update_norm_and_ratio(tmp_path):
    model = convnet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with GradRecorder(model, optimizer, tmp_path, everything()) as recorder:
        expected = []
        for seed in range(3):
            before = [p.detach().clone() for p in model.parameters()]
            model(images(seed=seed)).square().mean().backward()
            recorder.observe()
            optimizer.step()
            recorder.stepped()
            optimizer.zero_grad()
            moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
            expected.append((summed_norm(moved), summed_norm(before), [summed_norm([b]) for b in before], moved))
    run = load_run(tmp_path)
    for step, (update, parameters, norms, moved) in enumerate(expected, 1):
        assert run.steps.update_norm[step] == pytest.approx(update, rel=1e-5)
        assert run.steps.param_norm[step] == pytest.approx(parameters, rel=1e-6)
        assert run.layers("param_norm").loc[step].tolist() == pytest.approx(norms, rel=1e-6)
        with np.errstate(divide="ignore"):
            ratios = np.array([summed_norm([m]) for m in moved]) / np.array(norms)
        assert run.layers("update_ratio").loc[step].tolist() == pytest.approx(ratios.tolist(), rel=1e-5)
    assert np.isinf(run.layers("update_ratio").loc[1, "1.bias"]), "a bias that was zero and moved"


def test_updates_follow_parameters_whose_data_is_replaced(tmp_path):
    model = nn.Linear(2, 1, bias=False)
    optimizer = sgd(model, lr=1.0)
    with GradRecorder(model, optimizer, tmp_path, everything()) as recorder:
        for _ in range(2):
            model.weight.data = torch.tensor([[3.0, 4.0]])
            model.weight.grad = torch.tensor([[0.3, 0.4]])
            recorder.observe()
            optimizer.step()
            recorder.stepped()
    assert load_run(tmp_path).layers("update_ratio")["weight"].tolist() == pytest.approx([0.1, 0.1], rel=1e-5)


def test_rates_and_momenta_of_each_group(tmp_path):
    model = convnet()
    first, *rest = model.parameters()
    for name, optimizer, momenta in (
        ("sgd", torch.optim.SGD([{"params": [first], "lr": 0.3}, {"params": rest}], lr=0.1, momentum=0.8), (0.8, 0.8)),
        ("adam", torch.optim.Adam([{"params": [first], "betas": (0.7, 0.99)}, {"params": rest}], lr=0.1), (0.7, 0.9)),
    ):
        with GradRecorder(model, optimizer, tmp_path / name) as recorder:
            recorder.observe()
            optimizer.param_groups[1]["lr"] = 0.05  # as a scheduler does
            recorder.observe()
        steps = load_run(tmp_path / name).steps
        assert steps.lr_pg0.tolist() == pytest.approx([0.3 if name == "sgd" else 0.1] * 2)
        assert steps.lr_pg1.tolist() == pytest.approx([0.1, 0.05])
        assert (steps.momentum_pg0[1], steps.momentum_pg1[1]) == pytest.approx(momenta)


def test_rates_that_are_tensors_and_rates_that_an_optimizer_leaves_open(tmp_path):
    """As capturable optimizers have them, and as Adafactor does, which has a rate and no β₁ of its own."""
    model = convnet()
    first, second, *rest = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}, {"params": rest}], lr=0.1, momentum=0.9)
    groups = optimizer.param_groups
    groups[0].update(lr=torch.tensor(0.3), momentum=torch.tensor([0.8]))
    groups[1].update(lr=None, momentum=None)
    groups[2].update(betas=(None, 0.999))
    with GradRecorder(model, optimizer, tmp_path) as recorder:
        recorder.observe()
        groups[0]["lr"].fill_(0.15)
        groups[1].update(betas=(torch.tensor(0.7), 0.9))
        groups[2]["lr"] = torch.tensor(0.2)  # a number so far
        recorder.observe()
    steps = load_run(tmp_path).steps
    assert steps.lr_pg0.tolist() == pytest.approx([0.3, 0.15])
    assert steps.momentum_pg0.tolist() == pytest.approx([0.8, 0.8])
    assert steps.lr_pg2.tolist() == pytest.approx([0.1, 0.2])
    assert math.isnan(steps.momentum_pg1[1])
    assert steps.momentum_pg1[2] == pytest.approx(0.7)
    assert not {"lr_pg1", "momentum_pg2"} & set(steps)


def test_many_groups_whose_rates_are_tensors_leave_room_for_other_scalars(tmp_path):
    model = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(40)])
    optimizer = torch.optim.SGD([{"params": [p], "lr": torch.tensor(0.5)} for p in model], momentum=0.9)
    for group in optimizer.param_groups:
        group["momentum"] = torch.tensor(0.9)
    with GradRecorder(model, optimizer, tmp_path) as recorder:
        recorder.observe(**{f"value_{i}": torch.ones(()) for i in range(20)})
    steps = load_run(tmp_path).steps
    assert steps.filter(regex="^lr_pg").loc[1].tolist() == [0.5] * 16
    assert steps.value_19[1] == 1


OWN_NAMES = (
    "step", "wall_time_s", "grad_norm", "grad_norm_clipped", "grad_norm_per_image", "grad_max_abs", "grad_nonfinite",
    "clip_coefficient", "param_norm", "update_norm", "lr_pg0", "momentum_pg12",
)  # fmt: skip


@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_scalar_by_the_name_of_the_recorders_own_is_refused(tmp_path, name):
    model = convnet()
    with GradRecorder(model, sgd(model), tmp_path, everything()) as recorder:
        recorder.observe(lr_pg=7.0, mine=1.0)
        with pytest.raises(ValueError, match=f"observe.. got '{name}', .* 'my_{name}'"):
            recorder.observe(**{"mine": 2.0, name: 7.0})
        with pytest.raises(ValueError, match=name):
            recorder.observe(**{name: torch.tensor(7.0)})
        recorder.observe(mine=3.0)
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == [1, 2], "a call that is refused is no step"
    assert run.steps.mine.tolist() == [1, 3]
    assert run.events[-1]["event"] == "finished"


def test_what_the_recorder_fills_can_not_be_given(tmp_path):
    """A new scalar of the recorder's own must be refused as well."""
    model = convnet()
    optimizer = sgd(model, momentum=0.9)
    with GradRecorder(model, optimizer, tmp_path, everything()) as recorder:
        model(images()).square().mean().backward()
        recorder.observe(loss=1.0, images=4, epoch=0, clip_norm=1.0)
        optimizer.step()
        recorder.stepped()
    own = set(load_run(tmp_path).steps.reset_index()) - {"loss", "images", "epoch", "amp_scale", "skipped"}
    assert {name.replace("12", "0") for name in OWN_NAMES} == own


@pytest.mark.parametrize("epoch", [math.nan, math.inf, 0.75, -1.0, 1e12])
def test_an_epoch_may_be_a_fraction_or_no_number(tmp_path, epoch):
    model = convnet()
    with GradRecorder(model, sgd(model), tmp_path) as recorder, warnings.catch_warnings():
        warnings.simplefilter("error")
        for images_ in (4, 5e9):
            recorder.observe(epoch=epoch, images=images_, loss=math.nan)  # of which an incident tells, with its epoch
            recorder.observe(epoch=3)
    run = load_run(tmp_path)
    assert run.steps.epoch.tolist() == pytest.approx([epoch, 3, epoch, 3], nan_ok=True)
    assert run.steps.images.tolist() == pytest.approx([4, math.nan, 5e9, math.nan], nan_ok=True)
    assert run.events[-1]["event"] == "finished"
    assert run.incidents[0]["epoch"] == pytest.approx(epoch, nan_ok=True)


def test_whole_epochs_are_stored_as_such(tmp_path):
    _, run = record_gradients(tmp_path, [torch.ones(1)], epoch=2, images=3)
    assert run.steps.dtypes[["epoch", "images"]].eq("int32").all()
    assert isinstance(run.steps.epoch[1].item(), int)


# Sparse gradients -----------------------------------------------------------------------------------------


class Words(nn.Module):
    """Looks words up; a word that comes several times has as many rows in a sparse gradient."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(10, 3, sparse=sparse)
        self.head = nn.Linear(3, 2)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(words))


def test_sparse_gradients_are_measured_as_dense_ones_are(tmp_path):
    found = {}
    for sparse in (False, True):
        model = Words(sparse)
        optimizer = sgd(model)
        with GradRecorder(model, optimizer, tmp_path / str(sparse), everything()) as recorder:
            for size in (1.0, 1e-25, 1e24, math.inf):
                model(torch.tensor([1, 1, 2])).sum().mul(size).backward()
                if math.isinf(size):
                    model.head.weight.grad.zero_()
                assert model.words.weight.grad.is_sparse == sparse
                recorder.observe()
                optimizer.zero_grad()
                recorder.stepped()
        found[sparse] = load_run(tmp_path / str(sparse))
    columns = ["grad_norm", "grad_max_abs", "grad_nonfinite"]
    dense, thin = (found[s].steps[columns].to_numpy() for s in (False, True))
    np.testing.assert_allclose(thin, dense, rtol=1e-6)
    assert np.isfinite(dense[:3]).all()
    assert dense[3, 2] == 8, "six elements of two words, and two of a bias"
    np.testing.assert_allclose(found[True].layers("grad_norm"), found[False].layers("grad_norm"), rtol=1e-6)


def test_numbers_of_the_host_keep_their_size(tmp_path):
    _, run = record_gradients(tmp_path, [torch.ones(1)], loss=1e39, tiny=1e-42, nothing=math.nan, images=3, epoch=2)
    assert run.steps.loc[1, ["loss", "tiny", "images", "epoch"]].tolist() == [1e39, 1e-42, 3, 2]
    (part,) = (tmp_path / "telemetry").glob("steps-*.parquet")
    assert math.isnan(pd.read_parquet(part).nothing[0])


# How often ------------------------------------------------------------------------------------------------


def test_every_quantity_keeps_its_own_rhythm(tmp_path):
    model = convnet()
    optimizer = sgd(model)
    config = RecordConfig(every=3, extremes_every=2, parameter_every=1, update_every=2, flow_every=4, flush_every=2)
    with GradRecorder(model, optimizer, tmp_path, config) as recorder:
        for seed in range(12):
            model(images(seed=seed)).square().mean().backward()
            assert float(recorder.observe()) == pytest.approx(
                summed_norm([p.grad for p in model.parameters()]), rel=1e-5
            )
            optimizer.step()
            recorder.stepped()
            optimizer.zero_grad()
    run = load_run(tmp_path)
    assert run.steps.index.tolist() == run.layers("grad_norm").index.tolist() == [3, 6, 9, 12]
    assert run.layers("param_norm").index.tolist() == [3, 6, 9, 12]
    assert run.layers("update_ratio").index.tolist() == [3, 9]
    assert run.steps.grad_max_abs.dropna().index.tolist() == [3, 9]
    assert run.flow("activation_rms").index.tolist() == [1, 5, 9], "flow keeps its rhythm between recorded steps"


def test_never_is_never(tmp_path):
    config = RecordConfig(extremes_every=0, parameter_every=0, update_every=0, flow_every=0)
    _, run = record_step(tmp_path, convnet(), lambda m: m(images()).mean(), config)
    assert not {"grad_max_abs", "param_norm", "update_norm"} & set(run.steps)
    assert run.layers("param_norm").empty
    assert run.layers("update_ratio").empty
    assert run.flow("forward_gain").empty


# A real step of YOLO26n -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yolo_step(tmp_path_factory):
    """One recorded step of YOLO26n on random boxes, its gradients, and those of the same step in float64."""
    folder = tmp_path_factory.mktemp("yolo")

    def step(dtype):
        torch.manual_seed(0)
        model = DetectionModel("yolo26n.yaml", verbose=False)
        model.args = get_cfg()
        model = model.to(dtype).train()
        generator = torch.Generator().manual_seed(0)
        batch = {
            "img": torch.rand(4, 3, 64, 64, generator=generator).to(dtype),
            "cls": torch.randint(0, 80, (10, 1), generator=generator).to(dtype),
            "bboxes": torch.rand(10, 4, generator=generator).to(dtype) * 0.4 + 0.3,
            "batch_idx": torch.arange(10).remainder(4).sort().values.to(dtype),
        }
        return model, batch

    model, batch = step(torch.float32)
    total, run = record_step(folder, model, lambda m: m(batch)[0].sum(), everything())
    gradients = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    total_of_torch = torch_total([p.grad for p in model.parameters() if p.grad is not None])
    wide, wide_batch = step(torch.float64)
    torch.set_default_dtype(torch.float64)  # Ultralytics' loss makes tensors of it
    try:
        wide(wide_batch)[0].sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    in_float64 = {n: p.grad for n, p in wide.named_parameters() if p.grad is not None}
    return total, run, gradients, total_of_torch, in_float64


def test_norms_of_a_real_yolo_step(yolo_step):
    total, run, gradients, total_of_torch, _ = yolo_step
    norms = run.layers("grad_norm").loc[1]
    assert list(norms.index) == list(gradients)
    assert len(norms) > 350
    oracle = [float(g.norm()) for g in gradients.values()]
    assert norms.tolist() == pytest.approx(oracle, rel=1e-5, abs=0)
    assert torch.equal(total, total_of_torch)
    assert run.steps.grad_norm[1] == pytest.approx(math.hypot(*oracle), rel=1e-6)
    assert run.steps.grad_max_abs[1] == pytest.approx(max(float(g.abs().max()) for g in gradients.values()), rel=1e-7)


def test_norms_of_a_real_yolo_step_against_one_in_float64(yolo_step):
    _, run, _, _, in_float64 = yolo_step
    norms = run.layers("grad_norm").loc[1]
    oracle = pd.Series({n: float(g.norm()) for n, g in in_float64.items()})
    relative = ((norms - oracle).abs() / oracle.clip(lower=1e-6 * oracle.max())).max()
    assert relative < 1e-2, "float32 rounds, and nothing else does"
    assert run.steps.grad_norm[1] == pytest.approx(math.hypot(*oracle), rel=1e-4)


def test_flow_of_a_real_yolo_step(yolo_step):
    _, run, *_ = yolo_step
    rms = run.flow("output_grad_rms").loc[1]
    numbered = [f"model.{i}" for i in range(23)]
    assert set(numbered) <= set(rms.index)
    assert (rms[numbered] > 0).all()
    concats = ["model.12", "model.15", "model.18", "model.21"]
    gains = run.flow("backward_gain")
    assert not set(concats) & set(gains), "a Concat has several inputs"
    assert set(concats) <= set(run.flow("activation_rms"))
