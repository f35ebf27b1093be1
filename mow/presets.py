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


TINY5 = ("tiny:catch", "tiny:goal", "tiny:dodge", "tiny:pole", "tiny:slide")


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
    """Five tiny tasks that look and move differently, one small agent: the whole method in minutes on two CPU cores.

    Group norm: 109 ms per world-model update where batch norm per task took 146 ms, because the tasks of a module then
    share their convolution calls; after 300 updates two tasks stood better, two worse, one equal
    (bench/results/LOG.md).
    """
    return Config(
        preset="quickstart",
        tasks=TINY5,
        total_steps=4_000,
        log_every=200,
        checkpoint_every=2_000,
        evaluation_episodes=30,
        model=WorldModelConfig(
            width=128,
            num_heads=4,
            feedforward=256,
            dropout=0.0,
            embedding_size=16,
            condition=("encoder", "decoder", "heads", "mixer", "shared", "actor", "critic"),
            perception=PerceptionConfig(channels=(8, 16, 32, 64), groups=32, classes=8, norm="group"),
            routing=RoutingConfig(hidden=64),
            experts=ExpertsConfig(num_experts=4, experts_per_task=2, num_layers=1),
        ),
        batch=BatchConfig(num_sequences=4, length=10),
        loss=LossConfig(reconstruct_every=3),
        clustering=ClusteringConfig(num_modules=3, num_batches=8),
        imagination=ImaginationConfig(num_sequences=20, context=2, horizon=8, start="posterior"),
        actor_critic=ActorCriticConfig(hidden=128, discount=0.97, entropy=1e-2),
        optim=OptimConfig(world_model_lr=1e-3, agent_lr=5e-4),
        schedule=ScheduleConfig(prefill_fraction=0.1, warmup_fraction=0.05, agent_every=2, acting_context=8),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "quickstart": quickstart,
    "atari4": atari4,
    "atari26": atari26,
    "storm": storm,
}
