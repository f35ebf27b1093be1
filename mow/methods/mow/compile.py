"""Functions that updates consist of, tensors in and tensors out: plain or through torch.compile, by the config.

What is compiled is a whole graph: a line that cannot be compiled is an error, as is a function that would have to be
compiled anew again and again; nothing falls back to plain PyTorch. A function is compiled when it is first called, and
once more for each other shape: for the grown model, for another part of a rollout, and for each turn of
`loss.reconstruct_every`. Numbers are those of plain PyTorch but for rounding: fused sums are made in another order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from mow.errors import UsageError
from mow.methods.mow.actor_critic_loss import actor_critic_losses, compute_targets
from mow.methods.mow.config import MowConfig
from mow.methods.mow.imagination import RolloutSteps, init_rollout, predict_reward_and_end, rollout_step
from mow.methods.mow.world_model_loss import world_model_losses


class UpdateSteps(NamedTuple):
    """The functions, with the arguments that they have where they stand."""

    world_model_losses: Callable[..., Any] = world_model_losses
    rollout: RolloutSteps = RolloutSteps()
    compute_targets: Callable[..., Any] = compute_targets
    actor_critic_losses: Callable[..., Any] = actor_critic_losses


def update_steps(*, compiled: bool, backend: str = "inductor") -> UpdateSteps:
    """Args: backend: of torch.compile; "eager" traces and runs what it traced, which is quick, for tests."""
    if not compiled:
        return UpdateSteps()
    whole_step = whole_graph(rollout_step, backend)

    def step(*arguments: Any) -> Any:
        # One graph for every position of a rollout: the mask's axis of tokens has any length.
        torch._dynamo.maybe_mark_dynamic(arguments[5].mask, 3)
        return whole_step(*arguments)

    rollout = RolloutSteps(whole_graph(init_rollout, backend), step, whole_graph(predict_reward_and_end, backend))
    others = (whole_graph(function, backend) for function in (compute_targets, actor_critic_losses))
    return UpdateSteps(whole_graph(world_model_losses, backend), rollout, *others)


def whole_graph(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """`function` through torch.compile."""
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

    def call(*arguments: Any, **named: Any) -> Any:
        # Else a function that was compiled too often would run uncompiled from then on, with a warning.
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            return compiled(*arguments, **named)

    return call


@contextmanager
def updates_as_configured(config: MowConfig, device: torch.device) -> Iterator[str]:
    """Gives a line on how updates will run; inside, code that cannot be compiled ends in one line.

    Raises: UsageError with the remedy, at the start where the machine lacks a GPU or a compiler.
    """
    optim = config.optim
    for name in ("cuda_graph", "update_graph"):
        if getattr(optim, name) and device.type != "cuda":
            flag = f"--optim.no-{name.replace('_', '-')}"
            raise UsageError(f"optim.{name} needs a GPU, this run is on {device}: use {flag}")
    try:
        if optim.compile:
            _try_compiler(device)
        updates = "through torch.compile, the first ones take minutes" if optim.compile else "plain PyTorch"
        rollouts = "replayed from one CUDA graph" if optim.cuda_graph else "op by op"
        if optim.update_graph:
            rollouts = "replayed with each whole update from one CUDA graph"
        muon = f"; Muon in {optim.muon_precision}" if optim.matrices == "muon" else ""
        yield f"updates: {updates}; rollouts: {rollouts}{muon}"
    except Exception as error:
        # The classes are loaded only here: they come with the compiler, which takes seconds to load.
        if not optim.compile or not isinstance(error, (torch._dynamo.exc.TorchDynamoException,
                                                       torch._dynamo.exc.FailOnRecompileLimitHit)):
            raise
        cause = getattr(error, "inner_exception", error)  # of what generates code, beneath the tracer
        text = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        raise UsageError(f"torch.compile failed ({text}): use --optim.no-compile, or mend the compiler (C++ on a CPU, "
                         "Triton on a GPU)") from error


def _try_compiler(device: torch.device) -> None:
    x = torch.ones(16, device=device, requires_grad=True)
    torch.compile(lambda x: (x.sin() * x).sum(), fullgraph=True)(x).backward()
