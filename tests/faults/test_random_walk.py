"""Random faults, one after another, through runs that go on from what the one before has left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gymnasium", reason="some of its simulators are gymnasium's")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number", [4, pytest.param(500, marks=pytest.mark.slow)])
def test_a_walk_of_random_faults_loses_nothing(number: int, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.faults.random_walk", str(tmp_path), str(number), "0"]
    walked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert walked.returncode == 0, walked.stderr
    met = json.loads(walked.stdout)
    # A fault and a simulator each.
    assert sum(count for found in met.values() for count in found.values()) == 2 * number
    if number > 100:
        assert all(met.values()), "every kind was met"
        assert met["SIGKILL"]["killed"] > 0
        assert met["a mistake of ours"]["failed"] > 0
