"""Recipes: functions that return a MowConfig. `python -m mow.train NAME` starts from one and takes overrides."""

from collections.abc import Callable
from dataclasses import replace

from mow.config import EnvConfig, ReplayConfig
from mow.envs.task_sets import ATARI26, DMC18, MT10, MT50, TINY7
from mow.methods.mow.ablations import recipes
from mow.methods.mow.config import BatchConfig, ClusteringConfig, LossConfig, MowConfig, OptimConfig, ScheduleConfig
from mow.methods.mow.config_agent import ActorCriticConfig, ImaginationConfig
from mow.methods.mow.config_model import (
    ExpertsConfig,
    PerceptionConfig,
    RoutingConfig,
    SharedConfig,
    WorldModelConfig,
)


def atari26() -> MowConfig:
    """The paper's Atari run at its size: 26 games, 100k steps each, 254,926,526 values (972.47 MiB).

    Source: MoW (arXiv 2602.01270), sizes inferred from its reported total; literal batch norm and 18 actions.
    """
    return MowConfig(
        preset="atari26",
        tasks=ATARI26,
        total_steps=100_000,
        env=EnvConfig(action_set="full"),
        model=WorldModelConfig(perception=PerceptionConfig(norm="bn_shared")),
    )


def storm() -> MowConfig:
    """The single-task baseline: STORM's network (19,935,891 parameters with 18 actions) in this training loop.

    Source: STORM (arXiv 2310.09615). `--storm-compat` restores its treatment of episode ends and its return index.
    """
    return MowConfig(
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
        schedule=ScheduleConfig(prefill_steps=1_000, warmup_updates=0),
    )


def atari4() -> MowConfig:
    """Four games, a model of half the width throughout: a check of the whole method in under an hour of one GPU."""
    config = MowConfig(
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
            routing=RoutingConfig(anneal_updates=2_100),
            experts=ExpertsConfig(num_experts=4, experts_per_task=2, num_layers=2),
        ),
        batch=BatchConfig(num_sequences=8, length=32),
        clustering=ClusteringConfig(num_modules=2, num_batches=8),
        imagination=ImaginationConfig(num_sequences=128),
        schedule=ScheduleConfig(prefill_steps=1_000, warmup_updates=1_000, world_model_every=2, agent_every=2),
    )
    return _beyond_the_paper(config)


def mt50() -> MowConfig:
    """The paper's robot run at its size: the 50 tasks of Meta-World from pixels, 300k steps each.

    Source: MoW (arXiv 2602.01270) for tasks and steps; its reported sizes leave modules and experts open, so they are
    those of `atari26`. Differs: half as many updates and a quarter of the imagined trajectories per step and task,
    because 50 tasks of 300k steps at STORM's ratio are weeks of a GPU. Frames take 184 GB raw: see replay.store and
    replay.disk.
    """
    return _robots("mt50", MT50, total_steps=300_000, modules=12)


def mt10() -> MowConfig:
    """Ten of Meta-World's tasks, as `mt50`, with modules and experts in the paper's proportion to tasks (12 for 26)."""
    return _beyond_the_paper(_robots("mt10", MT10, total_steps=300_000, modules=5))


def dmc18() -> MowConfig:
    """Eighteen tasks of the DeepMind Control Suite from pixels, 500k steps of the simulator each, two per action.

    Source: tasks, budget and action repeat of DreamerV3 (arXiv 2301.04104); sizes as `mt10`. Actions are padded to the
    largest task's six dimensions.
    """
    return _beyond_the_paper(_robots("dmc18", DMC18, total_steps=250_000, modules=8))


