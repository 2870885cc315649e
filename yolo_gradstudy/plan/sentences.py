# SPDX-License-Identifier: AGPL-3.0-or-later
"""How problems are worded: what is wrong and the nearest valid; and :class:`StudyError`, which carries them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from yolo_gradstudy.plan.study import Arm, Limit, Study
from yolo_gradstudy.plan.vocabulary import OWNED_ARGUMENTS

_EXAMPLES: Mapping[str, str] = {
    "name": "`name: my_study`",
    "model": "`model: yolo26n.yaml`",
    "data": "`data: shapes`",
    "arguments": "`arguments: {epochs: 10, imgsz: 96, optimizer: SGD}`",
    "lr0": "`lr0: [0.01, 0.1]`",
    "seeds": "`seeds: [0, 1, 2]`",
    "record": "`record: {every: 1}`",
    "cross": "`cross: {clip: [no_clip], init: [replace_init_by_he]}`",
    "limit": "`limit: {factor: 1.41, lowest: 0.001, highest: 1}`",
    "arms": "`arms: {control: {}, no_clip: {ablations: [no_clip]}}`",
}

_FORMS: Mapping[str, str] = {
    "dict_type": "a section of keys with values",
    "model_type": "a section of keys with values",
    "tuple_type": "a list",
}
"""What pydantic asks for, by the type of its error."""


class StudyError(ValueError):
    """A study that can't be planned.

    Attributes:
        problems: Everything that is wrong with it, a sentence each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def closest(word: object, valid: Sequence[str], cutoff: float) -> str | None:
    """The valid word most like ``word``, without regard to case."""
    lowered: dict[str, str] = {}
    for candidate in valid:
        lowered.setdefault(candidate.lower(), candidate)
    found = difflib.get_close_matches(str(word).lower(), list(lowered), n=1, cutoff=cutoff)
    return lowered[found[0]] if found else None


def nearest(word: object, valid: Sequence[str]) -> str:
    """``the nearest valid is 'x'``; where nothing is near, all that is valid (of many, the least far)."""
    near = closest(word, valid, cutoff=0.6 if len(valid) <= 30 else 0.0)
    if near is not None:
        return f"the nearest valid is {near!r}"
    return f"valid are {', '.join(valid)}" if valid else "there is none"


def describe_form(path: Sequence[str], error: Mapping[str, Any], arguments: Collection[str]) -> str:
    """What is wrong with a key, or with the type of its value.

    Args:
        path: The keys that lead there.
        error: One of pydantic's errors.
        arguments: Names of Ultralytics' training arguments.
    """
    kind, given = error["type"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        return _unknown_key(path, arguments)
    if kind == "missing":
        return f"a study needs the key {path[-1]!r}; add it, as in {_EXAMPLES.get(path[-1], path[-1])}"
    if kind in ("too_short", "string_too_short"):
        return f"there is no value; give at least one, as in {_EXAMPLES.get(path[-1], path[-1])}"
    if kind == "string_type":
        return f"{given!r} is not text; the nearest valid is '{given}', in quotes"
    if kind == "tuple_type" and isinstance(given, str):
        return f"{given!r} is not a list; the nearest valid is [{given}]"
    if kind in _FORMS:
        return f"{given!r} is not {_FORMS[kind]}; write it as in {_EXAMPLES.get(path[0], path[0])}"
    return str(error["msg"])


def _unknown_key(path: Sequence[str], arguments: Collection[str]) -> str:
    key = path[-1]
    if path[0] == "limit":
        return f"`limit` has no key {key!r}; {nearest(key, list(Limit.model_fields))}"
    if len(path) > 1:
        if key in arguments or key in OWNED_ARGUMENTS:
            return f"an arm has no key {key!r}; training arguments stand in its section `arguments`"
        return f"an arm has no key {key!r}; {nearest(key, list(Arm.model_fields))}"
    if key in ("seed", "arm"):
        return f"a study has no key {key!r}; the nearest valid is '{key}s'"
    if key in arguments:
        return f"a study has no key {key!r}; training arguments stand in its section `arguments`"
    return f"a study has no key {key!r}; {nearest(key, list(Study.model_fields))}"
