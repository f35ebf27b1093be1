import copy

import torch

from mow.nn.routes import FixedRoutes, one_each, same_for_all


def test_by_hand():
    assert one_each((0, 0, 2), 3).plan.routes.tolist() == [[0], [0], [2]]
    assert one_each((0, 0, 2), 3).plan.num_experts == 3
    assert same_for_all(2).plan.routes.tolist() == [[0], [0]]
    assert same_for_all(2).plan.num_experts == 1
    for fixed in (one_each((0, 0, 2), 3), same_for_all(2)):
        assert [list(routes) for routes in fixed.plan.known] == fixed.plan.routes.tolist()


def test_the_pairs_are_grouped_once():
    fixed = FixedRoutes(torch.tensor([[1, 2], [0, 1]]), 3)
    member_P, _ = fixed.plan.by_expert()
    assert member_P.tolist() == [2, 0, 3, 1]
    assert fixed.plan.by_expert()[0] is member_P


def test_the_routes_follow_the_model_and_are_not_saved():
    model = torch.nn.Sequential(same_for_all(2))
    assert model.state_dict() == {}
    fixed = model.to("meta")[0]
    assert fixed.plan.routes.device.type == "meta"
    assert fixed.plan is fixed.plan


def test_a_copy_has_a_plan_of_its_own():
    fixed = one_each((0, 1), 2)
    again = copy.deepcopy(fixed)
    assert again.plan.routes is again.routes
    assert again.plan.routes is not fixed.routes
