# SPDX-License-Identifier: AGPL-3.0-or-later
"""Frozen data that the rooms exchange. Imports no other room, neither torch nor Ultralytics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import pandas as pd

TELEMETRY_SCHEMA = 1
"""Version of the telemetry's layout on disk; written into ``meta.json`` and checked when read."""

Branch = Literal["one2one", "one2many"]
"""An assigner branch of a detection head. A head with one branch (YOLOv8, YOLO11) is ``one2many``."""


class Outcome(StrEnum):
    """The verdict on a run. Members stand in the order in which the rules are asked."""

    FAILED = "failed"
    INTERRUPTED = "interrupted"
    NONFINITE = "nonfinite"
    EXPLODED = "exploded"
    COLLAPSED = "collapsed"
    STUCK = "stuck"
    RECOVERED = "recovered"
    STABLE = "stable"
    UNKNOWN = "unknown"

    @property
    def healthy(self) -> bool:
        """Whether the detector survived its training."""
        return self in (Outcome.RECOVERED, Outcome.STABLE)

    @property
    def unhealthy(self) -> bool:
        """Whether training broke the detector; a failed, interrupted or unknown run says nothing of that."""
        return self in (Outcome.NONFINITE, Outcome.EXPLODED, Outcome.COLLAPSED, Outcome.STUCK)

    @property
    def broken(self) -> bool:
        """Whether training broke a detector that could learn; for a stuck one the learning rate was too small."""
        return self.unhealthy and self is not Outcome.STUCK

    @property
    def tells(self) -> bool:
        """Whether a run of this outcome says anything of stability."""
        return self.healthy or self.unhealthy


FindingState = Literal["matched", "not matched", "not checked"]


@dataclass(frozen=True)
class Advice:
    """What to change, and why.

    Attributes:
        text: One sentence with the evidence that leads to the advice.
        arguments: Ultralytics training arguments to set, as ``{"lr0": 0.03}``.
    """

    text: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One diagnosis rule's answer.

    Attributes:
        rule: The rule's name, ``is_x``.
        state: ``matched``, ``not matched``, or ``not checked`` where the rule lacks what it needs.
        evidence: One sentence: the numbers that decided, or what is missing.
        step: Optimizer step at which the evidence begins, where there is one.
        layer: Parameter tensor in which it begins, where there is one.
        advice: What to change, for a finding that knows.
        explains: Whether it explains besides the outcome; a finding that does never decides one.
    """

    rule: str
    state: FindingState
    evidence: str
    step: int | None = None
    layer: str | None = None
    advice: Advice | None = None
    explains: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on a run with its reasons.

    Attributes:
        outcome: The first outcome whose rule matched; ``unknown`` where nothing could be told.
        findings: Every rule's answer, in the order in which the rules were asked; those that explain come last.
        advice: Advice of the findings that matched.
        onset_step: Step at which the run left its healthy course, where it did.
        onset_layer: Parameter tensor that left first, where it can be told.
        onset_layers: Parameter tensors in the order in which they left their own bands.
        so_far: What the recorded steps show of a run that failed or has no end, where they show anything.
    """

    outcome: Outcome
    findings: tuple[Finding, ...]
    advice: tuple[Advice, ...] = ()
    onset_step: int | None = None
    onset_layer: str | None = None
    onset_layers: tuple[str, ...] = ()
    so_far: Outcome | None = None

    @property
    def evidence(self) -> str:
        """The sentence that decided the outcome; where none did, what was missing and what came nearest."""
        deciding = [f for f in self.findings if not f.explains]
        decisive = next((f for f in deciding if f.state == "matched"), None)
        if decisive is not None:
            return decisive.evidence
        told = [f for f in deciding if f.state == "not checked" or f in deciding[-2:]]
        return "; ".join(f"{f.rule} {f.state}: {f.evidence}" for f in told)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        data = asdict(self)
        data["outcome"] = str(self.outcome)
        data["so_far"] = None if self.so_far is None else str(self.so_far)
        data["evidence"] = self.evidence
        return data


