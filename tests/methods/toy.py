"""A method of 100 lines: random features of the frame, a linear policy per task, REINFORCE on replayed steps.

It needs nothing outside this file but a line in the registry.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.config import RunConfig
from mow.config.checks import positive
from mow.methods.base import (
    ActorOutput,
    Event,
    Method,
    Metrics,
    Note,
    Phase,
    Reorder,
    Sampler,
    State,
    TaskSet,
    Update,
    Watch,
    untimed,
)


@dataclass(frozen=True)
class ToyConfig(RunConfig):
    method: Literal["toy"] = "toy"
    features: int = 32
    lr: float = 0.05
    prefill: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "features", "lr", "prefill")


class ToyActor:
    def __init__(self, learner: "ToyLearner") -> None:
        self._learner, self.taken = learner, 0

    @torch.no_grad()
    def act(self, frame: Tensor, is_first: Tensor) -> ActorOutput:
        learner = self._learner
        single = frame.dim() == 4
        logits = learner.logits(frame.unsqueeze(1) if single else frame)  # [K, B, A]
        chances = logits.softmax(-1)
        choice = torch.multinomial(chances.flatten(0, 1), 1, generator=learner.rng).view(logits.shape[:2])
        action = nn.functional.one_hot(choice, logits.shape[-1]).float()
        chance = chances.gather(-1, choice.unsqueeze(-1))  # [K, B, 1]
        return ActorOutput(action[:, 0] if single else action, {"chance": chance[:, 0] if single else chance})

    def record(self, action: Tensor) -> None:
        self.taken += 1

    def state_dict(self) -> State:
        return {"taken": self.taken}

    def load_state_dict(self, state: State) -> None:
        self.taken = state["taken"]


class ToyLearner:
    def __init__(self, config: ToyConfig, tasks: TaskSet, device: torch.device) -> None:
        self.config, self.device = config, device
        self.phases = (
            Phase("prefill", config.prefill, "random", note="random steps"),
            Phase("joint", config.total_steps - config.prefill, "agent", 0.1,
                  (Update("policy", 2, 4, stream=0, every=2),)),
        )  # fmt: skip
        self.order = tuple(range(len(config.tasks)))
        rng = self.rng = torch.Generator().manual_seed(config.seed)
        self.projection = torch.randn(12 * 64, config.features, generator=rng) / 64**0.5
        self.mask, inputs = self.sizes(tasks)
        self.policy = nn.Linear(inputs, len(config.tasks) * self.mask.shape[1])
        self.optimiser = torch.optim.SGD(self.policy.parameters(), lr=config.lr)

    def sizes(self, tasks: TaskSet) -> tuple[Tensor, int]:
        """Mask of the actions [K, A], and the inputs of the policy."""
        return torch.from_numpy(tasks.layout.discrete_mask), self.config.features

    @property
    def tasks(self) -> list[str]:
        return [self.config.tasks[k] for k in self.order]

    @property
    def groups(self) -> None:
        return None

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"policy": self.policy}

    def logits(self, frame: Tensor) -> Tensor:
        """Args: frame: [K, B, 64, 64, 3] uint8. Returns: [K, B, A], illegal actions at -1e9."""
        pixels = frame.float()[:, :, ::4, ::4].flatten(2) / 255.0  # [K, B, 768]
        all_tasks = self.policy((pixels @ self.projection).tanh()).unflatten(-1, (len(self.order), -1))  # [K, B, K, A]
        own = torch.stack([all_tasks[k, :, task] for k, task in enumerate(self.order)])  # [K, B, A]
        return own.masked_fill(~self.mask[list(self.order)].unsqueeze(1), -1e9)

    def actor(self, *, explore: bool = True) -> ToyActor:
        return ToyActor(self)

    def reseed(self, seed: int) -> None:
        self.rng.manual_seed(seed)

    def update(self, kind: str, batch: TransitionBatch, watch: Watch = untimed) -> Metrics:
        assert kind == "policy"
        assert batch.extra["chance"].shape == (*batch.reward.shape, 1)
        with watch("policy"):
            logits = self.logits(batch.frame.flatten(1, 2)).unflatten(1, batch.reward.shape[1:])  # [K, B, L, A]
            chosen = (logits.log_softmax(-1) * batch.action).sum(-1)  # [K, B, L]
            advantage = batch.reward - batch.reward.mean(dim=(1, 2), keepdim=True)
            loss = -(advantage * chosen).mean(dim=(1, 2))  # [K]
            self.optimiser.zero_grad()
            loss.sum().backward()
            self.optimiser.step()
        return {"loss/policy": loss.detach()}

    def end_phase(self, name: str, sample: Sampler) -> tuple[Event, ...]:
        if name != "prefill":
            return ()
        assert sample(1, 2, counter=0, stream=1).reward.shape == (len(self.order), 1, 2)
        self.order = self.order[::-1]
        return Reorder(self.order), Note("the tasks change places")

    def state_dict(self) -> State:
        return {"policy": self.policy.state_dict(), "order": list(self.order), "rng": self.rng.get_state()}

    def load_state_dict(self, state: State) -> None:
        self.policy.load_state_dict(state["policy"])
        self.order = tuple(state["order"])
        self.rng.set_state(state["rng"].cpu())


def toy() -> ToyConfig:
    return ToyConfig(preset="toy", tasks=("dummy:count-0", "dummy:count-1"), total_steps=24, log_every=4,
                     checkpoint_every=8, keep_checkpoints=9, report=False)  # fmt: skip


def _columns(config: Any, layout: Any) -> dict[str, int]:
    return {"chance": 1}


METHOD = Method(
    name="toy", config=ToyConfig, presets={"toy": toy}, build=ToyLearner, loss="loss/policy", columns=_columns
)
