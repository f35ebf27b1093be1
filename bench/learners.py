"""Learners to time: one for K tasks, and K of the single-task baseline, on the same random batches.

The baseline is STORM's network in this package's training loop, with the widths of the multi-task model: no task
embedding, one expert, one module, nothing shared. At the paper's size it is the preset `storm`.
"""

from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
import torch

from mow.batch import TransitionBatch
from mow.methods.mow.clustering import from_labels
from mow.methods.mow.config import MowConfig
from mow.methods.mow.config_model import RoutingConfig, SharedConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.presets import PRESETS
from mow.nn.policy import ActionMask

NUM_ACTIONS = 18


@dataclass(frozen=True)
class TaskCount:
    """K tasks of a preset's size, with its batch per task."""

    preset: str
    K: int

    def __str__(self) -> str:
        return f"{self.preset} K{self.K}"

    @property
    def config(self) -> MowConfig:
        return replace(PRESETS[self.preset](), tasks=tuple(f"task:{k}" for k in range(self.K)))


def cases(kind: str) -> list[TaskCount]:
    """A curve over K: the paper's size on a GPU, the small one on a CPU."""
    if kind == "cuda":
        return [TaskCount("atari26", K) for K in (1, 2, 4, 8, 16, 26, 50)]
    return [TaskCount("quickstart", K) for K in (1, 2, 4, 8)]


def single(config: MowConfig) -> MowConfig:
    """The baseline for one of its tasks."""
    model = replace(
        config.model,
        embedding_size=0,
        condition=(),
        task_head=False,
        routing=RoutingConfig(method="hash", scale="none"),
        experts=replace(config.model.experts, num_experts=1, experts_per_task=1),
        shared=SharedConfig(kind="none"),
    )
    return replace(
        config,
        tasks=config.tasks[:1],
        model=model,
        loss=replace(config.loss, balance=0.0, weighting="uniform"),
        clustering=replace(config.clustering, method="single"),
    )


def action_mask(num_tasks: int) -> ActionMask:
    """All of NUM_ACTIONS discrete actions in every task."""
    return ActionMask(
        torch.ones(num_tasks, NUM_ACTIONS, dtype=torch.bool), torch.zeros(num_tasks, 0, dtype=torch.bool)
    )


def make_learner(config: MowConfig, device: torch.device, mask: ActionMask | None = None) -> Learner:
    """A learner with its tasks spread evenly over the modules, from the config's seed: two of one config are equal."""
    torch.manual_seed(config.seed)
    num_tasks = len(config.tasks)
    learner = Learner(config, mask or action_mask(num_tasks), device)
    labels = np.arange(num_tasks) * config.num_modules // num_tasks
    learner.regroup(from_labels(labels, np.eye(num_tasks)))
    return learner


def random_batch(num_tasks: int, num_sequences: int, length: int, device: torch.device) -> TransitionBatch:
    """Noise for frames, random actions, one episode per window."""
    shape = (num_tasks, num_sequences, length)
    flags = torch.zeros(shape, dtype=torch.bool)
    is_first = flags.clone()
    is_first[:, :, 0] = True
    action = torch.nn.functional.one_hot(torch.randint(0, NUM_ACTIONS, shape), NUM_ACTIONS).float()
    batch = TransitionBatch(
        frame=torch.randint(0, 256, (*shape, 64, 64, 3), dtype=torch.uint8),
        action=action,
        reward=torch.randn(shape),
        terminated=flags,
        truncated=flags,
        is_first=is_first,
        is_last=flags,
    )
    return batch.to(device)


def world_model_batch(config: MowConfig, device: torch.device) -> TransitionBatch:
    """A random batch of the config's size for an update of the world model."""
    return random_batch(len(config.tasks), config.batch.num_sequences, config.batch.length, device)


def context_batch(config: MowConfig, device: torch.device) -> TransitionBatch:
    """Random contexts of the config's size for imagined rollouts."""
    return random_batch(len(config.tasks), config.imagination.num_sequences, config.imagination.context, device)


def task_by_task(batch: TransitionBatch) -> list[TransitionBatch]:
    """K batches of one task each."""
    return [batch.map(itemgetter(slice(k, k + 1))) for k in range(len(batch.frame))]
