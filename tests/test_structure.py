# SPDX-License-Identifier: AGPL-3.0-or-later
"""Holds the levels of the house: which room may know which, and which may know torch or Ultralytics."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import yolo_gradstudy

PACKAGE = "yolo_gradstudy"
ROOT = Path(yolo_gradstudy.__file__).parent

# A room imports rooms of a lower level, itself, and `records`. A new file needs a line here.
LEVELS = {
    "records": 0,
    "plan": 1,
    "datasets": 1,
    "ablations": 1,
    "arguments": 1,
    "statistics": 1,
    "diagnoses": 1,
    "tables": 1,
    "figures": 1,
    "run_folder": 2,
    "recorder": 3,
    "trainer": 4,
    "run": 5,
    "readings": 5,
    "executors": 6,
    "report": 6,  # below `study`, which ends by writing one
    "study": 7,
    "limit": 8,
    "cli": 9,
}

# Who may know whom outside the package; libraries that are not named here are free for all.
KNOWS = {
    "torch": {"ablations", "arguments", "statistics", "recorder", "trainer", "run"},
    "torchvision": {"ablations", "trainer"},
    "ultralytics": {"ablations", "arguments", "datasets", "trainer", "cli"},
    "ultralytics.engine": {"trainer"},
    "pandas": {"tables", "figures", "diagnoses", "run_folder", "readings", "report", "cli"},
    "matplotlib": {"figures", "report", "trainer"},
    "ray": {"executors"},
    "typer": {"cli"},
    "pydantic": {"plan"},
}

READERS = ("run_folder", "readings", "report", "diagnoses")
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

IMPORTS_BY_NAME = {"yolo_gradstudy.ablations.own"}
"""Modules that import what a person names: a study may name a function of one's own."""

PUBLIC = {
    "ABLATIONS",
    "GradRecorder",
    "GradStudyTrainer",
    "RecordConfig",
    "apply_ablation",
    "diagnose",
    "gradstudy_trainer",
    "load_run",
}


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    type_checking: bool


def find_imports(source: str, module: str, is_package: bool = False) -> list[Import]:
    """Every import of a module, also those inside functions and under `if TYPE_CHECKING`."""
    found = []

    def visit(node: ast.AST, type_checking: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, type_checking) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + (1 if is_package else 0)]
                base = ".".join([*parents, base] if base else parents)
            # `from package import module` imports the module
            found.extend(Import(f"{base}.{alias.name}", node.lineno, type_checking) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            target = node.args[0] if node.args else None
            name = target.value if isinstance(target, ast.Constant) else "<computed>"
            found.append(Import(str(name), node.lineno, type_checking))
        elif isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
            for child in node.body:
                visit(child, True)
            for child in node.orelse:
                visit(child, type_checking)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, type_checking)

    visit(ast.parse(source), False)
    return found


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")
each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


def imports_of(path: Path) -> list[Import]:
    found = find_imports(path.read_text(), name_of(path), path.name == "__init__.py")
    if room_of(path) == "records":  # every room reads it, so it may name a type that it does not import
        return [i for i in found if not i.type_checking]
    return found


def level_problems(room: str, imports: list[Import]) -> list[str]:
    problems = []
    for found in imports:
        if not is_within(found.module, PACKAGE):
            continue
        parts = found.module.split(".")
        other = parts[1] if len(parts) > 1 else ""
        if other not in LEVELS:  # the public names are for others
            problems.append(f"line {found.line}: {found.module}: import from the room, not from the package")
        elif other not in (room, "records") and LEVELS[other] >= LEVELS[room]:
            problems.append(f"line {found.line}: {room} (level {LEVELS[room]}) imports {other} (level {LEVELS[other]})")
    return problems


def library_problems(room: str, imports: list[Import]) -> list[str]:
    return [
        f"line {found.line}: {room} imports {found.module}, which only {', '.join(sorted(rooms))} may know"
        for found in imports
        for library, rooms in KNOWS.items()
        if is_within(found.module, library) and room not in rooms
    ]


