# SPDX-License-Identifier: AGPL-3.0-or-later
"""The benchmark against peers: what it counts, what it reads back, and the table that it writes."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from overhead.arms import Arm, ArmProcess, ArmSpec, Raised
from overhead.compare import Cell, Comparison, PeerRow
from overhead.counts import ACCELERATOR, GradientReads, HostReads
from overhead.peers import ACTIVATION, GRADIENT, OURS, PEERS, STOCK, Peer, Spoiler, wandb_records
from readme_tables import put

SMALL = ArmSpec(STOCK, "yolo26n.yaml", "cpu", "", images=2, size=64)
ITEM_HOOKS = "hooks with `.item()`"


class Absent(Peer):
    packages = ("no_such_package_anywhere",)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def step(model, before_step=lambda: None):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.autograd.backward(model(torch.ones(5, 3)).square().mean())
    before_step()
    optimizer.step()
    optimizer.zero_grad()


# Host synchronisations -------------------------------------------------------------------------------------


def test_a_plain_step_reads_nothing_on_the_host():
    with HostReads() as reads:
        step(network())
    assert reads.count == 0


def test_a_hook_with_item_is_counted_once_a_parameter():
    model, norms = network(), []
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: norms.append(gradient.norm().item()))
    with HostReads() as reads:
        step(model)
    assert len(norms) == reads.count == 4


@pytest.mark.parametrize(
    ("read", "count"),
    [
        (lambda t: t.sum().item(), 1),
        (lambda t: float(t.sum()), 1),
        (lambda t: bool((t > 0).all()), 1),
        (lambda t: t.tolist(), 1),
        (lambda t: t.numpy(), 1),
        (lambda t: t.cpu().tolist(), 1),
        (lambda t: [t.to("cpu").max().item(), 0], 1),
        (lambda t: t.to("cpu", non_blocking=True), 0),
        (lambda t: t.to(t.device).sum(), 0),
        (lambda t: torch.zeros(3, device=t.device).sum().item(), 1),
        (lambda t: torch.zeros(3).sum().item(), 0),
        (lambda t: torch.tensor([t[0], t[1]]).norm().item(), 2),
        (lambda t: t.nonzero(), 1),
        (lambda t: t[t > 0], 1),
        (lambda t: t[:2], 0),
        (lambda t: torch.linspace(0, 1, 3).tolist(), 0),
    ],
)
def test_what_makes_the_host_wait_is_counted(read, count):
    tensor = torch.tensor([1.0, 2.0, 3.0])
    with HostReads() as reads:
        assert tensor.device == ACCELERATOR
        read(tensor)
    assert reads.count == count
    assert tensor.device.type == "cpu"


# Passes over the gradients ---------------------------------------------------------------------------------


def passes(before_step, hook=None):
    """Passes of a step beyond those of a step with nothing else."""
    counted = []
    for extra in (True, False):
        model = network()
        reads = GradientReads(model.parameters())
        if hook is not None and extra:
            for parameter in model.parameters():
                parameter.register_hook(hook)
        with reads:
            step(
                model,
                (lambda model=model: before_step([p.grad for p in model.parameters()])) if extra else lambda: None,
            )
        counted.append(reads.read / reads.elements)
    return counted[0] - counted[1]


def test_a_norm_of_all_gradients_is_one_pass():
    assert passes(torch._foreach_norm) == 1
    assert passes(lambda gradients: None) == 0
    assert passes(lambda gradients: [g.detach().view(-1)[:0] for g in gradients]) == 0


def test_copies_of_gradients_are_gradients():
    assert passes(lambda gradients: [g.clone().norm() for g in gradients]) == 2


def test_reads_in_hooks_of_the_backward_pass_count():
    assert passes(lambda gradients: None, hook=lambda g: g.norm() and None) == 1


# Arms ------------------------------------------------------------------------------------------------------


def test_a_spoiler_spoils_one_element_at_one_call():
    spoil = Spoiler(2)
    assert spoil(torch.ones(4)) is None
    assert spoil(torch.ones(4)).isnan().sum() == 1
    assert spoil(torch.ones(4)) is None


@pytest.mark.parametrize("place", [GRADIENT, ACTIVATION])
def test_this_package_names_what_was_planted(place, tmp_path):
    arm = Arm(replace(SMALL, peer=OURS, folder=str(tmp_path / "arm")))
    assert arm.found(place, [4]) == [True]


def test_this_package_reads_nothing_on_the_host_that_stock_does_not(tmp_path):
    counts = [Arm(replace(SMALL, peer=p, folder=str(tmp_path / p), counting="accelerator")) for p in (STOCK, OURS)]
    (stock, passes), (ours, _) = (arm.counts(2) for arm in counts)
    assert ours == stock
    assert 3 <= passes < 3.1  # the norm, the clip, the update


def test_a_killed_arm_leaves_what_it_wrote(tmp_path):
    arm = ArmProcess(replace(SMALL, peer=ITEM_HOOKS, folder=str(tmp_path / "arm")))
    with pytest.raises(Raised, match="AttributeError"):
        arm.ask("no_such_thing")
    arm.ask("steps", 2)
    arm.kill()
    assert PEERS[ITEM_HOOKS].recorded(tmp_path / "arm") == 2
    with pytest.raises(Raised, match="ended with -9"):
        arm.ask("steps", 1)


def test_wandb_records_are_read_over_blocks_and_a_torn_end():
    def chunk(kind, piece):
        return b"\0\0\0\0" + len(piece).to_bytes(2, "little") + bytes([kind]) + piece

    room = 32768 - 7 - 7 - 3 - 7  # after the header of the file, a whole record, and the next one's own header
    content = b":W&B\xe1\xbe\x01" + chunk(1, b"one") + chunk(2, b"a" * room) + chunk(4, b"b") + chunk(1, b"torn")[:-1]
    assert list(wandb_records(content)) == [b"one", b"a" * room + b"b"]


# Table -----------------------------------------------------------------------------------------------------


def row(**values):
    cells = {STOCK: Cell("–"), OURS: Cell("1", 1.0), **{name: Cell(str(v), v) for name, v in values.items()}}
    return PeerRow("bytes", cells, "{:.1f} bytes".format)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"one": 2.0, "two": 3.0}, "ahead"),
        ({"one": 1.0, "two": 3.0}, "equal to one"),
        ({"one": 0.75, "two": 0.5}, "**behind two by 0.5 bytes**"),
        ({"one": None}, "not compared"),
    ],
)
def test_a_row_says_whether_and_by_how_much(values, verdict):
    assert row(**values).verdict(list(values)) == verdict


@pytest.mark.parametrize(
    ("shifts", "verdict"),
    [
        ({"slow": 0.2}, "ahead"),
        ({"slow": 0.2, "near": 0.01}, "not told apart from near; ahead of the others"),
        ({"near": 0.01, "quick": -0.01}, "not told apart from near, quick"),
        ({"near": 0.0, "fast": -0.2, "slow": 0.2}, "not told apart from near; **behind fast by 0.20**"),
    ],
)
def test_what_blocks_do_not_tell_apart_is_neither_ahead_nor_behind(shifts, verdict):
    """Each is slower by its shift, give or take 0.05 from block to block."""
    random = np.random.default_rng(0)
    blocks = {name: 1 + shift + random.normal(0, 0.05, 12) for name, shift in {OURS: 0.0, **shifts}.items()}
    blocks = {name: values - np.median(values) + 1 + {OURS: 0.0, **shifts}[name] for name, values in blocks.items()}
    cells = {name: Cell("", float(np.median(values)), tuple(values)) for name, values in blocks.items()}
    assert PeerRow("time", cells, "{:.2f}".format).verdict(list(shifts)) == verdict


def test_a_peer_that_recorded_less_is_not_compared():
    line = row(one=2.0, two=0.5).markdown([STOCK, OURS, "one", "two"], ["one"])
    assert line == "| bytes | – | 1 | 2.0 | (0.5) | ahead |"


def test_a_peer_that_is_not_installed_has_a_column_that_says_so(tmp_path):
    peers = {STOCK: Peer, OURS: PEERS[OURS], "absent": Absent}
    comparison = Comparison("cpu", 1, 2, 64, peers)
    assert comparison.installed == [STOCK, OURS]
    assert comparison.versions() == []
    made = comparison._row("yolo26n.yaml", "bytes", {STOCK: Cell("–"), OURS: Cell("1", 1.0)}, str)
    assert made.markdown(list(peers), []) == "| yolo26n: bytes | – | 1 | not installed | not compared |"


def test_every_cell_and_block_is_kept():
    comparison = Comparison("cpu", 1, 2, 64, {STOCK: Peer, OURS: PEERS[OURS]})
    comparison.complete = ["one"]
    cells = {STOCK: Cell("1"), OURS: Cell("1.5 (1 to 2)", 1.5, (1.0, 1.5, 2.0)), "one": Cell("raises X")}
    frame = comparison.frame([PeerRow("time", cells, str)])
    assert frame.columns.tolist() == ["what", "peer", "compared", "value", "shown", "blocks"]
    assert frame["peer"].tolist() == [STOCK, OURS, "one"]
    assert frame["compared"].tolist() == [False, False, True]
    assert frame.loc[1, ["value", "shown", "blocks"]].tolist() == [1.5, "1.5 (1 to 2)", "1 1.5 2"]
    assert frame["value"].isna().tolist() == [True, False, True]


def test_the_table_replaces_its_block_alone():
    page = "a\n<!-- peers -->\nold\n<!-- end -->\n<!-- table: x -->\nkept\n<!-- end -->\n"
    assert put(page, "peers", "new \\1\n") == page.replace("old", "new \\1")
    with pytest.raises(ValueError, match="this one has 0"):
        put("no mark\n<!-- end -->", "peers", "new")
    assert "<!-- peers -->" in (Path(__file__).parents[1] / "docs" / "recorder.md").read_text()
