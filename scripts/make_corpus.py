# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train the corpus on which verdicts are judged: runs of every outcome, labelled by evidence that no rule looks at.

    python scripts/make_corpus.py datasets/coco/coco128.yaml runs/corpus      # about 40 minutes on two CPU cores
    python scripts/make_corpus.py --keep runs/corpus results/corpus             # reduced, as it is committed

A run's label comes from its last checkpoint, shown the validation images: whether weights and outputs are finite, how
many detections score above ``SCORE``, and how its mAP compares with the control's, next to how the run was made (an
error was planted, it was killed). Start it again after anything: what is finished is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")  # read by Ultralytics when it is imported

import pyarrow as pa
from reduce_results import Around, reduce_run

from yolo_gradstudy import load_run
from yolo_gradstudy.diagnoses.early import FLOW, flow_signals
from yolo_gradstudy.records import RunSpec
from yolo_gradstudy.run_folder import RunFolder, write_json

SCORE = 1e-3
"""Score above which a detection counts: the confidence from which Ultralytics' validation takes one."""

KILLED_AFTER = 60
"""Recorded steps after which a run that is to be killed is."""

LABEL = "label.json"

BASE: dict[str, Any] = {
    **{"batch": 16, "nbs": 16, "optimizer": "SGD", "warmup_epochs": 1, "amp": False, "pretrained": False},
    **{"deterministic": True, "patience": 0, "plots": False, "val": False},
}
SCALES: dict[str, dict[str, Any]] = {"shapes": {"epochs": 8, "imgsz": 96}, "coco": {"epochs": 12, "imgsz": 128}}
RECORD = {"update_every": 1, "parameter_every": 1, "flow_every": 10, "flush_every": 10}

ADAMW = {"optimizer": "AdamW"}
HE = ("no_batchnorm", "replace_init_by_he")

# Arm: (dataset, seeds, lr0, ablations, further arguments).
ARMS: dict[str, tuple[str, int, float, tuple[str, ...], dict[str, Any]]] = {
    "control": ("shapes", 4, 0.002, (), ADAMW),
    "fast": ("shapes", 2, 0.01, (), ADAMW),
    "too-fast": ("shapes", 3, 0.3, (), ADAMW),
    "too-slow": ("shapes", 4, 1e-9, (), {**ADAMW, "warmup_bias_lr": 0.0}),
    "dead-head": ("shapes", 3, 0.002, ("corpus_faults:dead_head",), ADAMW),
    "kick": ("shapes", 4, 0.002, ("corpus_faults:kick",), ADAMW),
    "blow-up": ("shapes", 2, 0.002, ("corpus_faults:blow_up",), ADAMW),
    "error": ("shapes", 3, 0.002, ("corpus_faults:error",), ADAMW),
    "killed": ("shapes", 3, 0.002, (), ADAMW),
    "sgd": ("shapes", 2, 0.02, (), {}),
    "sgd-fast": ("shapes", 2, 0.1, (), {}),
    "sgd-too-fast": ("shapes", 3, 1.0, (), {}),
    "no-clip": ("shapes", 3, 0.1, ("no_clip",), {}),
    "no-clip-too-fast": ("shapes", 2, 1.0, ("no_clip",), {}),
    "he": ("shapes", 3, 0.1, HE, {}),
    "he-too-fast": ("shapes", 2, 1.0, HE, {}),
    "coco-control": ("coco", 3, 0.02, (), {}),
    "coco-fast": ("coco", 2, 0.1, (), {}),
    "coco-too-fast": ("coco", 3, 1.0, (), {}),
    "coco-no-clip": ("coco", 3, 0.1, ("no_clip",), {}),
    "coco-no-clip-too-fast": ("coco", 2, 1.0, ("no_clip",), {}),
    "coco-he": ("coco", 3, 0.1, HE, {}),
    "coco-he-too-fast": ("coco", 2, 1.0, HE, {}),
    "coco-dead-head": ("coco", 2, 0.02, ("corpus_faults:dead_head",), {}),
    "coco-error": ("coco", 1, 0.02, ("corpus_faults:error",), {}),
    "coco-killed": ("coco", 2, 0.02, (), {}),
}


def specs(coco: str) -> Iterator[RunSpec]:
    """The runs, those of different arms by turns."""
    for seed in range(max(seeds for _, seeds, *_ in ARMS.values())):
        for arm, (data, seeds, lr0, ablations, arguments) in ARMS.items():
            if seed < seeds:
                place = coco if data == "coco" else data
                arguments = {**BASE, **SCALES[data], **arguments}
                yield RunSpec(
                    f"{arm}-s{seed}", "corpus", arm, ablations, "yolo26n.yaml", place, lr0, seed, arguments, RECORD
                )


# Training ----------------------------------------------------------------------------------------------


