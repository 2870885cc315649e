# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recorded training is the training: the same random numbers, losses and weights, bit for bit."""

import random

import numpy as np
import pytest
import torch

from yolo_gradstudy import GradRecorder

from .loop import convnet, everything

STEPS = 30


def states():
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (name, keys.tolist(), *rest), random.getstate()


def train(folder=None, optimizer_class=torch.optim.SGD, clip_norm=None):
    """Train with dropout, data from torch, numpy and Python; returns losses, weights, generators' states."""
    model = convnet(dropout=0.3)
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    optimizer = optimizer_class(model.parameters(), lr=0.01)
    recorder = None if folder is None else GradRecorder(model, optimizer, folder, everything(flush_every=7))
    losses = []
    for _ in range(STEPS):
        x = torch.randn(4, 3, 8, 8) + float(np.random.rand()) + random.random()
        loss = model(x).square().mean()
        loss.backward()
        if recorder is not None:
            before = states()
            total = recorder.observe(loss=loss, images=4, epoch=0, clip_norm=clip_norm, extra=torch.ones(()))
            assert states() == before
            if clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, total)
        elif clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        if recorder is not None:
            before = states()
            recorder.stepped()
            assert states() == before
        optimizer.zero_grad()
        losses.append(loss.detach())
    if recorder is not None:
        before = states()
        recorder.close()
        assert states() == before
    return torch.stack(losses), model.state_dict(), states()


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_a_recorded_training_is_the_same_bit_for_bit(tmp_path, optimizer_class, clip_norm):
    plain_losses, plain_weights, plain_states = train(None, optimizer_class, clip_norm)
    losses, weights, after = train(tmp_path, optimizer_class, clip_norm)
    assert after == plain_states
    assert torch.equal(losses, plain_losses)
    assert list(weights) == list(plain_weights)
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)


def test_observing_changes_no_gradient(tmp_path):
    model = convnet()
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    objects = [id(p.grad) for p in model.parameters()]
    with GradRecorder(model, torch.optim.SGD(model.parameters()), tmp_path, everything()) as recorder:
        recorder.observe(clip_norm=1e-3)
        recorder.stepped()
    assert [id(p.grad) for p in model.parameters()] == objects
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
