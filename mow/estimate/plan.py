"""Estimate of a run before it starts: parameters, memory, arithmetic, hours.

Parameters are those of the learner itself, built without memory. Memory and arithmetic are counted from the config
(footprint.py, flops.py). Hours follow from updates that are made and timed, or, where an update takes long, from the
arithmetic over a matmul rate measured here, times an assumed share of it.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mow.batch import TransitionBatch
from mow.config import RunConfig
from mow.estimate.flops import agent_update, world_model_update
from mow.estimate.footprint import Activations, activations
from mow.methods.base import TaskSet
from mow.methods.mow.clustering import from_labels
from mow.methods.mow.config import MowConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.optim import uses_bf16
from mow.nn.muon import Muon
from mow.nn.policy import ActionMask

ASSUMED_SHARE = 0.35  # of the measured matmul rate, reached by an update that is not timed; not measured
_SHORT = 5.0  # seconds: an update of each kind that should take no longer together is timed
_TIMED = 3


@dataclass(frozen=True)
class Plan:
    """Numbers of a run that are known before its first step."""

    parameters: Mapping[str, int]  # by part, once the tasks are grouped
    weights: int  # bytes: parameters, target critics, statistics
    gradients: int  # bytes
    optimiser: int  # bytes
    activations: Activations
    world_model_flops: Mapping[str, float]  # of one update, by part
    agent_flops: Mapping[str, float]
    world_model_updates: int
    agent_updates: int

    @property
    def fixed(self) -> int:
        """Bytes that stay, beside the replay."""
        return self.weights + self.gradients + self.optimiser

    @property
    def peak(self) -> float:
        """Bytes at the worst moment, beside the replay."""
        return self.fixed + self.activations.peak

    @property
    def update_flops(self) -> tuple[float, float]:
        """FLOP of one update of the world model, and of one of the agent."""
        return sum(self.world_model_flops.values()), sum(self.agent_flops.values())


def plan_of(config: RunConfig, tasks: TaskSet, device: torch.device) -> Plan | None:
    """None for a method other than mow. Raises: MemoryError if a tensor would have too many bytes to be counted."""
    if not isinstance(config, MowConfig):
        return None
    return make_plan(config, mask_of(tasks), bf16=uses_bf16(config, device))


def make_plan(config: MowConfig, mask: ActionMask, *, bf16: bool) -> Plan:
    """Plan a run of mow.

    Args: mask: of the tasks in the order of the config; bf16: updates run under its autocast.
    Raises: MemoryError if a tensor would have more bytes than can be counted.
    """
    try:
        with torch.device("meta"):
            learner = grouped_learner(config, mask, torch.device("meta"))
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise MemoryError("some weights of this run would have over 2**63 bytes: take smaller sizes, as --model.width "
                          "or --model.perception.channels") from error
    model, agent = learner.world_model, learner.agent
    parts = {**dict(model.named_children()), **dict(agent.named_children())}
    parameters = {name: _count(part) for name, part in parts.items() if _count(part)}
    if model.task_embedding is not None:
        parameters["task_embedding"] = model.task_embedding.numel()
    moments = {  # per trained parameter: Adam keeps two, Muon one
        p: 1 if isinstance(optimiser, Muon) else 2
        for optimiser in (*learner.world_model_optimisers, *learner.agent_optimisers)
        for group in optimiser.param_groups
        for p in group["params"]
    }
    return Plan(
        parameters=parameters,
        weights=sum(tensor.nbytes for module in (model, agent) for tensor in module.state_dict().values()),
        gradients=sum(p.nbytes for p in moments),
        optimiser=sum(number * p.nbytes for p, number in moments.items()),
        activations=activations(config, mask.action_size, bf16=bf16),
        world_model_flops=world_model_update(config, mask.action_size),
        agent_flops=agent_update(config, mask.action_size, mask.num_outputs),
        world_model_updates=config.world_model_updates,
        agent_updates=config.agent_updates,
    )


def mask_of(tasks: TaskSet) -> ActionMask:
    layout = tasks.layout
    return ActionMask(torch.from_numpy(layout.discrete_mask), torch.from_numpy(layout.continuous_mask))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def grouped_learner(config: MowConfig, mask: ActionMask, device: torch.device) -> Learner:
    """A learner as it is once tasks are grouped, here spread evenly over the modules."""
    num_tasks = len(config.tasks)
    modules = np.arange(num_tasks) * config.num_modules // num_tasks
    learner = Learner(config, mask, device)
    learner.regroup(from_labels(modules, np.eye(num_tasks)))
    return learner


def make_pace(
    plan: Plan, config: MowConfig, mask: ActionMask, device: torch.device, *, bf16: bool
) -> tuple[float, float, str]:
    """Seconds of one world-model update, seconds of one agent update, and their origin in one line."""
    rate = matmul_rate(device, torch.bfloat16 if bf16 else torch.float32)
    measured = f"a matmul runs at {rate / 1e12:.3g} TFLOP/s here"
    world_model, agent = (flops / (ASSUMED_SHARE * rate) for flops in plan.update_flops)
    if world_model + agent > _SHORT:
        return world_model, agent, f"{measured}; updates are ASSUMED to reach {ASSUMED_SHARE:.0%} of it, not timed"
    world_model, agent = _timed(config, mask, device)
    share = sum(plan.update_flops) / (world_model + agent) / rate
    why = f"updates timed on random frames, median of {_TIMED}; {measured}, of which they reach {share:.0%}"
    return world_model, agent, why


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large product of random matrices, median of five; under a second."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / _median_seconds(lambda: torch.mm(left, right), device, 5)


def _timed(config: MowConfig, mask: ActionMask, device: torch.device) -> tuple[float, float]:
    """Seconds of an update of the world model and of one of the agent, on random frames."""
    with torch.random.fork_rng():  # the run that follows must not depend on this
        learner = grouped_learner(config, mask, device)
        batch = random_batch(config, mask, config.batch.num_sequences, config.batch.length)
        context = random_batch(config, mask, config.imagination.num_sequences, config.imagination.context)
        return (
            # Compiled updates are made in the first ones, one for each turn of the decoder.
            _median_seconds(lambda: learner.update_world_model(batch), device, _TIMED, config.loss.reconstruct_every),
            _median_seconds(lambda: learner.update_agent(context), device, _TIMED),
        )


def random_batch(config: MowConfig, mask: ActionMask, num_sequences: int, length: int) -> TransitionBatch:
    shape = (len(config.tasks), num_sequences, length)
    flags = torch.zeros(shape, dtype=torch.bool)
    is_first = flags.clone()
    is_first[:, :, 0] = True
    return TransitionBatch(
        frame=torch.randint(0, 256, (*shape, 64, 64, 3), dtype=torch.uint8),
        action=torch.zeros(*shape, mask.action_size),
        reward=torch.zeros(shape),
        terminated=flags,
        truncated=flags,
        is_first=is_first,
        is_last=flags,
    )


def _median_seconds(call: Callable[[], object], device: torch.device, rounds: int, warm_ups: int = 1) -> float:
    """Median of `rounds` calls after `warm_ups` others."""
    times = []
    for _ in range(warm_ups + rounds):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[warm_ups:])


def short(plan: Plan) -> str:
    """The estimates in one line, printed when a run starts."""
    world_model, agent = plan.update_flops
    return (
        f"estimated: {_flop(world_model)} per world-model update, {_flop(agent)} per agent update; peak memory "
        f"{plan.peak / 1e9:.2f} GB beside the replay ({plan.fixed / 1e9:.2f} weights, gradients, optimiser)"
    )


def long(plan: Plan, world_model_seconds: float, agent_seconds: float, why: str) -> str:
    """The plan in lines. Args: as make_pace returns them."""
    keep = plan.activations
    world_model, agent = plan.update_flops
    total = plan.world_model_updates * world_model + plan.agent_updates * agent
    hours = (plan.world_model_updates * world_model_seconds + plan.agent_updates * agent_seconds) / 3600
    millions = ", ".join(f"{name} {number / 1e6:.3g}" for name, number in plan.parameters.items())
    return "\n".join(
        (
            f"parameters, millions: {millions}; in all {sum(plan.parameters.values()):,}",
            f"memory, GB: weights {plan.weights / 1e9:.2f}, gradients {plan.gradients / 1e9:.2f}, optimiser "
            f"{plan.optimiser / 1e9:.2f}; activations (estimated): world model {keep.world_model / 1e9:.2f}, rollout "
            f"{keep.rollout / 1e9:.2f}, agent {keep.agent / 1e9:.2f}; peak beside the replay {plan.peak / 1e9:.2f}",
            f"world-model update: {_flop(world_model)} ({_shares(plan.world_model_flops)})",
            f"agent update: {_flop(agent)} ({_shares(plan.agent_flops)})",
            f"updates: {plan.world_model_updates:,} of the world model, {plan.agent_updates:,} of the agent, "
            f"{_flop(total)} in all",
            f"expected: {world_model_seconds:.3g} s per world-model update, {agent_seconds:.3g} s per agent update, "
            f"{hours:,.2f} hours of updates; environments and acting are not counted",
            f"because {why}",
        )
    )


def _flop(number: float) -> str:
    """1.23 TFLOP."""
    exponent = max(0, min(6, int(np.log10(max(number, 1.0)) // 3)))
    return f"{number / 1000.0**exponent:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[exponent]}FLOP"


def _shares(parts: Mapping[str, float]) -> str:
    total = sum(parts.values())
    return ", ".join(f"{name} {value / total:.0%}" for name, value in parts.items())
