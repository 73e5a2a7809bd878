"""Imports between the folders of the package run downward only."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import fastast

PACKAGE = Path(fastast.__file__).parent
UPWARD = PACKAGE / "train/__init__.py"  # `fastast.train(...)` is of the floor above


def imported(path: Path) -> set[str]:
    """The folders whose modules the file at `path` imports, its own included."""
    nodes = ast.walk(ast.parse(path.read_bytes()))
    modules = [(node.module or "").split(".") for node in nodes if isinstance(node, ast.ImportFrom)]
    return {names[1] for names in modules if names[0] == "fastast" and len(names) > 1 and (PACKAGE / names[1]).is_dir()}


def test_no_folder_imports_upward():
    below: dict[str, set[str]] = {}
    for path in set(PACKAGE.glob("*/*.py")) - {UPWARD}:
        below.setdefault(path.parent.name, set()).update(imported(path) - {path.parent.name})
    floors = list(TopologicalSorter(below).static_order())  # raises CycleError, which names the folders
    assert floors.index("gates") < floors.index("engine") < floors.index("session") < floors.index("commands")
