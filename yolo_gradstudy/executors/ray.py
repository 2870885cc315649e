# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs on the machines of a Ray cluster. Their folders come back through Ray; no disk is shared."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from yolo_gradstudy.executors.base import Executor, Limits, RunEvent
from yolo_gradstudy.executors.local import TRANSIENT
from yolo_gradstudy.records import RunResult, RunSpec
from yolo_gradstudy.run_folder import StudyFolder, is_disk_full, no_room

_LOOK_S = 1.0
"""Between two looks at which nodes there are."""

_KNOCK_S = 10.0
_NO_NODE_S = 600.0
"""How long a study that has begun waits for a node, where the last was lost."""

_STILLBORN = 5
"""So many places one after another may end before they say where they are: a node may be lost, but not each time."""


class RayExecutor(Executor):
    """Runs on the machines of a Ray cluster, to which this process stays connected.

    Args:
        address: The cluster, as ``ray.init`` takes it; where None, the one that ``RAY_ADDRESS`` names or that this
            machine is part of. A process that is connected to a cluster stays with it.
        device: ``cpu`` or ``cuda``; GPUs where the cluster has some, if empty.
        jobs: Most runs at once; as many as fit where 0.
        per_device: Runs at once on each GPU.
        threads: CPU threads a run, and CPUs that it takes of a node; the most with which ``jobs`` runs fit where None.
        workers: Data loader workers a run; up to 8 on a GPU, where None.
        keep_weights: Whether checkpoints come back.
        limits: What a run may take, and how often it is tried; a lost node ends an attempt.

    Raises:
        ValueError: Ray is not installed, the cluster can't be reached, or not one run fits on a node of it.
    """

    def __init__(
        self,
        address: str | None = None,
        device: str = "",
        jobs: int = 0,
        per_device: int = 1,
        threads: int | None = None,
        workers: int | None = None,
        keep_weights: bool = False,
        limits: Limits | None = None,
    ) -> None:
        if device not in ("", "cpu", "cuda"):
            near = "cpu" if device == "mps" else "cuda"
            raise ValueError(
                f"--device {device}: with --executor ray a node's GPU is Ray's choice; the nearest valid is {near!r}."
            )
        self._ray = connect(address)
        nodes = self._nodes()
        has_gpus = any(node.get("GPU", 0) > 0 for node in nodes)
        if device == "cuda" and not has_gpus:
            raise ValueError("--device cuda: the Ray cluster has no GPU; the nearest that it has is 'cpu'.")
        self._device = device or ("cuda" if has_gpus else "cpu")
        self._per_device = per_device if self._device == "cuda" else None
        self._jobs = jobs
        self._limits = limits or Limits()
        self._threads = threads or choose_threads(nodes, self._per_device, jobs)
        if not count_places(nodes, self._threads, self._per_device):
            wants = f"{self._threads} CPUs" + (" and a GPU" if self._per_device else "")
            most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
            raise ValueError(f"--executor ray: a run takes {wants}, and the cluster's largest node has {most} CPUs.")
        if workers is None:
            workers = min(8, self._threads) if self._per_device else 0
        self._settings = (self._device, self._threads, workers, keep_weights, self._limits)

    def execute(self, specs: Sequence[RunSpec], folder: StudyFolder) -> Generator[RunEvent]:
        """See :meth:`Executor.execute`.

        As many places are asked for as fit on the nodes, anew while runs wait: nodes may join and leave. So a run that
        has started has its CPUs, and a place that other work keeps from the cluster waits in Ray's queue without one.

        Raises:
            ValueError: A disk is full, a node lacks this package, the data set or the model, or all nodes are lost.
        """
        if not specs:
            return
        from ray.exceptions import RayError

        waiting = deque((spec, 1) for spec in specs)
        crew = _Crew(self._ray, self._options(), self._settings, specs[0])
        try:
            while waiting or crew.training():
                crew.resize(self._most(), len(waiting))
                for place in crew.idle():
                    if not waiting:
                        break
                    place.train(*waiting.popleft())
                    yield RunEvent("started", place.spec, place=place.name)
                for place in crew.answered():
                    spec, attempt = place.spec, place.attempt
                    try:
                        again, result = self._collect(place, folder)
                    except RayError as error:
                        crew.lose(place)
                        again, result = self._failed(
                            place, folder, f"the worker on {place.name} was lost ({_words(error)})", True
                        )
                    if again:
                        waiting.appendleft((spec, attempt + 1))
                        folder.run(spec.run_id).forget_result()
                    yield RunEvent("retried" if again else "ended", spec, result, place.name)
        finally:
            crew.dismiss()

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _most(self) -> int:
        """How many places the cluster has room for now."""
        fit = count_places(self._nodes(), self._threads, self._per_device)
        return min(fit, self._jobs) if self._jobs else fit

    def _options(self) -> dict[str, Any]:
        # Ray counts in ten-thousandths: a third that is rounded up would not fit three times.
        share = math.floor(10_000 / self._per_device) / 10_000 if self._per_device else 0
        # Attempts are counted here, hence none of Ray's own.
        return {"num_cpus": self._threads, "num_gpus": share, "max_restarts": 0, "max_task_retries": 0}

    def _collect(self, place: _Place, folder: StudyFolder) -> tuple[bool, RunResult]:
        """Whether a run is tried again, and how its attempt ended; puts its folder into the study's.

        Raises:
            ValueError: A disk is full.
            RayError: The place is lost.
        """
        from ray.exceptions import RayTaskError

        try:
            answer = self._ray.get(place.answer)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ValueError):
                raise ValueError(f"node {place.name}: {cause}") from error
            kind = type(cause).__name__
            return self._failed(place, folder, f"{kind}: {_words(cause)}", kind in TRANSIENT)
        finally:
            place.rest()
        try:
            folder.run(place.spec.run_id).receive(answer.packed)
        except OSError as error:
            if is_disk_full(error):
                raise ValueError(no_room(f"--out {folder.path}")) from error
            raise
        return answer.again, RunResult.from_dict(answer.result)

    def _failed(self, place: _Place, folder: StudyFolder, why: str, may_not_repeat: bool) -> tuple[bool, RunResult]:
        """Whether a run whose folder is lost is tried again, and its result, which is written where it is not."""
        result = RunResult(place.spec.run_id, "failed", why, attempts=place.attempt)
        again = may_not_repeat and place.attempt <= self._limits.retries
        if not again:
            run = folder.run(place.spec.run_id)
            run.start_afresh(place.spec)
            run.write_result(result)
        return again, result


