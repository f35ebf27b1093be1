import dataclasses

import pytest
import torch

from tests.small import MODEL, agent


def states(num_tasks=3):
    return torch.randn(num_tasks, 2, 4, 32)


def test_values_start_at_zero():
    # float32 sum of 21 bins that cancel in pairs
    assert agent().value(states()).abs().max() < 1e-5


@pytest.mark.parametrize(("critic", "routes"), [("cluster", [0, 0, 1]), ("shared", [0, 0, 0]), ("per_task", [0, 1, 2])])
def test_which_critic_serves_which_task(critic, routes):
    net = agent(critic=critic)
    assert net.critic_routes.routes.flatten().tolist() == routes
    assert net.critic.output.weight.shape[0] == max(routes) + 1


def test_the_slow_critic_follows():
    net = agent()
    before = net.slow_critic.output.bias.clone()
    with torch.no_grad():
        net.critic.output.bias += 1.0
    net.follow(0.98)
    torch.testing.assert_close(net.slow_critic.output.bias - before, torch.full_like(before, 0.02))
    assert all(not p.requires_grad for p in net.slow_critic.parameters())


def test_the_policy_sees_its_task_only_where_told():
    told = agent(dataclasses.replace(MODEL, condition=("actor", "critic")))
    assert told.actor.linears[0].weight.shape[-1] == 32 + 5
    embedding = torch.randn(3, 5)
    a = told.policy(states(), embedding).outputs
    assert a.shape == (3, 2, 4, 8)  # four logits, mean and spread of two dimensions
    untold = agent()
    x = states()
    torch.testing.assert_close(untold.policy(x, embedding).outputs, untold.policy(x).outputs)


def test_one_actor_serves_all_tasks():
    net = agent()
    x = torch.randn(1, 2, 4, 32).expand(3, -1, -1, -1)
    outputs = net.policy(x).outputs
    torch.testing.assert_close(outputs[0], outputs[2])


def test_memory_is_turned_down_and_the_latent_is_not():
    loud, quiet = agent(), agent(memory_gain=0.1)
    quiet.load_state_dict(loud.state_dict())
    state = states()
    softer = state * torch.cat([torch.ones(16), torch.full((16,), 0.1)])
    for network in ("policy", "value_logits"):
        want, got = getattr(loud, network)(softer), getattr(quiet, network)(state)
        if network == "policy":
            want, got = want.outputs, got.outputs
        torch.testing.assert_close(got, want)
    assert not torch.equal(quiet.policy(state).outputs, loud.policy(state).outputs)
