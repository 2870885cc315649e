# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a step's row says, against what an observer of its own measured in the same training."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from yolo_gradstudy import GradStudyTrainer, RecordConfig, load_run
from yolo_gradstudy.statistics import AssignmentSums
from yolo_gradstudy.trainer import assigner_modules, inference_branch

from .small import train

BRANCHES = {"yolo26n.yaml": ("one2many", "one2one"), "yolo11n.yaml": ("one2many",)}


class ObservedTrainer(GradStudyTrainer):
    """Measures with torch's own functions what the recorder should have recorded, a dict a step."""

    def _setup_train(self):
        super()._setup_train()
        self.expected, self._open = [], {}
        criterion = self.model.criterion
        parts = {"one2many": criterion} if hasattr(criterion, "assigner") else vars(criterion)
        for branch in ("one2many", "one2one"):
            if branch in parts:
                parts[branch].assigner.register_forward_hook(self._see_assigned(branch))
        self.optimizer.register_step_pre_hook(self._see_clipped)

    def _add(self, name, value):
        self._open[name] = self._open.get(name, 0.0) + value

    def _see_assigned(self, branch):
        def see(module, inputs, outputs):
            if self.model.training and torch.is_grad_enabled():
                scores, chosen = outputs[2].double().numpy(), outputs[3].numpy()
                self._add(f"target_scores_{branch}", float(scores.sum()))
                self._add(f"positives_{branch}", int((scores.max(-1) > -1)[chosen.astype(bool)].sum()))

        return see

    def preprocess_batch(self, batch):
        batch = super().preprocess_batch(batch)
        self._add("images", batch["img"].shape[0])
        self._add("boxes", batch["bboxes"].shape[0])
        return batch

    def _see_clipped(self, optimizer, *_):
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self.expected[-1]["grad_norm_clipped"] = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))

    def optimizer_step(self):
        self.scaler.unscale_(self.optimizer)  # disabled on a CPU: does nothing
        copies = []
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                copies.append(nn.Parameter(parameter.detach().clone()))
                copies[-1].grad = parameter.grad.clone()
        before = [p.detach().clone() for p in self.model.parameters()]
        norms = {n: p.grad.double().norm().item() for n, p in self.model.named_parameters() if p.grad is not None}
        self._add("loss", float(self.loss.detach()))
        for name, item in self.loss_items.items():
            self._add(name, float(item))
        row = {
            **self._open,
            "epoch": self.epoch,
            "grad_max_abs": max(float(c.grad.abs().max()) for c in copies),
            "grad_nonfinite": float(sum((~c.grad.isfinite()).sum() for c in copies)),
            "param_norm": math.sqrt(sum(float(b.double().square().sum()) for b in before)),
            "grad_norm": torch.nn.utils.clip_grad_norm_(copies, 10.0).item(),  # clips the copies
            "norms": norms,
            "amp_scale": 1.0,
            "skipped": 0.0,
        }
        for i, group in enumerate(self.optimizer.param_groups):
            row[f"lr_pg{i}"], row[f"momentum_pg{i}"] = group["lr"], group["momentum"]
        self.expected.append(row)
        self._open = {}
        self._stepped = True
        super().optimizer_step()
        pairs = zip(self.model.parameters(), before, strict=True)
        row["update_norm"] = math.sqrt(sum(float((p.detach() - b).double().square().sum()) for p, b in pairs))

    def run_callbacks(self, event):
        super().run_callbacks(event)
        if event == "on_train_batch_start":
            self._stepped = False
        elif event == "on_train_batch_end" and not self._stepped:  # a batch whose gradients wait
            self._add("loss", float(self.loss.detach()))
            for name, item in self.loss_items.items():
                self._add(name, float(item))


