"""The plan of a run, for the methods that are estimated."""

import torch

from mow.config import RunConfig
from mow.estimate.plan import Plan, long, make_pace, make_plan
from mow.methods.base import TaskSet
from mow.methods.mow.config import MowConfig
from mow.methods.mow.optim import uses_bf16
from mow.nn.policy import ActionMask


def mask_of(tasks: TaskSet) -> ActionMask:
    """Legal actions [K, A_d], dimensions in use [K, A_c]."""
    layout = tasks.layout
    return ActionMask(torch.from_numpy(layout.discrete_mask), torch.from_numpy(layout.continuous_mask))


def plan_of(config: RunConfig, tasks: TaskSet, device: torch.device) -> Plan | None:
    """None for a method other than mow. Raises: MemoryError if a tensor would have too many bytes to be counted."""
    if not isinstance(config, MowConfig):
        return None
    return make_plan(config, mask_of(tasks), bf16=uses_bf16(config, device))


def hours_of(planned: Plan, config: RunConfig, tasks: TaskSet, device: torch.device) -> str:
    """The plan in lines, with the hours it takes at the pace of this machine."""
    assert isinstance(config, MowConfig), "only this method is estimated"
    return long(planned, make_pace(planned, config, mask_of(tasks), device, bf16=uses_bf16(config, device)))
