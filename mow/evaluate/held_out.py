"""Windows of play that training has never seen, to compare the world model's predictions with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.envs.vector import VectorEnv
from mow.kernels import PhiloxState
from mow.methods.mow.acting import ActingMemory
from mow.methods.mow.learner import Learner

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


_Step = tuple[Any, ...]  # of one task: frame, action, reward, terminated, truncated, is_last


@torch.no_grad()
def play_windows(
    learner: Learner,
    envs: VectorEnv,
    *,
    num_windows: int,
    length: int,
    shortest: int,
    rng: PhiloxState,
    at_random: np.random.Generator | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> HeldOutWindows:
    """Play from a reset on and cut the play into windows: each task's first ones, in order.

    The first window of an episode opens with its first frame, the others follow without a gap until the episode ends.
    As in replay, a lost life counts as a termination although the episode goes on.

    Args:
        envs: fresh environments in the learner's task order.
        num_windows: B.
        length: L; the last window of an episode may be shorter.
        shortest: windows with fewer steps are left out.
        rng: of the agent's draws, on its device; the learner's own stream is not touched.
        at_random: draws uniformly random actions; None: the trained agent plays, its actions drawn from the policy.
        check_stop: called before every step of all tasks; it stops the play by raising.
    Returns: on the learner's device.
    Raises: ValueError if the episodes of a task are so short that the windows do not come together; what `check_stop`
        raises.
    """
    learner.world_model.eval()
    routing, memory, device = learner.routing(), ActingMemory(learner.config.schedule.acting_context), learner.device
    done: list[list[list[_Step]]] = [[] for _ in envs.specs]
    current: list[list[_Step]] = [[] for _ in envs.specs]
    frame, is_first = envs.reset()
    is_last = np.zeros_like(is_first)
    limit = _PATIENCE * num_windows * length
    for _ in range(limit):
        check_stop()
        if at_random is None:
            seen = torch.from_numpy(frame).to(device), torch.from_numpy(is_first).to(device)
            with learner.weight_cache.use():
                chosen = memory.act(learner.world_model, learner.agent, routing, *seen, rng)
            memory.record(chosen)
            action = chosen.cpu().numpy()
        else:
            action = envs.layout.random(at_random)
        step = envs.step(action)
        terminated = step.terminated | step.life_lost
        for k, tokens in enumerate(current):
            taken = np.zeros_like(action[k]) if is_last[k] else action[k]
            tokens.append((frame[k], taken, step.reward[k], terminated[k], step.truncated[k], is_last[k]))
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


def _stack(windows: list[list[list[_Step]]], length: int, device: torch.device) -> HeldOutWindows:
    """Windows of every task -> tensors, zeros behind the end."""
    shape = (len(windows), len(windows[0]), length)
    columns = [np.zeros((*shape, *value.shape), value.dtype) for value in map(np.asarray, windows[0][0][0])]
    for k, b in np.ndindex(shape[:2]):
        for column, values in zip(columns, zip(*windows[k][b], strict=True), strict=True):
            column[k, b, : len(values)] = values
    frame, action, reward, terminated, truncated, is_last = (torch.from_numpy(column).to(device) for column in columns)
    is_first = torch.zeros_like(is_last)
    is_first[:, :, 0] = True
    steps = torch.tensor([[len(window) for window in task] for task in windows], device=device)
    return HeldOutWindows(TransitionBatch(frame, action, reward, terminated, truncated, is_first, is_last), steps)
