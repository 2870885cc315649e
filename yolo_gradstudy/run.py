# SPDX-License-Identifier: AGPL-3.0-or-later
"""One RunSpec → one RunResult, failures included. ``python -m yolo_gradstudy.run`` is a run's process."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
import traceback
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from yolo_gradstudy.datasets import resolve_dataset
from yolo_gradstudy.records import RecordConfig, RunResult, RunSpec
from yolo_gradstudy.run_folder import RunFolder, is_disk_full

DISK_FULL = 75
"""Exit status of a run's process that left no result since the disk was full: to be trained again."""


def execute(
    spec: RunSpec,
    folder: RunFolder,
    device: str = "cpu",
    workers: int = 0,
    keep_weights: bool = False,
    threads: int | None = None,
    attempt: int = 1,
) -> RunResult:
    """Train one run and store how it ended.

    An error becomes a result, not an exception; only an interrupt and a full disk leave the run without one, to be
    trained again.

    Args:
        spec: What to train.
        folder: The run's folder; what an unfinished attempt left there is deleted.
        device: An Ultralytics device.
        workers: Worker processes of the data loader.
        keep_weights: Whether the checkpoints stay.
        threads: CPU threads of torch; Ultralytics' own choice where None.
        attempt: How often the run is tried, this time included.

    Returns:
        The result, as stored.

    Raises:
        OSError: The disk is full.
    """
    with folder.lock():
        folder.start_afresh(spec)
        started, clock = datetime.now().astimezone().isoformat(timespec="seconds"), time.monotonic()
        facts: dict[str, object] = {}
        try:
            facts = _train(spec, folder, device, workers, threads)
            result = RunResult(spec.run_id, "finished")
        except Exception as error:  # whatever ended the run is its result
            if is_disk_full(error):
                raise
            reason = " ".join(str(error).split()) or "no message"
            result = RunResult(spec.run_id, "failed", f"{type(error).__name__}: {reason}", traceback.format_exc())
            traceback.print_exc()
        result = RunResult.from_dict(
            {
                **result.to_dict(),
                "steps": folder.telemetry.last_step(),
                **facts,
                "versions": _versions(),
                "started": started,
                "duration_s": round(time.monotonic() - clock, 3),
                "attempts": attempt,
            }
        )
        if not keep_weights:
            folder.drop_weights()
        folder.drop_progress()
        folder.write_result(result)
    return result


def _train(spec: RunSpec, folder: RunFolder, device: str, workers: int, threads: int | None) -> dict[str, object]:
    import torch

    from yolo_gradstudy.trainer import TrainerSettings, train

    arguments = {
        **spec.arguments,
        "data": str(resolve_dataset(spec.data)),
        "lr0": spec.lr0,
        "seed": spec.seed,
        "device": device,
        "workers": workers,
    }
    settings = TrainerSettings(
        record=RecordConfig(**spec.record), ablations=spec.ablations, threads=threads, pulse=True
    )
    trained = train(spec.model, arguments, folder.path, settings)
    if trained.unrecorded is not None:  # a run with a hole in its record is no result
        raise trained.unrecorded
    return {
        "steps": trained.steps,
        "metrics": dict(trained.metrics),
        "weights_finite": trained.weights_finite,
        "changed": dict(trained.changed),
        "parameters": trained.parameters,
        "device": torch.cuda.get_device_name() if device[:1].isdigit() else device,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
    }


def processor_name() -> str:
    """The name of this machine's CPU, or its architecture where the system tells no name."""
    info = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty or the architecture there
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    names = ("yolo_gradstudy", "ultralytics", "torch", "torchvision", "numpy")
    return {**{name: version(name) for name in names}, "python": platform.python_version()}


def _end_with_parent() -> None:
    """End this process when the study's process is gone: the pipe on its standard input then closes."""

    def wait() -> None:
        # Not through sys.stdin, whose lock this thread would hold when the interpreter ends, which aborts it.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="gradstudy-parent", daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    """The process of one run: reads the spec from standard input's first line."""
    parser = argparse.ArgumentParser(prog="python -m yolo_gradstudy.run", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--keep-weights", action="store_true")
    options = parser.parse_args(argv)
    spec = RunSpec.from_dict(json.loads(sys.stdin.buffer.readline()))
    _end_with_parent()
    folder = RunFolder(options.folder)
    try:
        result = execute(
            spec, folder, options.device, options.workers, options.keep_weights, options.threads, options.attempt
        )
    except Exception as error:
        if not is_disk_full(error):
            raise
        with suppress(OSError):  # which is the log's disk, too
            print(f"the disk is full: {error}", file=sys.stderr)
        return DISK_FULL
    return 0 if result.status == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
