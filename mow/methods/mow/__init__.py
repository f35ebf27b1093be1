"""The method mow: Mixture-of-World Models, a world model made of modules and the agent that is trained inside it."""

from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from mow.methods.base import Method, Metrics, Parallel, TaskSet
from mow.methods.mow.config import MowConfig
from mow.methods.mow.presets import BATCHINGS, PRESETS, shortened, summary, with_batching

if TYPE_CHECKING:
    import torch

    from mow.batch import TransitionBatch
    from mow.methods.mow.learner import Learner


def _build(config: MowConfig, tasks: TaskSet, device: "torch.device") -> "Learner":
    from mow.methods.mow.learner import Learner

    return Learner.of_tasks(config, tasks, device)


def _build_on_ranks(config: MowConfig, tasks: TaskSet, device: "torch.device", parallel: Parallel) -> "Learner":
    from mow.methods.mow.sharded import ShardedLearner

    return ShardedLearner.on_ranks(config, tasks, device, parallel)


def _diagnostics(learner: "Learner", batch: "TransitionBatch") -> Metrics:
    from mow.methods.mow.diagnostics import measure

    return measure(learner, batch)


def _context(config: MowConfig, device: "torch.device") -> AbstractContextManager[str]:
    from mow.methods.mow.compile import updates_as_configured

    return updates_as_configured(config, device)


METHOD = Method(
    name="mow", config=MowConfig, presets=PRESETS, build=_build, loss="loss/world_model", diagnostics=_diagnostics,
    summary=summary, context=_context, batchings={name: partial(with_batching, name=name) for name in BATCHINGS},
    shortened=shortened, build_on_ranks=_build_on_ranks,
)  # fmt: skip
