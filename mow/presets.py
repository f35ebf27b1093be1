"""Recipes: functions that return a Config. `python -m mow.train NAME` starts from one and takes overrides."""

from collections.abc import Callable

from mow.config import (
    ActorCriticConfig,
    BatchConfig,
    ClusteringConfig,
    Config,
    EnvConfig,
    ExpertsConfig,
    ImaginationConfig,
    LossConfig,
    OptimConfig,
    PerceptionConfig,
    RoutingConfig,
    ScheduleConfig,
    SharedConfig,
    WorldModelConfig,
)

_GAMES = """
    Alien Amidar Assault Asterix BankHeist BattleZone Boxing Breakout ChopperCommand CrazyClimber DemonAttack Freeway
    Frostbite Gopher Hero Jamesbond Kangaroo Krull KungFuMaster MsPacman Pong PrivateEye Qbert RoadRunner Seaquest
    UpNDown
"""
ATARI26 = tuple(f"atari:{game}" for game in _GAMES.split())


def atari26() -> Config:
    """The paper's Atari run at its size: 26 games, 100k steps each, 254,926,526 values (972.47 MiB).

    Source: MoW (arXiv 2602.01270), sizes inferred from its reported total; literal batch norm and 18 actions.
    """
    return Config(
        preset="atari26",
        tasks=ATARI26,
        total_steps=100_000,
        env=EnvConfig(action_set="full"),
        model=WorldModelConfig(perception=PerceptionConfig(norm="bn_shared")),
    )


def storm() -> Config:
    """The single-task baseline: STORM's network (19,935,891 parameters with 18 actions) in this training loop.

    Source: STORM (arXiv 2310.09615). `--storm-compat` restores its treatment of episode ends and its return index.
    """
    return Config(
        preset="storm",
        tasks=("atari:Pong",),
        total_steps=100_000,
        model=WorldModelConfig(
            embedding_size=0,
            condition=(),
            task_head=False,
            perception=PerceptionConfig(norm="bn_shared"),
            routing=RoutingConfig(method="hash", scale="none"),
            experts=ExpertsConfig(num_experts=1, experts_per_task=1, num_layers=2),
            shared=SharedConfig(kind="none"),
        ),
        loss=LossConfig(balance=0.0, weighting="uniform"),
        clustering=ClusteringConfig(method="single"),
        schedule=ScheduleConfig(prefill_fraction=0.01, warmup_fraction=0.0),
    )


def atari4() -> Config:
    """Four games, a model of half the width throughout: a check of the whole method in under an hour of one GPU."""
    return Config(
        preset="atari4",
        tasks=("atari:Pong", "atari:Boxing", "atari:Breakout", "atari:CrazyClimber"),
        total_steps=20_000,
        log_every=20,
        model=WorldModelConfig(
            width=256,
            num_heads=4,
            feedforward=512,
            embedding_size=64,
            perception=PerceptionConfig(channels=(16, 32, 64, 128)),
            experts=ExpertsConfig(num_experts=4, experts_per_task=2, num_layers=2),
        ),
        batch=BatchConfig(num_sequences=8, length=32),
        clustering=ClusteringConfig(num_modules=2, num_batches=8),
        imagination=ImaginationConfig(num_sequences=128),
        schedule=ScheduleConfig(world_model_every=2, agent_every=2),
    )


def quickstart() -> Config:
    """Two Atari games and a small model: every part of the method in about ten minutes on two CPU cores."""
    return Config(
        preset="quickstart",
        tasks=("atari:Pong", "atari:Boxing"),
        total_steps=2_500,
        log_every=100,
        checkpoint_every=1_000,
        model=WorldModelConfig(
            width=128,
            num_heads=4,
            feedforward=256,
            dropout=0.0,
            embedding_size=16,
            perception=PerceptionConfig(channels=(16, 32, 64, 64), groups=16, classes=16),
            routing=RoutingConfig(hidden=64),
            experts=ExpertsConfig(num_experts=3, experts_per_task=2, num_layers=1),
        ),
        batch=BatchConfig(num_sequences=6, length=24),
        clustering=ClusteringConfig(num_modules=2, num_batches=8),
        imagination=ImaginationConfig(num_sequences=48, context=4, horizon=12, start="posterior"),
        actor_critic=ActorCriticConfig(hidden=128, entropy=1e-3),
        optim=OptimConfig(world_model_lr=4e-4, agent_lr=1e-4),
        schedule=ScheduleConfig(prefill_fraction=0.16, warmup_fraction=0.1, world_model_every=2, agent_every=2),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "quickstart": quickstart,
    "atari4": atari4,
    "atari26": atari26,
    "storm": storm,
}
