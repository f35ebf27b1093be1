"""What a config refuses, in which words, and the numbers that it derives."""

import dataclasses
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from mow.config import RUNTIME_FIELDS, EnvConfig, ReplayConfig
from mow.methods.mow.ablations import flat
from mow.methods.mow.config import BatchConfig, ClusteringConfig, LossConfig, MowConfig, OptimConfig, ScheduleConfig
from mow.methods.mow.config_agent import ActorCriticConfig, ImaginationConfig
from mow.methods.mow.config_model import (
    ExpertsConfig,
    PerceptionConfig,
    RoutingConfig,
    SharedConfig,
    WorldModelConfig,
)


def config(**changes: object) -> MowConfig:
    """Three tasks, 1,000 steps, windows of 8: prefill 50, warm-up 50."""
    fields: dict[str, object] = {
        "preset": "test",
        "tasks": ("atari:Pong", "atari:Boxing", "atari:Alien"),
        "total_steps": 1000,
        "batch": BatchConfig(length=8),
        "schedule": ScheduleConfig(prefill_steps=50, warmup_updates=50, acting_context=7),
        **changes,
    }
    return MowConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnvConfig(num_workers=-2), "num_workers must be -1 (auto), 0 or more, got -2"),
        (lambda: EnvConfig(metaworld_repeat=0), "metaworld_repeat must be above 0, got 0"),
        (lambda: EnvConfig(dmc_repeat=0), "dmc_repeat must be above 0, got 0"),
        (lambda: PerceptionConfig(channels=(8, 0, 8, 8)), "channels must all be above 0, got (8, 0, 8, 8)"),
        (lambda: PerceptionConfig(groups=0), "groups must be above 0, got 0"),
        (lambda: PerceptionConfig(channels=(8,)), "channels must be two to four numbers, got (8,)"),
        (lambda: PerceptionConfig(posterior_gain=0.0), "posterior_gain must be above 0, got 0.0"),
        (lambda: PerceptionConfig(latent="spatial", groups=20), "groups must be a multiple of 16, the cells of a"),
        (lambda: ActorCriticConfig(rollout_epochs=0), "rollout_epochs must be above 0, got 0"),
        (
            lambda: config(actor_critic=ActorCriticConfig(rollout_parts=9), imagination=ImaginationConfig(8)),
            "actor_critic.rollout_parts must be at most imagination.num_sequences, got 9 and 8",
        ),
        (lambda: ReplayConfig(store="raw", disk="d"), "replay.disk takes packed frames: use replay.store packed"),
        (lambda: config(insight_every=-1), "insight_every must be 0 or more, got -1"),
        (lambda: PerceptionConfig(classes=257), "classes must be at most 256, got 257"),
        (lambda: PerceptionConfig(unimix=1.5), "unimix must lie in [0, 1], got 1.5"),
        (lambda: ImaginationConfig(temperature=0.0), "temperature must be above 0, got 0.0"),
        (lambda: WorldModelConfig(stale_share=-0.1), "stale_share must lie in [0, 1], got -0.1"),
        (lambda: RoutingConfig(temperature_end=0.0), "temperature_end must be above 0, got 0.0"),
        (lambda: RoutingConfig(anneal_updates=-1), "anneal_updates must be 0 or more, got -1"),
        (lambda: ActorCriticConfig(entropy_updates=-1), "entropy_updates must be 0 or more, got -1"),
        (lambda: RoutingConfig(noise=-1.0), "noise must be 0 or more, got -1.0"),
        (lambda: ExpertsConfig(num_experts=2, experts_per_task=3), "at most num_experts, got 3 of 2"),
        (lambda: SharedConfig(num_layers=0), "num_layers must be above 0, got 0"),
        (lambda: WorldModelConfig(width=0), "width must be above 0, got 0"),
        (lambda: WorldModelConfig(dropout=1.0), "dropout must lie in [0, 1), got 1.0"),
        (lambda: WorldModelConfig(embedding_size=-1), "embedding_size must be 0 or more, got -1"),
        (lambda: WorldModelConfig(num_bins=254), "num_bins must be odd and >= 3, got 254"),
        (lambda: WorldModelConfig(width=100, num_heads=8), "width must be a multiple of num_heads, got 100 and 8"),
        (lambda: WorldModelConfig(shared=SharedConfig(kind="none")), "shared.kind none needs experts.experts_per_task"),
        (lambda: WorldModelConfig(embedding_size=0), "routing.method learned needs embedding_size above 0"),
        (lambda: BatchConfig(num_sequences=0), "num_sequences must be above 0, got 0"),
        (lambda: BatchConfig(length=1), "length must be at least 2, got 1"),
        (lambda: LossConfig(task=-0.5), "task must be 0 or more, got -0.5"),
        (lambda: LossConfig(free_bits=-1.0), "free_bits must be 0 or more, got -1.0"),
        (lambda: ClusteringConfig(num_modules=0), "num_modules must be above 0, got 0"),
        (lambda: ClusteringConfig(num_batches=1), "num_batches must be 2 or more (halves are compared), got 1"),
        (lambda: ImaginationConfig(horizon=0), "horizon must be above 0, got 0"),
        (lambda: ActorCriticConfig(discount=1.01), "discount must lie in [0, 1], got 1.01"),
        (lambda: ActorCriticConfig(return_decay=1.0), "return_decay must be below 1, got 1.0"),
        (lambda: ActorCriticConfig(entropy=-1e-3), "entropy must be 0 or more, got -0.001"),
        (lambda: OptimConfig(agent_lr=0.0), "agent_lr must be above 0, got 0.0"),
        (lambda: OptimConfig(weighting_lr=-1.0), "weighting_lr must be above 0, got -1.0"),
        (lambda: ScheduleConfig(prefill_steps=-1), "prefill_steps must be 0 or more, got -1"),
        (lambda: ScheduleConfig(warmup_updates=-1), "warmup_updates must be 0 or more, got -1"),
        (lambda: ScheduleConfig(agent_every=0), "agent_every must be above 0, got 0"),
        (lambda: config(tasks=()), "tasks must name at least one task, like atari:Pong"),
        (lambda: config(tasks=("a:b", "a:c", "a:b")), "tasks must differ, got a:b more than once"),
        (lambda: config(total_steps=0), "total_steps must be above 0, got 0"),
        (lambda: config(seed=-1), "seed must be 0 or more, got -1"),
        (lambda: config(total_steps=50), "total_steps must exceed the prefill of 50 steps (one window and a step at "
         "least), got 50: lower schedule.prefill_steps, or raise total_steps"),
        (lambda: config(batch=BatchConfig(length=65)), "model.max_positions must cover the longest window of 65 steps"),
        (
            lambda: config(imagination=ImaginationConfig(context=50, horizon=20)),
            "model.max_positions must cover the longest window of 70 steps, got 64",
        ),
        (
            lambda: config(schedule=ScheduleConfig(prefill_steps=50, acting_context=8)),
            "schedule.acting_context must be at most batch.length - 1 = 7, got 8",
        ),
        (
            lambda: config(imagination=ImaginationConfig(context=2, horizon=5)),
            "schedule.acting_context must be at most imagination.context + imagination.horizon - 1 = 6, got 7",
        ),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [ActorCriticConfig, OptimConfig, LossConfig, ScheduleConfig])
