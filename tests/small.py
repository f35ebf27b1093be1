"""Small configs and batches that the tests of models and training share."""

import dataclasses

import torch

from mow.batch import TransitionBatch
from mow.methods.mow.actor_critic import Agent
from mow.methods.mow.config import BatchConfig, ClusteringConfig, LossConfig, MowConfig, ScheduleConfig
from mow.methods.mow.config_agent import ActorCriticConfig, ImaginationConfig
from mow.methods.mow.config_model import ExpertsConfig, PerceptionConfig, RoutingConfig, WorldModelConfig
from mow.methods.mow.world_model import WorldModel
from mow.nn.policy import ActionMask

ACTION_SIZE = 6  # four discrete actions, two continuous dimensions

MODEL = WorldModelConfig(
    width=16,
    num_heads=2,
    feedforward=24,
    dropout=0.0,
    max_positions=16,
    embedding_size=5,
    num_bins=21,
    perception=PerceptionConfig(channels=(3, 4, 5, 6), groups=4, classes=4),
    routing=RoutingConfig(hidden=8, anneal_updates=5),
    experts=ExpertsConfig(num_experts=3, experts_per_task=2, num_layers=2),
)

# The same with a cell of the latent to each sixteenth of the picture, foretold cell by cell.
LOCAL = dataclasses.replace(
    MODEL, prior="local", perception=dataclasses.replace(MODEL.perception, groups=32, classes=4, latent="spatial")
)

# Reward and termination read the next latent too.
ARRIVAL = dataclasses.replace(MODEL, outcome="arrival")
LOCAL_ARRIVAL = dataclasses.replace(LOCAL, outcome="arrival")
# And by the latent before too.
TWO_FRAMES = dataclasses.replace(LOCAL, prior_frames=2)


def run_config(**changes: object) -> MowConfig:
    """A whole run on the counting environment, seconds long."""
    config = MowConfig(
        preset="quickstart",
        tasks=("dummy:count-0", "dummy:count-1", "dummy:slide"),
        total_steps=32,
        log_every=4,
        checkpoint_every=8,
        report=False,
        model=MODEL,
        batch=BatchConfig(num_sequences=2, length=6),
        loss=LossConfig(),
        clustering=ClusteringConfig(num_modules=2, num_batches=2, restarts=3),
        imagination=ImaginationConfig(num_sequences=2, context=3, horizon=3),
        actor_critic=ActorCriticConfig(hidden=8),
        schedule=ScheduleConfig(prefill_steps=10, warmup_updates=3, acting_context=4),
    )
    return dataclasses.replace(config, **changes)


def world_model(config: WorldModelConfig = MODEL, modules: tuple[int, ...] = (0, 0, 1), **kwargs: object) -> WorldModel:
    return WorldModel(
        config, action_size=ACTION_SIZE, module_of_task=modules, num_modules=max(modules) + 1, **kwargs
    )


def action_mask(num_tasks: int = 3) -> ActionMask:
    """Every task discrete with three of four actions legal, but the last, which is continuous."""
    discrete = torch.tensor([[True, True, True, False]]).repeat(num_tasks, 1)
    continuous = torch.zeros(num_tasks, 2, dtype=torch.bool)
    discrete[-1], continuous[-1] = False, True
    return ActionMask(discrete, continuous)


def agent(config: WorldModelConfig = MODEL, modules: tuple[int, ...] = (0, 0, 1), **changes: object) -> Agent:
    return Agent(
        ActorCriticConfig(**{"hidden": 8, **changes}),
        latent_size=config.perception.latent_size,
        hidden_size=config.width,
        num_bins=config.num_bins,
        two_hot_form=config.two_hot_form,
        mask=action_mask(len(modules)),
        module_of_task=modules,
        num_modules=max(modules) + 1,
        embedding_size=config.embedding_size,
        condition=config.condition,
    )


def meta_models(config: MowConfig, discrete: int, continuous: int = 0) -> tuple[WorldModel, Agent]:
    """The models of a config once its tasks are grouped, on the meta device: to be counted, not run."""
    num_tasks, num_modules = len(config.tasks), config.num_modules
    modules = [k * num_modules // num_tasks for k in range(num_tasks)]
    with torch.device("meta"):
        mask = ActionMask(
            torch.ones(num_tasks, discrete, dtype=torch.bool), torch.ones(num_tasks, continuous, dtype=torch.bool)
        )
        model = WorldModel(
            config.model, action_size=mask.action_size, module_of_task=modules, num_modules=num_modules
        )
        made = Agent(
            config.actor_critic,
            latent_size=config.model.perception.latent_size,
            hidden_size=config.model.width,
            num_bins=config.model.num_bins,
            mask=mask,
            module_of_task=modules,
            num_modules=num_modules,
            embedding_size=config.model.embedding_size,
            condition=config.model.condition,
        )
    return model, made


def transitions(num_tasks: int = 3, num_sequences: int = 2, length: int = 6, *, seed: int = 0) -> TransitionBatch:
    """Random windows, an episode start in the middle of some."""
    rng = torch.Generator().manual_seed(seed)
    shape = (num_tasks, num_sequences, length)
    is_first = torch.rand(shape, generator=rng) < 0.2
    is_first[:, :, 0] = True
    action = torch.zeros(*shape, ACTION_SIZE)
    index = torch.randint(0, 3, (*shape, 1), generator=rng)
    action.scatter_(-1, index, 1.0)
    return TransitionBatch(
        frame=torch.randint(0, 256, (*shape, 64, 64, 3), generator=rng, dtype=torch.uint8),
        action=action,
        reward=torch.randn(shape, generator=rng),
        terminated=torch.rand(shape, generator=rng) < 0.1,
        truncated=torch.zeros(shape, dtype=torch.bool),
        is_first=is_first,
        is_last=torch.zeros(shape, dtype=torch.bool),
    )
