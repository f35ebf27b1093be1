"""Settings of the method pwm: world model, batches, losses, extraction of policies, schedule."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mow.config import EnvConfig, RunConfig
from mow.config.checks import fraction, not_negative, positive, require, usable
from mow.config.run import Recorded


class Size(NamedTuple):
    """Widths of a world model. Source: TD-MPC2's released sizes; `tiny` is ours."""

    encoder_width: int
    encoder_layers: int
    width: int  # of dynamics and heads
    latent: int  # Z
    values: int  # Q functions of the TD head
    embedding: int  # d, where there are two tasks or more


SIZES = {
    "tiny": Size(256, 2, 256, 128, 2, 32),
    "1M": Size(256, 2, 384, 128, 2, 96),
    "5M": Size(256, 2, 512, 512, 5, 96),
    "19M": Size(1024, 3, 1024, 768, 5, 96),
    "48M": Size(1792, 4, 1792, 768, 5, 96),
    "317M": Size(4096, 5, 4096, 1376, 8, 96),
}


@dataclass(frozen=True)
class ModelConfig:
    size: Literal["tiny", "1M", "5M", "19M", "48M", "317M"] = "tiny"
    """Widths of all parts; the names count the parameters of the published model with its TD head."""
    width: int = 0
    """Hidden units of every layer; 0: those of the size."""
    latent_size: int = 0
    """Z, a multiple of 8; 0: that of the size."""
    embedding_size: int = -1
    """d, numbers that stand for a task; -1: those of the size, and none for a single task."""
    norm: Literal["simnorm", "none"] = "simnorm"
    """Latents in groups of 8 that sum to 1, or with the activation of the hidden layers."""
    activation: Literal["mish", "relu"] = "mish"
    observations: Literal["raw", "standard"] = "raw"
    """raw: as they come, as published; standard: less the mean of each task's data, over its deviation."""
    termination: bool = False
    """Predict the ends of episodes; imagined rewards after an end count less."""
    td_head: bool = False
    """Train values and a policy beside the model, as in the published ones: they shape the latent, and are not used."""

    def __post_init__(self) -> None:
        usable(self)
        not_negative(self, "width", "latent_size")
        require(self.latent_size % 8 == 0, f"latent_size must be a multiple of 8, got {self.latent_size}")
        require(self.embedding_size >= -1, f"embedding_size must be -1 (auto), 0 or more, got {self.embedding_size}")

    def widths(self, num_tasks: int) -> Size:
        """The numbers that this model is built with."""
        size = SIZES[self.size]
        wide = self.width or 0
        embedding = (size.embedding if num_tasks > 1 else 0) if self.embedding_size < 0 else self.embedding_size
        return Size(wide or size.encoder_width, size.encoder_layers, wide or size.width,
                    self.latent_size or size.latent, size.values, embedding)  # fmt: skip


@dataclass(frozen=True)
class BatchConfig:
    num_sequences: int = 32
    """B: windows per task and update of the world model."""
    horizon: int = 16
    """T: steps that the world model is unrolled for; a window holds one observation more."""

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "num_sequences", "horizon")


@dataclass(frozen=True)
class LossConfig:
    consistency: float = 20.0
    reward: float = 0.1
    termination: float = 1.0
    rho: float = 0.99
    """Weight of a step of the window relative to the one before it."""
    value: float = 0.1
    """Of the TD head."""
    episode_steps: tuple[int, ...] = (500,)
    """Agent steps of an episode of each task, or one number for all: the discounts of the TD head follow from it."""

    def __post_init__(self) -> None:
        usable(self)
        not_negative(self, "consistency", "reward", "termination", "value")
        require(min(self.episode_steps, default=0) > 0, f"episode_steps must be above 0, got {self.episode_steps}")
        fraction(self, "rho")


@dataclass(frozen=True)
class DistillConfig:
    alpha: float = 0.0
    """Weight of the squared distance between the rewards of this world model and of a larger one; 0: none."""
    space: Literal["symlog", "raw"] = "symlog"
    """Units of those rewards: of the bins, alike for all tasks, or of the task, as published."""
    run: str = ""
    """Run of the larger model, set by mow distill."""
    teacher: ModelConfig = field(default_factory=ModelConfig)
    """Sizes of the larger model, set by mow distill."""

    def __post_init__(self) -> None:
        usable(self)
        not_negative(self, "alpha")
        require(not self.alpha or bool(self.run), "distill.alpha needs a larger model: use mow distill RUN")

    @property
    def objective(self) -> str:
        """The space, as WorldModel.predict_reward names it."""
        return "symexp" if self.space == "raw" else "symlog"


@dataclass(frozen=True)
class OptimConfig:
    world_model_lr: float = 3e-4
    encoder_lr: float = 0.3
    """Step size of the encoder, as a share of world_model_lr."""
    world_model_clip: float = 20.0

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "world_model_lr", "encoder_lr", "world_model_clip")


