# SPDX-License-Identifier: AGPL-3.0-or-later
"""What changed from one resolved study to another: growth keeps old runs, a change asks another question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    factor_before, factor = ((study.get("limit") or {}).get("factor") for study in (old, new))
    if factor_before is not None and factor is not None and factor_before != factor:
        changed.append(f"limit.factor was {factor_before!r}, is {factor!r}")
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
