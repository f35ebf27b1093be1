import torch

from mow.kernels import PhiloxState
from mow.methods.mow.acting import ActingMemory
from tests.small import agent, transitions, world_model


def rng():
    return PhiloxState.from_seed(3, "cpu")


class Seen:
    """Stands in for the agent: keeps the states it acts in, [z_t, h_{t-1}], and z_{t-1} of each."""

    def __init__(self):
        self.states, self.before, self.agent = [], [], agent()

    def actor_critic_input(self, latent, hidden, before):
        self.before.append(before)
        return self.agent.actor_critic_input(latent, hidden, before)

    def policy(self, state, embedding=None):
        self.states.append(state)
        return self.agent.policy(state, embedding)


def test_the_memory_holds_what_a_full_forward_holds():
    """Frame by frame, the agent sees the h_{t-1} that one pass over the same window gives."""
    model, seen, memory, stream = world_model().eval(), Seen(), ActingMemory(16), rng()
    batch, routing = transitions(num_sequences=1, length=8), None
    batch.is_first[:] = False
    batch.is_first[:, :, 0] = True
    batch.is_first[1, 0, 5] = True
    routing = model.route()
    for t in range(8):
        memory.act(model, seen, routing, batch.frame[:, 0, t], batch.is_first[:, 0, t], stream)
        memory.record(batch.action[:, 0, t])
    latent = torch.cat([state[..., :16] for state in seen.states], dim=2)
    hidden = model.sequence_model(latent, batch.action, model.window(batch.is_first), routing)
    for t in range(1, 8):
        want = hidden[:, :, t - 1].masked_fill(batch.is_first[:, :, t, None], 0.0)
        # Float32 over windows of other lengths.
        torch.testing.assert_close(seen.states[t][:, :, 0, 16:], want, rtol=1e-5, atol=1e-5)
    assert seen.states[0][..., 16:].abs().sum() == 0
    assert torch.equal(torch.cat(seen.before, dim=2), model.before(latent, batch.is_first))


def test_only_the_last_steps_are_kept():
    model, seen, memory, stream = world_model().eval(), Seen(), ActingMemory(3), rng()
    batch = transitions(num_sequences=1, length=7)
    batch.is_first[:] = False
    routing = model.route()
    for t in range(7):
        memory.act(model, seen, routing, batch.frame[:, 0, t], batch.is_first[:, 0, t], stream)
        memory.record(batch.action[:, 0, t])
    latent = torch.cat([state[..., :16] for state in seen.states], dim=2)[:, :, 3:6]
    window = model.window(torch.zeros(3, 1, 3, dtype=torch.bool))
    hidden = model.sequence_model(latent, batch.action[:, :, 3:6], window, routing)
    torch.testing.assert_close(seen.states[6][:, :, 0, 16:], hidden[:, :, -1], rtol=1e-5, atol=1e-5)
    assert torch.equal(seen.before[6], latent[:, :, -1:])


def test_actions_are_legal_and_without_gradient():
    model, memory = world_model().eval(), ActingMemory(4)
    batch = transitions(num_sequences=1, length=1)
    action = memory.act(model, agent(), model.route(), batch.frame[:, 0, 0], batch.is_first[:, 0, 0], rng())
    assert action.shape == (3, 6)
    assert torch.equal(action[:2, :4].sum(dim=1), torch.ones(2))
    assert (action[:, 3] == 0).all()  # illegal everywhere
    assert (action[2, :4] == 0).all()
    assert not action.requires_grad
