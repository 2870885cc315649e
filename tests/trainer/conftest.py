# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest
import torch

from .small import write_small

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_yaml(shapes_yaml, tmp_path_factory):
    """A data YAML of a dozen images."""
    return write_small(shapes_yaml, tmp_path_factory.mktemp("small"))
