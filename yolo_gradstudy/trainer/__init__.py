# SPDX-License-Identifier: AGPL-3.0-or-later
"""The only door to Ultralytics' training engine: any of its task trainers, recorded and ablated.

``trainer`` has the class; what it adds to Ultralytics' arguments (``settings``), what of Ultralytics' own doings it
ends (``switches``), the batches of a step (``batches``) and the assigners (``assigners``) have a module each.
``training`` is one training from beginning to end. Where it goes wrong, ``investigation`` has the step replayed
(``replay``, ``saved``), of what ``forensics`` and ``hooks`` kept, with ``tracing`` on every module.
"""

from yolo_gradstudy.trainer.assigners import assigner_modules, inference_branch
from yolo_gradstudy.trainer.saved import replay_incidents
from yolo_gradstudy.trainer.settings import ULTRALYTICS_CLIP_NORM, TrainerSettings
from yolo_gradstudy.trainer.trainer import GradStudyMixin, GradStudyTrainer, gradstudy_trainer, settings_of
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
    "replay_incidents",
    "settings_of",
    "train",
]
