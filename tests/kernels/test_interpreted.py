"""Runs tests/interpreted in a process of its own.

Triton reads TRITON_INTERPRET while it is imported, for the whole process; and a kernel that reads out of bounds there
ends its process without a word, which must not take the other tests along.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_RUN = 77  # as in tests/interpreted/conftest.py
SECONDS = 3600  # the suite takes about a minute, much longer on a crowded machine; more than this is a hang


def run_interpreted(*arguments: str, interpret: str = "1") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "tests/interpreted", *arguments]
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_under_the_interpreter() -> None:
    run = run_interpreted("--tb=short")
    tail = "\n".join((run.stdout + run.stderr).splitlines()[-60:])
    if run.returncode == NOT_RUN:
        pytest.skip(tail)
    assert run.returncode == 0, f"exit status {run.returncode} (negative: killed by that signal)\n{tail}"


def test_without_the_switch_nothing_is_run_and_the_reason_said() -> None:
    run = run_interpreted(interpret="0")
    assert run.returncode == NOT_RUN
    assert "kernels are not interpreted: needs TRITON_INTERPRET=1" in run.stdout + run.stderr
