"""The method bc: behaviour cloning of recorded episodes, the baseline that what learns from them must beat."""

from typing import TYPE_CHECKING

from mow.methods.base import Method, TaskSet
from mow.methods.bc.config import PRESETS, BcConfig

if TYPE_CHECKING:
    import torch

    from mow.methods.bc.learner import Learner


def _build(config: BcConfig, tasks: TaskSet, device: "torch.device") -> "Learner":
    from mow.methods.bc.learner import Learner

    return Learner(config, tasks, device)


METHOD = Method(
    name="bc", config=BcConfig, presets=PRESETS, build=_build, loss="loss/policy", observations=("state",),
    exported=("policies",),
    summary=lambda config: f"cloning the best {config.best:.0%} of the episodes",
)  # fmt: skip
