"""Small tasks, batches and learners of pwm for tests."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.envs.base import ActionLayout, TaskSpec
from mow.methods.base import ObservationSpec, TaskSet
from mow.methods.pwm.config import BatchConfig, ModelConfig, PolicyConfig, PwmConfig, ScheduleConfig
from mow.methods.pwm.learner import Learner

NARROW, WIDE = ("vec:narrow", 1), ("vec:wide", 3)  # name, size of an action


def task_set(tasks: Sequence[tuple[str, int]], observation_size: int) -> TaskSet:
    """Args: tasks: names, and sizes of their actions."""
    specs = tuple(TaskSpec(name, False, size, (True,) * size, 1, "test") for name, size in tasks)
    return TaskSet(specs, ActionLayout.from_tasks(specs), ObservationSpec((observation_size,), "float32"))


def config_of(names: Sequence[str], **fields: Any) -> PwmConfig:
    """A config of recorded data whose widths are 16; `policy`, `model`: fields of those parts."""
    small = {"starts": 8, "horizon": 4, "passes": 1, "parts": 2, "width": 32}
    policy = PolicyConfig(**{**small, **fields.pop("policy", {})})
    model = ModelConfig(**{"width": 16, "latent_size": 16, "embedding_size": 4, **fields.pop("model", {})})
    return PwmConfig(
        **{"preset": "test", "tasks": tuple(names), "total_steps": 1, "collect_episodes": 1, "model": model,
           "batch": BatchConfig(num_sequences=4, horizon=4), "policy": policy,
           "schedule": ScheduleConfig(pretrain_updates=5, policy_updates=5), **fields}
    )  # fmt: skip


def learner_of(
    tasks: Sequence[tuple[str, int]] = (NARROW, WIDE), observation_size: int = 5, seed: int = 0, **fields: Any
) -> Learner:
    """Args: seed: of the world model's weights; policies and draws have that of the config, 0 if not given."""
    torch.manual_seed(seed)
    config = config_of([name for name, _ in tasks], **fields)
    return Learner(config, task_set(tasks, observation_size), torch.device("cpu"))


def batch_of(
    num_tasks: int = 2, windows: int = 4, length: int = 5, observation_size: int = 5, action_size: int = 3,
    seed: int = 0,
) -> TransitionBatch:
    """Random windows in the middle of episodes; an index of the first axis gives a task's own numbers."""
    rng = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(num_tasks, windows, length, *shape, generator=rng)

    no = torch.zeros(num_tasks, windows, length, dtype=torch.bool)
    first = no.clone()
    first[:, :, 0] = True
    return TransitionBatch(rand(observation_size), rand(action_size).tanh(), rand(), no, no.clone(), first, no.clone())


def double(batch: TransitionBatch) -> TransitionBatch:
    return batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def rows_of(batch: TransitionBatch, k: int) -> TransitionBatch:
    """The windows of task k alone."""
    return batch.map(lambda tensor: tensor[k : k + 1])


def with_end(batch: TransitionBatch, window: int, at: int) -> TransitionBatch:
    """The episode of every task's `window` ends with the observation `at`, and another one begins behind it."""
    last, first, terminated = batch.is_last.clone(), batch.is_first.clone(), batch.terminated.clone()
    last[:, window, at] = True
    terminated[:, window, at - 1] = True
    if at + 1 < last.shape[2]:
        first[:, window, at + 1] = True
    return replace(batch, is_last=last, is_first=first, terminated=terminated)
