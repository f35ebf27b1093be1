"""Numbers that are none: found in a reward before it is stored, in a loss or gradient before the weights are touched.

What a single update or five in a row leave behind: tests/engine/test_trainer.py.
"""

import json
from pathlib import Path

import pytest
import torch

from mow.envs.dummy import CountingEnv
from mow.runs.checkpoint import load_checkpoint
from mow.runs.paths import checkpoints
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
        slide = self.task.name == "dummy:slide"
        calls += slide
        return frame, value if slide and calls == 12 else reward, *rest

    monkeypatch.setattr(CountingEnv, "step", broken)
    flags = ["--folder", str(tmp_path / "run"), "--env.num-workers", "0"]
    assert main(["quickstart", *DUMMY, *flags]) == 0
    assert f"dummy:slide: expected a finite number within float32 as reward, got {value}" in capsys.readouterr().out
    with open(tmp_path / "run" / "metrics.jsonl", encoding="utf-8") as lines:
        counts = [float(record["envs/restarts"]) for record in map(json.loads, lines) if "envs/restarts" in record]
    assert counts[-1] == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--optim.world-model-lr", "1e30", "--optim.matrix-lr", "1e30"), "the agent chooses no action in dummy:"),
        (("--optim.agent-lr", "1e38", "--checkpoint-every", "1"), "is not finite, nothing was saved"),
    ],
)
def test_weights_that_blow_up_end_in_one_line_and_are_never_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str
) -> None:
    """A step too long breaks weights with a gradient that is finite: it is made, and found before it does harm."""
    folder = tmp_path / "run"
    assert main(["quickstart", *DUMMY, *flags, "--folder", str(folder)]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "; start a new run with a lower step size" in said
    assert said.count("\n") == 1
    for path in checkpoints(folder):
        learnt = load_checkpoint(path, torch.device("cpu"))["learner"]
        for model in ("world_model", "agent"):
            assert all(bool(torch.isfinite(value.float()).all()) for value in learnt[model].values())