@dataclass(frozen=True)
class PolicyConfig:
    form: Literal["per_task", "shared"] = "per_task"
    """A policy and critics for each task, or one for all that read the task embedding too."""
    starts: int = 512
    """States of the data per task and update, from which rollouts start."""
    horizon: int = 16
    """T: imagined steps."""
    discount: float = 0.99
    lam: float = 0.95
    """0: one-step targets of the critics, as in the published multi-task runs; 1: the whole rollout."""
    feedback: Literal["cut", "full"] = "cut"
    """cut: the gradient ends at the policy's input, as published; full: the gradient of the objective."""
    objective: Literal["symlog", "symexp"] = "symlog"
    """Sum rewards in the units of the reward head, as published, or in those of the task."""
    behaviour: float = 0.0
    """Weight of the squared distance to the actions of the data, for narrow data."""
    width: int = 0
    """Hidden units of every layer of actors and critics; 0: the published 400, 200, 100 and 400, 200."""
    critics: int = 3
    passes: int = 8
    """Times that the critics see a rollout."""
    parts: int = 4
    """Minibatches per pass."""
    lr: float = 5e-4
    final_lr: float = 1e-5
    """Step size at the last update; it falls linearly."""
    betas: tuple[float, float] = (0.7, 0.95)
    """Decay rates of Adam."""
    actor_clip: float = 1.0
    """Largest norm of the gradient of one task's actor."""
    critic_clip: float = 100.0
    min_log_std: float = -1.427
    """Lower bound of the logarithm of the policy's spread: exploration never ends below it."""

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "starts", "horizon", "critics", "passes", "parts", "lr", "actor_clip", "critic_clip")
        not_negative(self, "behaviour", "final_lr", "width")
        fraction(self, "discount", "lam")
        require(all(0.0 <= beta < 1.0 for beta in self.betas), f"betas must lie in [0, 1), got {self.betas}")
        require(self.parts <= self.starts * self.horizon, f"parts must be at most starts * horizon, got {self.parts}")


@dataclass(frozen=True)
class ScheduleConfig:
    pretrain_updates: int = 10_000
    """Updates of the world model on recorded episodes."""
    policy_updates: int = 10_000
    """Updates of the policies on the frozen world model, after them."""
    first_updates: int = 1_000
    """Updates of the world model after the prefill, where a run acts."""
    prefill_steps: int = 1_000
    """Random steps of each task before any learning, where a run acts (counted in total_steps)."""
    world_model_every: int = 2
    """Environment steps (of each task) per update of the world model, where a run acts."""
    policy_every: int = 16
    """Environment steps (of each task) per update of the policies, where a run acts."""

    def __post_init__(self) -> None:
        usable(self)
        not_negative(self, "pretrain_updates", "policy_updates", "first_updates", "prefill_steps")
        positive(self, "world_model_every", "policy_every")


@dataclass(frozen=True)
class PwmConfig(RunConfig):
    """One run of PWM. Source: PWM (arXiv 2407.02466), its world model TD-MPC2 (arXiv 2310.16828)."""

    method: Literal["pwm"] = "pwm"
    """The algorithm: a folder of mow/methods."""
    data: str = ""
    """Folder of recorded episodes to learn from, without acting; empty: the run acts, or collects them first."""
    collect_episodes: int = 0
    """Episodes per task that are collected into the run folder first, to learn from them alone; 0: none."""
    collect_policy: str = "mixed"
    """Behaviour of those episodes, as `mow collect --policy` takes it."""
    env: EnvConfig = field(default_factory=lambda: EnvConfig(obs="state"))
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        if self.offline:
            object.__setattr__(self, "total_steps", 0)
        super().__post_init__()
        not_negative(self, "collect_episodes")
        require(self.env.obs == "state", f"pwm learns from states, got env.obs {self.env.obs}: leave it out")
        steps, tasks = len(self.loss.episode_steps), len(self.tasks)
        require(steps in (1, tasks), f"loss.episode_steps must hold 1 number or {tasks}, one per task, got {steps}")
        require(self.offline or self.total_steps > self.prefill_steps,
                f"total_steps must exceed the prefill of {self.prefill_steps} steps (one window and a step at least), "
                f"got {self.total_steps}: lower schedule.prefill_steps, or raise total_steps")  # fmt: skip

    @property
    def offline(self) -> bool:
        """True if the run learns from stored episodes alone."""
        return bool(self.data) or self.collect_episodes > 0

    @property
    def recorded(self) -> Recorded | None:
        """The episodes of an offline run."""
        updates = self.schedule.pretrain_updates + self.schedule.policy_updates
        return Recorded(self.data, self.collect_episodes, self.collect_policy, updates) if self.offline else None

    @property
    def final_frames(self) -> bool:
        """True: the final observation of an episode is the last target of the dynamics."""
        return True

    @property
    def length(self) -> int:
        """Observations of a window."""
        return self.batch.horizon + 1

    @property
    def prefill_steps(self) -> int:
        """Random steps per task before learning; at least one window and a step."""
        return max(self.length + 1, self.schedule.prefill_steps)

    @property
    def policy_updates(self) -> int:
        """All updates of the policies."""
        if self.offline:
            return self.schedule.policy_updates
        return (self.total_steps - self.prefill_steps) // self.schedule.policy_every
