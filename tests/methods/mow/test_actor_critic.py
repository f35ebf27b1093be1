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
    net.update_target_critic(0.98)
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


def seen_parts(net):
    """What `see` makes of random states, and these: see, latent, hidden, before."""
    latent, hidden, before = (torch.randn(3, 2, 4, 16) for _ in range(3))
    hidden[0, 0, 0] = 0.0  # no past
    return net.actor_critic_input(latent, hidden, before), latent, hidden, before


def test_the_literal_state_is_latent_and_memory_as_they_are():
    state, latent, hidden, _ = seen_parts(agent())
    assert torch.equal(state, torch.cat([latent, hidden], dim=-1))


def test_memory_is_turned_down_and_the_latent_is_not():
    state, latent, hidden, _ = seen_parts(agent(memory_gain=0.1))
    assert torch.equal(state, torch.cat([latent, 0.1 * hidden], dim=-1))


def test_memory_is_brought_to_one_scale_before_it_is_turned_down():
    state, latent, hidden, _ = seen_parts(agent(memory_gain=2.0, memory_norm=True))
    spread = hidden.std(dim=-1, correction=0, keepdim=True)
    want = 2.0 * (hidden - hidden.mean(dim=-1, keepdim=True)) / spread.clamp_min(1e-6)
    assert torch.equal(state[..., :16], latent)
    # Layer norm adds 1e-5 to a variance of about 1.
    torch.testing.assert_close(state[..., 16:], want, rtol=1e-4, atol=1e-4)
    assert not state[0, 0, 0, 16:].any()


def test_the_agent_sees_the_latent_before():
    net = agent(frames=2)
    state, latent, hidden, before = seen_parts(net)
    assert torch.equal(state, torch.cat([latent, before, hidden], dim=-1))
    assert net.actor.linears[0].in_features == net.critic.linears[0].in_features == 48
    other = net.actor_critic_input(latent, hidden, before.roll(1, dims=0))
    assert not torch.equal(net.policy(state).outputs, net.policy(other).outputs)
    with pytest.raises(ValueError, match="frames must be 1 or 2, got 3"):
        agent(frames=3)
