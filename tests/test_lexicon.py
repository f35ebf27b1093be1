"""Docstrings, comments, strings and README pages use the words of the field and speak of no people."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

BANNED = {  # whole word or phrase, in any case -> the words to write in its place
    "asked|asks": "the option, argument or call itself",
    "believes": "predicts, estimates",
    "borne": "tolerated",
    "dream|dreams|dreamt|dreaming|dreamer": "imagined rollout, to imagine",
    "foretell|foretells|foretold|foresee|foreseen|foresight": "predict, prediction",
    "heard|hears|listens": "received, receives",
    "knows": "has, holds, reads",
    "lesson|lessons": "actor-critic targets",
    "lone": "single",
    "nobody|somebody|whoever": "the passive, or the process or file",
    "remembers": "holds, keeps",
    "said|says": "prints, reports, holds, records",
    "speaks|thinks|thought": "the quantity itself",
    "stand still|stands still|standing still": "unchanged, cached",
    "teach|teaches|taught": "train, update",
    "told": "given, set, printed",
    "wants": "needs, reads",
}
OPENINGS = "What|How|Where|Which|Whether|Of"  # a docstring that begins so needs the name beside it to be understood

# Files and folders that still hold a banned word or opening. Remove an entry once it is clean; add none.
NOT_YET_CLEAN = (
    "README.md",
)


def pages() -> list[Path]:
    """README.md, and every Python file and README.md of mow/ and bench/, without the folders that are links."""
    found = (path for room in ("mow", "bench") for end in ("*.py", "README.md") for path in (ROOT / room).rglob(end))
    return [ROOT / "README.md", *sorted(path for path in found if "__pycache__" not in path.parts)]


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of all strings and comments of a Python file; of a page, of all its lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def docstrings_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that is a statement of its own, those below fields included."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                yield node.lineno, str(node.value.value)


def faults(path: Path) -> list[str]:
    """One line for every banned word, with what to write, and for every docstring with a banned opening."""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    found = []
    for line, text in words_of(path):
        for banned, better in BANNED.items():
            for match in re.finditer(rf"\b({banned})\b", text, re.IGNORECASE):
                at = line + text[: match.start()].count("\n")
                found.append(f"{name}:{at}: {match[0]!r}: write {better}")
    for line, text in docstrings_of(path):
        if re.match(rf"\s*({OPENINGS})\b", text):
            found.append(f"{name}:{line}: begins with {text.split()[0]!r}: write a statement or an imperative")
    return found


def is_exempt(path: Path) -> bool:
    return any(path.is_relative_to(ROOT / entry) for entry in NOT_YET_CLEAN)


def test_pages_use_the_words_of_the_field() -> None:
    found = [fault for path in pages() if not is_exempt(path) for fault in faults(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("entry", NOT_YET_CLEAN)
def test_an_exempt_entry_is_not_clean(entry: str) -> None:
    assert any(faults(path) for path in pages() if path.is_relative_to(ROOT / entry)), f"{entry} is clean: remove it"


@pytest.mark.parametrize("banned", BANNED)
def test_a_planted_word_is_found(banned: str, tmp_path: Path) -> None:
    for word in banned.split("|"):
        texts = {"a.md": f"a {word}\n", "b.py": f"x = f'a {{1}} {word.upper()}'\n", "c.py": f"# {word}\n"}
        for name, text in texts.items():
            path = tmp_path / name
            path.write_text(text, encoding="utf-8")
            assert len(faults(path)) == 1, text


def test_words_inside_others_are_not_found(tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.write_text('"""DreamerV3: alone, a threshold, saturated."""\nsaid = asked = 1\n', encoding="utf-8")
    assert faults(path) == []


@pytest.mark.parametrize("opening", OPENINGS.split("|"))
def test_a_planted_opening_is_found(opening: str, tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.write_text(f'def f():\n    """{opening} it is."""\n    return "{opening} it is"\n', encoding="utf-8")
    assert len(faults(path)) == 1
