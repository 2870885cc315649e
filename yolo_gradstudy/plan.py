# SPDX-License-Identifier: AGPL-3.0-or-later
"""Study YAML → validated :class:`Study` → :class:`RunSpec` with stable ids.

This room knows neither torch nor Ultralytics: what exists there (ablations, training arguments and their
checks) comes in as a :class:`Vocabulary` from the caller that knows.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from yolo_gradstudy.records import RecordConfig, RunSpec

CONTROL = "control"
"""The arm that changes nothing; every study has it, since the other arms are compared with it."""

COMMAND_LINE = "the command line"

_Path = tuple[str, ...]
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,79}")
_LARGEST_SEED = 2**31 - 1

_OWNED_ARGUMENTS: Mapping[str, str] = {
    "lr0": "the learning rates stand in the study's own list `lr0`",
    "seed": "the seeds stand in the study's own list `seeds`",
    "model": "the model stands in the study's own key `model`",
    "data": "the data set stands in the study's own key `data`",
    "device": "the device is chosen where the study is run, with `gradstudy run --device`",
    "workers": "a study loads data the same way in every run, so that arms see the same batches",
    "project": "the folder is chosen where the study is run, with `gradstudy run --out`",
    "name": "every run's folder is named after its run id; the study's name is its own key `name`",
    "save_dir": "the folder is chosen where the study is run, with `gradstudy run --out`",
    "exist_ok": "a study started again in its folder goes on where it ended",
    "resume": "a study started again in its folder goes on where it ended",
    "mode": "a study always trains",
    "task": "the model decides the task",
    "cfg": "a study holds all its arguments itself; write them under `arguments`",
    "time": "the clock must not decide how long a run trains; set `epochs`",
}
"""Training arguments that a study sets itself, each with the place where a person sets it instead."""

_EXPONENT = re.compile(r"[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)[eE][-+]?\d+")


class StudyError(ValueError):
    """A study that can't be planned.

    Attributes:
        problems: Everything that is wrong with it, a sentence each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def _no_argument_problems(arguments: Mapping[str, Any]) -> list[str]:
    return []


def _no_ablation_problems(ablations: Sequence[str]) -> None:
    return None


@dataclass(frozen=True)
class Vocabulary:
    """What a study may name; handed in by a caller that knows Ultralytics and the table of ablations.

    Attributes:
        ablations: Names of the ablations.
        arguments: Names of Ultralytics' training arguments with their defaults.
        check_arguments: Ultralytics' own checks of values: a sentence for each that it refuses.
        check_ablations: Raises ValueError for ablations that can't stand together.
        optimizers: Names that the argument ``optimizer`` takes; compared without regard to case.
    """

    ablations: tuple[str, ...]
    arguments: Mapping[str, Any]
    check_arguments: Callable[[Mapping[str, Any]], list[str]] = _no_argument_problems
    check_ablations: Callable[[Sequence[str]], None] = _no_ablation_problems
    optimizers: tuple[str, ...] = ("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop")


def _check_lr0(value: object) -> float:
    """One learning rate, or a ValueError that says what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number; a learning rate is a number above 0, such as 0.01")
    try:
        rate = float(value)
    except OverflowError:
        rate = math.inf
    if not math.isfinite(rate) or rate <= 0:
        raise ValueError(f"{value!r} is no learning rate; it must be a finite number above 0, such as 0.01")
    return rate


def _check_seed(value: object) -> int:
    """One seed, or a ValueError that says what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_SEED:
        raise ValueError(f"{value!r} is no seed; it must be a whole number from 0 to {_LARGEST_SEED}, such as 0")
    return value


def _check_name(value: object) -> str:
    """A name that can be a folder's, or a ValueError that says what is wrong with it."""
    if not isinstance(value, str) or not _PLAIN_NAME.fullmatch(value):
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(value)).lstrip(".-")[:79] or "x"
        plain = plain if _PLAIN_NAME.fullmatch(plain) else f"_{plain}"
        raise ValueError(
            f"{value!r} is not a plain name (letters, digits, '_', '.' and '-', starting with a letter or '_', "
            f"at most 80), which a folder's name needs; the nearest valid is {plain!r}"
        )
    return value


def _listed(value: object) -> object:
    """A single value as a list of one."""
    return [value] if isinstance(value, str | int | float) else value


