import numpy as np
import pytest
import torch

from mow.envs.dummy import read_counter
from mow.envs.vector import SerialVectorEnv
from mow.evaluate.held_out import play_windows
from mow.kernels import PhiloxState
from mow.methods.mow.acting import ActingMemory
from mow.methods.mow.learner import Learner
from mow.nn.policy import ActionMask
from tests.small import run_config


def fresh_learner():
    """An untrained one whose policy does tell states apart."""
    config = run_config()
    torch.manual_seed(0)
    with SerialVectorEnv(config.tasks, seed=0, options={}) as envs:
        layout = envs.layout
    mask = ActionMask(torch.from_numpy(layout.discrete_mask), torch.from_numpy(layout.continuous_mask))
    learner = Learner(config, mask, torch.device("cpu"))
    for parameter in learner.agent.actor.parameters():
        torch.nn.init.normal_(parameter)
    return learner


def played(*, player="agent", num_windows=4, length=5, shortest=3, seed=11, options=None, final_frames=False, **more):
    learner = fresh_learner()
    with SerialVectorEnv(
        learner.config.tasks, seed=seed, options=options or {}, max_restarts=3, final_frames=final_frames
    ) as envs:
        windows = play_windows(
            learner,
            envs,
            num_windows=num_windows,
            length=length,
            shortest=shortest,
            rng=PhiloxState.from_seed(seed, "cpu"),
            at_random=np.random.default_rng(seed) if player == "random" else None,
            **more,
        )
    own = torch.tensor([learner.config.seed, 0])
    assert torch.equal(learner.rng.state(), own), "the learner's own stream has moved"
    return windows


@pytest.mark.parametrize("player", ["agent", "random"])
def test_windows_follow_one_another_through_the_episodes(player):
    windows = played(player=player)
    assert windows.batch.frame.shape == (3, 4, 5, 64, 64, 3)
    for k, variant in enumerate((0, 1, 9)):
        expected_step, last_episode = 0, -1
        for b in range(4):
            length = int(windows.length[k, b])
            assert 3 <= length <= 5
            seen = [read_counter(frame.numpy()) for frame in windows.batch.frame[k, b, :length]]
            episode = seen[0][1]
            assert all(counter[:2] == (variant, episode) for counter in seen)
            if episode != last_episode:
                expected_step, last_episode = 0, episode
            # Within an episode the windows leave no gap, and the first opens with its first frame.
            assert [counter[2] for counter in seen] == list(range(expected_step, expected_step + length))
            expected_step += length


def test_what_lies_behind_the_end_is_zero():
    windows = played(num_windows=6)
    batch, short = windows.batch, windows.length < 5
    assert short.any(), "no window was cut by an end"
    for k, b in short.nonzero().tolist():
        n = int(windows.length[k, b])
        for name in ("frame", "action", "reward", "terminated", "truncated"):
            assert getattr(batch, name)[k, b, n:].float().abs().sum() == 0
        # Even variants end by termination, odd ones by a time limit.
        assert (bool(batch.terminated[k, b, n - 1]), bool(batch.truncated[k, b, n - 1])) == (k == 0, k != 0)


def test_a_window_holds_the_final_frame_and_no_action_at_it():
    windows = played(num_windows=6, final_frames=True)
    batch, ends = windows.batch, 0
    for k, b in np.ndindex(3, 6):
        n = int(windows.length[k, b])
        seen = [read_counter(frame.numpy()) for frame in batch.frame[k, b, :n]]
        assert [(episode, step) for _, episode, step in seen] == [(seen[0][1], seen[0][2] + t) for t in range(n)]
        over = bool((batch.terminated | batch.truncated)[k, b, n - 2]) and bool(batch.is_last[k, b, n - 1])
        assert batch.is_last[k, b].tolist() == [over and t == n - 1 for t in range(5)]
        assert int(windows.num_actions[k, b]) == n - over
        if over:
            ends += 1
            assert not batch.action[k, b, n - 1 :].any()
            assert not batch.reward[k, b, n - 1 :].any()
            assert not (batch.terminated | batch.truncated)[k, b, n - 1 :].any()
    assert ends >= 3


def test_a_window_never_crosses_the_loss_of_a_simulator():
    windows = played(player="random", num_windows=8, options={"fail_at": 16})  # each, again and again
    for k in range(3):
        for b in range(8):
            length = int(windows.length[k, b])
            seen = [read_counter(frame.numpy()) for frame in windows.batch.frame[k, b, :length]]
            assert [step - seen[0][2] for _, _, step in seen] == list(range(len(seen)))
            assert not windows.batch.truncated[k, b, : length - 1].any()
    assert windows.batch.truncated[0].any()  # its episodes end by themselves, and only the loss cuts one off


def test_a_lost_life_is_a_termination_and_the_window_goes_on():
    windows = played(num_windows=1)
    # Variant 0 loses a life in the step that leads to frame 4.
    assert windows.batch.terminated[0, 0].tolist() == [False, False, False, True, False]
    assert windows.length[0, 0] == 5


def test_only_a_first_step_opens_a_window():
    is_first = played().batch.is_first
    assert is_first[:, :, 0].all()
    assert not is_first[:, :, 1:].any()


def test_the_same_seed_plays_the_same():
    first, second, other = played(), played(), played(seed=12)
    assert torch.equal(first.batch.action, second.batch.action)
    assert torch.equal(first.batch.frame, second.batch.frame)
    assert not torch.equal(first.batch.action, other.batch.action)


def test_episodes_that_are_too_short_are_named():
    # The counting episodes last 13 steps at most.
    with pytest.raises(ValueError, match=r"dummy:count-0, dummy:count-1, dummy:slide: expected 1 windows of 14 steps"):
        played(num_windows=1, length=15, shortest=14, player="random")


def test_the_agent_acts_on_what_it_saw_and_did():
    """The first window's actions, redone: every one is drawn from the memory of all steps before it."""
    windows = played(num_windows=1)
    learner = fresh_learner()
    memory, stream = ActingMemory(learner.config.schedule.acting_context), PhiloxState.from_seed(11, "cpu")
    model, batch = learner.world_model.eval(), windows.batch
    for t in range(5):
        seen = batch.frame[:, 0, t], batch.is_first[:, 0, t]
        action = memory.act(model, learner.agent, learner.routing(), *seen, stream)
        memory.record(action)
        assert torch.equal(batch.action[:, 0, t], action)


def test_play_stops_before_the_next_step():
    checks = []

    def check():
        checks.append(len(checks))
        if len(checks) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        played(check_stop=check)
    assert len(checks) == 3
