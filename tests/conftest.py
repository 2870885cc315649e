# SPDX-License-Identifier: AGPL-3.0-or-later
"""The world in which all tests run. It is set up before anything imports torch or Ultralytics."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_WORLD = Path(tempfile.mkdtemp(prefix="gradstudy-tests-"))
atexit.register(shutil.rmtree, _WORLD, ignore_errors=True)
for _folder in ("config", "datasets"):
    (_WORLD / _folder).mkdir()

# Ultralytics reads its settings at import. A folder of our own: the user's are neither read nor written.
os.environ.update(
    YOLO_OFFLINE="true",
    YOLO_AUTOINSTALL="false",
    YOLO_CONFIG_DIR=str(_WORLD / "config"),
    GRADSTUDY_DATASETS=str(_WORLD / "datasets"),
    OMP_NUM_THREADS="1",
    MPLBACKEND="Agg",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",  # whatever token the user has
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # Ray then takes 127.0.0.1 for this machine's address, on Linux too
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from ultralytics import settings  # noqa: E402

# Trackers that are installed are on by default: runs would log to wherever their users' accounts are.
settings.update(dict.fromkeys(("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb"), False))

# The same examples each time, and no deadline: a busy machine must not fail a test.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False"))


@pytest.fixture(scope="session")
def datasets_dir():
    """Where data sets are built for this test session."""
    return _WORLD / "datasets"


@pytest.fixture(scope="session")
def shapes_yaml():
    """The data YAML of the data set `shapes`, drawn once a session."""
    from yolo_gradstudy.datasets import resolve_dataset

    return resolve_dataset("shapes")
