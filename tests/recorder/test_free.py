# SPDX-License-Identifier: AGPL-3.0-or-later
"""A step costs no wait for the device and no memory, and little disk.

No GPU is needed. A fake CUDA tensor has the device, dtype and shape of a real one and no values, so it
raises where the host would read one; a dispatch mode sees every operator, so it sees copies to the host.
Autograd's engine can't run on fake CUDA tensors without a driver: there gradients are put in place by hand, and
the hooks that measure flow are called as the engine would. On meta tensors it can.
"""

import contextlib
import gc
import sys
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yolo_gradstudy import GradRecorder, RecordConfig, load_run
from yolo_gradstudy.recorder import recorder as recorder_module
from yolo_gradstudy.recorder.rows import SCALAR_SLOTS, DeviceRows, FlowRow
from yolo_gradstudy.recorder.writer import TelemetryWriter
from yolo_gradstudy.run_folder import TelemetryFolder

from .loop import everything, sgd

CLIP_NORM = 10.0


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for the device: values read, and tensors copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = Counter()
        self.operators = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        self.operators[name] += 1
        before = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        result = operator(*args, **(kwargs or {}))
        if name == "_local_scalar_dense":
            self.reads[name] += 1
        elif any(t.device.type != "cpu" for t in before):
            after = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
            if any(t.device.type == "cpu" for t in after):  # `copy_` into a host's tensor returns that
                self.reads[name] += 1
        return result


def network(device: str) -> nn.Sequential:
    """Has an activation in place, and a frozen parameter between others."""
    with torch.device(device):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 5)
        )
    model[1].weight.requires_grad_(False)
    return model


