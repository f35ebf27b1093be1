"""A method on states: of each task the mean of a Gaussian policy, pulled toward the actions that paid."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.config import EnvConfig
from mow.methods.base import ActorOutput, Method, Metrics, TaskSet, Watch, untimed
from tests.methods.toy import ToyActor, ToyConfig, ToyLearner


@dataclass(frozen=True)
class ToyStatesConfig(ToyConfig):
    method: Literal["toy_states"] = "toy_states"  # type: ignore[assignment]

    @property
    def final_frames(self) -> bool:
        return True


class ToyStatesActor(ToyActor):
    @torch.no_grad()
    def act(self, frame: Tensor, is_first: Tensor) -> ActorOutput:
        mean = self._learner.means(frame.view(len(frame), -1, frame.shape[-1]))  # [K, B, A]
        noise = 0.5 * torch.randn(mean.shape, generator=self._learner.rng)
        action = ((mean + noise).clamp(-1, 1) * self._learner.used).view(*is_first.shape, -1)
        return ActorOutput(action, {"chance": action.abs().mean(-1, keepdim=True)})


class ToyStatesLearner(ToyLearner):
    def sizes(self, tasks: TaskSet) -> tuple[Tensor, int]:
        assert tasks.observation.dtype == "float32"
        return torch.from_numpy(tasks.layout.continuous_mask), *tasks.observation.shape

    def means(self, state: Tensor) -> Tensor:
        """Args: state: [K, B, D] float32. Returns: [K, B, A]."""
        all_tasks = self.policy(state).unflatten(-1, (len(self.order), -1)).tanh()  # [K, B, K, A]
        return torch.stack([all_tasks[k, :, task] for k, task in enumerate(self.order)])

    @property
    def used(self) -> Tensor:
        """[K, 1, A] bool, the dimensions of the actions in the present order of the tasks."""
        return self.mask[list(self.order)].unsqueeze(1)

    def actor(self, *, explore: bool = True) -> ToyStatesActor:
        return ToyStatesActor(self)

    def update(self, kind: str, batch: TransitionBatch, watch: Watch = untimed) -> Metrics:
        assert batch.frame.dtype == torch.float32
        assert not batch.action[batch.is_last].any()
        far = (self.means(batch.frame.flatten(1, 2)).unflatten(1, batch.reward.shape[1:]) - batch.action) ** 2
        advantage = (batch.reward - batch.reward.mean(dim=(1, 2), keepdim=True)) * ~batch.is_last
        loss = (advantage * (far * self.used.unsqueeze(1)).sum(-1)).mean(dim=(1, 2))  # [K]
        self.optimiser.zero_grad()
        loss.sum().backward()
        self.optimiser.step()
        return {"loss/policy": loss.detach()}


def toy_states() -> ToyStatesConfig:
    return ToyStatesConfig(
        preset="toy_states", tasks=("vec:lq", "vec:reach", "vec:pendulum"), total_steps=120, prefill=70, log_every=20,
        checkpoint_every=30, keep_checkpoints=9, report=False, env=EnvConfig(obs="state"),
    )  # fmt: skip


METHOD = Method(
    name="toy_states", config=ToyStatesConfig, presets={"toy_states": toy_states}, build=ToyStatesLearner,
    loss="loss/policy", columns=lambda config, layout: {"chance": 1}, observations=("state",),
)  # fmt: skip
