# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study's file as text and data: scientific notation, keys that stand twice, and the line of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from yolo_gradstudy.plan.sentences import StudyError
from yolo_gradstudy.plan.study import Study

COMMAND_LINE = "the command line"

KeyPath = tuple[str, ...]
"""The keys that lead to a value, as ``("arms", "no_clip", "ablations")``."""

_EXPONENT = re.compile(r"[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)[eE][-+]?\d+")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with ``1e-3`` read as a number, as YAML 1.2 and people do."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789."))


@dataclass
class Document:
    """A study's file: what it is called, and on which line each key stands."""

    file: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overridden: set[KeyPath] = field(default_factory=set)

    def parse(self, text: str) -> dict[str, Any]:
        """The file's data.

        Raises:
            StudyError: It is no YAML, holds a key twice, or is no mapping.
        """
        try:
            loader = Loader(text)
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

    def _walk(self, node: yaml.Node, path: KeyPath, above: set[int]) -> Iterator[str]:
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

    def where(self, path: KeyPath) -> str:
        """The file, line and key of a problem, or the command line."""
        if any(path[: len(o)] == o for o in self.overridden):
            return f"{COMMAND_LINE}, {path[-1] if path[0] == 'arguments' else path[0]}"
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        return f"{self.file}{f' line {line}' if line else ''}, {'.'.join(path)}"