@pytest.fixture(scope="module", params=list(BRANCHES))
def observed(request, small_yaml, tmp_path_factory):
    """The recorded run and the observer's rows: 3 epochs of 6 batches of 2, later two batches a step."""
    folder = tmp_path_factory.mktemp("observed") / "run"
    trainer = ObservedTrainer.using(RecordConfig(extremes_every=1, update_every=1, flush_every=4))
    yolo = train(
        trainer, small_yaml, folder, request.param, epochs=3, batch=2, nbs=4, warmup_epochs=1.0, imgsz=96, lr0=0.02
    )
    return request.param, load_run(folder), yolo.trainer.expected


def test_every_scalar_is_there(observed):
    model, run, _ = observed
    groups = range(len(run.meta["groups"]))
    names = {
        *("wall_time_s", "epoch", "images", "loss", "grad_norm", "grad_norm_clipped", "clip_coefficient"),
        *("grad_max_abs", "grad_nonfinite", "param_norm", "update_norm", "amp_scale", "skipped", "boxes"),
        *("box_loss", "cls_loss"),
        *(f"{name}_pg{i}" for i in groups for name in ("lr", "momentum")),
        *(f"{name}_{branch}" for branch in BRANCHES[model] for name in ("positives", "target_scores")),
    }
    assert names <= set(run.steps.columns)
    assert run.steps.notna().all(axis=None)
    assert len(groups) >= 3
    assert run.steps["wall_time_s"].is_monotonic_increasing
    assert run.meta["branches"] == list(BRANCHES[model])


def test_steps_are_counted_from_1(observed):
    _, run, expected = observed
    assert run.steps.index.tolist() == list(range(1, len(expected) + 1))


def test_gradient_norm_is_exactly_what_clipping_returns(observed):
    _, run, expected = observed
    assert run.steps["grad_norm"].tolist() == [row["grad_norm"] for row in expected]


def test_layer_norms_square_to_the_gradient_norm(observed):
    _, run, expected = observed
    layers = run.layers("grad_norm")
    assert np.sqrt((layers.astype("float64") ** 2).sum(axis=1)).to_numpy() == pytest.approx(
        run.steps["grad_norm"].to_numpy(), rel=1e-6
    )
    for step, row in zip(run.steps.index, expected, strict=True):
        recorded = layers.loc[step].dropna().to_dict()
        assert recorded.keys() == row["norms"].keys()
        assert recorded == pytest.approx(row["norms"], rel=1e-5, abs=1e-12)


def test_clipped_norm_is_that_of_the_gradients_the_optimizer_saw(observed):
    _, run, expected = observed
    assert run.steps["clip_coefficient"].lt(1).any(), "no step was clipped: this tests nothing"
    seen = [row["grad_norm_clipped"] for row in expected]
    assert run.steps["grad_norm_clipped"].to_numpy() == pytest.approx(seen, rel=1e-5)
    assert max(seen) == pytest.approx(10.0, rel=1e-4)
    assert run.steps["clip_coefficient"].to_numpy() == pytest.approx(
        [row["grad_norm_clipped"] / row["grad_norm"] for row in expected], rel=1e-5
    )


@pytest.mark.parametrize("name", ["grad_max_abs", "grad_nonfinite", "amp_scale", "skipped", "epoch", "images", "boxes"])
def test_scalar_is_exactly_what_was_seen(observed, name):
    _, run, expected = observed
    assert run.steps[name].tolist() == [row[name] for row in expected]


@pytest.mark.parametrize("name", ["param_norm", "update_norm"])
def test_norm_of_parameters_and_update(observed, name):
    _, run, expected = observed
    assert run.steps[name].to_numpy() == pytest.approx([row[name] for row in expected], rel=1e-5)


def test_learning_rate_and_momentum_of_each_group(observed):
    _, run, expected = observed
    for i in range(len(run.meta["groups"])):
        for name in (f"lr_pg{i}", f"momentum_pg{i}"):
            assert run.steps[name].to_numpy() == pytest.approx([row[name] for row in expected], rel=1e-6)
    assert run.steps["lr_pg0"].nunique() > 3  # the warm-up is seen
    assert run.steps["momentum_pg0"].nunique() > 3


