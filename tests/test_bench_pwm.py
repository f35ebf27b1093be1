"""The timing of PWM's updates runs and writes what it prints."""

import json
from pathlib import Path

import pytest

from bench import pwm


def test_it_times_both_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tasks", "2", "--starts", "2", "--windows", "4", "--rounds", "1", "--json", str(tmp_path / "times.json")]
    pwm.main(words)
    found = json.loads((tmp_path / "times.json").read_text())
    assert {name: [*times] for name, times in found.items()} == {
        "pre-training, 4 windows": ["ours"], "extraction, 2 starts": ["ours", "ours, 2 at once"],
    }  # fmt: skip
    assert all(ms > 0 for times in found.values() for ms in times.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in found)
