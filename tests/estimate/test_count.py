"""The counter on known ops, and the launches and bytes of `atari26`, which must not grow."""

import pytest
import torch

from bench import count as command
from bench.learners import action_mask
from mow.estimate.count import PARTS, Counter, Part, count
from mow.estimate.flops import agent_update, world_model_update
from mow.methods.mow.presets import atari26
from tests.estimate.test_flops import CONFIGS
from tests.small import ACTION_SIZE
from tests.small import action_mask as small_mask

# Launches, GB: as counted with torch 2.13.0. Lower a number when a change earns it.
MOST = {"world_model": (2_046, 168.0), "imagination": (1_296, 394.7), "agent": (324, 53.2)}


def test_by_hand() -> None:
    x, weight = torch.ones(2, 3), torch.ones(3, 5)
    with Counter() as counter:
        y = (x @ weight).view(10)  # reads 24 and 60 bytes, writes 40
        y.zero_()  # writes 40
        torch.add(y, torch.ones(1).expand(10))  # ones: writes 4; add: reads 40 and 4, writes 40
    assert {name: (work.launches, work.bytes, work.flop) for name, work in counter.classes.items()} == {
        "matmul": (1, 124, 2 * 2 * 3 * 5),
        "elementwise, sums": (3, 40 + 4 + 84, 0),
    }
    assert counter.total.launches == 4
    assert counter.total.seconds == pytest.approx(4 * 1.5e-6)


@pytest.fixture(scope="module")
def paper() -> dict[Part, Counter]:
    return count(atari26(), action_mask(26))


@pytest.mark.parametrize("part", PARTS)
def test_atari26_needs_no_more_than_it_did(paper: dict[Part, Counter], part: Part) -> None:
    total = paper[part].total
    launches, gigabytes = MOST[part]
    assert total.launches <= launches
    assert total.bytes <= gigabytes * 1e9


def test_the_plan_of_atari26_has_the_flop_that_are_counted(paper: dict[Part, Counter]) -> None:
    """The plan leaves out task embeddings, router and what attention computes again in its backward pass."""
    planned = agent_update(atari26(), 18, 18)
    assert paper["world_model"].total.flop == pytest.approx(sum(world_model_update(atari26(), 18).values()), rel=2e-3)
    assert paper["agent"].total.flop == pytest.approx(planned.pop("actor_critic"), rel=2e-3)
    assert paper["imagination"].total.flop == pytest.approx(sum(planned.values()), rel=2e-3)


def test_the_plan_of_a_local_prior_too() -> None:
    config = CONFIGS["local arrival"]
    counted = count(config, small_mask(), ["world_model"])["world_model"].total
    assert counted.flop == pytest.approx(sum(world_model_update(config, ACTION_SIZE).values()), rel=1e-2)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Counter() as counter:
        torch.eye(64) @ torch.eye(64)
    monkeypatch.setattr(command, "count", lambda *_: {"agent": counter})
    command.main(["--what", "agent", "--rows", "2"])
    text = capsys.readouterr().out.strip()
    assert "3 launches     0.00 GB   0.000 TFLOP  atari26, agent\n" in text
    assert "mm: [64, 64] float32, [64, 64] float32, [64, 64] float32" in text
