# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tools that are compared, each used as its own documentation shows, asked to record every step where it can.

A peer has two sides. In the training it begins, is called before each step and after it, and closes. From the folder
that it wrote, class methods read what is there: the steps of which it kept something of each parameter's gradient, and
what it names as the source of a value that is not finite.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from yolo_gradstudy import gradstudy_trainer, load_run

from .trainers import BareTrainer

GRADIENT, ACTIVATION = "gradient", "activation"
"""Where a value that is not finite is planted: a parameter's gradient, a module's output."""


class Peer:
    """Ultralytics' own training, with nothing recorded.

    Args:
        folder: Where it may write.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    imports: ClassVar[tuple[str, ...]] = ()
    trainer_class: ClassVar[type[Any]] = BareTrainer

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.step = 0

    @classmethod
    def missing(cls) -> list[str]:
        """Its packages that are not installed."""
        return [name for name in cls.packages if importlib.util.find_spec(name) is None]

    @classmethod
    def versions(cls) -> list[str]:
        """Its packages with their versions."""
        return [f"{name} {importlib.metadata.version(name)}" for name in cls.packages]

    def begin(self, trainer: Any) -> None:
        """A trainer is set up."""

    def before_step(self, loss: Tensor) -> None:
        """Gradients are there, and not clipped yet."""

    def end_step(self) -> None:
        """The step is done."""
        self.step += 1

    def close(self) -> None:
        """Training is over."""

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """The files of its recording."""
        return [path for path in folder.rglob("*") if path.is_file()]

    @classmethod
    def recorded(cls, folder: Path) -> int:
        """How many steps can be read back."""
        return 0

    @classmethod
    def named(cls, folder: Path, place: str, modules: Sequence[str]) -> list[str]:
        """What the recording names as not finite, at the first step at which anything is.

        Args:
            folder: Where it wrote.
            place: `GRADIENT` for parameters, `ACTIVATION` for the module where it began.
            modules: The model's modules in order.
        """
        return []


class Ours(Peer):
    """This package, as it is without any option."""

    packages = ("yolo_gradstudy",)
    trainer_class = gradstudy_trainer(BareTrainer)

    def begin(self, trainer: Any) -> None:
        self._trainer = trainer

    def close(self) -> None:
        self._trainer._recorder.close()

    @classmethod
    def _run(cls, folder: Path) -> Any:
        return load_run(next(folder.rglob("telemetry")).parent)

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        return [path for path in super().files(folder) if {"telemetry", "incidents"} & set(path.parts)]

    @classmethod
    def recorded(cls, folder: Path) -> int:
        return int(cls._run(folder).layers("grad_norm").notna().all(axis=1).sum())

    @classmethod
    def named(cls, folder: Path, place: str, modules: Sequence[str]) -> list[str]:
        run = cls._run(folder)
        if place == ACTIVATION:
            causes = [incident.get("cause") for incident in run.incidents]
            return [causes[0]["module"]] if causes and causes[0] else []
        norms = run.layers("grad_norm").to_dict(orient="records")
        return first_nonfinite(norms)


class NormRows(Peer):
    """One whose recording is a norm a parameter, a row a step."""

    @classmethod
    def _rows(cls, folder: Path) -> list[dict[str, float]]:
        raise NotImplementedError

    @classmethod
    def recorded(cls, folder: Path) -> int:
        return len(cls._rows(folder))

    @classmethod
    def named(cls, folder: Path, place: str, modules: Sequence[str]) -> list[str]:
        return first_nonfinite(cls._rows(folder))


class LightningNorms(NormRows):
    """Lightning's `grad_norm` in `on_before_optimizer_step`, logged by its `CSVLogger`."""

    packages = ("lightning",)
    imports = ("lightning.pytorch.loggers", "lightning.pytorch.utilities")
    PREFIX = "grad_2.0_norm/"

    def begin(self, trainer: Any) -> None:
        from lightning.pytorch.loggers import CSVLogger
        from lightning.pytorch.utilities import grad_norm

        self._model, self._norms = trainer.model, grad_norm
        self._logger = CSVLogger(self.folder)

    def before_step(self, loss: Tensor) -> None:
        self._logger.log_metrics(self._norms(self._model, norm_type=2), step=self.step)

    def close(self) -> None:
        self._logger.finalize("success")

    @classmethod
    def _rows(cls, folder: Path) -> list[dict[str, float]]:
        rows = []
        for path in folder.rglob("metrics.csv"):
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    names = [name for name in row if name.startswith(cls.PREFIX)]
                    if all(row[name] for name in names):
                        rows.append({name.removeprefix(cls.PREFIX): float(row[name]) for name in names})
        return rows


