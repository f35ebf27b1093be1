"""How to add an environment, a kernel, a loss, a variant: the code on the pages runs, and fits."""

import ast
import importlib
import inspect
import re
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mow import envs
from mow.envs.suites import Protocol, Suite
from tests.envs import test_contract

ROOT = Path(__file__).resolve().parents[1]
GUIDES = {"mow.envs": ROOT / "mow/envs/README.md", "mow.kernels": ROOT / "kernels/__init__.py",
          "mow.losses": ROOT / "mow/losses/README.md",
          "mow.methods.mow": ROOT / "mow/methods/mow/README.md"}  # fmt: skip


def blocks(room: str, language: str = "python") -> list[str]:
    """The fenced blocks of a room's page, or of its docstring, which is read and not imported."""
    text = GUIDES[room].read_text(encoding="utf-8")
    if GUIDES[room].suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run_in_turn(*code: str) -> dict[str, object]:
    """What is there after the blocks, and after each function test_... in them has been called."""
    names: dict[str, object] = {}
    for block in code:
        exec(compile(block, "guide", "exec"), names)
    for name in [name for name in names if name.startswith("test_")]:
        test = names[name]
        assert isinstance(test, types.FunctionType)
        test()
    return names


def misfits(diff: str) -> list[str]:
    """Lines that a diff keeps or takes away, and that its file does not have, or adds, and that it has."""
    found, text = [], ""
    for line in diff.splitlines():
        if line.startswith("--- "):
            text = (ROOT / line[4:]).read_text(encoding="utf-8")
            text = text.replace(ast.get_docstring(ast.parse(text), clean=False) or "\0", "")
        elif f"{line[1:]}\n" in text.replace("\n\n", "\n") if line[0] == "+" else f"{line[1:]}\n" not in text:
            found.append(line)
    return found


@pytest.mark.parametrize("room", GUIDES)
def test_what_a_guide_changes_is_there_to_be_changed(room: str) -> None:
    for diff in blocks(room, "diff"):
        assert diff.startswith("--- ")
        assert misfits(diff) == []
    assert blocks(room)


def test_a_diff_that_has_aged_is_found() -> None:
    aged = ["     representation: float = 0.2", "+    representation: float = 0.1"]
    assert misfits("\n".join(["--- mow/methods/mow/config.py", *aged, "     free_bits: float = 1.0"])) == aged


def test_a_loss() -> None:
    names = run_in_turn(*blocks("mow.losses"))
    assert "test_smoothness_by_hand" in names


def test_a_variant() -> None:
    run_in_turn(*blocks("mow.methods.mow"))


def test_a_kernel() -> None:
    """Its Triton side is run by tests/interpreted/test_guide.py."""
    door, tests, triton, interpreted = blocks("mow.kernels")
    names = run_in_turn(door, tests)
    with pytest.raises(ValueError, match=r"threshold must be 0 or more, got -1\.0: give its size"):
        names["soft_threshold"](None, threshold=-1.0)  # type: ignore[operator]
    for block in (triton, interpreted):
        ast.parse(block)


@pytest.fixture
def lights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The suite of the guide, with the lines that make it known."""
    (tmp_path / "guide_lights.py").write_text(blocks("mow.envs")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (diff,) = blocks("mow.envs", "diff")
    record = "".join(line[1:] for line in diff.splitlines(keepends=True) if line.startswith("+"))
    suite = eval(record.strip().removesuffix(","), {"Suite": Suite, "Protocol": Protocol})
    monkeypatch.setitem(envs.SUITES, "lights", replace(suite, module="guide_lights"))
    return "lights:squares"


def test_an_environment(lights: str) -> None:
    run_in_turn("import numpy as np", blocks("mow.envs")[1])
    env = envs.make(lights, seed=0, options={})
    frame, _ = env.reset(seed=3)
    lit = int(np.argmax(frame[::16, ::16, 0]))
    assert env.step(lit)[1] == 1.0
    assert env.step((int(np.argmax(env.reset()[0][::16, ::16, 0])) + 1) % 16)[1] == 0.0


CONTRACT: list[Callable[..., None]] = [
    test for name, test in inspect.getmembers(test_contract, inspect.isfunction)
    if name.startswith("test_") and {*inspect.signature(test).parameters} <= {"case", "env"}
]  # fmt: skip


@pytest.mark.parametrize("test", CONTRACT, ids=lambda test: test.__name__)
def test_it_keeps_the_contract(test: Callable[..., None], lights: str) -> None:
    given = {"case": (lights, {}), "env": envs.make(lights, seed=11, options={})}
    test(**{name: given[name] for name in inspect.signature(test).parameters})


@pytest.mark.parametrize("room", [room for room, path in GUIDES.items() if path.suffix == ".py"])
def test_help_shows_it(room: str) -> None:
    assert "```python" in (importlib.import_module(room).__doc__ or "")