@dataclass(frozen=True)
class RecordConfig:
    """What the recorder stores and how often.

    Attributes:
        every: Record the scalars and every parameter's gradient norm each ``every`` optimizer steps.
        extremes_every: Largest absolute gradient each so many recorded steps, which takes a second pass over
            the gradients; 0 for never.
        parameter_every: Parameter norms each so many recorded steps; 0 for never.
        update_every: Norm of the update and update-to-weight ratios each so many recorded steps, which
            keeps a copy of the parameters through that one step; 0 for never.
        flow_every: Activation and gradient flow through the modules each so many steps; 0 for never.
        flow_modules: Name patterns (shell style) of the modules whose flow is sampled; all where empty.
        flush_every: Recorded steps that wait on the device before one copy to the host; a killed run
            loses at most so many.
        untrained: Whether the model is validated before its first step too, by the loss of a fixed assignment: what
            learning is measured from. It costs a pass over the validation images.

    Raises:
        ValueError: A count that is not a whole number, is negative, or is zero where it must not be.
    """

    every: int = 1
    extremes_every: int = 50
    parameter_every: int = 10
    update_every: int = 10
    flow_every: int = 0
    flow_modules: tuple[str, ...] = ()
    flush_every: int = 50
    untrained: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.untrained, bool):
            raise ValueError(f"record: untrained={self.untrained!r} is neither true nor false; the default is false.")
        for name in self.field_names():
            if name in ("flow_modules", "untrained"):
                continue
            least = 1 if name in ("every", "flush_every") else 0
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"record: {name}={value!r} is not a whole number of at least {least}; the nearest valid is {least}."
                )
        patterns: object = self.flow_modules
        if isinstance(patterns, str):
            raise ValueError(
                f"record: flow_modules={self.flow_modules!r} is one string; "
                f"write a list of patterns, [{self.flow_modules!r}]."
            )
        object.__setattr__(self, "flow_modules", tuple(self.flow_modules))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The keys that a ``record:`` section takes."""
        return tuple(f.name for f in fields(cls))


@dataclass(frozen=True)
class ForensicsConfig:
    """What is kept of a training so that the step at which it went wrong can be run once more, on a copy.

    Attributes:
        every: Optimizer steps between two snapshots of the weights; 0 turns forensics off.
        budget_bytes: Most memory that snapshots, batches and a replay may take together. A training that needs more
            goes on without forensics, and its telemetry says so.
        save: Whether an incident keeps weights and batches beside it, for ``gradstudy diagnose --replay``.

    Raises:
        ValueError: A count that is not a whole number, or is negative.
    """

    every: int = 50
    budget_bytes: int = 2 * 2**30
    save: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "budget_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"forensics: {name}={value!r} is not a whole number of at least 0; the nearest is 0.")


@dataclass(frozen=True)
class RunSpec:
    """One training, wholly resolved: what the plan hands to an executor.

    Attributes:
        run_id: A readable name and a hash of all that decides the run's numbers.
        study: The study's name.
        arm: The arm's name.
        ablations: Names from the table of ablations, in the order given.
        model: An Ultralytics model name or path (``yolo26n.yaml``).
        data: A dataset's name from ``datasets.yaml`` or the path of an Ultralytics data YAML, as given.
        lr0: Initial learning rate.
        seed: Seed of weights, data order and augmentation.
        arguments: Every other Ultralytics training argument, base and arm merged.
        record: Keyword arguments of :class:`RecordConfig`.
    """

    run_id: str
    study: str
    arm: str
    ablations: tuple[str, ...]
    model: str
    data: str
    lr0: float
    seed: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``spec.json``."""
        return {**asdict(self), "ablations": list(self.ablations)}

    @classmethod
    def from_dict(cls, data: object) -> RunSpec:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: The data is no spec.
        """
        known = _checked("a run's spec", cls, data, _SPEC_FORMS)
        if isinstance(data, Mapping) and (unknown := sorted(set(data) - set(known))):
            raise ValueError(f"{unknown[0]!r} is no key of a run's spec")
        return cls(**{**known, "ablations": tuple(known["ablations"])})


@dataclass(frozen=True)
class RunResult:
    """How a run's process ended, written once as ``result.json``. It holds facts, never a verdict.

    Attributes:
        run_id: The run's id.
        status: ``finished``, or ``failed`` where an error ended the process.
        error: One sentence on the error, for a failed run.
        traceback: The Python traceback, for a failed run.
        steps: Optimizer steps recorded.
        metrics: Final validation metrics, as Ultralytics names them (``metrics/mAP50-95(B)``).
        weights_finite: Whether every weight and BatchNorm statistic of the trained model (not its EMA) was finite
            at the end.
        changed: How many modules each ablation changed.
        parameters: Number of parameters of the model as trained.
        device: ``cpu`` or the accelerator's name.
        processor: The CPU's name; None in results of earlier versions.
        threads: CPU threads of torch.
        versions: Versions of this package, torch, Ultralytics and Python.
        started: Start, ISO 8601 with time zone.
        duration_s: Seconds from the process' start of work to its result.
        attempts: How often it was tried, this time included.
    """

    run_id: str
    status: Literal["finished", "failed"]
    error: str | None = None
    traceback: str | None = None
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights_finite: bool | None = None
    changed: Mapping[str, int] = field(default_factory=dict)
    parameters: int | None = None
    device: str | None = None
    processor: str | None = None
    threads: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str | None = None
    duration_s: float | None = None
    attempts: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``result.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> RunResult:
        """The inverse of :meth:`to_dict`; keys that a newer version added are left out.

        Raises:
            ValueError: The data is no result.
        """
        known = _checked("a run's result", cls, data, _RESULT_FORMS)
        if known["status"] not in ("finished", "failed"):
            raise ValueError(f"'status' is {known['status']!r}; a run's result has 'finished' or 'failed'")
        return cls(**known)


_SPEC_FORMS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("run_id", "study", "arm", "model", "data"), (str,)),
    "ablations": (list, tuple),
    "lr0": (int, float),
    "seed": (int,),
    **dict.fromkeys(("arguments", "record"), (Mapping,)),
}
_RESULT_FORMS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("run_id", "status"), (str,)),
    **dict.fromkeys(("error", "traceback", "device", "processor", "started"), (str, type(None))),
    **dict.fromkeys(("parameters", "threads"), (int, type(None))),
    **dict.fromkeys(("metrics", "changed", "versions"), (Mapping,)),
    **dict.fromkeys(("steps", "attempts"), (int,)),
    "weights_finite": (bool, type(None)),
    "duration_s": (int, float, type(None)),
}


def _checked(what: str, kind: type[Any], data: object, forms: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The keys of ``data`` that a dataclass has, of the types that it has.

    Args:
        what: What the data should be, to put into a sentence.
        kind: The dataclass.
        data: Plain data, as JSON gives it.
        forms: Types by key.

    Raises:
        ValueError: The data is no mapping, lacks a key without a default, or a value is of another type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"it holds {type(data).__name__} and not the keys of {what}")
    known = {f.name: data[f.name] for f in fields(kind) if f.name in data}
    for field_ in fields(kind):
        if field_.name not in known and field_.default is MISSING and field_.default_factory is MISSING:
            raise ValueError(f"the key {field_.name!r} of {what} is missing")
    for key, value in known.items():
        if not isinstance(value, forms[key]):
            raise ValueError(f"{key!r} is {value!r}, which {what} can't hold")
    return known


class Run(Protocol):
    """What can be read of a recorded run; :func:`yolo_gradstudy.load_run` returns one."""

    @property
    def name(self) -> str:
        """The folder's name."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """``telemetry/meta.json``: model, parameters, groups, branches, clip norm, versions."""

    @property
    def steps(self) -> pd.DataFrame:
        """A row a recorded step (index ``step``), a column a scalar; missing where not recorded."""

    @property
    def epochs(self) -> pd.DataFrame:
        """Ultralytics' ``results.csv``: a row an epoch (index ``epoch``); empty where there is none."""

    @property
    def validations(self) -> pd.DataFrame:
        """A row a validated epoch (index ``epoch``): ``fixed_loss_<branch>`` and its parts."""

    def layers(self, quantity: str) -> pd.DataFrame:
        """``grad_norm``, ``param_norm`` or ``update_ratio``: step × parameter name."""

    def flow(self, quantity: str) -> pd.DataFrame:
        """A flow quantity: step × module name, at the sampled steps."""

    @property
    def events(self) -> Sequence[Mapping[str, Any]]:
        """What happened besides steps: starts, resumes, closes, batch reductions."""

    @property
    def incidents(self) -> Sequence[Mapping[str, Any]]:
        """What was captured where the run went wrong."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Ultralytics' ``args.yaml``: the training arguments; empty where there is none."""

    @property
    def spec(self) -> RunSpec | None:
        """The run's spec, where it belongs to a study."""

    @property
    def result(self) -> RunResult | None:
        """How the run's process ended, where it belongs to a study and did."""

    @property
    def damaged(self) -> Sequence[str]:
        """Telemetry files that could not be read, each with the reason."""


@dataclass(frozen=True)
class RunReading:
    """A run of a study together with its verdict: what tables are made of.

    Attributes:
        spec: The run's spec.
        run: Its telemetry, or None where nothing was recorded.
        result: How its process ended, or None where it has not.
        diagnosis: The verdict, derived now from what is recorded.
    """

    spec: RunSpec
    run: Run | None
    result: RunResult | None
    diagnosis: Diagnosis
