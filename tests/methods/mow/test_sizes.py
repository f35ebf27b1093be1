"""The models have the sizes that the papers report; built on the meta device, so nothing is allocated."""

import dataclasses

import pytest

from mow.methods.mow.presets import PRESETS
from mow.methods.mow.task_weights import make_task_weights
from mow.methods.mow.world_model_loss import num_terms
from tests.small import meta_models


def build(name, **clustering):
    config = PRESETS[name]()
    config = dataclasses.replace(config, clustering=dataclasses.replace(config.clustering, **clustering))
    weights = make_task_weights(config.loss, len(config.tasks), num_terms(config.model.task_head))
    return *meta_models(config, discrete=18), weights


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
    values = sum(t.numel() for module in build("atari26", num_modules=modules) for t in module.state_dict().values())
    assert round(values * 4 / 2**20) == mib