@dataclass
class _Place:
    """A place as the driver knows it: an actor, and what it was asked last."""

    actor: Any
    answer: Any
    state: Literal["joining", "preparing", "idle", "training"] = "joining"
    node: str = ""
    name: str = "a node"
    attempt: int = 0
    _spec: RunSpec | None = None

    @property
    def spec(self) -> RunSpec:
        assert self._spec is not None
        return self._spec

    def train(self, spec: RunSpec, attempt: int) -> None:
        self._spec, self.attempt, self.state = spec, attempt, "training"
        self.answer = self.actor.train.remote(spec.to_dict(), attempt)

    def rest(self) -> None:
        self.state = "idle"


class _Crew:
    """The places of one call: asked for, prepared, given back.

    Args:
        ray: The module, connected.
        options: What a place takes of a node.
        settings: Arguments of :class:`yolo_gradstudy.executors.node.Place`.
        sample: A run, whose data and model are the others' too.
    """

    def __init__(self, ray: Any, options: Mapping[str, Any], settings: Sequence[Any], sample: RunSpec) -> None:
        from yolo_gradstudy.executors.node import Place, prepare

        self._ray = ray
        self._actor = ray.remote(Place).options(**options)
        # In a process of its own, which gives its memory back: max_calls.
        self._prepare = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(prepare)
        self._settings = settings
        self._sample = sample
        self._places: list[_Place] = []
        self._prepared: dict[str, Any] = {}
        self._stillborn = 0
        self._last_room = time.monotonic()

    def training(self) -> list[_Place]:
        """The places where a run goes on."""
        return [place for place in self._places if place.state == "training"]

    def idle(self) -> list[_Place]:
        """The places that wait for a run."""
        return [place for place in self._places if place.state == "idle"]

    def resize(self, most: int, waiting: int) -> None:
        """Ask for places that are missing, and give back those that nothing waits for.

        Args:
            most: How many the cluster has room for.
            waiting: Runs that wait for a place.

        Raises:
            ValueError: There has been no room for too long.
        """
        if most or self.training():
            self._last_room = time.monotonic()
        elif time.monotonic() - self._last_room > _NO_NODE_S:
            raise ValueError(
                f"--executor ray: the cluster has had no node for a run for {_NO_NODE_S / 60:.0f} min; start one and "
                "give the same command again, which goes on from the runs that are finished."
            )
        wanted = min(most, len(self.training()) + waiting)
        spare = [p for p in self._places if p.state != "training"]
        spare.sort(key=lambda place: place.state == "idle")  # those that are not ready go first
        while len(self._places) > wanted and spare:
            self.lose(spare.pop(0))
        while len(self._places) < wanted:
            actor = self._actor.remote(*self._settings)
            self._places.append(_Place(actor, actor.where.remote()))

    def answered(self) -> list[_Place]:
        """The places whose run has ended, after a wait; takes care of those that are not ready.

        Raises:
            ValueError: A node can't hold a place, or lacks what runs read.
        """
        asked = {place.answer for place in self._places if place.state != "idle"}
        if not asked:
            time.sleep(_LOOK_S)
            return []
        ready = set(self._ray.wait(list(asked), num_returns=1, timeout=_LOOK_S)[0])
        found = [place for place in self._places if place.state != "idle" and place.answer in ready]
        for place in found:
            if place.state == "joining":
                self._join(place)
            elif place.state == "preparing":
                self._begin(place)
        return [place for place in found if place.state == "training"]

    def _join(self, place: _Place) -> None:
        from ray.exceptions import RayActorError, RayError

        try:
            place.node, place.name, found = self._ray.get(place.answer)
        except RayError as error:
            self.lose(place)
            self._stillborn += 1
            if self._stillborn == _STILLBORN or (isinstance(error, RayActorError) and error.actor_init_failed):
                raise ValueError(
                    f"--executor ray: a node can't start what trains a run ({_words(error)}); "
                    f"every node needs yolo_gradstudy {version('yolo_gradstudy')} in Ray's environment."
                ) from error
            return
        self._stillborn = 0
        if found != (here := version("yolo_gradstudy")):
            raise ValueError(f"node {place.name} has yolo_gradstudy {found}, and this machine {here}: install one.")
        if place.node not in self._prepared:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            there = NodeAffinitySchedulingStrategy(place.node, soft=False)
            task = self._prepare.options(scheduling_strategy=there)
            self._prepared[place.node] = task.remote(self._sample.to_dict())
        place.answer, place.state = self._prepared[place.node], "preparing"

    def _begin(self, place: _Place) -> None:
        from ray.exceptions import RayError, RayTaskError

        try:
            self._ray.get(place.answer)
        except RayTaskError as error:
            raise ValueError(f"node {place.name}: {_words(error.cause)}") from error
        except RayError:
            self._prepared.pop(place.node, None)
            self.lose(place)
        else:
            place.rest()

    def lose(self, place: _Place) -> None:
        """Give a place back, or what is left of it."""
        self._places.remove(place)
        with suppress(Exception):  # its node is gone, or the cluster
            self._ray.kill(place.actor)

    def dismiss(self) -> None:
        """Give every place back, which ends their runs."""
        for place in list(self._places):
            self.lose(place)
        for task in self._prepared.values():
            with suppress(Exception):
                self._ray.cancel(task, force=True)


