"""Behaviour cloning: a network per task that gives the recorded action at the recorded state.

    L_k = mean over steps and dimensions of (tanh f_k(o_t) - a_t)^2
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.errors import UsageError
from mow.methods.base import ActorOutput, Event, Metrics, Phase, Sampler, State, TaskSet, Update, Watch, untimed
from mow.methods.bc.config import BcConfig
from mow.nn.finite import check_finite
from mow.nn.modular import ModularLinear
from mow.nn.routes import one_each


class BcActor:
    """Acts with the present weights of a learner; it has no memory and no noise."""

    def __init__(self, learner: "Learner") -> None:
        self._learner = learner

    @torch.no_grad()
    def act(self, frame: Tensor, is_first: Tensor) -> ActorOutput:
        """Args: frame: states [K, D] or [K, B, D]. Returns: actions [K, A] or [K, B, A]."""
        return ActorOutput(self._learner.action(frame.view(len(frame), -1, frame.shape[-1])).view(*is_first.shape, -1))

    def record(self, action: Tensor) -> None:
        """Nothing is kept."""

    def state_dict(self) -> Any:
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Nothing was kept."""


class Learner:
    """A policy per task, side by side, and their optimiser."""

    def __init__(self, config: BcConfig, tasks: TaskSet, device: torch.device) -> None:
        """Raises: UsageError for a task with discrete actions."""
        for spec in tasks.specs:
            if spec.discrete:
                raise UsageError(f"{spec.name} has discrete actions, and bc clones continuous ones: take tasks of vec, "
                                 "dmc or metaworld")
        self.config, self.device, self.tasks = config, device, [*config.tasks]
        update = Update("policy", config.batch_size, 2, stream=0, count=config.updates)  # a state and what came of it
        note = f"cloning: {config.updates:,} updates"
        self.phases: tuple[Phase, ...] = (Phase("cloning", updates=(update,), note=note),)
        self.mask = torch.from_numpy(tasks.layout.continuous_mask).float().unsqueeze(1).to(device)  # [K, 1, A]
        count, (inputs,) = len(self.tasks), tasks.observation.shape
        torch.manual_seed(config.seed)
        sizes = (inputs, config.hidden, config.hidden, self.mask.shape[-1])
        self.policies = nn.ModuleList(ModularLinear(count, *pair) for pair in pairwise(sizes)).to(device)
        self.routes = one_each(range(count), count).to(device)
        self.optimiser = torch.optim.Adam(self.policies.parameters(), lr=config.lr, fused=True)

    def action(self, state: Tensor) -> Tensor:
        """[K, B, D] -> [K, B, A] in [-1, 1]; entries that a task does not use are 0."""
        first, second, last = self.policies
        x = first(state.unsqueeze(1), self.routes.plan, activation="relu")  # [K, 1, B, H]
        x = second(x, self.routes.plan, activation="relu")
        return last(x, self.routes.plan).squeeze(1).tanh() * self.mask

    @property
    def groups(self) -> None:
        return None

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        return {"policies": self.policies}

    def actor(self, *, explore: bool = True) -> BcActor:
        """A new actor; it never explores."""
        return BcActor(self)

    def reseed(self, seed: int) -> None:
        """Nothing is drawn."""

    def update(self, kind: str, batch: TransitionBatch, watch: Watch = untimed) -> Metrics:
        """One step of Adam on the sum over tasks. Args: batch: windows of two. Raises: NotFinite."""
        with watch(kind):
            batch = batch.to(self.device)
            far = (self.action(batch.frame[:, :, 0]) - batch.action[:, :, 0]).square()  # [K, B, A]
            loss = (far.sum(dim=-1) / self.mask.sum(dim=-1)).mean(dim=1)  # [K]
            self.optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()
            norm = nn.utils.get_total_norm([p.grad for p in self.policies.parameters() if p.grad is not None])
            metrics = {"loss/policy": loss.detach()}
            check_finite("policy", loss.sum(), norm, metrics, self.tasks, self.policies.named_parameters())
            self.optimiser.step()
            return metrics

    def end_phase(self, name: str, sample: Sampler) -> tuple[Event, ...]:
        return ()

    def state_dict(self) -> State:
        return {"policies": self.policies.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.policies.load_state_dict(state["policies"])
        self.optimiser.load_state_dict(state["optimiser"])
