"""Estimate of a run on several ranks: bytes that they sum, memory of one, hours.

    time of an update = max(time on one rank x most tasks of a rank / K, launches) + 2 (W - 1) / W x bytes / bandwidth

Nothing here has been measured on GPUs: bandwidth and launches are assumed.
"""

from typing import NamedTuple

import torch

from mow.config import RunConfig
from mow.estimate.plan import Plan, grouped_learner, long, make_pace, mask_of
from mow.methods.base import TaskSet
from mow.methods.mow.config import MowConfig
from mow.methods.mow.optim import uses_bf16
from mow.methods.mow.split_modules import PER_MODULE
from mow.nn.policy import ActionMask

BANDWIDTH = 40e9  # bytes per second of a sum between GPUs over PCIe; NVLink has about ten times as much
LAUNCHES_S = 0.040  # that a GPU takes at least for one update of each kind, however few tasks it has


class Sums(NamedTuple):
    """Bytes of the gradients that all ranks sum."""

    world_model: int  # per update, where every module lies on one rank
    one_module: int  # per update of the warm-up, when one module serves all tasks
    whole_modules: int  # per update, if the gradients of all modules were summed
    agent: int  # per update of actor and critics


def sums(config: MowConfig, mask: ActionMask) -> Sums:
    """Args: mask: of the tasks in the order of the config."""
    with torch.device("meta"):
        learner = grouped_learner(config, mask, torch.device("meta"))
    number = learner.world_model.num_modules
    sizes = {name: p.nbytes for name, p in learner.world_model.named_parameters()}
    modules = sum(size for name, size in sizes.items() if name.startswith(PER_MODULE))
    shared = sum(sizes.values()) - modules
    agent = learner.agent
    critics = agent.critic.parameters() if agent.num_critics == 1 else ()
    actor = sum(p.nbytes for p in (*agent.actor.parameters(), *critics))
    return Sums(shared, shared + modules // number, shared + modules, actor)


def on_ranks(
    plan: Plan, config: MowConfig, mask: ActionMask, seconds: tuple[float, float], number: int, *, on_gpu: bool
) -> str:
    """The estimates in a line. Args: seconds: of an update of each kind on one rank. number: W, at most K."""
    num_tasks, summed = len(config.tasks), sums(config, mask)
    most, traffic = -(-num_tasks // number), 2 * (number - 1) / number / BANDWIDTH
    share, least = most / num_tasks, LAUNCHES_S / 2 if on_gpu else 0.0
    steps = config.actor_critic.rollout_epochs * config.actor_critic.rollout_parts
    bytes_each = summed.world_model, steps * summed.agent
    world_model, agent = (max(s * share, least) + traffic * size for s, size in zip(seconds, bytes_each, strict=True))
    hours = (plan.world_model_updates * world_model + plan.agent_updates * agent) / 3600
    memory = plan.fixed + plan.activations.peak * share
    launches = f", {1e3 * LAUNCHES_S:.0f} ms of launches" if on_gpu else ""
    one, every = summed.one_module / 1e6, summed.whole_modules / 1e6
    return (
        f"on {number} ranks (ASSUMED: {BANDWIDTH / 1e9:.0f} GB/s between them{launches}; not measured): at most {most} "
        f"of {num_tasks} tasks each; sums {summed.world_model / 1e6:.0f} MB per world-model update, {one:.0f} MB in "
        f"warm-up (all modules: {every:.0f} MB), {bytes_each[1] / 1e6:.1f} MB per agent update; peak "
        f"{memory / 1e9:.2f} GB per rank beside its replay; {world_model:.3g} s per world-model update, {agent:.3g} s "
        "per agent update, "
        f"{hours:,.2f} hours of updates"
    )


def hours_of(plan: Plan, config: RunConfig, tasks: TaskSet, device: torch.device, ranks: int = 1) -> str:
    """The plan of a run of mow in lines, with the hours that it takes at the pace of this machine."""
    assert isinstance(config, MowConfig), "only this method is estimated"
    mask = mask_of(tasks)
    world_model, agent, why = make_pace(plan, config, mask, device, bf16=uses_bf16(config, device))
    lines = long(plan, world_model, agent, why)
    if ranks == 1:
        return lines
    on_gpu = device.type == "cuda"
    return f"{lines}\n{on_ranks(plan, config, mask, (world_model, agent), ranks, on_gpu=on_gpu)}"