def test_nan_is_never_accepted(part: type) -> None:
    for field in dataclasses.fields(part):
        if field.type is float:
            with pytest.raises(ValueError, match=f"{field.name} must"):
                part(**{field.name: math.nan})


def test_what_a_task_blind_model_may_do() -> None:
    # Without an embedding routing must be fixed, or trivial with a single expert.
    assert WorldModelConfig(embedding_size=0, routing=RoutingConfig(method="hash")).embedding_size == 0
    single = ExpertsConfig(num_experts=1, experts_per_task=1)
    assert WorldModelConfig(embedding_size=0, experts=single, shared=SharedConfig(kind="none")).experts == single


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().seed = 1  # type: ignore[misc]


def test_prefill_by_hand() -> None:
    assert config().prefill_steps == config(total_steps=100_000).prefill_steps == 50  # a number, not a share
    none = ScheduleConfig(prefill_steps=0, acting_context=7)
    assert config(schedule=none).prefill_steps == 9  # a window of 8 and one step more
    assert config(schedule=none, imagination=ImaginationConfig(context=11)).prefill_steps == 12


def test_updates_by_hand() -> None:
    # 50 warm-up updates, then one per step for 950 steps, or one per 4 steps: 950 // 4 = 237.
    assert (config().warmup_updates, config().world_model_updates) == (50, 1000)
    slow = config(
        schedule=ScheduleConfig(prefill_steps=50, warmup_updates=100, world_model_every=4, acting_context=7)
    )
    assert (slow.warmup_updates, slow.world_model_updates) == (100, 337)


@pytest.mark.parametrize(
    ("method", "num_modules", "expected"),
    [("gradient", 2, 2), ("gradient", 12, 3), ("random", 9, 3), ("latent", 1, 1), ("single", 2, 1), ("identity", 2, 3)],
)
def test_number_of_modules(method: str, num_modules: int, expected: int) -> None:
    clustering = replace(ClusteringConfig(), method=method, num_modules=num_modules)  # type: ignore[arg-type]
    assert config(clustering=clustering).num_modules == expected


def test_latent_size() -> None:
    assert PerceptionConfig(groups=6, classes=5).latent_size == 30


def test_config_imports_without_torch() -> None:
    code = "import sys, mow.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_environments_are_made_with_is_known_to_them() -> None:
    from mow.envs import SUITES

    made = EnvConfig(render="full", metaworld_repeat=3).options
    assert (made["render"], made["metaworld_repeat"], made["dmc_repeat"]) == ("full", 3, 2)
    assert set(made) <= {option for suite in SUITES.values() for option in suite.options}


def test_fields_of_which_nothing_is_learnt_exist() -> None:
    assert flat(config()).keys() >= RUNTIME_FIELDS
