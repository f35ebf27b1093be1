"""The README's table of equations: every function exists, every test file is there; and the tree names every file."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ROWS = [row.split(" | ") for row in README.splitlines() if row.startswith("| ") and "tests/" in row]


def test_the_table_is_found():
    assert len(ROWS) >= 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_every_row_points_at_something(row):
    names = re.findall(r"`(mow[\w.]+)`", row[1])
    assert names
    for name in names:
        module, _, attribute = name.rpartition(".")
        function = getattr(importlib.import_module(module), attribute)
        assert "Source:" in (function.__doc__ or "") or "Source:" in (
            importlib.import_module(function.__module__).__doc__ or ""
        ), f"{name} cites nothing"
    (test,) = re.findall(r"`(tests/[\w/.]+)`", row[2])
    assert (ROOT / test).exists()


def test_the_tree_names_every_file():
    tree = README.split("## The tree")[1].split("```")[1]
    for path in sorted((ROOT / "mow").rglob("*.py")):
        relative = path.relative_to(ROOT)
        if path.name == "__init__.py" or "losses" in relative.parts or "kernels" in relative.parts:
            continue  # rooms that the tree names as a whole
        assert re.search(rf"^\s+{path.name} ", tree, re.MULTILINE), f"README's tree lacks {relative}"
