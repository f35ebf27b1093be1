"""Windows of play that training has never seen, for looking at what the world model expects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mow.batch import TransitionBatch
from mow.envs.vector import VectorEnv
from mow.kernels import PhiloxState
from mow.methods.mow.acting import ActingMemory
from mow.methods.mow.learner import Learner

Player = Literal["agent", "random"]

# Steps per task to play for windows, as a multiple of what the windows hold; only very short episodes need more.
_PATIENCE = 10


@dataclass(frozen=True)
class HeldOutWindows:
    """B windows per task, each within one episode; what lies after an episode's end is zero."""

    batch: TransitionBatch  # [K, B, L, ...]
    length: Tensor  # [K, B] int64: frames of the episode; L where the window ends first

    @property
    def num_actions(self) -> Tensor:
        """[K, B] int64: none was taken at a final frame."""
        return self.length - self.batch.is_last.sum(dim=2)


@dataclass(frozen=True, eq=False)
class _Token:
    """One step of one task."""

    frame: NDArray[np.uint8]  # [64, 64, 3]
    action: NDArray[np.float32]  # [A]
    reward: np.float32
    terminated: np.bool_
    truncated: np.bool_
    is_last: np.bool_


@torch.no_grad()
def play_windows(
    learner: Learner,
    envs: VectorEnv,
    *,
    player: Player,
    num_windows: int,
    length: int,
    shortest: int,
    rng: PhiloxState,
    generator: np.random.Generator,
    check_stop: Callable[[], None] = lambda: None,
) -> HeldOutWindows:
    """Play from a reset on and cut the play into windows: each task's first ones, in order.

    The first window of an episode opens with its first frame, the others follow without a gap until the episode ends.
    As in replay, a lost life counts as a termination although the episode goes on.

    Args:
        envs: fresh environments in the learner's task order.
        player: the trained agent, its actions drawn from the policy, or uniformly random actions.
        num_windows: B.
        length: L; the last window of an episode may be shorter.
        shortest: windows with fewer steps are left out.
        rng: of the agent's draws, on its device; the learner's own stream is not touched.
        generator: of the random player's actions.
        check_stop: called before every step of all tasks; it stops the play by raising.
    Returns: on the learner's device.
    Raises: ValueError if the episodes of a task are so short that the windows do not come together; what `check_stop`
        raises.
    """
    learner.world_model.eval()
    routing, memory, device = learner.routing(), ActingMemory(learner.config.schedule.acting_context), learner.device
    done: list[list[list[_Token]]] = [[] for _ in envs.specs]
    current: list[list[_Token]] = [[] for _ in envs.specs]
    frame, is_first = envs.reset()
    is_last = np.zeros_like(is_first)
    limit = _PATIENCE * num_windows * length
    for _ in range(limit):
        check_stop()
        if player == "agent":
            seen = torch.from_numpy(frame).to(device), torch.from_numpy(is_first).to(device)
            with learner.weight_cache.use():
                chosen = memory.act(learner.world_model, learner.agent, routing, *seen, rng)
            memory.record(chosen)
            action = chosen.cpu().numpy()
        else:
            action = envs.layout.random(generator)
        step = envs.step(action)
        terminated = step.terminated | step.life_lost
        for k, tokens in enumerate(current):
            taken = np.zeros_like(action[k]) if is_last[k] else action[k]
            tokens.append(_Token(frame[k], taken, step.reward[k], terminated[k], step.truncated[k], is_last[k]))
            if step.is_first[k] or len(tokens) == length:
                if len(tokens) >= shortest and len(done[k]) < num_windows:
                    done[k].append(tokens)
                current[k] = []
        frame, is_first, is_last = step.frame, step.is_first, step.is_last
        if all(len(windows) == num_windows for windows in done):
            return _stack(done, length, device)
    short = [spec.name for spec, windows in zip(envs.specs, done, strict=True) if len(windows) < num_windows]
    raise ValueError(
        f"{', '.join(short)}: expected {num_windows} windows of {shortest} steps or more, got fewer in {limit:,} "
        "steps: take a shorter context or fewer windows"
    )


def _stack(windows: list[list[list[_Token]]], length: int, device: torch.device) -> HeldOutWindows:
    """Windows of every task -> tensors, zeros behind the end."""
    shape = (len(windows), len(windows[0]), length)
    example = windows[0][0][0]
    frame = np.zeros((*shape, *example.frame.shape), np.uint8)
    action = np.zeros((*shape, *example.action.shape), np.float32)
    reward = np.zeros(shape, np.float32)
    terminated, truncated, is_first, is_last = (np.zeros(shape, np.bool_) for _ in range(4))
    is_first[:, :, 0] = True
    for k, task in enumerate(windows):
        for b, tokens in enumerate(task):
            for t, token in enumerate(tokens):
                frame[k, b, t], action[k, b, t], reward[k, b, t] = token.frame, token.action, token.reward
                terminated[k, b, t], truncated[k, b, t] = token.terminated, token.truncated
                is_last[k, b, t] = token.is_last
    arrays = (frame, action, reward, terminated, truncated, is_first, is_last)
    frames, actions, rewards, ended, cut, opens, closes = (torch.from_numpy(array).to(device) for array in arrays)
    batch = TransitionBatch(frames, actions, rewards, ended, cut, opens, closes)
    steps = torch.tensor([[len(tokens) for tokens in task] for task in windows], device=device)
    return HeldOutWindows(batch, steps)
