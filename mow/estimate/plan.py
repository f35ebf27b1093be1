"""What a run is going to take, before it takes it: parameters, memory, arithmetic, hours.

Parameters are those of the models themselves, built without memory. Memory and arithmetic are counted from the config
(footprint.py, flops.py). Hours are the arithmetic over a matmul rate measured here and now, times a share of it that is
assumed and said to be; or, where an update is short, over updates that are made and timed.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mow.batch import TransitionBatch
from mow.estimate.flops import agent_update, world_model_update
from mow.estimate.footprint import Activations, activations
from mow.methods.mow.actor_critic import Agent
from mow.methods.mow.clustering import from_labels
from mow.methods.mow.config import MowConfig
from mow.methods.mow.learner import Learner
from mow.methods.mow.optim import muon_matrices
from mow.methods.mow.world_model import WorldModel
from mow.nn.policy import ActionMask

# Of the measured matmul rate, what an update is taken to reach as long as nobody has timed it. Not measured.
ASSUMED_SHARE = 0.35
# An update of the world model and one of the agent that should take no longer, in seconds, are timed instead.
_SHORT = 5.0
_TIMED = 3


@dataclass(frozen=True)
class Plan:
    """What is known before the first step."""

    parameters: Mapping[str, int]  # by part, once the tasks are grouped
    weights: int  # bytes: parameters, slow critics, statistics
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
        """Of one update of the world model, and of one of the agent."""
        return sum(self.world_model_flops.values()), sum(self.agent_flops.values())


def make_plan(config: MowConfig, mask: ActionMask, *, bf16: bool) -> Plan:
    """Args: mask: of the tasks in the order of the config; bf16: whether updates run under its autocast.

    Raises: MemoryError if a tensor would have more bytes than can be counted.
    """
    try:
        model, agent = _models(config, mask)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise MemoryError("some weights of this run would have over 2**63 bytes: take smaller sizes, as --model.width "
                          "or --model.perception.channels") from error
    parts = {**dict(model.named_children()), **dict(agent.named_children())}
    parameters = {name: _count(part) for name, part in parts.items() if _count(part)}
    if model.task_embedding is not None:
        parameters["task_embedding"] = model.task_embedding.numel()
    tensors = [*model.state_dict().values(), *agent.state_dict().values()]
    trained = [p for module in (model, agent) for p in module.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    matrices = muon_matrices(model, config.optim.matrix_layers) if config.optim.matrices == "muon" else []
    return Plan(
        parameters=parameters,
        weights=sum(tensor.nbytes for tensor in tensors),
        gradients=gradients,
        optimiser=2 * gradients - sum(p.nbytes for p in matrices),  # Adam keeps two moments, Muon one
        activations=activations(config, mask.action_size, bf16=bf16),
        world_model_flops=world_model_update(config, mask.action_size),
        agent_flops=agent_update(config, mask.action_size, mask.num_outputs),
        world_model_updates=config.world_model_updates,
        agent_updates=config.agent_updates,
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _modules(config: MowConfig) -> list[int]:
    """Tasks spread evenly over as many modules as grouping will make; which of them go together does not matter."""
    num_tasks = len(config.tasks)
    return [k * config.num_modules // num_tasks for k in range(num_tasks)]


def _models(config: MowConfig, mask: ActionMask) -> tuple[WorldModel, Agent]:
    """Both models as they are once tasks are grouped, without memory."""
    modules, latent_size = _modules(config), config.model.perception.latent_size
    with torch.device("meta"):
        model = WorldModel(
            config.model, action_size=mask.action_size, module_of_task=modules, num_modules=config.num_modules
        )
        agent = Agent(
            config.actor_critic,
            latent_size=latent_size,
            hidden_size=config.model.width,
            num_bins=config.model.num_bins,
            two_hot_form=config.model.two_hot_form,
            mask=mask,
            module_of_task=modules,
            num_modules=config.num_modules,
            embedding_size=config.model.embedding_size,
            condition=config.model.condition if config.model.embedding_size else (),
        )
    return model, agent


def _learner(config: MowConfig, mask: ActionMask, device: torch.device) -> Learner:
    """A learner as it is once tasks are grouped."""
    learner = Learner(config, mask, device)
    learner.regroup(from_labels(np.array(_modules(config)), np.eye(len(config.tasks))))
    return learner


@dataclass(frozen=True)
class Pace:
    """Seconds per update, and where they come from."""

    world_model: float
    agent: float
    why: str  # one line


def make_pace(plan: Plan, config: MowConfig, mask: ActionMask, device: torch.device, *, bf16: bool) -> Pace:
    """Time short updates, foresee long ones."""
    rate = matmul_rate(device, torch.bfloat16 if bf16 else torch.float32)
    seconds = [flops / (ASSUMED_SHARE * rate) for flops in plan.update_flops]
    measured = f"a matmul runs at {rate / 1e12:.3g} TFLOP/s here"
    if sum(seconds) > _SHORT:
        why = f"{measured}; updates are ASSUMED to reach {ASSUMED_SHARE:.0%} of it, nobody has timed them"
        return Pace(seconds[0], seconds[1], why)
    world_model, agent = _timed(config, mask, device)
    share = sum(plan.update_flops) / (world_model + agent) / rate
    return Pace(world_model, agent, f"updates timed on random frames, median of {_TIMED}; {measured}, of which they "
                                    f"reach {share:.0%}")


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large product of random matrices, median of five; under a second."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / _median_seconds(lambda: torch.mm(left, right), device, 5)


def _timed(config: MowConfig, mask: ActionMask, device: torch.device) -> tuple[float, float]:
    """Seconds of an update of the world model and of one of the agent, on random frames."""
    state = torch.random.get_rng_state()  # the run that follows must not depend on this
    try:
        learner = _learner(config, mask, device)
        batch = _random_batch(config, mask, config.batch.num_sequences, config.batch.length)
        context = _random_batch(config, mask, config.imagination.num_sequences, config.imagination.context)
        return (
            # Compiled updates are made in the first ones, one for each turn of the decoder.
            _median_seconds(lambda: learner.update_world_model(batch), device, _TIMED, config.loss.reconstruct_every),
            _median_seconds(lambda: learner.update_agent(context), device, _TIMED),
        )
    finally:
        torch.random.set_rng_state(state)


def _random_batch(config: MowConfig, mask: ActionMask, num_sequences: int, length: int) -> TransitionBatch:
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
    """Of `rounds` calls after `warm_ups` others."""

    def once() -> float:
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for _ in range(warm_ups):
        once()
    return statistics.median(once() for _ in range(rounds))


def short(plan: Plan) -> str:
    """The estimates in one line, as a run says them when it starts."""
    world_model, agent = plan.update_flops
    return (
        f"estimated: {_flop(world_model)} per world-model update, {_flop(agent)} per agent update; peak memory "
        f"{plan.peak / 1e9:.2f} GB beside the replay ({plan.fixed / 1e9:.2f} weights, gradients, optimiser)"
    )


def long(plan: Plan, pace: Pace) -> str:
    """All of it, as lines."""
    keep = plan.activations
    world_model, agent = plan.update_flops
    total = plan.world_model_updates * world_model + plan.agent_updates * agent
    hours = (plan.world_model_updates * pace.world_model + plan.agent_updates * pace.agent) / 3600
    millions = ", ".join(f"{name} {number / 1e6:.3g}" for name, number in plan.parameters.items())
    return "\n".join(
        (
            f"parameters, millions: {millions}; in all {sum(plan.parameters.values()):,}",
            f"memory, GB: weights {plan.weights / 1e9:.2f}, gradients {plan.gradients / 1e9:.2f}, optimiser "
            f"{plan.optimiser / 1e9:.2f}; activations (estimated): world model {keep.world_model / 1e9:.2f}, rollout "
            f"{keep.rollout / 1e9:.2f}, agent {keep.lesson / 1e9:.2f}; peak beside the replay {plan.peak / 1e9:.2f}",
            f"world-model update: {_flop(world_model)} ({_shares(plan.world_model_flops)})",
            f"agent update: {_flop(agent)} ({_shares(plan.agent_flops)})",
            f"updates: {plan.world_model_updates:,} of the world model, {plan.agent_updates:,} of the agent, "
            f"{_flop(total)} in all",
            f"expected: {pace.world_model:.3g} s per world-model update, {pace.agent:.3g} s per agent update, "
            f"{hours:,.2f} hours of updates; environments and acting are not counted",
            f"because {pace.why}",
        )
    )


def _flop(number: float) -> str:
    """1.23 TFLOP."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if number < 1000:
            return f"{number:.3g} {unit}FLOP"
        number /= 1000
    return f"{number:.3g} EFLOP"


def _shares(parts: Mapping[str, float]) -> str:
    total = sum(parts.values())
    return ", ".join(f"{name} {value / total:.0%}" for name, value in parts.items())
