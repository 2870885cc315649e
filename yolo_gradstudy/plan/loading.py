# SPDX-License-Identifier: AGPL-3.0-or-later
"""Finds a study's file, packaged or a person's own, and makes a checked :class:`Study` of it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from yolo_gradstudy.plan.checks import Check
from yolo_gradstudy.plan.document import Document
from yolo_gradstudy.plan.overrides import apply_overrides
from yolo_gradstudy.plan.sentences import StudyError, closest
from yolo_gradstudy.plan.study import Study
from yolo_gradstudy.plan.vocabulary import Vocabulary

_STUDIES = resources.files("yolo_gradstudy") / "studies"


def packaged_studies() -> tuple[str, ...]:
    """Names of the studies that come with the package."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in _STUDIES.iterdir() if p.name.endswith(".yaml")))


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
    document = Document(file)
    return checked(document.parse(text), document, vocabulary, overrides or {})


def checked(raw: dict[str, Any], document: Document, vocabulary: Vocabulary, overrides: Mapping[str, Any]) -> Study:
    """The study that data and the command line make together; ``raw`` is changed.

    Raises:
        StudyError: As :func:`load_study`.
    """
    problems = apply_overrides(raw, overrides, document)
    check = Check(vocabulary, document)
    study = check.study(raw)
    problems += check.problems
    if study is None or problems:
        raise StudyError(list(dict.fromkeys(problems)))
    return study


def _read_source(source: str | Path) -> tuple[str, str]:
    """The name to call a study's file by, and its text."""
    packaged = packaged_studies()
    path = Path(source)
    if source in packaged and not path.is_file():
        return f"packaged study {source}.yaml", (_STUDIES / f"{source}.yaml").read_text(encoding="utf-8")
    if path.is_dir():
        inner = sorted(path.glob("*.yaml"))
        hint = f"the nearest valid is {inner[0]}" if inner else f"the packaged studies are {', '.join(packaged)}"
        raise StudyError([f"{path} is a folder, not a study file; {hint}."])
    if not path.is_file():
        beside = [str(p) for p in sorted((*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")))]
        near = closest(str(source), [*packaged, *beside], cutoff=0.5)
        hint = f"the nearest is {near}" if near else f"the packaged studies are {', '.join(packaged)}"
        raise StudyError([f"There is no study {str(source)!r}, neither packaged nor a file; {hint}."])
    try:
        return str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise StudyError([f"{path} can't be read as text: {reason}."]) from error
