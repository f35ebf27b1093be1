import dataclasses

import pytest
import torch

from mow.kernels import PhiloxState
from mow.losses import reconstruction_loss
from mow.methods.mow.config import LossConfig
from mow.methods.mow.world_model_loss import world_model_losses
from tests.small import ARRIVAL, LOCAL_ARRIVAL, MODEL, transitions, world_model


def losses(model, batch, config, turn=0):
    return world_model_losses(model, batch, model.route(), PhiloxState.from_seed(0, "cpu"), config, turn=turn)


def test_terms_and_their_weights():
    config = LossConfig(reconstruction=2.0, reward=3.0, termination=5.0, task=7.0, dynamics=11.0, representation=13.0)
    found = losses(world_model().eval(), transitions(), config)
    assert list(found.terms) == ["reconstruction", "reward", "termination", "dynamics", "representation", "task"]
    want = sum(w * found.terms[n] for n, w in vars(config).items() if n in found.terms)
    torch.testing.assert_close(found.weighted(config).sum(dim=1), want)
    assert found.balance.shape == ()
    assert found.kl.shape == (3,)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_the_turns_together_decode_every_step_once(every):
    model, batch = world_model().eval(), transitions()
    logits = model.encode(batch.frame)
    latent = model.sample(logits, PhiloxState.from_seed(0, "cpu"))
    whole = model.decode(latent)
    total = torch.zeros(3)
    for turn in range(every):
        part = losses(model, batch, LossConfig(reconstruct_every=every), turn).terms["reconstruction"]
        chosen = slice(turn, None, every)
        steps = len(range(6)[chosen])
        want = reconstruction_loss(whole[:, :, chosen], batch.frame[:, :, chosen])
        torch.testing.assert_close(part, want, rtol=1e-4, atol=1e-4)  # float32 sums of 12,288 squares
        total += part * steps / 6
    torch.testing.assert_close(total, reconstruction_loss(whole, batch.frame), rtol=1e-4, atol=1e-4)


def test_without_the_task_head_there_is_no_task_loss():
    model = world_model(dataclasses.replace(MODEL, task_head=False))
    assert "task" not in losses(model, transitions(), LossConfig()).terms


def test_an_ended_episode_does_not_train_the_prior_across():
    """Whatever the next episode begins with, the prior at the end of the last one gets no gradient from it."""
    model = world_model()
    batch = transitions(num_sequences=1, length=2)
    batch.is_first[:] = True
    losses(model, batch, LossConfig(free_bits=0.0)).terms["dynamics"].sum().backward()
    assert model.heads.prior.next_latent.weight.grad.abs().sum() == 0


# Losses of the paper's form before its third update, by task; written by the version that knew no other form.
LITERAL = {
    "reconstruction": [4955.40283, 4939.89697, 4139.35498],
    "reward": [3.0172708, 3.01864362, 3.01946902],
    "termination": [0.866404831, 0.701883793, 0.877823353],
    "dynamics": [0.452360809, 0.407738537, 0.33591333],
    "representation": [0.452360809, 0.407738537, 0.33591333],
    "task": [1.03048146, 0.958993196, 1.23537123],
}


def test_the_literal_form_has_the_losses_that_it_had():
    """Two updates with Adam, then one look: no change of another form may reach these numbers."""
    torch.manual_seed(0)
    model, rng = world_model(), PhiloxState.from_seed(3, "cpu")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for turn in range(3):
        found = world_model_losses(model, transitions(seed=turn), model.route(), rng, LossConfig(free_bits=0.0))
        optimiser.zero_grad()
        found.weighted(LossConfig()).sum().backward()
        optimiser.step()
    for name, wanted in LITERAL.items():
        # 1e-4: other machines sum float32 in another order, and Adam divides by small numbers.
        torch.testing.assert_close(found.terms[name].detach(), torch.tensor(wanted), rtol=1e-4, atol=0.0, msg=name)


def ended():
    """Windows [3, 1, L] whose step 1 ends an episode; its final frame stands at step 2, the next one's first at 3."""
    batch = transitions(num_sequences=1, length=5)
    for flags in (batch.is_first, batch.terminated, batch.is_last):
        flags[:] = False
    batch.is_first[:, :, [0, 3]] = True
    batch.terminated[:, :, 1] = batch.is_last[:, :, 2] = True
    batch.action[:, :, 2], batch.reward[:, :, 2] = 0.0, 0.0
    return batch


def awake(config):
    """A world model whose heads do not start at zero."""
    torch.manual_seed(0)
    model = world_model(config).eval()
    torch.nn.init.normal_(model.heads.reward.output.weight, std=0.5)
    return model


@pytest.mark.parametrize("config", [ARRIVAL, LOCAL_ARRIVAL], ids=["dense", "local"])
def test_only_steps_that_lead_on_teach_reward_and_termination(config):
    """Neither a final frame (2) nor the last step of a window (4), whose z_{t+1} is not there, has a say."""
    model, batch = awake(config), ended()
    before = losses(model, batch, LossConfig()).terms
    for t in range(5):
        other = ended()
        other.reward[:, :, t] += 3.0
        other.terminated[:, :, t] ^= True
        after = losses(model, other, LossConfig()).terms
        for name in ("reward", "termination"):
            assert torch.equal(before[name], after[name]) == (t in (2, 4)), (t, name)


def test_a_final_frame_is_foretold_and_foretells_nothing():
    """The prior made at the ending step is trained with it; the one made at the final frame is not trained."""
    model, batch = awake(ARRIVAL), ended()
    no_floor = LossConfig(free_bits=0.0)
    before = losses(model, batch, no_floor).terms
    batch.action[:, :, 2] = 1.0  # reaches h_2 alone: what it foretells, and whose task it is
    after = losses(model, batch, no_floor).terms
    assert all(torch.equal(before[name], after[name]) for name in before)
    batch.action[:, :, 1] = 1.0 - batch.action[:, :, 1]  # h_1 foretells the final frame
    after = losses(model, batch, no_floor).terms
    assert not any(torch.equal(before[name], after[name]) for name in ("dynamics", "reward", "termination", "task"))
    batch = ended()
    batch.frame[:, :, 2] = 255 - batch.frame[:, :, 2]
    after = losses(model, batch, no_floor).terms
    assert not any(torch.equal(before[name], after[name]) for name in ("reconstruction", "dynamics"))


def test_windows_blind_to_ends_foretell_nothing_from_a_final_frame():
    model, batch = world_model(ARRIVAL, across_episodes=True).eval(), ended()
    no_floor = LossConfig(free_bits=0.0)
    before = losses(model, batch, no_floor).terms["dynamics"]
    batch.is_last[:] = False
    assert not torch.equal(before, losses(model, batch, no_floor).terms["dynamics"])


def test_a_lost_life_is_not_an_end():
    """A termination without a first step behind it: the next frame is what it led to."""
    batch = ended()
    batch.is_first[:, :, 3] = batch.is_last[:, :, 2] = False
    assert batch.leads_on.all()
    assert ended().leads_on[0, 0].tolist() == [True, True, False, True]
