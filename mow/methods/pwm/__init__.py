"""The method pwm: policies by first-order gradients through a multi-task world model of states."""

from typing import TYPE_CHECKING

from mow.methods.base import Method, Metrics, TaskSet
from mow.methods.pwm.config import PwmConfig
from mow.methods.pwm.presets import PRESETS, summary

if TYPE_CHECKING:
    import torch

    from mow.batch import TransitionBatch
    from mow.methods.pwm.learner import Learner


def _build(config: PwmConfig, tasks: TaskSet, device: "torch.device") -> "Learner":
    from mow.methods.pwm.learner import Learner

    return Learner(config, tasks, device)


def _diagnostics(learner: "Learner", batch: "TransitionBatch") -> Metrics:
    from mow.methods.pwm.diagnostics import measure

    return measure(learner, batch)


METHOD = Method(
    name="pwm", config=PwmConfig, presets=PRESETS, build=_build, loss="loss/world_model", diagnostics=_diagnostics,
    summary=summary, observations=("state",), exported=("world model", "actors"),
)  # fmt: skip
