"""Numbers that are none: found in a reward before it is stored, in a loss or gradient before the weights are touched.

What a single update or five in a row leave behind: tests/training/test_loop.py.
"""

import json
from pathlib import Path

import pytest

from mow.envs.dummy import CountingEnv
from mow.train import main
from tests.test_train import DUMMY


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_costs_an_episode_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    step, calls = CountingEnv.step, 0

    def broken(self: CountingEnv, action: object) -> object:
        nonlocal calls
        frame, reward, *rest = step(self, action)  # type: ignore[arg-type]
        calls += self.task.name == "dummy:slide"
        return frame, value if calls == 12 else reward, *rest

    monkeypatch.setattr(CountingEnv, "step", broken)
    flags = ["--folder", str(tmp_path / "run"), "--env.num-workers", "0"]
    assert main(["quickstart", *DUMMY, *flags]) == 0
    assert f"dummy:slide: expected a finite reward, got {value}" in capsys.readouterr().out
    with open(tmp_path / "run" / "metrics.jsonl", encoding="utf-8") as lines:
        counts = [float(record["envs/restarts"]) for record in map(json.loads, lines) if "envs/restarts" in record]
    assert counts[-1] == 1