@each_module
def test_module_has_a_room(path):
    assert room_of(path) in LEVELS, f"give {name_of(path)} a level"


def test_every_level_has_its_room():
    rooms = {room_of(p) for p in MODULES}
    assert set(LEVELS) <= rooms, "a level without a room"


@each_module
def test_imports_go_down(path):
    assert level_problems(room_of(path), imports_of(path)) == []


@each_module
def test_libraries_stay_in_their_rooms(path):
    assert library_problems(room_of(path), imports_of(path)) == []


@each_module
def test_no_import_is_computed(path):
    if name_of(path) in IMPORTS_BY_NAME:
        return
    assert [i.line for i in imports_of(path) if i.module == "<computed>"] == []


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in READERS], ids=name_of)
def test_readers_read_no_pickle(path):
    tree = ast.parse(path.read_text())
    assert [i for i in imports_of(path) if i.module.split(".")[0] in PICKLERS] == []
    names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert [n for n in names if n in ("torch.load", "joblib.load") or n.endswith("read_pickle")] == []
    allowing = [
        k.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for k in node.keywords
        if k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
    ]
    assert allowing == []


def test_spdx_line_comes_first():
    files = [*ROOT.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    first = "# SPDX-License-Identifier: AGPL-3.0-or-later"
    texts = {str(f): f.read_text() for f in files}
    assert [f for f, text in texts.items() if text and not text.startswith(f"{first}\n")] == []


SAMPLE = """
from typing import TYPE_CHECKING
from . import tables
from .figures import outcomes
if TYPE_CHECKING:
    import torch
def f():
    from ultralytics.engine import trainer
    import importlib
    importlib.import_module("ray")
    importlib.import_module(name)
"""


def test_the_parser_sees_every_way_to_import():
    found = {i.module: i.type_checking for i in find_imports(SAMPLE, f"{PACKAGE}.plan")}
    assert found == {
        "typing.TYPE_CHECKING": False,
        f"{PACKAGE}.tables": False,
        f"{PACKAGE}.figures.outcomes": False,
        "torch": True,
        "ultralytics.engine.trainer": False,
        "importlib": False,
        "ray": False,
        "<computed>": False,
    }
    assert [i.module for i in find_imports("from .a import b", f"{PACKAGE}.figures", is_package=True)] == [
        f"{PACKAGE}.figures.a.b"
    ]


def test_the_rules_refuse_what_they_should():
    imports = find_imports(SAMPLE, f"{PACKAGE}.plan")
    assert len(level_problems("plan", imports)) == 2  # level 1 does not import level 1
    assert level_problems("study", imports) == []
    assert {p.split(" imports ")[1].split(",")[0] for p in library_problems("plan", imports)} == {
        "torch",
        "ultralytics.engine.trainer",
        "ray",
    }
    assert level_problems("plan", find_imports(f"from {PACKAGE} import load_run", f"{PACKAGE}.plan"))
    assert level_problems("report", find_imports(f"from {PACKAGE} import study", f"{PACKAGE}.report"))
    assert level_problems("report", find_imports(f"import {PACKAGE}.executors", f"{PACKAGE}.report"))


@pytest.mark.parametrize("name", sorted(PUBLIC | set(getattr(yolo_gradstudy, "__all__", ()))))
def test_public_name_resolves(name):
    assert getattr(yolo_gradstudy, name) is not None


def test_public_names_are_all_there():
    assert set(yolo_gradstudy.__all__) >= PUBLIC
    assert set(dir(yolo_gradstudy)) >= PUBLIC
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = yolo_gradstudy.no_such_name


def test_reading_needs_neither_torch_nor_ultralytics():
    rooms = ("plan", "run_folder", "diagnoses", "tables", "figures", "report")
    code = f"import sys, {PACKAGE}\n" + "".join(f"import {PACKAGE}.{room}\n" for room in rooms)
    code += "print([m for m in ('torch', 'ultralytics') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
