# SPDX-License-Identifier: AGPL-3.0-or-later
"""Study YAML → validated :class:`Study` → :class:`~yolo_gradstudy.records.RunSpec` with stable ids.

A study's file (``document``) and what the command line changes (``overrides``) are checked (``checks``, in the words
of ``sentences``) and become a :class:`Study` (``study``); ``loading`` puts these together. ``comparison`` tells what
changed between two studies, and ``beginnings`` makes a study of a training that was no study's.

This room knows neither torch nor Ultralytics: what exists there (ablations, training arguments and their
checks) comes in as a :class:`Vocabulary` from the caller that knows.
"""

from yolo_gradstudy.plan.beginnings import OwnTraining, study_of_beginning
from yolo_gradstudy.plan.comparison import Differences, compare_studies, differences, is_same_study
from yolo_gradstudy.plan.crossing import cross
from yolo_gradstudy.plan.document import COMMAND_LINE
from yolo_gradstudy.plan.limits import Probe, RateGrid, edge_of, most_runs, next_probes
from yolo_gradstudy.plan.loading import load_study, packaged_studies
from yolo_gradstudy.plan.overrides import parse_overrides
from yolo_gradstudy.plan.sentences import StudyError
from yolo_gradstudy.plan.study import (
    CONTROL,
    Arm,
    LearningRate,
    Limit,
    Name,
    Seed,
    Study,
    Text,
    check_lr0,
    counted,
    describe_plan,
    make_run_id,
)
from yolo_gradstudy.plan.vocabulary import Vocabulary

__all__ = [
    "Arm",
    "COMMAND_LINE",
    "CONTROL",
    "Differences",
    "LearningRate",
    "Limit",
    "Name",
    "OwnTraining",
    "Probe",
    "RateGrid",
    "Seed",
    "Study",
    "StudyError",
    "Text",
    "Vocabulary",
    "check_lr0",
    "compare_studies",
    "counted",
    "cross",
    "describe_plan",
    "differences",
    "edge_of",
    "is_same_study",
    "load_study",
    "make_run_id",
    "most_runs",
    "next_probes",
    "packaged_studies",
    "parse_overrides",
    "study_of_beginning",
]
