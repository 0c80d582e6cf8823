"""The plan of the house, read from the imports: no arrow up, no circle, no private name of another file."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import simco_zoo

ROOT = Path(__file__).parents[1]
# from bottom to top; a file imports from its own floor and from those below it
FLOORS = [
    {"losses", "distributed", "files", "lock", "sealed", "version"},
    {"hub", "data"},
    {"models"},
    {"publishing"},
    {"evaluation", "report"},
    {"training"},
    {"analysis"},
    {"arguments", "cli", "recipes", "hubconf", ""},  # "" is simco_zoo/__init__.py
]
MOST_LINES = {"file": 350, "class": 200, "function": 60}


def name_of(file: Path) -> str:
    """Returns the dotted name under which a file is imported."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for folder in ("simco_zoo", "recipes") for file in sorted((ROOT / folder).rglob("*.py"))}
FILES["hubconf"] = ROOT / "hubconf.py"


def imports_of(module: str) -> Iterator[tuple[str, str | None, int]]:
    """Yields (module, imported name or None, line) of each import of our own files that is run, wherever it stands."""
    for node in walk(tree_of(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((found, None, node.lineno) for found in [resolve(alias.name)] if found)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{FILES[module]}:{node.lineno}: write imports with their whole name"
            for alias in node.names:
                whole = resolve(f"{node.module}.{alias.name}")
                if whole is not None:
                    yield whole, None, node.lineno
                elif resolve(node.module or "") is not None:
                    yield resolve(node.module or "") or "", alias.name, node.lineno


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Walks a tree, but not into what only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield from walk(child)


def resolve(name: str) -> str | None:
    """Returns the module of ours that a dotted name is, or None; scripts in recipes/ leave that folder's name out."""
    return next((found for found in (name, f"recipes.{name}") if found in FILES), None)


def floor_of(module: str) -> int:
    first, *others = [*module.split("."), ""]
    room = others[0] if first == "simco_zoo" else first
    return next(floor for floor, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("module", FILES)
def test_no_import_points_up(module):
    wrong = [
        f"{FILES[module].relative_to(ROOT)}:{line} imports {imported}"
        for imported, _, line in imports_of(module)
        if floor_of(imported) > floor_of(module)
    ]
    assert not wrong


@pytest.mark.parametrize("module", FILES)
def test_no_private_name_of_another_file(module):
    """Neither imported by name, nor reached through a module (``losses._x``)."""
    wrong = [
        f"{FILES[module].relative_to(ROOT)}:{line} imports {imported}.{name}"
        for imported, name, line in imports_of(module)
        if any(
            part.startswith("_") and part != "__init__" and not part.endswith("__")
            for part in (name or "", *imported.split("."))
        )
    ]
    aliases = aliases_of(module)
    for node in ast.walk(tree_of(module)):
        reached = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
        if reached and is_private(node.attr):
            wrong.append(f"{FILES[module].relative_to(ROOT)}:{node.lineno} uses {node.value.id}.{node.attr}")
    assert not wrong


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def aliases_of(module: str) -> set[str]:
    """Returns the names by which a file calls modules of ours."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name for a in node.names if resolve(f"{node.module}.{a.name}")}
    return found


def test_no_circle():
    """Of modules; ``__init__`` files only gather names, so that a module may import its own package's neighbors."""
    graph = {module: {imported for imported, _, _ in imports_of(module) if imported != module} for module in FILES}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", FILES)
def test_files_classes_and_functions_stay_short(module):
    """The lines of a class or function count without its docstring."""
    text = FILES[module].read_text(encoding="utf-8")
    wrong = [f"the file has {len(text.splitlines())} lines"] if len(text.splitlines()) > MOST_LINES["file"] else []
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            lines = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
            if lines > MOST_LINES["class" if isinstance(node, ast.ClassDef) else "function"]:
                wrong.append(f"{node.name} in line {node.lineno} has {lines} lines")
    assert not wrong, f"{FILES[module].relative_to(ROOT)}: split what does two jobs"


def test_models_load_neither_data_nor_publishing():
    code = "import sys, simco_zoo.models; print(*sorted(name for name in sys.modules if name.startswith('simco_zoo.')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "simco_zoo.models.factory" in found
    rooms = {name.split(".")[1] for name in found}
    assert not rooms & {"data", "publishing", "evaluation", "report", "training", "cli"}


def test_every_public_name_is_there():
    """Those that are imported on first use included."""
    assert {*simco_zoo.__all__} <= {*dir(simco_zoo)}
    for name in simco_zoo.__all__:
        assert getattr(simco_zoo, name) is not None
    assert simco_zoo.extract_features is simco_zoo.evaluation.extract_features
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        simco_zoo.nothing  # noqa: B018


@pytest.mark.parametrize("package", [name for name, file in FILES.items() if file.name == "__init__.py"])
def test_no_package_exports_the_name_of_a_module(package):
    """Otherwise ``package.name`` is the function or the module, depending on what was imported before."""
    modules = {name.removeprefix(f"{package}.") for name in FILES if name.startswith(f"{package}.")}
    exported = {name for _, name, _ in imports_of(package) if name is not None}
    assert exported & modules <= {"small_stem"}  # a contract's name and a registered one


def test_the_tests_that_the_readme_names_are_there():
    rows = (ROOT / "README.md").read_text().split("## What is promised")[1].split("\n## ")[0].split("\n| ")[3:]
    named = [re.findall(r"`(\w+/test_\w+\.py)`", row) for row in rows]
    assert len(named) >= 9 and all(named)
    assert [test for row in named for test in row if not (ROOT / "tests" / test).is_file()] == []
