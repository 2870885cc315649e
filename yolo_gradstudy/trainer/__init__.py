# SPDX-License-Identifier: AGPL-3.0-or-later
"""The only door to Ultralytics' training engine: any of its task trainers, recorded and ablated.

``trainer`` has the class; what it adds to Ultralytics' arguments (``settings``), what of Ultralytics' own doings it
ends (``switches``), the batches of a step (``batches``) and the assigners (``assigners``) have a module each.
``training`` is one training from beginning to end.
"""

from yolo_gradstudy.trainer.assigners import assigner_modules, inference_branch
from yolo_gradstudy.trainer.settings import ULTRALYTICS_CLIP_NORM, TrainerSettings
from yolo_gradstudy.trainer.trainer import GradStudyMixin, GradStudyTrainer, gradstudy_trainer
from yolo_gradstudy.trainer.training import Trained, train

__all__ = [
    "ULTRALYTICS_CLIP_NORM",
    "GradStudyMixin",
    "GradStudyTrainer",
    "Trained",
    "TrainerSettings",
    "assigner_modules",
    "gradstudy_trainer",
    "inference_branch",
    "train",
]
