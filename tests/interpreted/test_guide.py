"""The Triton side of the op that the docstring of mow.kernels adds: forward and backward equal the reference's."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.test_guides import blocks, run_in_turn


def test_the_kernel_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door, _, triton, test = blocks("mow.kernels")
    # In a file: Triton reads the source of what it compiles.
    (tmp_path / "guide_soft_threshold.py").write_text(triton, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name = "mow.kernels.soft_threshold_triton"
    monkeypatch.setitem(sys.modules, name, importlib.import_module("guide_soft_threshold"))
    names = run_in_turn(door, test)
    assert "test_soft_threshold_matches_the_reference" in names
