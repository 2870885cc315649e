# SPDX-License-Identifier: AGPL-3.0-or-later
"""When statistics are taken and how they reach the disk. Plain PyTorch: works in any training loop.

A step's numbers go into rows on the device (``rows``). When those are full, one copy goes to the host and a
thread stores it (``writer``), so a step waits neither for the device nor for the disk. Nothing is drawn
from a random generator, and no tensor of the training is changed.
"""

from yolo_gradstudy.recorder.incidents import KEPT, Observation, Sighting, outlying
from yolo_gradstudy.recorder.recorder import GradRecorder, is_compiled, parameter_name

__all__ = ["KEPT", "GradRecorder", "Observation", "Sighting", "is_compiled", "outlying", "parameter_name"]
