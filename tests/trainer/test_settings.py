# SPDX-License-Identifier: AGPL-3.0-or-later
"""The trainer classes: their names, what they refuse, and how they travel to another process."""

import subprocess
import sys

import pytest
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer

from yolo_gradstudy import GradStudyTrainer, RecordConfig, gradstudy_trainer


def test_using_gives_a_subclass_that_loggers_attach_to():
    trainer = GradStudyTrainer.using(record=RecordConfig(every=7), ablations=["no_batchnorm"], clip_norm=None)
    assert issubclass(trainer, GradStudyTrainer)
    assert issubclass(trainer, DetectionTrainer)
    assert trainer is not GradStudyTrainer
    assert "Trainer" in trainer.__name__
    assert trainer.settings.record.every == 7
    assert trainer.settings.ablations == ("no_batchnorm",)
    assert trainer.settings.clip_norm is None
    assert GradStudyTrainer.settings.ablations == ()  # the class itself stays as it was
    assert GradStudyTrainer.settings.clip_norm == 10.0


@pytest.mark.parametrize("clip_norm", [0, 0.0, -1, float("nan"), float("-inf")])
def test_refuses_a_clip_norm_that_is_not_above_0(clip_norm):
    with pytest.raises(ValueError, match=r"clip_norm=.*10\.0, None"):
        GradStudyTrainer.using(clip_norm=clip_norm)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["no_batchnorms"], "no_batchnorm'"),
        (["no_clip", "no_clip"], "twice"),
        (["replace_init_by_he", "replace_init_by_xavier"], "contradict"),
    ],
)
def test_refuses_ablations(names, said):
    with pytest.raises(ValueError, match=said):
        GradStudyTrainer.using(ablations=names)


def test_other_tasks_have_a_trainer_too():
    trainer = gradstudy_trainer(SegmentationTrainer)
    assert issubclass(trainer, SegmentationTrainer)
    assert trainer.__name__ == "GradStudySegmentationTrainer"
    assert gradstudy_trainer(SegmentationTrainer) is trainer
    assert gradstudy_trainer(trainer) is trainer
    assert gradstudy_trainer(DetectionTrainer).__mro__[1:3] == GradStudyTrainer.__mro__[1:3]
    assert trainer.using(clip_norm=3.0).settings.clip_norm == 3.0


_READ = """
import sys
from ultralytics.utils.patches import torch_load
from ultralytics import YOLO
for path in sys.argv[1:]:
    cls = torch_load(path, map_location="cpu")["trainer"]
    s = cls.settings
    bases = sorted(b.__name__ for b in cls.__mro__[1:4])
    print(cls.__name__, s.record.every, ",".join(s.ablations), s.clip_norm, bases)
"""


def test_settings_travel_by_value_as_ultralytics_sends_them_to_its_workers(tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle", reason="Ultralytics installs it on the first multi-GPU launch")
    from ultralytics.utils.patches import torch_save

    settings = {"record": RecordConfig(every=7), "ablations": ["no_residuals"], "clip_norm": 2.5}
    paths = []
    for name, trainer in (("detect", GradStudyTrainer), ("segment", gradstudy_trainer(SegmentationTrainer))):
        paths.append(str(tmp_path / f"{name}.pt"))
        torch_save({"trainer": trainer.using(**settings)}, paths[-1], pickle_module=cloudpickle)
    done = subprocess.run([sys.executable, "-c", _READ, *paths], capture_output=True, text=True, check=True)
    lines = done.stdout.strip().splitlines()
    assert lines[-2].startswith("GradStudyTrainer 7 no_residuals 2.5")
    assert lines[-1].startswith("GradStudySegmentationTrainer 7 no_residuals 2.5")
    assert "SegmentationTrainer" in lines[-1].split("[")[1]
