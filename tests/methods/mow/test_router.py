import dataclasses

import pytest
import torch

from mow.kernels import PhiloxState
from mow.losses import balance_loss
from mow.methods.mow.config_model import ExpertsConfig, RoutingConfig
from mow.methods.mow.experts import unit_length
from mow.methods.mow.router import Router
from tests.small import MODEL, world_model

EXPERTS = ExpertsConfig(num_experts=5, experts_per_task=2, num_layers=1)


def make(scale="straight_through"):
    torch.manual_seed(3)
    return Router(6, EXPERTS, RoutingConfig(hidden=8, scale=scale)), unit_length(torch.randn(4, 6))


def test_routes_are_the_top_scores_in_ascending_order():
    router, embedding = make()
    routing = router(embedding)
    logits = router.output(router.hidden(embedding).relu())
    want = logits.topk(2).indices.sort(dim=-1).values
    assert torch.equal(routing.plan.routes, want)
    shares = logits.softmax(dim=-1).gather(1, want)
    torch.testing.assert_close(routing.weight_KJ, shares / shares.sum(dim=1, keepdim=True))


def test_temperature_flattens_the_shares_and_keeps_the_choice():
    router, embedding = make()
    cold, hot = router(embedding, temperature=1.0), router(embedding, temperature=50.0)
    assert torch.equal(cold.plan.routes, hot.plan.routes)
    assert (hot.weight_KJ - 0.5).abs().max() < (cold.weight_KJ - 0.5).abs().max()


def test_noise_changes_the_choice_and_is_drawn_from_the_stream():
    router, embedding = make()
    rng = PhiloxState.from_seed(0, "cpu")
    drawn = [router(embedding, noise=5.0, rng=rng).plan.routes for _ in range(20)]
    assert any(not torch.equal(a, drawn[0]) for a in drawn)
    again = router(embedding, noise=5.0, rng=PhiloxState.from_seed(0, "cpu")).plan.routes
    assert torch.equal(again, drawn[0])


def test_frozen_routes_stay_while_shares_follow():
    router, embedding = make()
    frozen = torch.tensor([[0, 1]] * 4)
    routing = router(embedding, frozen=frozen)
    assert torch.equal(routing.plan.routes, frozen)
    torch.testing.assert_close(routing.weight_KJ.sum(dim=1), torch.ones(4))


def test_load_rows_sum_to_the_slots_and_balance_is_reachable():
    router, embedding = make()
    load = router(embedding).load()
    torch.testing.assert_close(load.sum(dim=1), torch.full((4,), 2.0))
    even = torch.full((5, 5), 2 / 5)
    assert balance_loss(even) < 1e-12


def test_straight_through_scale_is_exactly_one_and_carries_the_tasks_gradient():
    router, embedding = make()
    routing = router(embedding)
    assert torch.equal(routing.scale_KJ, torch.ones(4, 2))
    (routing.scale_KJ * torch.tensor([1.0, 2.0])).sum().backward()
    assert router.hidden.weight.grad.abs().max() > 0


def test_other_scales():
    assert make("none")[0](make()[1]).scale_KJ is None
    router, embedding = make("plain")
    routing = router(embedding)
    torch.testing.assert_close(routing.scale_KJ, 2 * routing.weight_KJ)


@pytest.mark.parametrize(
    ("method", "want"), [("hash", [[0, 1], [2, 3], [0, 4]]), ("cluster", [[0, 1], [0, 1], [2, 3]])]
)
def test_fixed_experts(method, want):
    config = dataclasses.replace(MODEL, experts=EXPERTS, routing=RoutingConfig(method=method))
    routing = world_model(config, modules=(0, 0, 1)).route()
    assert routing.plan.routes.tolist() == want
    assert routing.load() is None


def test_unit_length():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    torch.testing.assert_close(unit_length(vectors), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
