"""Imports between the folders of the package run downward only, in the order of the design."""

import ast
import re
from pathlib import Path

import fastast
from tests.conftest import ROOT

PACKAGE = Path(fastast.__file__).parent
UPWARD = PACKAGE / "train/__init__.py"  # `fastast.train(...)` is of the floor above


def imported(path: Path) -> set[str]:
    """The folders whose modules the file at `path` imports."""
    nodes = ast.walk(ast.parse(path.read_bytes()))
    modules = [(node.module or "").split(".") for node in nodes if isinstance(node, ast.ImportFrom)]
    return {names[1] for names in modules if names[0] == "fastast" and len(names) > 1 and (PACKAGE / names[1]).is_dir()}


def test_no_folder_imports_one_that_stands_above_it():
    table = (ROOT / "docs" / "design.md").read_text().split("| folder | what |")[1]
    names = [name for row in table.splitlines() for name in re.findall(r"`(\w+)/`", row.partition(" | ")[0])]
    floors = names[: names.index("benchmarks")]
    assert sorted(floors) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    for path in set(PACKAGE.glob("*/*.py")) - {UPWARD}:
        floor = floors.index(path.parent.name)
        assert all(floors.index(name) >= floor for name in imported(path)), path
