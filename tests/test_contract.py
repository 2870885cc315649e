# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this package relies on in Ultralytics. A failure names the version and the attribute that changed.

`scripts/compat.sh` runs this file with other versions of Ultralytics.
"""

import inspect
import math
from collections.abc import Mapping

import pytest
import torch
import ultralytics
from torch import nn
from ultralytics import YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.engine.validator import BaseValidator
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import BaseModel, DetectionModel
from ultralytics.utils.callbacks import get_default_callbacks
from ultralytics.utils.tal import TaskAlignedAssigner
from ultralytics.utils.torch_utils import ModelEMA, autocast

from yolo_gradstudy import GradStudyTrainer, gradstudy_trainer
from yolo_gradstudy.trainer import ULTRALYTICS_CLIP_NORM, assigner_modules, inference_branch

TASKS = ("detect", "segment", "pose", "obb", "classify")


def said(attribute, what):
    return f"Ultralytics {ultralytics.__version__}: {attribute} {what}"


def parameters_of(function):
    return list(inspect.signature(function).parameters)


# Methods and callbacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("get_model", ["self", "cfg", "weights", "verbose"]),
        ("_setup_train", ["self"]),
        ("optimizer_step", ["self"]),
        ("preprocess_batch", ["self", "batch"]),
        ("run_callbacks", ["self", "event"]),
        ("label_loss_items", ["self", "loss_items", "prefix"]),
        ("train", ["self"]),
        ("validate", ["self"]),
        ("_model_train", ["self"]),
        ("build_optimizer", ["self", "model", "name", "lr", "momentum", "decay", "iterations"]),
    ],
)
@pytest.mark.parametrize("task", TASKS)
def test_method_that_is_overridden_or_called(task, name, parameters):
    trainer = YOLO("yolo26n.yaml").task_map[task]["trainer"]
    attribute = f"{trainer.__name__}.{name}"
    assert hasattr(trainer, name), said(attribute, "is gone")
    found = parameters_of(getattr(trainer, name))
    assert found == parameters, said(attribute, f"takes {found}, not {parameters}")


@pytest.mark.parametrize(
    ("name", "parameters", "without"),
    [
        ("_build_train_pipeline", ["self"], "batches that an out-of-memory retry dropped are not told apart"),
        ("_handle_nan_recovery", ["self", "epoch"], "a recovery from NaN leaves no event"),
        ("_get_warmup_iterations", ["self", "num_batches"], "that a warm-up is missing is told by warmup_epochs alone"),
    ],
)
def test_method_that_may_be_missing(name, parameters, without):
    if not hasattr(BaseTrainer, name):
        pytest.skip(said(f"BaseTrainer.{name}", f"is not there: {without}"))
    assert parameters_of(getattr(BaseTrainer, name)) == parameters, said(f"BaseTrainer.{name}", "takes other arguments")
    calls = inspect.getsource(BaseTrainer).count(f"self.{name}(")
    assert calls, said(f"BaseTrainer.{name}", "is not called any more")


@pytest.mark.parametrize("attribute", ["lf", "stop", "scheduler", "start_epoch", "train_loader", "accumulate"])
def test_attribute_that_is_read_or_set(attribute):
    source = inspect.getsource(BaseTrainer)
    assert f"self.{attribute}" in source, said(f"BaseTrainer.{attribute}", "is gone")


def test_groups_keep_the_rate_that_they_begin_with():
    """`initial_lr` is torch's, of a scheduler; Ultralytics' warm-up reads it, and so does an ablation of it."""
    assert "initial_lr" in inspect.getsource(BaseTrainer._do_train), said("BaseTrainer._do_train", "has no initial_lr")


@pytest.mark.parametrize("event", ["on_train_batch_end", "on_train_epoch_end", "on_train_end", "teardown"])
def test_callback(event):
    assert event in get_default_callbacks(), said(f"callback {event}", "is gone")
    source = inspect.getsource(BaseTrainer)
    assert f'self.run_callbacks("{event}")' in source, said(f"callback {event}", "is not run by BaseTrainer")


def test_batch_end_comes_after_the_step():
    source = inspect.getsource(BaseTrainer._do_train)
    places = [source.find(what) for what in ("preprocess_batch(", "self.optimizer_step()", '"on_train_batch_end"')]
    assert -1 not in places, said("BaseTrainer._do_train", f"lacks what is looked for: {places}")
    assert places == sorted(places), said("BaseTrainer._do_train", "steps in another order")


def test_every_task_has_a_trainer():
    task_map = YOLO("yolo26n.yaml").task_map
    for task in TASKS:
        trainer = task_map.get(task, {}).get("trainer")
        assert trainer is not None, said("YOLO.task_map", f"has no trainer for {task}")
        assert issubclass(gradstudy_trainer(trainer), BaseTrainer)


@pytest.mark.parametrize("name", ["optimizer", "lr0", "nbs", "warmup_epochs", "warmup_bias_lr", "nms", "amp", "seed"])
def test_argument(name):
    assert name in DEFAULT_CFG_DICT, said(f"argument {name}", "is gone")


# The step ----------------------------------------------------------------------------------------------


class BareTrainer(DetectionTrainer):
    """The real trainer, set up without a data set: `get_dataset` and `_setup_train` alone are replaced."""

    def get_dataset(self):
        return {"nc": 3, "channels": 3, "names": {0: "a", 1: "b", 2: "c"}, "train": None, "val": None}

    def _setup_train(self):
        self.setup_model()
        self.model.to(self.device)
        self.set_model_attributes()
        self.amp = False
        self.scaler = torch.amp.GradScaler("cuda", enabled=False)
        self.optimizer = self.build_optimizer(self.model, self.args.optimizer, self.args.lr0, self.args.momentum)
        self.ema = ModelEMA(self.model)
        self.epoch = 0
        self.loss = torch.tensor(1.0)
        self.loss_items = {"box_loss": torch.tensor(0.5), "cls_loss": torch.tensor(0.5)}


def stepped_states(trainer_class, optimizer, scale, folder):
    """The states after three steps with the same gradients: one parameter in five has none."""
    overrides = {
        **{"model": "yolo26n.yaml", "data": "none.yaml", "optimizer": optimizer, "lr0": 0.05, "device": "cpu"},
        **{"project": str(folder), "name": trainer_class.__name__, "seed": 0, "pretrained": False},
    }
    trainer = trainer_class(overrides=overrides)
    trainer._setup_train()
    generator = torch.Generator().manual_seed(0)
    norms = []
    for _ in range(3):
        for i, parameter in enumerate(p for p in trainer.model.parameters() if p.requires_grad):
            if i % 5:
                parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        norms.append(
            math.sqrt(sum(float(p.grad.square().sum()) for p in trainer.model.parameters() if p.grad is not None))
        )
        trainer.optimizer_step()
    assert all(p.grad is None for p in trainer.model.parameters()), said("optimizer_step", "leaves gradients behind")
    assert trainer.ema.updates == 3, said("optimizer_step", "does not update the EMA once a step")
    trainer.run_callbacks("teardown")
    return norms, [trainer.model.state_dict(), trainer.ema.ema.state_dict(), trainer.optimizer.state_dict()]


def assert_same(one, other, where):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


@pytest.mark.parametrize(
    ("optimizer", "scale", "clips"),
    # MuSGD is slow on a CPU, and the clip comes before whatever the optimizer is.
    [("SGD", 1e-4, False), ("SGD", 1.0, True), ("AdamW", 1e-4, False), ("AdamW", 1.0, True), ("MuSGD", 1.0, True)],
)
def test_our_step_is_theirs_bit_by_bit(optimizer, scale, clips, tmp_path):
    norms, theirs = stepped_states(BareTrainer, optimizer, scale, tmp_path)
    _, ours = stepped_states(gradstudy_trainer(BareTrainer), optimizer, scale, tmp_path)
    assert all((norm > ULTRALYTICS_CLIP_NORM) is clips for norm in norms), "this tests only one side of the clip"
    for name, one, other in zip(("weights", "EMA", "optimizer"), theirs, ours, strict=True):
        where = said("BaseTrainer.optimizer_step", f"({optimizer}, gradient norm {norms[0]:.2g}) gives other {name}")
        assert_same(one, other, where)


def test_optimizer_is_none_until_it_is_built():
    """Told apart by it: the first call of `_build_train_pipeline`, and those of an out-of-memory retry."""
    if not hasattr(BaseTrainer, "_build_train_pipeline"):
        pytest.skip(said("BaseTrainer._build_train_pipeline", "is not there"))
    assert "self.optimizer = None" in inspect.getsource(BaseTrainer.__init__), said(
        "BaseTrainer.optimizer", "is not None before it is built"
    )


def test_clip_norm_is_what_we_think():
    source = inspect.getsource(BaseTrainer.optimizer_step)
    literal = f"max_norm={ULTRALYTICS_CLIP_NORM}"
    assert literal in source, said("BaseTrainer.optimizer_step", f"does not clip at the literal {literal}")


def test_step_does_what_ours_does_in_the_same_order():
    words = ("scaler.unscale_", "clip_grad_norm_", "scaler.step", "scaler.update", "zero_grad", "ema.update")
    places = [inspect.getsource(BaseTrainer.optimizer_step).find(word) for word in words]
    assert -1 not in places, said("BaseTrainer.optimizer_step", f"lacks one of {words}")
    assert places == sorted(places), said("BaseTrainer.optimizer_step", "does its work in another order")


def test_torch_clips_by_a_norm_that_is_given():
    assert hasattr(torch.nn.utils, "clip_grads_with_norm_"), f"torch {torch.__version__} has no clip_grads_with_norm_"


def test_autocast_takes_a_dtype():
    """How a run on a CPU gets half precision."""
    if "dtype" not in inspect.getsource(autocast):
        pytest.skip(said("torch_utils.autocast", "takes no dtype: precision can't be set on a CPU"))
    with autocast(torch.float16, device="cpu"):
        assert torch.is_autocast_enabled("cpu"), said("torch_utils.autocast", "is off for a dtype")
        assert torch.get_autocast_dtype("cpu") == torch.float16, said("torch_utils.autocast", "takes another dtype")
    source = inspect.getsource(BaseTrainer._do_train)
    assert "device=self.device.type" in source, said("BaseTrainer._do_train", "does not tell autocast the device")
    assert "self.amp" in source, said("BaseTrainer.amp", "is not what autocast gets")


# Losses and assigners ----------------------------------------------------------------------------------

BATCH = {
    "img": torch.zeros(2, 3, 64, 64),
    "cls": torch.tensor([[0.0], [1.0], [2.0]]),
    "bboxes": torch.tensor([[0.5, 0.5, 0.6, 0.6], [0.4, 0.4, 0.5, 0.5], [0.6, 0.6, 0.5, 0.5]]),
    "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
}


def detection_model(name):
    torch.manual_seed(0)
    model = DetectionModel(name, nc=3, verbose=False)
    model.args = get_cfg()
    return model.train()


@pytest.mark.parametrize(
    ("name", "branches"), [("yolo26n.yaml", ["one2many", "one2one"]), ("yolo11n.yaml", ["one2many"])]
)
def test_assigners_stand_where_they_are_looked_for(name, branches):
    model = detection_model(name)
    assert hasattr(model, "init_criterion"), said("DetectionModel.init_criterion", "is gone")
    model.criterion = model.init_criterion()
    place = "criterion.<branch>.assigner" if len(branches) == 2 else "criterion.assigner"
    found = assigner_modules(model.criterion)
    assert list(found) == branches, said(place, f"of {name} gives {list(found)}")
    seen = {}
    for branch, assigner in found.items():
        assigner.register_forward_hook(lambda *seen_now, branch=branch: seen.update({branch: seen_now}))
    loss, items = model(BATCH)
    assert list(seen) == branches, said(place, "is not called as a module")
    for assigner, inputs, outputs in seen.values():
        assert isinstance(assigner, TaskAlignedAssigner), said(place, f"is a {type(assigner).__name__}")
        assert len(inputs) >= 6, said("TaskAlignedAssigner.forward", "gets its arguments by name: hooks see none")
        assert inputs[5].shape == (2, 2, 1), said("TaskAlignedAssigner.forward", "has another sixth input than mask_gt")
        assert int(inputs[5].sum()) == 3, said("TaskAlignedAssigner.forward", "mask_gt does not count the boxes")
        anchors = inputs[0].shape[1]
        assert outputs[2].shape == (2, anchors, 3), said(
            "TaskAlignedAssigner.forward", "third output: no target scores"
        )
        assert outputs[3].shape == (2, anchors), said(
            "TaskAlignedAssigner.forward", "fourth output is no mask of positives"
        )
        positives = outputs[3].bool()
        assert positives.any(), said("TaskAlignedAssigner.forward", "assigned nothing here")
        assert not outputs[2][~positives].any(), said("TaskAlignedAssigner.forward", "scores what is not positive")
    assert loss.requires_grad, said("DetectionModel.forward", "gives a loss without gradient")
    check_items(items)


def check_items(items):
    """Loss items are a mapping by name, or, in early 8.4, a vector in the order of `trainer.loss_names`."""
    attribute = "the second value of the loss"
    if isinstance(items, Mapping):
        assert {"box_loss", "cls_loss"} <= set(items), said(attribute, f"has other names: {list(items)}")
        assert all(isinstance(v, torch.Tensor) and v.ndim == 0 for v in items.values()), said(attribute, "is not 0-d")
    else:
        assert isinstance(items, torch.Tensor), said(attribute, f"is a {type(items).__name__}")
        assert items.shape == (3,), said(attribute, f"has shape {tuple(items.shape)}, not (box, cls, dfl)")


def test_assigner_takes_and_gives_what_the_hook_reads():
    names = parameters_of(TaskAlignedAssigner.forward)[1:7]
    wanted = ["pd_scores", "pd_bboxes", "anc_points", "gt_labels", "gt_bboxes", "mask_gt"]
    assert names == wanted, said("TaskAlignedAssigner.forward", f"takes {names}")
    nothing = TaskAlignedAssigner(num_classes=3)(
        torch.rand(2, 5, 3), torch.rand(2, 5, 4), torch.rand(5, 2), torch.zeros(2, 0, 1), torch.zeros(2, 0, 4),
        torch.zeros(2, 0, 1),
    )  # fmt: skip
    assert not nothing[2].any(), said("TaskAlignedAssigner.forward", "gives scores without objects")
    assert not nothing[3].any(), said("TaskAlignedAssigner.forward", "gives positives without objects")


def test_labels_of_losses_reach_the_loggers():
    trainer = DetectionTrainer.__new__(DetectionTrainer)
    trainer.loss_names = ("box_loss", "cls_loss")
    labelled = trainer.label_loss_items([torch.tensor(1.0), torch.tensor(2.0)], prefix="train") if is_early() else None
    labelled = labelled or trainer.label_loss_items({"box_loss": torch.tensor(1.0), "cls_loss": 2.0}, prefix="train")
    assert labelled == {"train/box_loss": 1.0, "train/cls_loss": 2.0}, said("label_loss_items", f"gives {labelled}")


def is_early():
    """Whether loss items come as a vector."""
    return "loss_items.items()" not in inspect.getsource(DetectionTrainer.label_loss_items)


# Which branch answers ----------------------------------------------------------------------------------


def decodes_end2end(model):
    """Whether a model in evaluation mode answers from its one-to-one branch: then it gives finished boxes."""
    with torch.no_grad():
        answer = model.eval()(torch.zeros(1, 3, 64, 64))
    return (answer[0] if isinstance(answer, tuple) else answer).shape[-1] == 6


def test_nms_tells_which_branch_answers():
    default = DEFAULT_CFG_DICT["nms"]
    assert default in (None, False), said("argument nms", f"has the default {default!r}")
    model = detection_model("yolo26n.yaml")
    model.criterion = model.init_criterion()
    assigners = assigner_modules(model.criterion)
    end2end = inspect.getattr_static(DetectionModel, "end2end", None)
    assert isinstance(end2end, property), said("DetectionModel.end2end", "is no property")
    if end2end.fset is None:  # early 8.4: what has a one-to-one branch answers from it, whatever the arguments
        assert decodes_end2end(model), said("DetectionModel.end2end", "can't be set, and one2one does not answer")
        assert inference_branch(assigners, default) == "one2one", said("argument nms", "is read wrongly")
        return
    source = inspect.getsource(BaseValidator)
    if "end2end" in DEFAULT_CFG_DICT:  # until it became a meaning of nms
        assert DEFAULT_CFG_DICT["end2end"] is None, said("argument end2end", "does not leave the model as it is")
        assert decodes_end2end(model), said("DetectionModel.end2end", "is not so by itself")
        assert inference_branch(assigners, default) == "one2one", said("argument nms", "is read wrongly")
        return
    if "model.end2end = self.args.nms is False" not in source:
        pytest.fail(said("BaseValidator", "does not set model.end2end by the argument nms, as inference_branch does"))
    for nms in (default, None, False, True):
        model.end2end = nms is False
        branch = "one2one" if decodes_end2end(model) else "one2many"
        assert inference_branch(assigners, nms) == branch, said(
            "DetectionModel.end2end", f"with nms={nms} means {branch}"
        )


def test_head_with_one_branch_answers_from_it():
    model = detection_model("yolo11n.yaml")
    model.criterion = model.init_criterion()
    assert not decodes_end2end(model), said("DetectionModel.end2end", "holds for YOLO11")
    assert inference_branch(assigner_modules(model.criterion), DEFAULT_CFG_DICT["nms"]) == "one2many"


# What ablations rely on --------------------------------------------------------------------------------


def test_conv_without_batchnorm():
    conv = Conv(3, 4, 3)
    for name in ("conv", "bn", "act", "forward_fuse"):
        assert hasattr(conv, name), said(f"Conv.{name}", "is gone")
    image = torch.rand(1, 3, 8, 8)
    expected = conv.act(conv.conv(image))
    assert torch.equal(conv.forward_fuse(image), expected), said("Conv.forward_fuse", "is not act(conv(x))")
    assert isinstance(conv.bn, nn.BatchNorm2d), said("Conv.bn", f"is a {type(conv.bn).__name__}")


def test_fusing_leaves_what_has_no_batchnorm():
    assert hasattr(BaseModel, "is_fused"), said("BaseModel.is_fused", "is gone")
    model = detection_model("yolo11n.yaml").eval()
    for module in model.modules():
        if isinstance(module, Conv) and hasattr(module, "bn"):
            del module.bn
            module.forward = module.forward_fuse
    assert model.is_fused(), said("BaseModel.is_fused", "is False for a model without BatchNorm")
    model.fuse(verbose=False)


def test_head_is_last_and_starts_with_its_prior():
    head = detection_model("yolo26n.yaml").model[-1]
    assert isinstance(head, Detect), said("DetectionModel.model[-1]", f"is a {type(head).__name__}")
    assert callable(getattr(head, "bias_init", None)), said("Detect.bias_init", "is gone")


def test_trainer_class_is_named_for_loggers():
    assert "Trainer" in GradStudyTrainer.__name__
