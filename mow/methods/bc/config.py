"""Settings and presets of the method bc."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mow.config import EnvConfig, RunConfig
from mow.config.checks import positive, require
from mow.config.run import Recorded


@dataclass(frozen=True)
class BcConfig(RunConfig):
    """One run of behaviour cloning. Source: widths and loss as the usual baseline of offline learning."""

    method: Literal["bc"] = "bc"
    """The algorithm: a folder of mow/methods."""
    data: str = ""
    """Folder of recorded episodes to clone; empty: the run collects them first."""
    collect_episodes: int = 200
    """Episodes per task that are collected into the run folder first, where no folder is named."""
    collect_policy: str = "mixed"
    """Behaviour of those episodes, as `mow collect --policy` takes it."""
    best: float = 1.0
    """Share of each task's episodes that is cloned: those with the highest returns."""
    env: EnvConfig = field(default_factory=lambda: EnvConfig(obs="state"))
    hidden: int = 256
    updates: int = 3_000
    batch_size: int = 256
    """Recorded steps per task and update."""
    lr: float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "total_steps", 0)
        super().__post_init__()
        positive(self, "hidden", "updates", "batch_size", "lr", "collect_episodes")
        require(0.0 < self.best <= 1.0, f"best must be above 0 and at most 1, got {self.best}")
        require(self.env.obs == "state", f"bc learns from states, got env.obs {self.env.obs}: leave it out")

    @property
    def recorded(self) -> Recorded:
        """The episodes that are cloned."""
        return Recorded(self.data, self.collect_episodes, self.collect_policy, self.updates, self.best)


def bc() -> BcConfig:
    """Clone all recorded episodes of four small bodies; `--best 0.2` those with the highest returns."""
    return BcConfig(
        preset="bc", tasks=("vec:lq", "vec:button", "vec:reach", "vec:pendulum"), total_steps=0,
        evaluation_episodes=20, evaluation_copies=10, log_every=500,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], BcConfig]] = {"bc": bc}
