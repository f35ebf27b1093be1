"""Tables of the pages: every function of the table of equations exists, and every name on the map of the package."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [(ROOT / "mow/methods" / name / "README.md").read_text() for name in ("mow", "pwm")]
ROWS = [row.split(" | ") for page in PAGES for row in page.splitlines() if row.startswith("| ") and "tests/" in row]


def test_the_table_is_found():
    assert all(sum("tests/" in row for row in page.splitlines()) >= 12 for page in PAGES)


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


def resolve(name: str) -> object:
    """The module, class or function of a dotted name. Raises: AttributeError or ImportError if there is none."""
    module, found = name, []
    while True:
        try:
            owner = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            found.insert(0, last)
    for attribute in found:
        owner = getattr(owner, attribute)
    return owner


NAMES = sorted(set(re.findall(r"`(mow(?:\.\w+)+)`", (ROOT / "mow/README.md").read_text())) - {"mow.load"})


def test_the_map_leads_through_names():
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_every_name_on_the_map_exists(name):
    assert resolve(name)


def test_the_map_has_every_room():
    rooms = re.findall(r"^\| `(\w+)/` \|", (ROOT / "mow/README.md").read_text(), re.MULTILINE)
    folders = [path.name for path in (ROOT / "mow").iterdir() if path.is_dir() and not path.name.startswith("__")]
    assert sorted(rooms) == sorted(folders)


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "mow").rglob("README.md"), ROOT / "kernels/README.md"]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]*)?\)", page.read_text())
        if not link.startswith("http") and not (page.parent / link).exists()
    ]
    assert broken == []