def make(spec: RunSpec, root: Path) -> None:
    """Train a run in a process of its own, and label it."""
    folder = RunFolder(root / spec.run_id)
    if (folder.path / LABEL).is_file():
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "yolo_gradstudy.run", str(folder.path), "--threads", "1", "--keep-weights"]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    with (folder.path / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        assert process.stdin is not None
        process.stdin.write(json.dumps(spec.to_dict()).encode() + b"\n")
        process.stdin.flush()
        while process.poll() is None:
            time.sleep(0.2)
            if spec.arm.endswith("killed") and folder.telemetry.last_step() >= KILLED_AFTER:
                process.send_signal(signal.SIGKILL)
    told = subprocess.run(
        [sys.executable, __file__, "--label", str(folder.path)], env=environment, stdout=subprocess.PIPE, check=True
    )
    write_json(folder.path / LABEL, json.loads(told.stdout.splitlines()[-1]))
    folder.drop_weights()
    print(f"{spec.run_id}: {told.stdout.decode().splitlines()[-1]}", file=sys.stderr)


def evidence(folder: RunFolder) -> dict[str, Any]:
    """What the label rests on, from the last checkpoint and the validation images."""
    import torch
    from ultralytics import YOLO
    from ultralytics.data.utils import check_det_dataset

    from yolo_gradstudy.datasets import resolve_dataset

    torch.set_num_threads(1)
    spec, result = folder.read_spec(), folder.read_result()
    found: dict[str, Any] = {"ended": "killed" if result is None else result.status}
    if result is not None and result.status == "failed":
        found["error"] = result.error
    weights = folder.path / "weights" / "last.pt"
    if not weights.is_file():
        return {**found, "weights_finite": None if result is None else result.weights_finite}
    yolo = YOLO(weights)
    found["weights_finite"] = all(
        bool(t.isfinite().all()) for t in yolo.model.state_dict().values() if t.is_floating_point()
    )
    if not found["weights_finite"]:
        return found
    validated = yolo.val(
        data=str(resolve_dataset(spec.data)), imgsz=spec.arguments["imgsz"], batch=16, workers=0, plots=False,
        verbose=False, device="cpu", project=str(folder.path), name="label", exist_ok=True,
    )  # fmt: skip
    images = check_det_dataset(str(resolve_dataset(spec.data)))["val"]
    scores, detections, count = [], 0, 0
    for answer in yolo.predict(
        images, imgsz=spec.arguments["imgsz"], conf=SCORE, stream=True, verbose=False, device="cpu"
    ):
        count += 1
        detections += len(answer.boxes)
        scores.append(float(answer.boxes.conf.max()) if len(answer.boxes) else 0.0)
    return {
        **found,
        "images": count,
        "detections": detections,
        "best_score": sorted(scores)[len(scores) // 2],
        "map50": float(validated.box.map50),
        "map50_95": float(validated.box.map),
    }


# Keeping -----------------------------------------------------------------------------------------------


def keep(root: Path, target: Path) -> None:
    """Copy what a verdict and a warning look at: step scalars, validations, events, and the largest of the flow.

    Raises:
        ValueError: A run has no label yet.
    """
    for path in sorted(p.parent for p in root.glob("*/spec.json")):
        if not (path / LABEL).is_file():
            raise ValueError(f"{path} has no {LABEL}; train it first.")
        source, copy = RunFolder(path), RunFolder(target / path.name)
        reduce_run(source, copy, Around())
        parts = copy.telemetry.parts("steps")
        whole = pa.concat_tables([copy.telemetry.read_part(part) for part in parts], promote_options="default")
        for part in parts:
            part.unlink()
        copy.telemetry.write_part("steps", whole)
        spec = copy.read_spec()
        write_json(copy.spec_path, replace(spec, data=Path(spec.data).name).to_dict())  # not where it lay
        shutil.copy(path / LABEL, copy.path / LABEL)
        flow = flow_signals(load_run(path))
        if len(flow):
            flow.to_csv(copy.path / FLOW, float_format="%.6g")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("coco", nargs="?", help="a data YAML of COCO images")
    parser.add_argument("root", nargs="?", type=Path, help="where the runs are kept")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="arms whose name contains this")
    parser.add_argument("--keep", nargs=2, type=Path, metavar=("ROOT", "TARGET"), help="copy the runs, reduced")
    parser.add_argument("--label", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.label is not None:
        print(f"\n{json.dumps(evidence(RunFolder(words.label)))}")
    elif words.keep is not None:
        keep(*words.keep)
    elif words.coco is None or words.root is None:
        parser.error("a data YAML of COCO images and a folder for the runs are needed")
    else:
        coco = str(Path(words.coco).resolve())
        chosen = [spec for spec in specs(coco) if not words.only or words.only in spec.arm]
        with ThreadPoolExecutor(words.jobs) as pool:
            for _ in pool.map(lambda spec: make(spec, words.root), chosen):
                pass


if __name__ == "__main__":
    main()
