# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two processes on the loopback interface train one DistributedDataParallel model; rank 0 records."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from yolo_gradstudy import GradRecorder, RecordConfig, load_run

RANKS, STEPS, BATCH = 2, 4, 6


def numbered() -> nn.Module:
    """Named as Ultralytics' models are: numbered layers in ``model``."""
    torch.manual_seed(0)
    holder = nn.Module()
    holder.model = nn.Sequential(nn.Sequential(nn.Linear(5, 7), nn.Tanh()), nn.Linear(7, 3))
    holder.forward = lambda x: holder.model(x)
    return holder


def batch(step: int) -> torch.Tensor:
    return torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))


def train(model, folder, rank=0, ranks=1):
    """The mean over the joined batch is the mean of the ranks' means, which DDP takes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = RecordConfig(extremes_every=1, parameter_every=1, update_every=1, flow_every=1)
    recorder = GradRecorder(model, optimizer, folder, config) if rank == 0 else None
    for step in range(STEPS):
        optimizer.zero_grad()
        model(batch(step)[rank::ranks]).square().mean().backward()
        if recorder is not None:
            recorder.observe(images=BATCH)
        optimizer.step()
        if recorder is not None:
            recorder.stepped()
    if recorder is not None:
        recorder.close()


def work(rank: int, folder: Path, store: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    train(DistributedDataParallel(numbered()), folder, rank, RANKS)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("ddp")
    train(numbered(), root / "single")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(root / "ddp"), str(root / "store")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return load_run(root / "single"), load_run(root / "ddp")


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_norms_of_two_processes_are_those_of_the_joined_batch(runs):
    single, ddp = runs
    for quantity in ("grad_norm", "param_norm", "update_ratio"):
        names = ["model.0.0.weight", "model.0.0.bias", "model.1.weight", "model.1.bias"]
        assert list(ddp.layers(quantity)) == list(single.layers(quantity)) == names
        np.testing.assert_allclose(ddp.layers(quantity), single.layers(quantity), rtol=1e-4)
    for name in ("grad_norm", "grad_max_abs", "param_norm", "update_norm"):
        np.testing.assert_allclose(ddp.steps[name], single.steps[name], rtol=1e-4, err_msg=name)
    assert ddp.steps.index.tolist() == list(range(1, STEPS + 1))


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_names_are_those_of_the_model_within(runs):
    single, ddp = runs
    assert ddp.meta["parameters"] == single.meta["parameters"]
    modules = ["model.0", "model.0.0", "model.0.1", "model.1"]
    assert list(ddp.flow("activation_rms")) == list(single.flow("activation_rms")) == modules
    assert [e["event"] for e in ddp.events] == ["started", "finished"]


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