def connect(address: str | None) -> Any:
    """The module ``ray``, connected to a cluster.

    Raises:
        ValueError: It is not installed, or the cluster can't be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "--executor ray: Ray is not installed; `pip install 'yolo_gradstudy[ray]'` installs it."
        ) from error
    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray looks
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _knock(where)
        ray.init(where, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray has no kind of error of its own for this
        raise ValueError(
            f"--address {where}: no Ray cluster can be reached there ({_words(error)}); "
            "`ray start --head` starts one on this machine."
        ) from error
    return ray


def _knock(address: str) -> None:
    """Look whether anything listens at an address; Ray itself would try for a quarter of an hour.

    Raises:
        OSError: Nothing does.
        ValueError: It is no address.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("it has the form host:port, ray://host:port or auto")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S):
        pass


def count_places(nodes: Sequence[Mapping[str, float]], threads: int, per_device: int | None) -> int:
    """How many runs fit on some nodes at once.

    Args:
        nodes: What each node has, as Ray names it: ``CPU`` and ``GPU``.
        threads: CPUs a run.
        per_device: Runs a GPU; None where runs need none.
    """
    fit = 0
    for node in nodes:
        by_cpus = int(node.get("CPU", 0)) // threads
        fit += by_cpus if per_device is None else min(by_cpus, int(node.get("GPU", 0)) * per_device)
    return fit


def choose_threads(nodes: Sequence[Mapping[str, float]], per_device: int | None, jobs: int) -> int:
    """CPU threads a run: the most with which as many runs fit at once as are wanted, or as fit with one.

    Args:
        nodes: As in :func:`count_places`.
        per_device: As in :func:`count_places`.
        jobs: Runs wanted at once; as many as fit where 0.
    """
    wanted = max(1, min(jobs or math.inf, count_places(nodes, 1, per_device)))
    most = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    return max((n for n in range(1, most + 1) if count_places(nodes, n, per_device) >= wanted), default=1)


def _words(error: object) -> str:
    """The last line of an error's message, where Ray says what happened, or else its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:300] if lines else type(error).__name__
