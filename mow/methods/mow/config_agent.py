"""Settings of imagination and of actor and critics. See mow.config."""

from dataclasses import dataclass
from typing import Literal

from mow.config.checks import at_most, fraction, not_negative, positive, require, usable


@dataclass(frozen=True)
class ImaginationConfig:
    num_sequences: int = 1024
    """Imagined trajectories per task and agent update."""
    context: int = 8
    """Replay steps that open a trajectory."""
    horizon: int = 16
    """T: imagined steps."""
    start: Literal["prior", "posterior"] = "prior"
    """First imagined latent: predicted after the context, or the posterior of the context's last frame."""
    ends: Literal["hard", "expected"] = "hard"
    """An imagined episode ends where termination is likelier than not, or at every step by its probability."""
    temperature: float = 1.0
    """Temperature of the draws of imagined latents. Below 1 likelier classes are drawn more often than under the prior:
    objects that span several groups of a latent, each drawn by itself, then fall apart less often."""

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "num_sequences", "context", "horizon", "temperature")
        require(1e-3 <= self.temperature <= 1e3, f"temperature must lie in [0.001, 1000], got {self.temperature}")


@dataclass(frozen=True)
class ActorCriticConfig:
    hidden: int = 512
    num_layers: int = 2
    discount: float = 0.985
    lam: float = 0.95
    entropy: float = 3e-4
    """eta, what a nat of the policy's entropy is worth, in units of its advantage."""
    entropy_scale: Literal["none", "log_actions"] = "none"
    """log_actions: eta is what the largest entropy of a discrete task is worth, so that 18 actions are not held to
    chance 2.6 times as hard as 3; for a continuous task it is what a nat per dimension is worth."""
    final_entropy: float = 1.0
    """Share of `entropy` that is left in the end. A high entropy at first keeps the policy from settling on the errors
    of a young model."""
    entropy_updates: int = 0
    """World-model updates in which it falls, linearly; 0: all of them."""
    rollout_epochs: int = 1
    """Times that an imagined rollout is gone through; above 1 needs fewer rollouts, which cost most of the time."""
    rollout_parts: int = 1
    """Parts that a rollout's sequences are divided into, each a gradient step."""
    clip: float = 0.2
    """Clip of the probability ratio of new to old policy on one rollout; without effect on the first step."""
    memory_gain: float = 1.0
    """Scale of h_t, of length sqrt(D), in the agent's input; small where z_t holds nearly all."""
    memory_norm: bool = False
    """Bring h_t to mean 0 and variance 1 over its entries before that."""
    frames: int = 1
    """Latents that the agent sees: z_t, or z_t and z_{t-1}."""
    critic: Literal["cluster", "shared", "per_task"] = "cluster"
    slow_decay: float = 0.98
    slow_target: Literal["value", "lambda_return"] = "value"
    """Second target of the critic: the slow critic's value (the paper) or its lambda-return (STORM's code)."""
    return_decay: float = 0.99
    """Memory of the running percentiles of the return, per task."""
    survival_weight: bool = True
    """Weigh an imagined state by the probability that its trajectory had not ended before it; off: all alike, but those
    that follow a context whose episode had ended, which never count."""

    def __post_init__(self) -> None:
        usable(self)
        positive(self, "hidden", "num_layers", "rollout_epochs", "rollout_parts", "clip", "memory_gain")
        fraction(self, "discount", "lam", "slow_decay", "return_decay", "final_entropy")
        at_most(self, 100, "num_layers")
        at_most(self, 10_000, "rollout_epochs")
        require(self.return_decay < 1, f"return_decay must be below 1, got {self.return_decay}")
        require(self.frames in (1, 2), f"frames must be 1 or 2, got {self.frames}")
        not_negative(self, "entropy", "entropy_updates")