def test_losses_are_summed_over_the_batches_of_a_step(observed):
    _, run, expected = observed
    images = run.steps["images"].tolist()
    assert images[0] == 2
    assert images[-1] == 4, "no step accumulated two batches: this tests nothing"
    for name in ("loss", "box_loss", "cls_loss"):
        assert run.steps[name].to_numpy() == pytest.approx([row[name] for row in expected], rel=1e-6)


def test_targets_of_each_branch(observed):
    model, run, expected = observed
    for branch in BRANCHES[model]:
        assert run.steps[f"positives_{branch}"].tolist() == [row[f"positives_{branch}"] for row in expected]
        assert run.steps[f"target_scores_{branch}"].to_numpy() == pytest.approx(
            [row[f"target_scores_{branch}"] for row in expected], rel=1e-5
        )
        assert run.steps[f"target_scores_{branch}"].gt(0).all()
    if len(BRANCHES[model]) == 2:
        assert not run.steps["positives_one2many"].equals(run.steps["positives_one2one"])


def test_accumulates_to_nbs(small_yaml, tmp_path):
    train(GradStudyTrainer, small_yaml, tmp_path / "run", epochs=3, batch=4, nbs=12, imgsz=32, warmup_epochs=0.0)
    assert load_run(tmp_path / "run").steps["images"].tolist() == [12, 12, 12]


def test_records_every_second_step(small_yaml, tmp_path):
    trainer = GradStudyTrainer.using(RecordConfig(every=2, parameter_every=0, update_every=0))
    train(trainer, small_yaml, tmp_path / "run", epochs=2, imgsz=32)
    run = load_run(tmp_path / "run")
    assert run.steps.index.tolist() == [2, 4, 6]
    assert not {"param_norm", "update_norm"} & set(run.steps.columns)
    assert run.layers("param_norm").empty
    assert len(run.layers("grad_norm")) == 3


def test_assignment_sums_by_hand():
    sums, assigner = AssignmentSums(), nn.Identity()
    see = sums.hook("one2one", counts_boxes=True)
    boxes = torch.tensor([[[1], [1]], [[1], [0]]], dtype=torch.bool)
    for _ in range(2):
        scores = torch.tensor([[[0.5, 0.25], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
        positives = torch.tensor([[True, False], [True, False]])
        see(assigner, (0, 0, 0, 0, 0, boxes), (0, 0, scores, positives, 0))
    with torch.no_grad():  # a validation
        see(assigner, (0, 0, 0, 0, 0, boxes), (0, 0, scores, positives, 0))
    taken = {name: float(value) for name, value in sums.take().items()}
    assert taken == {"target_scores_one2one": 3.5, "positives_one2one": 4.0, "boxes": 6.0}
    assert sums.take() == {}


@pytest.mark.parametrize(
    ("branches", "nms", "branch"),
    [
        (("one2many", "one2one"), None, "one2many"),
        (("one2many", "one2one"), True, "one2many"),
        (("one2many", "one2one"), False, "one2one"),
        (("one2many",), None, "one2many"),
        (("one2many",), False, "one2many"),
        ((), None, None),
    ],
)
def test_inference_branch(branches, nms, branch):
    assert inference_branch({b: nn.Identity() for b in branches}, nms) == branch


@pytest.mark.parametrize("nms", [None, False])
def test_inference_branch_is_the_one_that_validation_decoded(small_yaml, tmp_path, nms):
    yolo = train(GradStudyTrainer, small_yaml, tmp_path / "run", epochs=1, imgsz=32, batch=12, nms=nms)
    run = load_run(tmp_path / "run")
    decoded = "one2one" if yolo.trainer.ema.ema.end2end else "one2many"  # as the validator set it
    assert run.meta["inference_branch"] == decoded == ("one2one" if nms is False else "one2many")


def test_a_criterion_without_assigner_has_no_branch():
    assert assigner_modules(nn.CrossEntropyLoss()) == {}