Name = Annotated[str, BeforeValidator(_check_name)]
LearningRate = Annotated[float, BeforeValidator(_check_lr0)]
Seed = Annotated[int, BeforeValidator(_check_seed)]
Text = Annotated[str, StringConstraints(min_length=1)]


class Arm(BaseModel):
    """A named set of ablations and argument changes.

    Attributes:
        ablations: Names from the table of ablations, applied in this order.
        arguments: Ultralytics training arguments that differ from the study's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ablations: tuple[str, ...] = ()
    arguments: dict[str, Any] = Field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what is empty."""
        data: dict[str, Any] = {}
        if self.ablations:
            data["ablations"] = list(self.ablations)
        if self.arguments:
            data["arguments"] = dict(self.arguments)
        return data


class Study(BaseModel):
    """A validated study. :func:`load_study` makes one; its attributes are the YAML's keys.

    Attributes:
        name: The study's name; two studies of one name are taken for versions of the same.
        description: What the study is for.
        model: An Ultralytics model name or path.
        data: A data set's name or the path of an Ultralytics data YAML, as given.
        arguments: Ultralytics training arguments of every run.
        lr0: Initial learning rates.
        seeds: Seeds of weights, data order and augmentation.
        record: What the recorder stores: keys of :class:`~yolo_gradstudy.records.RecordConfig`.
        arms: The arms by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    description: str = ""
    model: Text
    data: Text
    arguments: dict[str, Any] = Field(default_factory=dict)
    lr0: Annotated[tuple[LearningRate, ...], BeforeValidator(_listed), Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_listed), Field(min_length=1)]
    record: dict[str, Any] = Field(default_factory=dict)
    arms: dict[Name, Arm]

    def to_dict(self) -> dict[str, Any]:
        """Plain data as resolved: what ``study.yaml`` in a study's folder holds."""
        return {
            "name": self.name,
            "description": self.description,
            "model": self.model,
            "data": self.data,
            "arguments": dict(self.arguments),
            "lr0": list(self.lr0),
            "seeds": list(self.seeds),
            "record": dict(self.record),
            "arms": {name: arm.to_dict() for name, arm in self.arms.items()},
        }

    def runs(self) -> list[RunSpec]:
        """Every run, by seed, then learning rate, then arm: a study cut short has its first seeds whole."""
        return [
            self._run(arm_name, arm, lr0, seed)
            for seed in self.seeds
            for lr0 in self.lr0
            for arm_name, arm in self.arms.items()
        ]

    def _run(self, arm_name: str, arm: Arm, lr0: float, seed: int) -> RunSpec:
        spec = RunSpec(
            run_id="",
            study=self.name,
            arm=arm_name,
            ablations=arm.ablations,
            model=self.model,
            data=self.data,
            lr0=lr0,
            seed=seed,
            arguments={**self.arguments, **arm.arguments},
            record=dict(self.record),
        )
        return RunSpec.from_dict({**spec.to_dict(), "run_id": make_run_id(spec)})


