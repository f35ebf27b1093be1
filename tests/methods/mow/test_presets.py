"""Every recipe builds, names known tasks, and says of itself what the others rely on."""

import dataclasses

import pytest

from mow import envs
from mow.envs.task_sets import ATARI26
from mow.methods.mow.presets import PRESETS, in_proportion, quickstart


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_knows_its_name(name: str) -> None:
    config = PRESETS[name]()
    assert config.preset == name
    assert dataclasses.replace(config) == config, "the checks pass a second time"
    assert PRESETS[name].__doc__
    for task in config.tasks:
        envs.check_task(task)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_learns(name: str) -> None:
    config = PRESETS[name]()
    assert config.batch.length < config.prefill_steps < config.total_steps
    assert 1 <= config.num_modules <= len(config.tasks)
    assert config.world_model_updates > config.warmup_updates
    # Grouping comes before the end, or the modules would never train apart.
    assert config.warmup_updates < config.world_model_updates / 2


@pytest.mark.parametrize("name", PRESETS)
def test_the_literal_presets_keep_the_published_forms(name: str) -> None:
    config = PRESETS[name]()
    literal = name in ("atari26", "storm", "mt50")
    assert config.model.two_hot_form == ("symexp_of_mean" if literal else "mean_of_symexp")
    assert config.optim.agent_eps == (1e-5 if literal else 1e-8)
    assert (config.actor_critic.entropy_scale == "none") == (literal or config.optim.matrices == "adam")


def test_phases_are_numbers() -> None:
    """Those of quickstart and atari26 at their own lengths; a longer run has the same, a shorter one its share."""
    config = quickstart()
    assert (config.prefill_steps, config.warmup_updates, config.world_model_updates) == (1_140, 120, 1_412)
    assert (config.model.routing.anneal_updates, config.actor_critic.entropy_updates) == (399, 1_400)
    assert PRESETS["atari26"]().model.routing.anneal_updates == 20_000  # the paper's fifth of 100,000
    assert in_proportion(config, 7_600) == in_proportion(config, 100_000) == config
    short = dataclasses.replace(in_proportion(config, 600), total_steps=600)
    assert (short.prefill_steps, short.warmup_updates) == (90, 9)
    assert (short.model.routing.anneal_updates, short.actor_critic.entropy_updates) == (32, 111)  # 31.5 is rounded
    with pytest.raises(ValueError, match=r"lower schedule\.prefill_steps, or raise total_steps"):
        dataclasses.replace(config, total_steps=600)


def test_numbers_of_the_paper() -> None:
    config = PRESETS["atari26"]()
    assert config.tasks == ATARI26
    assert (config.total_steps, config.num_modules) == (100_000, 12)
    assert (config.model.experts.num_experts, config.model.experts.experts_per_task) == (12, 2)
    assert (config.imagination.horizon, config.actor_critic.discount, config.actor_critic.lam) == (16, 0.985, 0.95)
    assert config.prefill_steps == config.warmup_updates == 5_000  # 5 % each
    assert config.world_model_updates == 100_000


def test_only_the_papers_presets_weigh_tasks_by_the_whole_loss() -> None:
    names = ("atari26", "mt50", "quickstart", "atari4", "mt10", "dmc18", "mixed")
    weighting = {name: PRESETS[name]().loss.weighting for name in names}
    literal = dict.fromkeys(("atari26", "mt50"), "harmony")
    assert weighting == {**dict.fromkeys(names, "shared_terms"), **literal}


def test_storm_is_one_task_without_anything_for_many() -> None:
    config = PRESETS["storm"]()
    assert len(config.tasks) == config.num_modules == config.model.experts.num_experts == 1
    assert config.warmup_updates == 0
    assert config.prefill_steps == 1_000
    assert not config.model.task_head
    assert config.model.embedding_size == 0
    assert config.model.condition == ()
    assert (config.loss.weighting, config.loss.balance) == ("uniform", 0.0)


def test_the_robots_have_the_sizes_that_are_stated() -> None:
    mt50, mt10, dmc18 = (PRESETS[name]() for name in ("mt50", "mt10", "dmc18"))
    assert (mt50.tasks, mt10.tasks, dmc18.tasks) == tuple(envs.SETS[name] for name in ("mt50", "mt10", "dmc18"))
    assert [len(config.tasks) for config in (mt50, mt10, dmc18)] == [50, 10, 18]
    assert (mt50.num_modules, mt50.model.experts.num_experts, mt50.model.embedding_size) == (12, 12, 256)
    for config in (mt50, mt10, dmc18):
        assert config.prefill_steps == config.warmup_updates == 5_000
        assert config.num_modules == config.model.experts.num_experts
    assert len(mt50.tasks) * mt50.total_steps == 15_000_000, "the paper's count of environment steps"
    assert dmc18.total_steps * dmc18.env.dmc_repeat == 500_000, "steps of the simulator"


def test_the_mixed_run_has_every_kind_of_task() -> None:
    config = PRESETS["mixed"]()
    assert {task.split(":")[0] for task in config.tasks} == {"atari", "metaworld", "dmc", "tiny"}