class WandbWatch(Peer):
    """W&B's `watch`, offline, with a `log` of the loss each step."""

    packages = ("wandb",)
    imports = ("wandb",)
    every: ClassVar[int | None] = None
    PREFIX = "gradients/"

    def begin(self, trainer: Any) -> None:
        import wandb

        self._run = wandb.init(project="bench", mode="offline", dir=self.folder)
        self._run.watch(trainer.model, **({} if self.every is None else {"log_freq": self.every}))
        self._loss: Tensor | None = None

    def before_step(self, loss: Tensor) -> None:
        self._loss = loss

    def end_step(self) -> None:
        super().end_step()
        self._run.log({"loss": self._loss})

    def close(self) -> None:
        self._run.unwatch()
        self._run.finish()

    @classmethod
    def _rows(cls, folder: Path) -> list[set[str]]:
        from wandb.proto import wandb_internal_pb2

        rows = []
        for path in folder.rglob("*.wandb"):
            for content in wandb_records(path.read_bytes()):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(content)
                keys = ["/".join(item.nested_key) or item.key for item in record.history.item]
                rows.append({k.removeprefix(cls.PREFIX).removesuffix("/_type") for k in keys if cls.PREFIX in k})
        return [row for row in rows if row]

    @classmethod
    def recorded(cls, folder: Path) -> int:
        return len(cls._rows(folder))

    @classmethod
    def named(cls, folder: Path, place: str, modules: Sequence[str]) -> list[str]:
        """A histogram holds no value that is not finite; what had nothing else has none, and counts as named."""
        rows = cls._rows(folder)
        everything = set().union(*rows)
        return sorted(next((everything - row for row in rows if row != everything), set()))


class WandbWatchEachStep(WandbWatch):
    """The same, told to record each step."""

    every = 1


class TrainScopeRun(Peer):
    """trainscope as its README shows it."""

    packages = ("trainscope",)
    imports = ("trainscope",)

    def begin(self, trainer: Any) -> None:
        from trainscope import TrainScope, TrainScopeConfig

        config = TrainScopeConfig(run_dir=str(self.folder))
        self._scope = TrainScope(trainer.model, trainer.optimizer, config=config).attach()

    def before_step(self, loss: Tensor) -> None:
        self._scope.step(loss.item(), batch_index=self.step)

    def close(self) -> None:
        self._scope.detach()

    @classmethod
    def _rows(cls, folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
        from urllib.parse import unquote

        from trainscope.io.writer import read_arrow_rows_sync

        files = {unquote(path.stem): path for path in folder.rglob("layers/*.arrow") if "spikes" not in path.parts}
        return {name: {row["step"]: row for row in read_arrow_rows_sync(path)} for name, path in files.items()}

    @classmethod
    def recorded(cls, folder: Path) -> int:
        steps = [set(rows) for rows in cls._rows(folder).values()]
        return len(set.intersection(*steps)) if steps else 0

    @classmethod
    def named(cls, folder: Path, place: str, modules: Sequence[str]) -> list[str]:
        """Of activations the first in the model's order: what comes after it is not finite either."""
        layers = cls._rows(folder)
        quantity = "grad_nan_inf_ratio" if place == GRADIENT else "act_max_abs"
        for step in sorted({step for rows in layers.values() for step in rows}):
            values = {name: (rows.get(step) or {}).get(quantity) for name, rows in layers.items()}
            if place == GRADIENT and any(values.values()):
                return [name for name, share in values.items() if share]
            gradients = any((rows.get(step) or {}).get("grad_nan_inf_ratio") for rows in layers.values())
            if place == ACTIVATION and gradients:
                wrong = {
                    name.rpartition(".")[0] for name, v in values.items() if v is not None and not math.isfinite(v)
                }
                return [name for name in modules if name in wrong][:1]
        return []


class ItemHooks(NormRows):
    """What people write: a hook a parameter that reads the norm of its gradient, and a line of JSON a step."""

    def begin(self, trainer: Any) -> None:
        self._norms: dict[str, float] = {}
        self._file = (self.folder / "norms.jsonl").open("w")
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient, name=name: self._norms.update({name: gradient.norm().item()}))

    def end_step(self) -> None:
        super().end_step()
        print(json.dumps(self._norms), file=self._file, flush=True)
        self._norms.clear()

    def close(self) -> None:
        self._file.close()

    @classmethod
    def _rows(cls, folder: Path) -> list[dict[str, float]]:
        lines = (folder / "norms.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


STOCK, OURS = "stock Ultralytics", "this package"
PEERS: dict[str, type[Peer]] = {
    STOCK: Peer,
    OURS: Ours,
    "Lightning `grad_norm`": LightningNorms,
    "`wandb.watch`, every 1000th step": WandbWatch,
    "`wandb.watch`, each step": WandbWatchEachStep,
    "trainscope": TrainScopeRun,
    "hooks with `.item()`": ItemHooks,
}
"""What is compared, by the column that it has."""


def first_nonfinite(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """Names of what is not finite in the first row that has any."""
    for row in rows:
        if wrong := [name for name, value in row.items() if not math.isfinite(value)]:
            return wrong
    return []


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The whole records of a `.wandb` file: LevelDB's log format after a header of seven bytes."""
    block, header, position, record = 32768, 7, 7, b""
    while position + header <= len(content):
        left = block - position % block
        if left < header:
            position += left
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        piece = content[position + header : position + header + length]
        if len(piece) < length or kind not in (1, 2, 3, 4):  # torn
            return
        record = piece if kind in (1, 2) else record + piece
        position += header + length
        if kind in (1, 4):
            yield record


class Spoiler:
    """A hook that makes one element NaN at one of its calls.

    Args:
        call: Which call, from 1.
    """

    def __init__(self, call: int) -> None:
        self._call = call
        self._calls = 0

    def __call__(self, *given: Any) -> Tensor | None:
        """Of a tensor's hook the gradient, of a module's the output."""
        self._calls += 1
        if self._calls != self._call:
            return None
        spoiled: Tensor = given[-1].clone()
        spoiled.view(-1)[spoiled.numel() // 2] = torch.nan
        return spoiled
