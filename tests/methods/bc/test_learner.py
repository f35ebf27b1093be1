"""Behaviour cloning finds the recorded action, keeps to each task's dimensions, and takes the best episodes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mow import train
from mow.envs.base import ActionLayout, TaskSpec
from mow.errors import UsageError
from mow.methods.base import ObservationSpec, TaskSet
from mow.methods.bc.config import BcConfig
from mow.methods.bc.learner import Learner
from mow.offline.store import OfflineStore
from tests.offline.recorded import NARROW, WIDE, record

SPECS = tuple(TaskSpec(t.name, False, t.action_size, (True,) * t.action_size, 1, "states", t.state_size)
              for t in (WIDE, NARROW))  # fmt: skip


def learner_of(**fields: object) -> Learner:
    config = BcConfig(preset="bc", tasks=(WIDE.name, NARROW.name), total_steps=0, hidden=32, lr=1e-2, **fields)  # type: ignore[arg-type]
    tasks = TaskSet(SPECS, ActionLayout.from_tasks(SPECS), ObservationSpec((3,), "float32"))
    return Learner(config, tasks, torch.device("cpu"))


def test_it_finds_the_recorded_action_of_every_task(tmp_path: Path) -> None:
    record(tmp_path, {WIDE: [1] * 8, NARROW: [1] * 8})
    learner, store = learner_of(), OfflineStore.open(tmp_path, [WIDE.name, NARROW.name])
    for counter in range(200):
        batch = store.sample(16, 2, counter=counter, stream=0)
        state = batch.frame / 7e3  # record writes 1000 per episode
        sign = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)  # the tasks answer to one state by opposite actions
        right = sign * (state[..., :2].flip(-1) - 0.5) * learner.mask.unsqueeze(2)
        batch = replace(batch, frame=4.0 * state, action=right)
        loss = learner.update("policy", batch)["loss/policy"]
    assert (loss < 1e-3).all(), loss
    acted = learner.actor().act(batch.frame[:, :, 0], torch.zeros(2, 16, dtype=torch.bool)).action
    assert (acted - batch.action[:, :, 0]).abs().max() < 0.1
    assert not acted[1, :, 1].any(), "an entry that the task does not use"


@pytest.mark.parametrize(("best", "numbers"), [(1.0, {0, 1, 2, 3}), (0.5, {0, 1}), (0.1, {0})])
def test_the_best_share_of_the_episodes(tmp_path: Path, best: float, numbers: set[int]) -> None:
    record(tmp_path, {NARROW: [3, 3, 3, 3]})  # rewards fall with the number of the episode
    store = OfflineStore.open(tmp_path, [NARROW.name], best=best)
    drawn = store.sample(200, 2, counter=0, stream=0).frame[..., 0, 0] // 1000
    assert {int(number) for number in drawn.flatten()} == numbers


def test_a_discrete_task_is_refused() -> None:
    spec = TaskSpec("tiny:catch", True, 3, (True,) * 3, 1, "frames")
    tasks = TaskSet((spec,), ActionLayout.from_tasks((spec,)), ObservationSpec((3,), "float32"))
    with pytest.raises(UsageError, match="has discrete actions"):
        Learner(BcConfig(preset="bc", tasks=("tiny:catch",), total_steps=0), tasks, torch.device("cpu"))


@pytest.mark.parametrize("best", ["0", "1.5"])
def test_a_share_outside_0_to_1_is_refused(best: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        raise SystemExit(train.main(["bc", "--best", best, "--folder", str(tmp_path / "run")]))
    assert end.value.code == 2
    assert "best must be above 0 and at most 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
