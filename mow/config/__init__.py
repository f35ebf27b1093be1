"""Settings of a run: frozen dataclasses, one per component, each checked where it is made."""

from mow.config.agent import (
    ActorCriticConfig,
    ImaginationConfig,
)
from mow.config.model import (
    Condition,
    ExpertsConfig,
    PerceptionConfig,
    RoutingConfig,
    SharedConfig,
    WorldModelConfig,
)
from mow.config.run import (
    ASIDE,
    BatchConfig,
    ClusteringConfig,
    Config,
    EnvConfig,
    LossConfig,
    OptimConfig,
    ReplayConfig,
    ScheduleConfig,
)

__all__ = [
    "ASIDE",
    "ActorCriticConfig",
    "BatchConfig",
    "ClusteringConfig",
    "Condition",
    "Config",
    "EnvConfig",
    "ExpertsConfig",
    "ImaginationConfig",
    "LossConfig",
    "OptimConfig",
    "PerceptionConfig",
    "ReplayConfig",
    "RoutingConfig",
    "ScheduleConfig",
    "SharedConfig",
    "WorldModelConfig",
]