def make_run_id(spec: RunSpec) -> str:
    """A run's id: ``<arm>-lr<lr0>-s<seed>-<hash>``.

    The hash is over all that decides the run's numbers: model, data set as given, arguments, ablations in
    their order, learning rate and seed; and over what is recorded. Recording never changes a number of the
    training, but it decides what the run's folder holds: a run recorded more sparsely is not the run that
    was asked for, so it must not be skipped as done. Left out are the names of study and arm, which
    decide nothing, and recording settings that equal their defaults, so that a setting which a newer
    version adds leaves the ids of old runs as they are.

    Args:
        spec: A spec, whatever its ``run_id``.

    Returns:
        The id, the same for any order of keys, in any process, on any Python version.
    """
    defaults = RecordConfig()
    record = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in spec.record.items()
        if (tuple(value) if isinstance(value, list) else value) != getattr(defaults, key)
    }
    decisive = {
        "model": spec.model,
        "data": spec.data,
        "arguments": spec.arguments,
        "ablations": list(spec.ablations),
        "lr0": spec.lr0,
        "seed": spec.seed,
        "record": record,
    }
    canonical = json.dumps(_canonical(decisive), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    return f"{spec.arm}-lr{spec.lr0:g}-s{spec.seed}-{digest}"


def _canonical(value: Any) -> Any:
    """The same data with whole floats as integers, since ``1`` and ``1.0`` train alike."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# Reading


def packaged_studies() -> tuple[str, ...]:
    """Names of the studies that come with the package."""
    folder = resources.files("yolo_gradstudy") / "studies"
    return tuple(sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")))


def load_study(source: str | Path, vocabulary: Vocabulary, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read and check a study.

    Args:
        source: A packaged study's name or the path of a YAML file.
        vocabulary: What a study may name.
        overrides: What the command line changes: ``lr0``, ``seed`` or ``seeds``, ``model``, ``data``,
            ``arms`` (names of those to keep; the control stays) and Ultralytics training arguments. Of
            an argument that an arm sets too, the arm's own value counts in that arm.

    Raises:
        StudyError: The study can't be planned; it holds every problem, not only the first.
    """
    file, text = _read_source(source)
    document = _Document(file)
    raw = document.parse(text)
    check = _Check(vocabulary, document)
    check.override(raw, overrides or {})
    study = check.study(raw)
    if study is None or check.problems:
        raise StudyError(list(dict.fromkeys(check.problems)))
    return study


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` words; values are YAML, as Ultralytics' ``yolo`` command reads them.

    ``lr0``, ``seed``, ``seeds`` and ``arms`` also take several values with commas: ``lr0=0.01,0.1``.

    Raises:
        ValueError: A word without ``=``, an empty key or a key given twice, or a value that is no YAML.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ValueError(f"{pair!r} on {COMMAND_LINE} is not key=value; the nearest valid is '{key or 'key'}=...'.")
        if key in overrides:
            raise ValueError(f"{key!r} stands twice on {COMMAND_LINE}; give it once.")
        several = key in ("lr0", "seed", "seeds", "arms") and "," in text and not text.lstrip().startswith("[")
        try:
            value = yaml.load(f"[{text}]" if several else text, Loader=_Loader)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or str(error)
            raise ValueError(f"{pair!r} on {COMMAND_LINE} has a value that is not YAML: {reason}.") from error
        # `yolo` takes Python's words for these as well
        overrides[key] = None if value == "None" else value
    return overrides


def _read_source(source: str | Path) -> tuple[str, str]:
    """The name to call a study's file by, and its text."""
    packaged = packaged_studies()
    path = Path(source)
    named = isinstance(source, str) and source in packaged
    if named and not path.is_file():
        resource = resources.files("yolo_gradstudy") / "studies" / f"{source}.yaml"
        return f"packaged study {source}.yaml", resource.read_text(encoding="utf-8")
    if path.is_dir():
        inner = sorted(path.glob("*.yaml"))
        hint = f"the nearest valid is {inner[0]}" if inner else f"the packaged studies are {', '.join(packaged)}"
        raise StudyError([f"{path} is a folder, not a study file; {hint}."])
    if not path.is_file():
        beside = [str(p) for p in sorted((*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")))]
        near = _closest(str(source), [*packaged, *beside], cutoff=0.5)
        hint = f"the nearest is {near}" if near else f"the packaged studies are {', '.join(packaged)}"
        raise StudyError([f"There is no study {str(source)!r}, neither packaged nor a file; {hint}."])
    try:
        return str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise StudyError([f"{path} can't be read as text: {reason}."]) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with ``1e-3`` read as a number, as YAML 1.2 and people do."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789."))


@dataclass
class _Document:
    """A study's file: what it is called, and on which line each key stands."""

    file: str
    lines: dict[_Path, int] = field(default_factory=dict)
    overridden: set[_Path] = field(default_factory=set)

    def parse(self, text: str) -> dict[str, Any]:
        """The file's data.

        Raises:
            StudyError: It is no YAML, holds a key twice, or is no mapping.
        """
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            twice = list(self._walk(node, (), set())) if node is not None else []
            data = loader.construct_document(node) if node is not None else None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or str(error).split("\n")[0]
            line = f" line {mark.line + 1}" if mark is not None else ""
            raise StudyError([f"{self.file}{line} is not valid YAML: {reason}."]) from error
        if twice:
            raise StudyError(twice)
        if not isinstance(data, dict):
            what = "is empty" if data is None else "is a list or a single value, not keys with values"
            raise StudyError([f"{self.file} {what}; a study has the keys {', '.join(Study.model_fields)}."])
        return data

    def _walk(self, node: yaml.Node, path: _Path, above: set[int]) -> Iterator[str]:
        """Note the line of every key; yield a sentence for each that stands twice."""
        if id(node) in above:  # an alias to what it stands in
            return
        above = above | {id(node)}
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.lines[(*path, str(number))] = item.start_mark.line + 1
                yield from self._walk(item, (*path, str(number)), above)
        if not isinstance(node, yaml.MappingNode):
            return
        first: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            line, inner = key.start_mark.line + 1, (*path, str(key.value))
            earlier = first.setdefault((key.tag, key.value), line)
            if earlier != line or inner in self.lines:
                yield (
                    f"{self.file} line {line}: the key {'.'.join(inner)!r} stands there twice, first on line "
                    f"{earlier}; keep one of them."
                )
            self.lines[inner] = line
            yield from self._walk(value, inner, above)

    def where(self, path: _Path) -> str:
        """The file, line and key of a problem, or the command line."""
        if any(path[: len(o)] == o for o in self.overridden):
            return f"{COMMAND_LINE}, {path[-1] if path[0] == 'arguments' else path[0]}"
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        return f"{self.file}{f' line {line}' if line else ''}, {'.'.join(path)}"


class _Check:
    """Collects every problem of a study."""

    def __init__(self, vocabulary: Vocabulary, document: _Document) -> None:
        self.vocabulary = vocabulary
        self.document = document
        self.problems: list[str] = []

    def problem(self, path: _Path, sentence: str) -> None:
        """Note a problem with the key at ``path``."""
        self.problems.append(f"{self.document.where(path)}: {sentence.strip().rstrip('.')}.")

    def override(self, raw: dict[str, Any], overrides: Mapping[str, Any]) -> None:
        """Put what the command line gives into the raw study."""
        overridden = self.document.overridden
        if "seed" in overrides and "seeds" in overrides:
            self.problems.append(f"{COMMAND_LINE}, seed: `seed` and `seeds` are the same list; give one of them.")
        for key, value in overrides.items():
            own = {"seed": "seeds", "seeds": "seeds", "lr0": "lr0", "model": "model", "data": "data"}.get(key)
            if own is not None:
                raw[own] = value
                overridden.add((own,))
            elif key == "arms":
                self._choose_arms(raw, value)
            else:
                if raw.get("arguments") is None:
                    raw["arguments"] = {}
                if isinstance(raw["arguments"], dict):
                    raw["arguments"][key] = value
                overridden.add(("arguments", key))

    def _choose_arms(self, raw: dict[str, Any], chosen: object) -> None:
        arms = raw.get("arms")
        if not isinstance(arms, dict):
            return
        names = [chosen] if not isinstance(chosen, list | tuple) else list(chosen)
        for name in names:
            if name not in list(arms):
                self.problems.append(
                    f"{COMMAND_LINE}, arms: there is no arm {name!r} in {self.document.file}; "
                    f"{_nearest(name, [str(a) for a in arms])}."
                )
        if not names:
            self.problems.append(f"{COMMAND_LINE}, arms: the list is empty; {_nearest('', [str(a) for a in arms])}.")
        raw["arms"] = {name: arm for name, arm in arms.items() if name == CONTROL or name in names}

    def study(self, raw: dict[str, Any]) -> Study | None:
        """Check everything; None where the study's form is wrong."""
        for key in ("arguments", "record", "description"):
            if key in raw and raw[key] is None:
                del raw[key]
        arms = raw.get("arms")
        if isinstance(arms, dict):
            raw["arms"] = {
                name: {k: v for k, v in arm.items() if v is not None or k not in Arm.model_fields}
                if isinstance(arm, dict)
                else ({} if arm is None else arm)
                for name, arm in arms.items()
            }
        study = self._form(raw)
        for key in ("lr0", "seeds"):
            self._repeats((key,), raw.get(key))
        arguments = raw.get("arguments", {})
        base_problems: list[str] = []
        if isinstance(arguments, dict):
            base_problems = self._arguments(("arguments",), arguments, arguments)
            self._optimizer(("arguments",), arguments, required=True)
        self._record(raw.get("record"))
        self._arms(raw.get("arms"), arguments if isinstance(arguments, dict) else {}, base_problems)
        return study

    def _form(self, raw: dict[str, Any]) -> Study | None:
        """What pydantic checks: keys, types, and values that need nothing beside them."""
        try:
            return Study.model_validate(raw)
        except ValidationError as error:
            for item in error.errors():
                path = tuple(str(part) for part in item["loc"] if part != "[key]")
                self.problem(path, self._sentence(item["type"], path, item))
            return None

    def _sentence(self, kind: str, path: _Path, item: Mapping[str, Any]) -> str:
        if kind == "value_error":
            return str(item["ctx"]["error"])
        if kind == "extra_forbidden":
            return self._unknown_key(path)
        if kind == "missing":
            return f"a study needs the key {path[-1]!r}; add it, as in {_EXAMPLES.get(path[-1], path[-1])}"
        if kind in ("too_short", "string_too_short"):
            return f"there is no value; give at least one, as in {_EXAMPLES.get(path[-1], path[-1])}"
        forms = {
            "string_type": "is not text",
            "dict_type": "is not a section of keys with values",
            "model_type": "is not a section of keys with values",
            "tuple_type": "is not a list",
        }
        form = forms.get(kind)
        sentence = f"{item['input']!r} {form}" if form else str(item["msg"])
        if kind == "tuple_type" and isinstance(item["input"], str):
            sentence += f"; the nearest valid is [{item['input']}]"
        elif kind == "string_type":
            sentence += f"; the nearest valid is '{item['input']}', in quotes"
        elif form:
            sentence += f"; write it as in {_EXAMPLES.get(path[0], path[0])}"
        return sentence

    def _unknown_key(self, path: _Path) -> str:
        key = path[-1]
        if len(path) > 1:
            if key in self.vocabulary.arguments or key in _OWNED_ARGUMENTS:
                return f"an arm has no key {key!r}; training arguments stand in its section `arguments`"
            return f"an arm has no key {key!r}; {_nearest(key, list(Arm.model_fields))}"
        if key in ("seed", "arm"):
            return f"a study has no key {key!r}; the nearest valid is '{key}s'"
        if key in self.vocabulary.arguments:
            return f"a study has no key {key!r}; training arguments stand in its section `arguments`"
        return f"a study has no key {key!r}; {_nearest(key, list(Study.model_fields))}"

    def _repeats(self, path: _Path, values: object) -> None:
        if not isinstance(values, list | tuple):
            return
        seen: list[object] = []
        for value in values:
            if not isinstance(value, bool) and value in seen:
                self.problem(path, f"{value!r} stands in the list twice; keep one of them")
            seen.append(value)

    def _arguments(self, path: _Path, arguments: Mapping[Any, Any], merged: Mapping[str, Any]) -> list[str]:
        """Check the names and values in ``arguments``; returns what Ultralytics says of ``merged``."""
        known = list(self.vocabulary.arguments)
        for key, value in arguments.items():
            here = (*path, str(key))
            if key in _OWNED_ARGUMENTS:
                self.problem(here, f"{key!r} is no argument of a study: {_OWNED_ARGUMENTS[key]}")
            elif key not in known:
                mine = [k for k in known if k not in _OWNED_ARGUMENTS]
                self.problem(here, f"there is no Ultralytics training argument {key!r}; {_nearest(key, mine)}")
            elif not _is_plain(value):
                self.problem(here, f"{value!r} is neither a finite number, text, true or false, nor a list of these")
            elif key == "batch" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                self.problem(here, f"{value!r} lets free memory decide; a study needs a whole number of at least 1")
        fit = {k: v for k, v in merged.items() if k in known and k not in _OWNED_ARGUMENTS and _is_plain(v)}
        if path == ("arguments",):
            found = self.vocabulary.check_arguments(fit)
            for sentence in found:
                self.problem(self._culprit(path, arguments, sentence), sentence)
            return found
        return self.vocabulary.check_arguments(fit)

    @staticmethod
    def _culprit(path: _Path, arguments: Iterable[Any], sentence: str) -> _Path:
        """The key of the argument that a sentence names first."""
        words = re.findall(r"\w+", sentence)
        named = [str(key) for key in arguments if str(key) in words]
        return (*path, min(named, key=words.index)) if named else path

    def _optimizer(self, path: _Path, arguments: Mapping[str, Any], required: bool) -> None:
        if "optimizer" not in arguments:
            if required:
                self.problem(
                    (*path, "optimizer"),
                    "the optimizer is missing, and Ultralytics' default 'auto' ignores lr0; the nearest valid is 'SGD'",
                )
            return
        value = arguments["optimizer"]
        names = self.vocabulary.optimizers
        if isinstance(value, str) and value.lower() == "auto":
            self.problem(
                (*path, "optimizer"),
                "'auto' picks the optimizer and its learning rate itself and ignores lr0, which a study sets; "
                "the nearest valid is 'SGD'",
            )
        elif not isinstance(value, str) or value.lower() not in [name.lower() for name in names]:
            self.problem((*path, "optimizer"), f"there is no optimizer {value!r}; {_nearest(value, names)}")

    def _record(self, record: object) -> None:
        if not isinstance(record, dict):
            return
        known = RecordConfig.field_names()
        for key, value in record.items():
            path = ("record", str(key))
            if key not in known:
                self.problem(path, f"there is no record setting {key!r}; {_nearest(key, known)}")
                continue
            if key == "flow_modules" and isinstance(value, list) and not all(isinstance(v, str) for v in value):
                self.problem(path, f"{value!r} holds what is not text; name patterns are text, such as 'model.0.*'")
                continue
            try:
                RecordConfig(**{key: value})
            except ValueError as error:
                self.problem(path, str(error).removeprefix("record: "))
            except TypeError:
                self.problem(path, f"{value!r} is not a list; the nearest valid is []")

    def _arms(self, arms: object, base: Mapping[str, Any], base_problems: Sequence[str]) -> None:
        if not isinstance(arms, dict):
            return
        if CONTROL not in arms:
            near = _closest(CONTROL, [str(a) for a in arms], cutoff=0.75)
            hint = f"is {near!r} meant?" if near else f"add `{CONTROL}: {{}}`"
            self.problem(("arms",), f"there is no arm {CONTROL!r}, with which the others are compared; {hint}")
        if isinstance(arms.get(CONTROL), dict) and any(arms[CONTROL].values()):
            self.problem(
                ("arms", CONTROL),
                f"the control changes {', '.join(str(k) for k in arms[CONTROL])}, but it must change nothing; "
                "put what all arms share into the study's `arguments`",
            )
        same: dict[str, str] = {}
        for name, arm in arms.items():
            if not isinstance(arm, dict):
                continue
            path = ("arms", str(name))
            ablations, arguments = arm.get("ablations", []), arm.get("arguments", {})
            if isinstance(ablations, list):
                self._ablations((*path, "ablations"), ablations)
            if isinstance(arguments, dict):
                inner = (*path, "arguments")
                for sentence in self._arguments(inner, arguments, {**base, **arguments}):
                    if sentence not in base_problems:
                        self.problem(self._culprit(inner, arguments, sentence), sentence)
                self._optimizer(inner, arguments, required=False)
                try:
                    content = json.dumps([ablations, _canonical({**base, **arguments})], sort_keys=True, default=str)
                except (TypeError, ValueError, RecursionError):
                    continue  # keys or values that were refused above
                twin = same.setdefault(content, str(name))
                if twin != str(name):
                    self.problem(path, f"this arm trains exactly what the arm {twin!r} does; remove it, or change it")

    def _ablations(self, path: _Path, ablations: list[Any]) -> None:
        known = self.vocabulary.ablations
        unknown = [a for a in ablations if a not in known]
        for name in (name for name in unknown if isinstance(name, str)):  # what is no text is refused already
            self.problem(path, f"there is no ablation {name!r}; {_nearest(name, known)}")
        self._repeats(path, ablations)
        if ablations and not unknown:
            try:
                self.vocabulary.check_ablations(ablations)
            except ValueError as error:
                self.problem(path, str(error).removeprefix("ablations: "))


_EXAMPLES: Mapping[str, str] = {
    "name": "`name: my_study`",
    "model": "`model: yolo26n.yaml`",
    "data": "`data: shapes`",
    "arguments": "`arguments: {epochs: 10, imgsz: 96, optimizer: SGD}`",
    "lr0": "`lr0: [0.01, 0.1]`",
    "seeds": "`seeds: [0, 1, 2]`",
    "record": "`record: {every: 1}`",
    "arms": "`arms: {control: {}, no_clip: {ablations: [no_clip]}}`",
}


def _closest(word: object, valid: Sequence[str], cutoff: float) -> str | None:
    """The valid word most like ``word``, without regard to case."""
    lowered: dict[str, str] = {}
    for candidate in valid:
        lowered.setdefault(candidate.lower(), candidate)
    found = difflib.get_close_matches(str(word).lower(), list(lowered), n=1, cutoff=cutoff)
    return lowered[found[0]] if found else None


def _nearest(word: object, valid: Sequence[str]) -> str:
    """``the nearest valid is 'x'``; where nothing is near, all that is valid (of many, the least far)."""
    near = _closest(word, valid, cutoff=0.6 if len(valid) <= 30 else 0.0)
    if near is not None:
        return f"the nearest valid is {near!r}"
    return f"valid are {', '.join(valid)}" if valid else "there is none"


def _is_plain(value: object, depth: int = 3) -> bool:
    """Whether a value is a finite number, text, a truth value, nothing, or lists of these."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, str | int)


# Comparing and describing


@dataclass(frozen=True)
class Differences:
    """What changed from one resolved study to another, a sentence each.

    Attributes:
        grown: New arms, learning rates and seeds: more runs, the old ones as they were.
        shrunk: Arms, learning rates and seeds that are gone: fewer runs, the rest as they were.
        changed: Everything else that decides a run's numbers; old runs answer another question.
    """

    grown: tuple[str, ...] = ()
    shrunk: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.grown or self.shrunk or self.changed)


def compare_studies(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """Compare two resolved studies (:meth:`Study.to_dict`); a changed description is no difference."""
    grown: list[str] = []
    shrunk: list[str] = []
    changed: list[str] = []
    for key in ("name", "model", "data"):
        if old.get(key) != new.get(key):
            changed.append(f"{key} was {old.get(key)!r}, is {new.get(key)!r}")
    changed += _changes("arguments", old.get("arguments"), new.get("arguments"))
    changed += _changes("record", old.get("record"), new.get("record"))
    for key, word in (("lr0", "lr0"), ("seeds", "seed")):
        before, after = list(old.get(key) or ()), list(new.get(key) or ())
        grown += [f"{word} {value} is new" for value in after if value not in before]
        shrunk += [f"{word} {value} is gone" for value in before if value not in after]
    arms_before, arms_after = old.get("arms") or {}, new.get("arms") or {}
    grown += [f"arm {name} is new" for name in arms_after if name not in arms_before]
    shrunk += [f"arm {name} is gone" for name in arms_before if name not in arms_after]
    for name in arms_after:
        if name in arms_before:
            was, now = arms_before[name] or {}, arms_after[name] or {}
            ablations_before, ablations_after = list(was.get("ablations") or ()), list(now.get("ablations") or ())
            if ablations_before != ablations_after:
                changed.append(f"arms.{name}.ablations was {ablations_before}, is {ablations_after}")
            changed += _changes(f"arms.{name}.arguments", was.get("arguments"), now.get("arguments"))
    return Differences(tuple(grown), tuple(shrunk), tuple(changed))


def _changes(where: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    old, new = old or {}, new or {}
    sentences = []
    for key in dict.fromkeys((*old, *new)):
        if key not in old:
            sentences.append(f"{where}.{key} was not set, is {new[key]!r}")
        elif key not in new:
            sentences.append(f"{where}.{key} was {old[key]!r}, is not set")
        elif old[key] != new[key]:
            sentences.append(f"{where}.{key} was {old[key]!r}, is {new[key]!r}")
    return sentences


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """All that changed between two resolved studies; :func:`compare_studies` tells growth from change."""
    found = compare_studies(old, new)
    return [*found.changed, *found.shrunk, *found.grown]


def is_same_study(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two resolved studies carry the same name: whether one folder may hold both."""
    return bool(old.get("name") == new.get("name"))


def describe_plan(study: Study) -> str:
    """How many runs of how many epochs, as ``7 arms × 3 learning rates × 3 seeds = 63 runs of 12 epochs``."""

    def count(number: int, word: str) -> str:
        return f"{number} {word}{'' if number == 1 else 's'}"

    runs = len(study.arms) * len(study.lr0) * len(study.seeds)
    text = (
        f"{count(len(study.arms), 'arm')} × {count(len(study.lr0), 'learning rate')} × "
        f"{count(len(study.seeds), 'seed')} = {count(runs, 'run')}"
    )
    lengths = sorted({arm.arguments.get("epochs", study.arguments.get("epochs")) or 0 for arm in study.arms.values()})
    if 0 in lengths:
        return text
    return f"{text} of {' or '.join(f'{n:g}' for n in lengths)} epoch{'' if lengths == [1] else 's'}"