def _robots(preset: str, tasks: tuple[str, ...], *, total_steps: int, modules: int) -> MowConfig:
    """The paper's network on robots; prefill and warm-up of 5,000 steps and updates each, a discount of 0.99."""
    return MowConfig(
        preset=preset,
        tasks=tasks,
        total_steps=total_steps,
        evaluation_episodes=10,
        model=WorldModelConfig(
            perception=PerceptionConfig(norm="bn_shared"),
            routing=RoutingConfig(anneal_updates=(5_000 + (total_steps - 5_000) // 2) // 5),  # the paper's 20 %
            experts=ExpertsConfig(num_experts=modules, experts_per_task=2, num_layers=2),
        ),
        clustering=ClusteringConfig(num_modules=modules),
        imagination=ImaginationConfig(num_sequences=256),
        actor_critic=ActorCriticConfig(discount=0.99),
        schedule=ScheduleConfig(prefill_steps=5_000, warmup_updates=5_000, world_model_every=2, agent_every=2),
    )


def _beyond_the_paper(config: MowConfig) -> MowConfig:
    """Settings of the presets that reproduce no published run: rewards and ends read off the step that they lead to,
    two-hot codes decoded by the mean, task weights of the terms that reach shared parameters, an Adam whose steps do
    not shrink where many tasks share its gradient.
    """
    return replace(
        config,
        model=replace(config.model, outcome="arrival", two_hot_form="mean_of_symexp"),
        loss=replace(config.loss, weighting="shared_terms"),
        optim=replace(config.optim, agent_eps=1e-8),
    )


def mixed() -> MowConfig:
    """Eight tasks of four suites in one run, games beside robots: discrete and continuous actions in one agent.

    The network is that of `atari4`, half as wide as the paper's; no such run is published.
    """
    return replace(
        atari4(),
        preset="mixed",
        tasks=(
            "atari:Pong",
            "atari:Breakout",
            "metaworld:reach-v3",
            "metaworld:drawer-close-v3",
            "dmc:cartpole-balance",
            "dmc:walker-walk",
            "tiny:catch",
            "tiny:slide",
        ),
        clustering=ClusteringConfig(num_modules=4, num_batches=8),
    )


def quickstart() -> MowConfig:
    """Seven tiny tasks that look and move differently, one small agent: the whole method in minutes on two CPU cores.

    Differs from the presets of the paper's size to fit into ten minutes (bench/results/LOG.md has the numbers):
    a spatial latent of 8x8 cells with a loud start, less the median frame, finds small things in fewer updates; the
    local prior and Muon learn in a few hundred updates how most things move, where a Linear on h_t and Adam had not
    after 800; rollouts are short and cold, and the model learns from latents stale in part, so that what is imagined
    holds together; a bonus on entropy that falls, and recent windows drawn more often, keep the policy from settling on
    the errors of a young model; the prior reads two latents and the agent a normalised h_t, because no single picture
    of bounce and chase shows what moves where; patches in the first convolution and group norm save time; an imagined
    rollout is used for nine steps, because making it costs more than learning from it; Muon learns a policy from fewer
    rollouts than Adam; the warm-up is short, because one module for seven tasks learns more slowly than four; a task's
    weight does not depend on how hard its pictures are to draw.
    """
    return MowConfig(
        preset="quickstart",
        tasks=TINY7,
        total_steps=7_600,
        log_every=400,
        checkpoint_every=4_000,
        evaluation_episodes=30,
        evaluation_copies=6,
        model=WorldModelConfig(
            width=128,
            num_heads=4,
            feedforward=256,
            dropout=0.0,
            embedding_size=16,
            two_hot_form="mean_of_symexp",
            prior="local",
            prior_width=128,
            prior_frames=2,
            stale_share=0.1,
            outcome="arrival",
            condition=("encoder", "decoder", "heads", "mixer", "shared", "actor", "critic"),
            perception=PerceptionConfig(
                channels=(32, 64),
                groups=128,
                classes=8,
                unimix=0.001,
                norm="group",
                latent="spatial",
                posterior_gain=8.0,
                background="median",
            ),
            routing=RoutingConfig(hidden=64, anneal_updates=399),
            experts=ExpertsConfig(num_experts=4, experts_per_task=2, num_layers=1),
        ),
        batch=BatchConfig(num_sequences=8, length=8),
        loss=LossConfig(reconstruct_every=3, dynamics=1.0, representation=0.1, weighting="shared_terms"),
        clustering=ClusteringConfig(num_modules=4, num_batches=8),
        imagination=ImaginationConfig(
            num_sequences=40, context=2, horizon=5, start="posterior", ends="expected", temperature=0.25
        ),
        actor_critic=ActorCriticConfig(
            hidden=128,
            discount=0.97,
            entropy=2.5e-2,
            entropy_scale="log_actions",
            final_entropy=0.1,
            entropy_updates=1_400,
            rollout_epochs=3,
            rollout_parts=3,
            memory_norm=True,
        ),
        replay=ReplayConfig(draw="recent"),
        optim=OptimConfig(
            world_model_lr=1e-3, matrices="muon", matrix_layers="all",
            agent_lr=1e-3, agent_eps=1e-8, agent_clip=1.0, agent_matrices="muon", final_lr=0.1
        ),
        schedule=ScheduleConfig(
            prefill_steps=1_140, warmup_updates=120, world_model_every=5, agent_every=9, acting_context=6
        ),
    )


def in_proportion(config: MowConfig, total_steps: int) -> MowConfig:
    """`config` with prefill, warm-up, routing anneal and fall of the entropy as much shorter as `total_steps` is.

    So that a short trial has every phase. total_steps itself stays; for a longer run nothing changes.
    """
    share = total_steps / config.total_steps
    if share >= 1.0:
        return config
    routing, schedule, agent = config.model.routing, config.schedule, config.actor_critic
    return replace(
        config,
        model=replace(
            config.model, routing=replace(routing, anneal_updates=round(share * routing.anneal_updates))
        ),
        schedule=replace(
            schedule,
            prefill_steps=round(share * schedule.prefill_steps),
            warmup_updates=round(share * schedule.warmup_updates),
        ),
        actor_critic=replace(agent, entropy_updates=round(share * agent.entropy_updates)),
    )


def shortened(preset: MowConfig, total_steps: int) -> tuple[MowConfig, str]:
    """`in_proportion`, and the fields that differ, for the log."""
    config = in_proportion(preset, total_steps)
    return config, (
        f"schedule.prefill_steps {config.schedule.prefill_steps:,}, schedule.warmup_updates "
        f"{config.schedule.warmup_updates:,}, model.routing.anneal_updates {config.model.routing.anneal_updates:,}, "
        f"actor_critic.entropy_updates {config.actor_critic.entropy_updates:,}"
    )


def summary(config: MowConfig) -> str:
    """Updates and modules of a run, for the line that opens it."""
    return (
        f"{config.world_model_updates:,} world-model updates ({config.warmup_updates:,} of them warm-up); "
        f"{config.num_modules} modules"
    )


def with_batching(config: MowConfig, name: str) -> MowConfig:
    """`config` with the batches of `name`, one of BATCHINGS: how much is learnt from, per task and step.

    storm: 16 windows of 64 steps; 1,024 rollouts of 16 steps after 8; both at every step. Source: STORM.
    light: a quarter of the rollouts, at every second step.
    cheap: also half as many windows, half as long.

    Raises: ValueError for another name, or if the config has no room for them (`model.max_positions`).
    """
    if name not in BATCHINGS:
        raise ValueError(f"unknown batching {name!r}: choose one of {', '.join(BATCHINGS)}")
    batch, num_rollouts, agent_every = BATCHINGS[name]
    return replace(
        config,
        batch=batch,
        imagination=replace(config.imagination, num_sequences=num_rollouts, context=8, horizon=16),
        schedule=replace(config.schedule, world_model_every=1, agent_every=agent_every),
    )


# Windows of replay, rollouts per task, steps per agent update.
BATCHINGS: dict[str, tuple[BatchConfig, int, int]] = {
    "storm": (BatchConfig(num_sequences=16, length=64), 1024, 1),
    "light": (BatchConfig(num_sequences=16, length=64), 256, 2),
    "cheap": (BatchConfig(num_sequences=8, length=32), 256, 2),
}

PRESETS: dict[str, Callable[[], MowConfig]] = {
    "quickstart": quickstart,
    "atari4": atari4,
    "atari26": atari26,
    "storm": storm,
    "mt10": mt10,
    "mt50": mt50,
    "dmc18": dmc18,
    "mixed": mixed,
    **recipes(quickstart),
}
