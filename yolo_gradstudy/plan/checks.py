# SPDX-License-Identifier: AGPL-3.0-or-later
"""Finds everything that is wrong with a study, not only the first, and says where it stands."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from yolo_gradstudy.plan.crossing import cross
from yolo_gradstudy.plan.document import Document, KeyPath
from yolo_gradstudy.plan.sentences import closest, describe_form, nearest
from yolo_gradstudy.plan.study import CONTROL, Arm, Study, canonical
from yolo_gradstudy.plan.vocabulary import OWNED_ARGUMENTS, Vocabulary
from yolo_gradstudy.records import RecordConfig


class Check:
    """Collects every problem of a study.

    Attributes:
        problems: A sentence each, with its file, line and key.
    """

    def __init__(self, vocabulary: Vocabulary, document: Document) -> None:
        self.vocabulary = vocabulary
        self.document = document
        self.problems: list[str] = []
        self._malformed: set[KeyPath] = set()  # parts of the study, as ("arms", "no_clip"), whose form is wrong

    def study(self, raw: dict[str, Any]) -> Study | None:
        """Check everything; None where the study's form is wrong."""
        _drop_empty(raw)
        self._cross(raw)
        study = self._form(raw)
        for key in ("lr0", "seeds"):
            self._repeats((key,), raw.get(key))
        arguments = raw.get("arguments", {})
        said: list[str] = []
        if isinstance(arguments, dict):
            said = self._arguments(("arguments",), arguments)
            self._optimizer(("arguments",), arguments, required=True)
        self._record(raw.get("record"))
        self._limit(study)
        self._arms(raw.get("arms"), arguments if isinstance(arguments, dict) else {}, said)
        return study

    def _problem(self, path: KeyPath, sentence: str) -> None:
        """Note a problem with the key at ``path``."""
        self.problems.append(f"{self.document.where(path)}: {sentence.strip().rstrip('.')}.")

    def _form(self, raw: dict[str, Any]) -> Study | None:
        """What pydantic checks: keys, types, and values that need nothing beside them."""
        try:
            return Study.model_validate(raw)
        except ValidationError as error:
            for item in error.errors():
                path = tuple(str(part) for part in item["loc"] if part != "[key]")
                self._problem(path, describe_form(path, item, self.vocabulary.arguments))
                self._malformed.add(path[:2])
            return None

    def _repeats(self, path: KeyPath, values: object) -> None:
        if not isinstance(values, list | tuple):
            return
        seen: list[object] = []
        for value in values:
            if not isinstance(value, bool) and value in seen:
                self._problem(path, f"{value!r} stands in the list twice; keep one of them")
            seen.append(value)

    def _arguments(
        self,
        path: KeyPath,
        arguments: Mapping[Any, Any],
        base: Mapping[Any, Any] | None = None,
        said: Sequence[str] = (),
    ) -> list[str]:
        """Check the names and values of arguments.

        Args:
            path: Where they stand.
            arguments: What stands there.
            base: The study's arguments, which an arm's are merged into.
            said: What Ultralytics said of these, which is not said again.

        Returns:
            What Ultralytics says.
        """
        known = self.vocabulary.arguments
        for key, value in arguments.items():
            here = (*path, str(key))
            if key in OWNED_ARGUMENTS:
                self._problem(here, f"{key!r} is no argument of a study: {OWNED_ARGUMENTS[key]}")
            elif key not in known:
                mine = [k for k in known if k not in OWNED_ARGUMENTS]
                self._problem(here, f"there is no Ultralytics training argument {key!r}; {nearest(key, mine)}")
            elif not _is_plain(value):
                self._problem(here, f"{value!r} is neither a finite number, text, true or false, nor a list of these")
            elif key == "batch" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                self._problem(here, f"{value!r} lets free memory decide; a study needs a whole number of at least 1")
        merged = {**(base or {}), **arguments}
        fit = {k: v for k, v in merged.items() if k in known and k not in OWNED_ARGUMENTS and _is_plain(v)}
        found = self.vocabulary.check_arguments(fit)
        for sentence in found:
            if sentence not in said:
                self._problem(_culprit(path, arguments, sentence), sentence)
        return found

    def _optimizer(self, path: KeyPath, arguments: Mapping[str, Any], required: bool) -> None:
        path = (*path, "optimizer")
        if "optimizer" not in arguments:
            if required:
                self._problem(
                    path,
                    "the optimizer is missing, and Ultralytics' default 'auto' ignores lr0; the nearest valid is 'SGD'",
                )
            return
        value = arguments["optimizer"]
        names = self.vocabulary.optimizers
        if isinstance(value, str) and value.lower() == "auto":
            self._problem(
                path,
                "'auto' picks the optimizer and its learning rate itself and ignores lr0, which a study sets; "
                "the nearest valid is 'SGD'",
            )
        elif not isinstance(value, str) or value.lower() not in [name.lower() for name in names]:
            self._problem(path, f"there is no optimizer {value!r}; {nearest(value, names)}")

    def _record(self, record: object) -> None:
        if not isinstance(record, dict):
            return
        known = RecordConfig.field_names()
        for key, value in record.items():
            path = ("record", str(key))
            if key not in known:
                self._problem(path, f"there is no record setting {key!r}; {nearest(key, known)}")
                continue
            if key == "flow_modules" and isinstance(value, list) and not all(isinstance(v, str) for v in value):
                self._problem(path, f"{value!r} holds what is not text; name patterns are text, such as 'model.0.*'")
                continue
            try:
                RecordConfig(**{key: value})
            except ValueError as error:
                self._problem(path, str(error).removeprefix("record: "))
            except TypeError:
                self._problem(path, f"{value!r} is not a list; the nearest valid is []")

    def _cross(self, raw: dict[str, Any]) -> None:
        """Add an arm for every combination of crossed factors; what is malformed is told with the study's form."""
        factors, arms = raw.get("cross"), raw.get("arms") or {}
        if not isinstance(factors, dict) or not isinstance(arms, dict):
            return
        factors = {name: [levels] if isinstance(levels, str) else levels for name, levels in factors.items()}
        if not all(isinstance(v, list) and v and all(isinstance(level, str) for level in v) for v in factors.values()):
            return
        levels = [level for several in factors.values() for level in several]
        for level in dict.fromkeys(level for level in levels if levels.count(level) > 1):
            self._problem(("cross",), f"{level!r} is a level twice; keep one of them")
        crossed: dict[str, Any] = {}
        for name, cell in cross(factors).items():
            wanted = [level for level in cell.values() if level is not None]
            arm = {"ablations": wanted} if wanted else {}
            if arms.get(name, arm) != arm:
                self._problem(("arms", name), f"crossed, the arm {name!r} is {arm}; give this one another name")
            crossed[name] = arm
        raw["arms"] = {**crossed, **arms}

    def _limit(self, study: Study | None) -> None:
        if study is None or study.limit is None:
            return
        try:
            study.grid()
        except ValueError as error:
            self._problem(("limit",), str(error))

    def _arms(self, arms: object, base: Mapping[Any, Any], said: Sequence[str]) -> None:
        if not isinstance(arms, dict):
            return
        self._control(arms)
        same: dict[str, str] = {}
        for name, arm in arms.items():
            if not isinstance(arm, dict):
                continue
            path = ("arms", str(name))
            ablations, arguments = arm.get("ablations", []), arm.get("arguments", {})
            if isinstance(ablations, list):
                found = {**base, **arguments} if isinstance(arguments, dict) else dict(base)
                self._ablations((*path, "ablations"), ablations, found)
            if isinstance(arguments, dict):
                self._arguments((*path, "arguments"), arguments, base, said)
                self._optimizer((*path, "arguments"), arguments, required=False)
                try:
                    content = json.dumps([ablations, canonical({**base, **arguments})], sort_keys=True, default=str)
                except (TypeError, ValueError, RecursionError):
                    continue  # keys or values that were refused above
                if path in self._malformed:
                    continue  # what it was to change may stand under the key that was refused
                twin = same.setdefault(content, str(name))
                if twin != str(name):
                    self._problem(path, f"this arm trains exactly what the arm {twin!r} does; remove it, or change it")

    def _control(self, arms: Mapping[Any, Any]) -> None:
        if CONTROL not in arms:
            near = closest(CONTROL, [str(a) for a in arms], cutoff=0.75)
            hint = f"is {near!r} meant?" if near else f"add `{CONTROL}: {{}}`"
            self._problem(("arms",), f"there is no arm {CONTROL!r}, with which the others are compared; {hint}")
        elif isinstance(arms[CONTROL], dict) and any(arms[CONTROL].values()):
            self._problem(
                ("arms", CONTROL),
                f"the control changes {', '.join(str(k) for k in arms[CONTROL])}, but it must change nothing; "
                "put what all arms share into the study's `arguments`",
            )

    def _ablations(self, path: KeyPath, ablations: list[Any], arguments: Mapping[Any, Any]) -> None:
        known = self.vocabulary.ablations
        # `deepen(3)` and `my_module:no_attention` stand in no list; who knows the ablations checks them.
        unknown = [a for a in ablations if a not in known and not (isinstance(a, str) and any(c in a for c in "(:"))]
        for name in unknown:
            if isinstance(name, str):  # what is no text is refused already
                self._problem(path, f"there is no ablation {name!r}; {nearest(name, known)}")
        self._repeats(path, ablations)
        if ablations and not unknown:
            try:
                self.vocabulary.check_ablations(ablations, {**self.vocabulary.arguments, **arguments})
            except ValueError as error:
                self._problem(path, str(error).removeprefix("ablations: "))


def _drop_empty(raw: dict[str, Any]) -> None:
    """Take out the keys without a value, as in ``record:``, that may as well be absent."""
    for key in ("arguments", "record", "description", "limit", "cross"):
        if key in raw and raw[key] is None:
            del raw[key]
    arms = raw.get("arms")
    if isinstance(arms, dict):
        raw["arms"] = {name: _without_empty(arm) for name, arm in arms.items()}


def _without_empty(arm: object) -> object:
    if isinstance(arm, dict):
        return {key: value for key, value in arm.items() if value is not None or key not in Arm.model_fields}
    return {} if arm is None else arm


def _culprit(path: KeyPath, arguments: Iterable[Any], sentence: str) -> KeyPath:
    """The key of the argument that a sentence names first."""
    words = re.findall(r"\w+", sentence)
    named = [str(key) for key in arguments if str(key) in words]
    return (*path, min(named, key=words.index)) if named else path


def _is_plain(value: object, depth: int = 3) -> bool:
    """Whether a value is a finite number, text, a truth value, nothing, or lists of these."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, str | int)
