import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mow.engine.evaluator import ScoringProgress, TaskEvaluation, evaluate
from mow.engine.scores import Cost, write_scores
from mow.envs.base import FRAME_SHAPE, Episode
from mow.envs.vector import SerialVectorEnv
from mow.methods.mow.learner import Learner
from mow.nn.policy import ActionMask
from tests.small import run_config


def played(episodes, max_steps=200, *, final_frames=False, **callbacks):
    config = run_config()
    with SerialVectorEnv(config.tasks, seed=3, options={}, final_frames=final_frames) as envs:
        layout = envs.layout
        mask = ActionMask(torch.from_numpy(layout.discrete_mask), torch.from_numpy(layout.continuous_mask))
        learner = Learner(config, mask, torch.device("cpu"))
        before = {n: t.clone() for n, t in learner.world_model.state_dict().items()}
        results = evaluate(learner, envs, episodes=episodes, max_steps=max_steps, **callbacks)
        for name, tensor in learner.world_model.state_dict().items():
            assert torch.equal(before[name], tensor), f"evaluation changed {name}"
        return results


@pytest.mark.parametrize("final_frames", [False, True])
def test_every_task_plays_the_same_number_of_whole_episodes(final_frames):
    results = played(3, final_frames=final_frames)
    assert [r.task for r in results] == list(run_config().tasks)
    for result in results:
        assert len(result.returns) == len(result.lengths) == 3
        assert all(7 <= n <= 13 for n in result.lengths)  # what the counting environment plays
        assert all(0 <= r <= n for r, n in zip(result.returns, result.lengths, strict=True))


class Scripted:
    """In place of `envs`, copies of each: what is in slot s ends every s + 2 steps and returns 100 s, 100 s + 1, ..."""

    def __init__(self, envs, copies):
        self.specs = [spec for spec in envs.specs for _ in range(copies)]
        self.layout, self.number, self.actions = envs.layout, 0, []

    def reset(self):
        return np.zeros((len(self.specs), *FRAME_SHAPE), np.uint8), np.ones(len(self.specs), bool)

    def step(self, action):
        self.number += 1
        self.actions.append(action.shape)
        finished = [
            Episode(spec.name, slot, 100.0 * slot + self.number // (slot + 2) - 1, slot + 2, None)
            for slot, spec in enumerate(self.specs)
            if self.number % (slot + 2) == 0
        ]
        frame, is_first = self.reset()
        return SimpleNamespace(frame=frame, is_first=is_first & False, is_last=is_first & False, finished=finished)


def scripted_play(**arguments):
    config = run_config()
    with SerialVectorEnv(config.tasks, seed=3, options={}) as envs:
        layout = envs.layout
        mask = ActionMask(torch.from_numpy(layout.discrete_mask), torch.from_numpy(layout.continuous_mask))
        scripted = Scripted(envs, copies=2)
        learner = Learner(config, mask, torch.device("cpu"))
        return scripted, evaluate(learner, scripted, max_steps=99, **arguments)


def test_copies_share_out_the_episodes_and_none_counts_for_being_quick():
    scripted, results = scripted_play(episodes=3)
    config, layout = run_config(), scripted.layout
    assert scripted.actions[0] == (2 * len(config.tasks), layout.size)
    assert [r.task for r in results] == list(config.tasks)
    # Two of the first copy and one of the second, though the first has ended a third one before.
    assert results[0].returns == (0.0, 1.0, 100.0)
    assert results[0].lengths == (2, 2, 3)
    assert results[1].returns == (200.0, 201.0, 300.0)
    last = 2 * len(config.tasks) - 2
    assert scripted.number == max(2 * (last + 2), last + 3), "it ends with the last episode that counts"


def test_every_episode_that_counts_is_announced_and_no_other():
    ended = []
    _, results = scripted_play(episodes=3, on_episode=ended.append)
    assert sorted(ended) == [k for k in range(len(results)) for _ in range(3)]


def test_it_stops_before_the_next_step_of_all_tasks():
    class Stop(Exception):
        pass

    steps = []

    def check():
        steps.append(len(steps))
        if len(steps) == 4:
            raise Stop

    with pytest.raises(Stop):
        played(3, check_stop=check)
    assert steps == [0, 1, 2, 3], "checked once before every step"
    checks = []
    scripted, _ = scripted_play(episodes=3, check_stop=lambda: checks.append(0))
    assert len(checks) == scripted.number


def test_progress_is_said_now_and_then_and_stops_are_passed_on(monkeypatch):
    clock = iter([0.0, 10.0, 31.0, 31.0, 32.0])
    monkeypatch.setattr("mow.engine.evaluator.time.monotonic", lambda: next(clock))
    said, stops = [], []
    progress = ScoringProgress(2, 3, said.append, lambda: stops.append(0))
    for _ in range(3):
        progress.step()
        progress.episode(1)
    assert said == ["1 of 6 episodes, 1 steps"]
    assert len(stops) == 3


def test_the_limit_ends_it():
    assert all(len(r.returns) <= 2 for r in played(50, max_steps=15))


def test_scores_by_hand(tmp_path):
    results = [
        TaskEvaluation("atari:Breakout", (30.5, 1.7), (10, 20)),
        TaskEvaluation("tiny:pole", (10.0,), (100,)),
        TaskEvaluation("dummy:slide", (), ()),
    ]
    table = write_scores(tmp_path / "scores.json", results, Cost(7, 100, 50, 1.5, 2.5))
    content = json.loads((tmp_path / "scores.json").read_text())
    assert np.isclose(content["tasks"]["atari:Breakout"]["normalised"], 0.5)  # half the way from 1.7 to 30.5
    assert content["tasks"]["tiny:pole"]["normalised"] == 1.0
    assert content["tasks"]["dummy:slide"]["agent"] is None
    assert np.isclose(content["mean_normalised"], 0.75)
    assert content["env_steps_per_task"] == 100
    assert content["world_model_updates"] == 50
    assert content["cpu_seconds"] == 2.5
    rows = table.splitlines()
    assert rows[1].split() == ["atari:Breakout", "1.70", "16.10", "30.50", "0.50", "2"]
    assert rows[3].split() == ["dummy:slide", "-", "-", "-", "-", "0"]
    assert rows[-1].split() == ["mean", "0.75"]
