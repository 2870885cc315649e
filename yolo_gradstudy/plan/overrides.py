# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the command line changes: ``key=value`` words, and how they are put into a study's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from yolo_gradstudy.plan.document import COMMAND_LINE, Document, Loader
from yolo_gradstudy.plan.sentences import nearest
from yolo_gradstudy.plan.study import CONTROL

_OWN_KEYS: Mapping[str, str] = {"seed": "seeds", "seeds": "seeds", "lr0": "lr0", "model": "model", "data": "data"}
"""The study's own key for a word; every other word but ``arms`` is a training argument."""


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` words; values are YAML, as Ultralytics' ``yolo`` command reads them.

    ``lr0``, ``seed``, ``seeds`` and ``arms`` also take several values with commas: ``lr0=0.01,0.1``.

    Raises:
        ValueError: A word without ``=``, key or value, a key given twice, or a value that is no YAML.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ValueError(f"{pair!r} on {COMMAND_LINE} is not key=value; the nearest valid is '{key or 'key'}=...'.")
        if not text.strip():
            raise ValueError(f"{key!r} on {COMMAND_LINE} has no value; write {key}=VALUE, or leave it out.")
        if key in overrides:
            raise ValueError(f"{key!r} stands twice on {COMMAND_LINE}; give it once.")
        several = key in ("lr0", "seed", "seeds", "arms") and "," in text and not text.lstrip().startswith("[")
        try:
            value = yaml.load(f"[{text}]" if several else text, Loader=Loader)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or str(error)
            raise ValueError(f"{pair!r} on {COMMAND_LINE} has a value that is not YAML: {reason}.") from error
        # `yolo` takes Python's words for these as well
        overrides[key] = None if value == "None" else value
    return overrides


def apply_overrides(raw: dict[str, Any], overrides: Mapping[str, Any], document: Document) -> list[str]:
    """Put what the command line gives into a study's data.

    Args:
        raw: The data of the study's file, changed here.
        overrides: As :func:`~yolo_gradstudy.plan.load_study` takes them.
        document: The study's file, which notes what no longer stands in it.

    Returns:
        The problems, a sentence each.
    """
    problems = []
    if "seed" in overrides and "seeds" in overrides:
        problems.append(f"{COMMAND_LINE}, seed: `seed` and `seeds` are the same list; give one of them.")
    for key, value in overrides.items():
        if key in _OWN_KEYS:
            raw[_OWN_KEYS[key]] = value
            document.overridden.add((_OWN_KEYS[key],))
        elif key == "limit":
            raw["limit"] = {**(raw.get("limit") or {}), **value}
            document.overridden |= {("limit", name) for name in value}
        elif key == "arms":
            problems += _choose_arms(raw, value, document.file)
        else:
            if raw.get("arguments") is None:
                raw["arguments"] = {}
            if isinstance(raw["arguments"], dict):
                raw["arguments"][key] = value
            document.overridden.add(("arguments", key))
    return problems


def _choose_arms(raw: dict[str, Any], chosen: object, file: str) -> list[str]:
    """Keep the chosen arms and the control."""
    arms = raw.get("arms")
    if not isinstance(arms, dict):
        return []
    names = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
    valid = [str(name) for name in arms]
    problems = [
        f"{COMMAND_LINE}, arms: there is no arm {name!r} in {file}; {nearest(name, valid)}."
        for name in names
        if name not in list(arms)
    ]
    if not names:
        problems.append(f"{COMMAND_LINE}, arms: the list is empty; {nearest('', valid)}.")
    raw["arms"] = {name: arm for name, arm in arms.items() if name == CONTROL or name in names}
    return problems
