"""The models have the sizes that the papers report; built on the meta device, so nothing is allocated."""

import pytest
import torch

from mow.distributions import ActionMask
from mow.models import Agent, WorldModel
from mow.presets import PRESETS
from mow.training.task_weights import make_task_weights
from mow.training.world_model_step import num_terms


def build(name, num_modules=None):
    config = PRESETS[name]()
    num_tasks, num_modules = len(config.tasks), num_modules or config.num_modules
    modules = [k * num_modules // num_tasks for k in range(num_tasks)]
    with torch.device("meta"):
        mask = ActionMask(torch.ones(num_tasks, 18, dtype=torch.bool), torch.ones(num_tasks, 0, dtype=torch.bool))
        model = WorldModel(config.model, action_size=18, module_of_task=modules, num_modules=num_modules)
        agent = Agent(
            config.actor_critic,
            state_size=config.model.perception.latent_size + config.model.width,
            num_bins=config.model.num_bins,
            mask=mask,
            module_of_task=modules,
            num_modules=num_modules,
            embedding_size=config.model.embedding_size,
            condition=config.model.condition,
        )
        weights = make_task_weights(config.loss, num_tasks, num_terms(config.model.task_head))
    return model, agent, weights


def test_atari26_is_the_papers_972_mib():
    """Slow critics and batch-norm buffers counted, 4 bytes each: what the paper reports as 972.5 MB."""
    values = sum(t.numel() for module in build("atari26") for t in module.state_dict().values())
    assert values == 254_926_526
    assert round(values * 4 / 2**20, 2) == 972.47


def test_storm_has_storms_parameters():
    model, agent, _ = build("storm")
    world_model, actor_critic = (sum(p.numel() for p in module.parameters()) for module in (model, agent))
    assert world_model == 16_513_155
    assert actor_critic == 3_422_736
    assert world_model + actor_critic == 19_935_891


@pytest.mark.parametrize(("modules", "mib"), [(3, 434), (6, 614)])
def test_fewer_modules(modules, mib):
    """The same model with 3 or 6 modules for 26 tasks."""
    values = sum(t.numel() for module in build("atari26", modules) for t in module.state_dict().values())
    assert round(values * 4 / 2**20) == mib
