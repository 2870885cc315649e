# SPDX-License-Identifier: AGPL-3.0-or-later
"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Pairs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Ultralytics training arguments.", show_default=False),
]


Device = Annotated[
    str,
    typer.Option(help="cpu, mps, or GPU numbers: 0,1; cpu or cuda with Ray. Every GPU, or cpu, by default."),
]


def _packaged(incomplete: str) -> list[str]:
    """Packaged studies, for a shell to complete."""
    from yolo_gradstudy.plan import packaged_studies

    return [name for name in packaged_studies() if name.startswith(incomplete)]


StudySource = Annotated[
    str,
    typer.Argument(help="A packaged study's name or the path of a study YAML.", autocompletion=_packaged),
]


Data = Annotated[str | None, typer.Option(help="A data set's name or the path of a data YAML.")]


Jobs = Annotated[int, typer.Option(help="Runs at once; 0: one a core, or one a GPU.")]


ExecutorName = Annotated[str, typer.Option(help="Where runs are placed: local, or ray, on a cluster's machines.")]


Address = Annotated[str | None, typer.Option(help="The Ray cluster: host:port, ray://host:port, or auto (default).")]


Workers = Annotated[int, typer.Option(help="Data loader workers a run; -1: 0 on a CPU, up to 8 on a GPU.")]


KeepWeights = Annotated[bool, typer.Option(help="Keep every run's checkpoints.")]


RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Train runs that failed again.")]


PerDevice = Annotated[int, typer.Option(help="Runs at once on each GPU.")]


Timeout = Annotated[float, typer.Option(help="Minutes after which a run is ended and noted as failed; 0: never.")]


MemoryLimit = Annotated[float, typer.Option(help="GiB of main memory that a run may use; 0: any.")]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Tell nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="The answer as JSON on standard output, and nothing else there.")]
Retries = Annotated[int, typer.Option(help="Further attempts for a run that failed as divergence never does.")]
