# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study on many GPUs, on paper: what each part of it could do in an hour, and which is the bottleneck.

    python scripts/estimate_cluster.py --data datasets/coco/coco128.yaml
    python scripts/estimate_cluster.py --gpus 64 --per-device 2 --cores 16 --step-s 0.1

Measured here, on one core: decoding and augmenting an image as YOLO's training does, judging and tabulating a run, and
the bytes that a run leaves. Assumed, and told as such: how long a step takes on a GPU, and the network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench_scale import ARMS, RATES, make_study, measure_apart, study_data

from yolo_gradstudy.datasets import resolve_dataset
from yolo_gradstudy.plan import Study
from yolo_gradstudy.run import processor_name


@dataclass(frozen=True)
class Costs:
    """What a run takes of each resource.

    Attributes:
        gpu_s: Seconds of a GPU, were there no other limit.
        loader_s: Core seconds that its images take to be read and augmented.
        judge_s: Core seconds of the one machine that runs the study, for judging and tabulating it.
        bytes_left: Bytes of its folder, which go over the network to that machine.
        images: Images that it trains on, each epoch's anew.
    """

    gpu_s: float
    loader_s: float
    judge_s: float
    bytes_left: int
    images: int


def seconds_per_image(data: str, imgsz: int, images: int) -> float:
    """Core seconds to read and augment an image, mosaic of four included, with Ultralytics' defaults."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    found = check_det_dataset(str(resolve_dataset(data)))
    config = get_cfg(overrides={"task": "detect", "imgsz": imgsz})
    dataset = build_yolo_dataset(config, found["train"], batch=16, data=found, mode="train")
    for number in range(min(images, len(dataset))):  # fill Ultralytics' buffer of images, and the page cache
        dataset[number]
    began = time.process_time()
    for number in range(images):
        dataset[number % len(dataset)]
    return (time.process_time() - began) / images


def run_costs(steps: int, layers: int) -> tuple[float, int]:
    """Core seconds to judge and tabulate a run, and its bytes, from a small synthetic study."""
    runs = 5 * ARMS * len(RATES)  # fewer would lay what the tables take for themselves on each
    with tempfile.TemporaryDirectory(prefix="gradstudy-paper-") as folder:
        study = make_study(Path(folder), Study(**study_data(runs, ARMS, steps)), steps, layers, merge=True)
        seconds = measure_apart("tables", study, 1)["cpu"] / runs
        left = sum(p.stat().st_size for p in study.path.glob("runs/*/**/*") if p.is_file()) // runs
    return seconds, left


def capacities(costs: Costs, words: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """Each part of a study with the runs an hour that it alone would allow, and how that is reckoned."""
    nodes = -(-words.gpus // words.gpus_a_node)
    cores = words.gpus * words.cores
    yield (
        "GPUs", 3600 * words.gpus / costs.gpu_s,
        f"{words.gpus} GPUs, {costs.gpu_s:.0f} s a run: {words.steps} steps of {words.step_s:g} s (assumed), "
        f"{words.start_s:g} s to start",
    )  # fmt: skip
    yield (
        "data loading", 3600 * cores / costs.loader_s,
        f"{cores} cores, {costs.images} images of {1000 * costs.loader_s / costs.images:.1f} ms (measured)",
    )  # fmt: skip
    yield (
        "judging", 3600 / costs.judge_s,
        f"one core of the machine that runs the study, {1000 * costs.judge_s:.0f} ms a run (measured)",
    )  # fmt: skip
    yield (
        "results over the network", 3600 * words.network_mb * 1e6 / costs.bytes_left,
        f"{costs.bytes_left / 1e6:.1f} MB a run (measured), {words.network_mb:g} MB/s into one machine (assumed)",
    )  # fmt: skip
    yield (
        "images from a shared disk", 3600 * words.network_mb * 1e6 * nodes / (costs.images * words.image_kb * 1e3),
        f"{nodes} nodes at {words.network_mb:g} MB/s each, {words.image_kb:g} kB an image (assumed), none cached",
    )  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--gpus-a-node", type=int, default=8)
    parser.add_argument("--cores", type=int, default=12, help="CPU cores a GPU")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=366)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--step-s", type=float, default=0.1, help="of one step on a GPU; `scripts/gpu_check.sh` tells")
    parser.add_argument("--start-s", type=float, default=10, help="of a run's start and its last validation")
    parser.add_argument("--network-mb", type=float, default=1000, help="MB/s into a machine")
    parser.add_argument("--image-kb", type=float, default=160, help="kB of an image; COCO's mean")
    parser.add_argument("--data", default="shapes", help="the data set whose images are timed")
    parser.add_argument("--timed", type=int, default=200, help="images that are timed")
    words = parser.parse_args()
    judge_s, left = run_costs(words.steps, words.layers)
    images = words.steps * words.batch
    costs = Costs(
        gpu_s=words.steps * words.step_s + words.start_s,
        loader_s=images * seconds_per_image(words.data, words.imgsz, words.timed),
        judge_s=judge_s,
        bytes_left=left,
        images=images,
    )
    found = list(capacities(costs, words))
    slowest = min(found, key=lambda one: one[1])
    print(f"{words.runs} runs × {words.steps} steps × {words.layers} layers, batch {words.batch}, {words.imgsz} px, on")
    print(f"{words.gpus} GPUs; measured on a core of {processor_name()}.\n")
    print("| part | runs an hour | hours for all | how |")
    print("|---|---|---|---|")
    for name, rate, how in found:
        print(f"| {name} | {rate:,.0f} | {words.runs / rate:.2f} | {how} |")
    print(f"\nThe bottleneck is {slowest[0]}: {words.runs / slowest[1]:.1f} h, ", end="")
    print(f"{words.gpus * words.runs / slowest[1]:.0f} GPU hours held; disk: {words.runs * left / 1e9:.1f} GB.")


if __name__ == "__main__":
    main()