def backward_by_hand(model, caught) -> int:
    """Random gradients, and a call of every gradient hook; returns how many tensors had one."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    hooked = {id(t): t for t in caught if t._backward_hooks}
    for tensor in hooked.values():
        for hook in list(tensor._backward_hooks.values()):
            hook(torch.ones_like(tensor))
    return len(hooked)


def observe_steps(device: str, folder, steps: int = 3, dtype: torch.dtype = torch.float32, rate_tensors: bool = False):
    """Steps with every option on that do not flush; the operators of ``observe`` and ``stepped`` are seen."""
    model = network(device).to(dtype) if device != "cuda" else network(device)
    optimizer = sgd(model, momentum=0.9)
    for group in optimizer.param_groups if rate_tensors else ():
        group["lr"], group["momentum"] = (torch.tensor(group[name], device=device) for name in ("lr", "momentum"))
    recorder = GradRecorder(model, optimizer, folder, everything(flush_every=100))
    caught = []
    for module in model:
        module.register_forward_hook(lambda m, inputs, output: caught.extend((*inputs, output)))
    seen = HostReads()
    hooked = 0
    for step in range(steps):
        loss = model(torch.randn(2, 3, 8, 8, device=device, dtype=dtype)).square().mean()
        if device == "cuda":
            with seen:
                hooked = backward_by_hand(model, caught)
        else:
            with seen:
                loss.backward()
        caught.clear()
        one = torch.ones((), device=device)
        with seen:
            total = recorder.observe(
                loss=loss, images=2, epoch=0, clip_norm=CLIP_NORM, amp_scale=one, skipped=one, target_scores=one
            )
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), CLIP_NORM, total)
        if not rate_tensors:  # which SGD itself does not take
            optimizer.step()
        with seen:
            recorder.stepped()
        optimizer.zero_grad()
        row = recorder._rows._rows[-1]
        assert len(recorder._rows._rows) == len(recorder._rows._flow) == step + 1
        assert set(row.vectors) == {"grad_norm", "param_norm", "update_ratio"}
        assert row.scalars >= {"grad_max_abs", "grad_nonfinite", "update_norm", "clip_coefficient", "amp_scale", "loss"}
        assert row.vectors["grad_norm"] == (0, 1, 3, 4, 5)
    recorder._rows._rows.clear()  # there are no values to flush
    recorder._rows._flow.clear()
    recorder.close()
    assert total.device.type == device
    return seen, hooked


def test_no_value_is_read_on_a_cuda_device(tmp_path):
    with FakeTensorMode(allow_non_fake_inputs=True):
        seen, hooked = observe_steps("cuda", tmp_path)
    assert hooked == 4, "the gradients of flow were not measured"
    assert seen.operators["_foreach_norm"] >= 3
    assert seen.operators["linalg_vector_norm"] >= 3
    assert not seen.reads


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_no_rate_is_read_where_it_is_a_tensor(tmp_path, device):
    """As a capturable or compiled optimizer has them."""
    with FakeTensorMode(allow_non_fake_inputs=True) if device == "cuda" else contextlib.nullcontext():
        seen, _ = observe_steps(device, tmp_path, rate_tensors=True)
    assert not seen.reads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_value_is_read_where_autograd_runs(tmp_path, dtype):
    seen, _ = observe_steps("meta", tmp_path, dtype=dtype)
    assert seen.operators["linalg_vector_norm"] > 20
    assert not seen.reads


def test_on_a_cpu_values_are_read_nowhere_but_in_its_own_memory(tmp_path):
    """There is no device to wait for; still no scalar is asked for singly."""
    seen, _ = observe_steps("cpu", tmp_path)
    assert seen.operators["_foreach_norm"] >= 3
    assert not seen.reads


READS = {
    "item": lambda g: torch.tensor(g[0].abs().max().item(), device=g[0].device),
    "float": lambda g: g[0].sum() * float(g[0].sum()),
    "bool": lambda g: g[0].sum() if g[0].sum() > 0 else g[0].amax(),
    "cpu": lambda g: g[0].abs().max().cpu().to(g[0].device),
    "copy_": lambda g: torch.empty(()).copy_(g[0].abs().max()),
    "non_blocking": lambda g: g[0].abs().max().to("cpu", non_blocking=True),
    "nonzero": lambda g: g[0][g[0] > 0].sum(),
}


@pytest.mark.parametrize("way", READS)
def test_a_read_of_any_kind_would_be_seen(tmp_path, monkeypatch, way):
    monkeypatch.setattr(recorder_module, "largest_absolute", READS[way])
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            seen, _ = observe_steps("cuda", tmp_path, steps=1)
            found = seen.reads.total()
        except (DataDependentOutputException, DynamicOutputShapeException):
            found = 1
    assert found


@pytest.mark.gpu
def test_no_value_is_read_on_a_real_gpu(tmp_path):
    model = network("cuda")
    optimizer = sgd(model)
    recorder = GradRecorder(model, optimizer, tmp_path, everything(flush_every=100))
    for _ in range(3):
        loss = model(torch.randn(2, 3, 8, 8, device="cuda")).square().mean()
        loss.backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            recorder.observe(loss=loss, clip_norm=CLIP_NORM)
            optimizer.step()
            recorder.stepped()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.zero_grad()
    recorder.close()
    assert np.isfinite(load_run(tmp_path).layers("grad_norm").drop(columns="1.weight")).all(axis=None)


# On the way to the host -----------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Keeps what tensors are made with on the host, and how device's tensors are copied into them."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.copied = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        name = operator.overloadpacket.__name__
        if name in ("empty", "empty_like", "zeros") and result.device.type == "cpu":
            self.made.append(kwargs.get("pin_memory"))
        elif name in ("copy_", "_to_copy") and result.device.type == "cpu":
            self.copied.append(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        return result


class Event:
    """Stands for an event of CUDA, which needs a driver."""

    def __init__(self) -> None:
        self.recorded, self.waited = [], 0

    def record(self, stream) -> None:
        self.recorded.append(stream)

    def synchronize(self) -> None:
        self.waited += 1


def test_a_part_goes_to_pinned_memory_and_nobody_waits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    device = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        rows = DeviceRows(2, 3, device)
        rows.put_vector(rows.begin(1), "grad_norm", torch.ones(3, device=device), None)
        rows.put_flow(FlowRow(1, torch.ones(5, 2, device=device), [[True] * 2] * 5))
        with Copies() as seen:
            part = rows.take()
    assert seen.made == [True, True], "only memory that is pinned is copied to without waiting"
    assert seen.copied == [True, True]
    assert part.values.device.type == part.flow[0].values.device.type == "cpu"
    assert part.copied.recorded == ["the stream of cuda"], "else the writer reads before the copy is there"
    assert part.copied.waited == 0


def test_the_writer_waits_for_the_copy_and_not_before_it_must(tmp_path):
    class Arrives(Event):
        def synchronize(self) -> None:
            super().synchronize()
            values[0, SCALAR_SLOTS : SCALAR_SLOTS + 2] = 7.0  # the copy is there only now

    rows = DeviceRows(1, 2, torch.device("cpu"))
    rows.put_vector(rows.begin(1), "grad_norm", torch.zeros(2), None)
    part = rows.take()
    values, part.copied = part.values, Arrives()
    telemetry = TelemetryFolder(tmp_path)
    writer = TelemetryWriter(telemetry, ["a", "b"], [])
    writer.put(part)
    writer.close()
    assert writer.error is None
    assert part.copied.waited == 1
    assert telemetry.read("grad_norm").loc[1].tolist() == [7, 7]


# Memory ---------------------------------------------------------------------------------------------------


class Flickering(nn.Module):
    """Uses other parameters in each step, as a network with stochastic depth does."""

    def __init__(self, count: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(count))

    def forward(self, x: torch.Tensor, pattern: int) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            if pattern >> i & 1:
                x = layer(x)
        return x


def test_memory_does_not_grow_with_steps(tmp_path):
    torch.manual_seed(0)
    model = Flickering()
    optimizer = sgd(model, lr=1e-3)
    recorder = GradRecorder(model, optimizer, tmp_path, everything(flow_modules=("layers.0",), flush_every=50))
    buffer = recorder._rows._buffer.data_ptr(), recorder._rows._buffer.shape
    x = torch.randn(4, 3)

    def held_after(first, last):
        for pattern in range(first, last):
            loss = model(x, pattern).square().sum()
            loss.backward()
            recorder.observe(loss=loss)
            optimizer.step()
            recorder.stepped()
            optimizer.zero_grad()
        deadline = time.monotonic() + 60
        while len(list(tmp_path.rglob("steps-*.parquet"))) < (last - 1) // 50:  # a part on its way is held too
            assert time.monotonic() < deadline, recorder._writer.error
            time.sleep(0.01)
        time.sleep(0.2)
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
        return len(gc.get_objects()), sum(t.numel() for t in tensors), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = held_after(1, 101)
        after = held_after(101, 1001)
    finally:
        tracemalloc.stop()
        recorder.close()
    objects, numbers, traced = (b - a for a, b in zip(before, after, strict=True))
    assert (recorder._rows._buffer.data_ptr(), recorder._rows._buffer.shape) == buffer
    assert numbers < 900, "a number a step would be 900"
    assert objects < 900
    assert traced < 90_000, "100 bytes a step would be this"


def test_a_slow_disk_holds_the_training_back_instead_of_filling_memory(tmp_path):
    model = nn.Linear(2, 2)
    recorder = GradRecorder(model, sgd(model), tmp_path)
    assert 0 < recorder._writer._queue.maxsize <= 8
    recorder.close()


# Disk -----------------------------------------------------------------------------------------------------

PARAMETERS, STEPS = 366, 1000
ALLOWED = 1.3


@pytest.fixture(scope="module")
def yolo_sized(tmp_path_factory):
    """As many parameters as YOLO26n has, with norms whose every bit is random, and the defaults."""
    folder = tmp_path_factory.mktemp("sized")
    names = [f"model.{i // 12}.cv{i % 4}.block.{i % 12}.conv.weight" for i in range(PARAMETERS)]
    model = nn.Module()
    for name in names:
        inner = model
        for part in name.split(".")[:-1]:
            if part not in inner._modules:
                inner.add_module(part, nn.Module())
            inner = inner._modules[part]
        inner.register_parameter("weight", nn.Parameter(torch.ones(1)))
    parameters = list(model.parameters())
    assert len(parameters) == PARAMETERS
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.grad = torch.ones(1)
    with GradRecorder(model, sgd(model), folder, RecordConfig(parameter_every=0, update_every=0)) as recorder:
        for step in range(STEPS):
            values = torch.randn(PARAMETERS, generator=generator).exp()
            for parameter, value in zip(parameters, values.split(1), strict=True):
                parameter.grad = value
            items = torch.rand(8, generator=generator).unbind()
            recorder.observe(
                loss=items[0],
                images=64,
                epoch=step // 100,
                clip_norm=CLIP_NORM,
                **{f"item_{i}": item for i, item in enumerate(items)},
            )
            recorder.stepped()
    return folder


def bytes_of(folder, quantity):
    (part,) = (folder / "telemetry").glob(f"{quantity}-*.parquet")  # merged at the end
    return part.stat().st_size


def test_the_norms_take_little_more_than_their_bits(yolo_sized, record_property):
    raw = PARAMETERS * STEPS * 4
    factor = bytes_of(yolo_sized, "grad_norm") / raw
    record_property("factor", factor)
    assert load_run(yolo_sized).layers("grad_norm").shape == (STEPS, PARAMETERS)
    assert 0.5 < factor <= ALLOWED, f"grad_norm takes {factor:.3f} times its raw bytes"


def test_the_whole_telemetry_takes_little_more_than_its_bits(yolo_sized, record_property):
    steps = load_run(yolo_sized).steps
    raw = (PARAMETERS + steps.shape[1]) * STEPS * 4
    whole = sum(p.stat().st_size for p in (yolo_sized / "telemetry").iterdir())
    factor, alone = whole / raw, bytes_of(yolo_sized, "steps") / (steps.size * 4)
    record_property("factor", factor)
    record_property("steps_factor", alone)
    print(
        f"telemetry {factor:.3f}, norms {bytes_of(yolo_sized, 'grad_norm') / (PARAMETERS * STEPS * 4):.3f}, "
        f"steps {alone:.3f} times the raw float32 bytes",
        file=sys.stderr,
    )
    assert factor <= ALLOWED, f"the telemetry takes {factor:.3f} times its raw bytes"
