"""The weight cache changes no number, and is dropped after every change of a weight."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from mow.methods.mow.clustering import Grouping
from mow.methods.mow.config import MowConfig, OptimConfig
from mow.methods.mow.imagination import imagine
from mow.methods.mow.learner import Learner
from mow.methods.mow.records import Imagination
from mow.nn.weight_cache import WeightCache, cached, gathers, is_active
from tests.small import LOCAL, MODEL, action_mask, run_config, transitions

CPU = torch.device("cpu")


def learner(config: MowConfig | None = None, *, muon: bool = False) -> Learner:
    config = config or run_config(model=LOCAL)
    if muon:
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, matrices="muon"))
    torch.manual_seed(0)
    made = Learner(config, action_mask(), CPU)
    made.regroup(Grouping((0, 1, 2), (0, 0, 1), torch.eye(3).numpy(), silhouette=0.0, stability=1.0))
    return made


def dreamt(made: Learner, *, keeping: bool) -> list[Tensor]:
    """A rollout of two, the second of which finds what the first has kept."""
    context = transitions(length=made.config.imagination.context)
    made.rng.seed_offset[1] = 7
    if keeping:
        made.world_model.eval()
        made.imagine_rollout(context)
        made.rng.seed_offset[1] = 7
        dream = made.imagine_rollout(context)
    else:
        dream = fresh(made, context)
    return [dream.latent, dream.hidden, dream.action, dream.reward, dream.terminated]


def fresh(made: Learner, context: object) -> Imagination:
    how = made.config.imagination
    made.world_model.eval()
    with made.autocast():
        return imagine(
            made.world_model, made.agent, context, made.routing(), made.rng, horizon=how.horizon, start=how.start,
            ends=how.ends, temperature=how.temperature,
        )  # fmt: skip


def close(ours: list[Tensor], plain: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, plain, strict=True))


CONFIGS = {
    "local": run_config(model=LOCAL),
    "dense": run_config(model=MODEL),
    "one for all": run_config(model=dataclasses.replace(LOCAL, heads="shared")),
    "not told": run_config(model=dataclasses.replace(LOCAL, condition=("mixer",))),
    "nobody told": run_config(
        model=dataclasses.replace(
            MODEL, embedding_size=0, condition=(), routing=dataclasses.replace(MODEL.routing, method="cluster")
        )
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rollouts_are_the_same(config: MowConfig) -> None:
    made = learner(config)
    assert close(dreamt(made, keeping=True), dreamt(made, keeping=False))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rollouts_with_the_cache_of_a_gpu_have_the_same_bits(precision: Literal["fp32", "bf16"]) -> None:
    made = learner(run_config(model=LOCAL, optim=OptimConfig(precision=precision)))
    made.weight_cache = WeightCache(torch.device("cuda"))
    assert all(map(torch.equal, dreamt(made, keeping=True), dreamt(made, keeping=False)))


CHANGES: dict[str, Callable[[Learner], object]] = {
    "an update of the world model": lambda made: made.update_world_model(transitions()),
    "an update of the agent": lambda made: made.update_agent(transitions(length=3)),
    "a checkpoint": lambda made: made.load_state_dict({**other().state_dict(), "grouping": None}),
}


def other() -> Learner:
    made = learner()
    for parameter in (*made.world_model.parameters(), *made.agent.parameters()):
        parameter.data.add_(0.1)
    return made


@pytest.mark.parametrize("muon", [False, True], ids=["adam", "muon"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_kept_goes_with_the_weights(change: Callable[[Learner], object], muon: bool) -> None:
    if muon and change is CHANGES["a checkpoint"]:
        pytest.skip("checkpoints of another optimiser do not fit")
    made = learner(muon=muon)
    before = dreamt(made, keeping=True)
    change(made)
    after = dreamt(made, keeping=True)
    assert not close(after, before)
    assert close(after, dreamt(made, keeping=False))


def test_it_is_made_once() -> None:
    cache, owner, plan, made = WeightCache(CPU), object(), object(), []

    def make() -> int:
        made.append(1)
        return len(made)

    with torch.no_grad():
        assert [cached(owner, plan, make), cached(owner, plan, make)] == [1, 2]  # no cache is in use
        with cache.use():
            assert [cached(owner, plan, make), cached(owner, plan, make), cached(owner, object(), make)] == [3, 3, 4]
        with cache.use():
            assert cached(owner, plan, make) == 3
            with torch.autocast("cpu"):
                assert cached(owner, plan, make) == 5
            with torch.enable_grad():
                assert cached(owner, plan, make) == 6
            cache.invalidate()
            assert cached(owner, plan, make) == 7
        assert not is_active()


def test_on_a_gpu_it_lasts_for_the_outermost_block() -> None:
    cache, owner, plan, made = WeightCache(torch.device("cuda")), object(), object(), []
    with torch.no_grad():
        for _ in range(2):
            with cache.use():
                with cache.use():
                    first = cached(owner, plan, lambda: made.append(1))
                assert cached(owner, plan, lambda: made.append(2)) is first
                assert not gathers()
    assert made == [1, 1]


def test_a_compiler_sees_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.no_grad(), WeightCache(CPU).use():
        assert not is_active()
