"""Functions that updates consist of, tensors in and tensors out, plain or through torch.compile.

Chosen once for all of a run. What is compiled is a whole graph: a line that cannot be compiled is an error, as is a
function that would have to be compiled anew again and again; nothing falls back to plain PyTorch. A function is
compiled when it is first called, and once more for each other shape: for the grown model, for another part of a
rollout, and for each turn of `loss.reconstruct_every`.

Numbers are those of plain PyTorch but for rounding: fused sums are made in another order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch

from mow.methods.mow.actor_critic_loss import ActorCriticLosses, actor_critic_losses, compute_targets
from mow.methods.mow.imagination import RolloutSteps, init_rollout, predict_reward_and_end, rollout_step
from mow.methods.mow.world_model_loss import WorldModelLosses, world_model_losses


@dataclass(frozen=True)
class UpdateSteps:
    """The functions, with the arguments that they have where they stand."""

    world_model_losses: Callable[..., WorldModelLosses] = world_model_losses
    rollout: RolloutSteps = field(default_factory=RolloutSteps)
    compute_targets: Callable[..., Any] = compute_targets
    actor_critic_losses: Callable[..., ActorCriticLosses] = actor_critic_losses


class Compiled:
    """A function through torch.compile, which is loaded when it is first called.

    torch keeps what it has compiled with a function's code, for all its callers. Each of these has a copy of the code
    to itself, so that learners in one process which differ in what no guard sees (the kernels that doors have chosen)
    never run each other's, and none uses up the number of versions that another may have.

    Args: backend: of torch.compile; "eager" traces and runs what it traced, which is quick, for tests.
    """

    def __init__(self, function: Callable[..., Any], backend: str) -> None:
        self.function, self.backend = function, backend
        self._call: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._call is None:
            self._call = torch.compile(_copy(self.function), fullgraph=True, dynamic=False, backend=self.backend)
        # Else a function that was compiled too often would run uncompiled from then on, with a warning.
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            return self._call(*arguments, **named)


def _copy(function: Callable[..., Any]) -> FunctionType:
    assert isinstance(function, FunctionType)
    assert not hasattr(function, "__wrapped__"), f"{function.__name__} is decorated: its own code lies elsewhere"
    code, closure = function.__code__.replace(), function.__closure__
    copied = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


class CompiledRolloutStep(Compiled):
    """One graph for every position of a rollout: the axis of the window's mask that counts tokens has any length."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        window = arguments[5]
        torch._dynamo.maybe_mark_dynamic(window.mask, 3)
        return super().__call__(*arguments, **named)


def update_steps(*, compiled: bool, backend: str = "inductor") -> UpdateSteps:
    """Args: backend: as for Compiled."""
    if not compiled:
        return UpdateSteps()
    return UpdateSteps(
        world_model_losses=Compiled(world_model_losses, backend),
        rollout=RolloutSteps(
            Compiled(init_rollout, backend),
            CompiledRolloutStep(rollout_step, backend),
            Compiled(predict_reward_and_end, backend),
        ),
        compute_targets=Compiled(compute_targets, backend),
        actor_critic_losses=Compiled(actor_critic_losses, backend),
    )
