"""Both KL terms: value, whose gradient, the floor per task, and no pair across an episode border."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from mow.losses import latent_losses


def no_borders(logits: Tensor) -> Tensor:
    """leads_on [K, B, L - 1] of windows that stay in one episode."""
    return torch.ones(logits[:, :, 1:].shape[:3], dtype=torch.bool)


def log_prob(*rows: tuple[float, float]) -> Tensor:
    """Logits of steps with one group of two classes: [1, 1, L, 1, 2]."""
    return torch.tensor(rows).log().view(1, 1, len(rows), 1, 2)


def test_latent_losses_by_hand() -> None:
    # Post at t = 1 is (3/4, 1/4), the prior made at t = 0 says (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2 = 0.1308.
    # Post at t = 2 is (1/2, 1/2), the prior made at t = 1 says (3/4, 1/4): 1/2 ln 2/3 + 1/2 ln 2 = 0.1438.
    posterior = log_prob((0.1, 0.9), (0.75, 0.25), (0.5, 0.5))
    prior = log_prob((0.5, 0.5), (0.75, 0.25), (0.2, 0.8))
    got = latent_losses(posterior, prior, no_borders(posterior), unimix=0.0, free_bits=0.0)
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    for name, loss in got._asdict().items():
        assert loss.shape == (1,), name
        assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5), name  # float32


def test_value_against_torch_distributions() -> None:
    posterior, prior = torch.randn(2, 3, 2, 4, 5, 6, dtype=torch.float64).unbind()
    got = latent_losses(posterior, prior, no_borders(posterior), unimix=0.01, free_bits=0.0)
    p, q = (0.99 * x.softmax(dim=-1) + 0.01 / 6 for x in (posterior[:, :, 1:], prior[:, :, :-1]))
    expected = kl_divergence(Categorical(probs=p), Categorical(probs=q)).sum(dim=-1).mean(dim=(1, 2))
    torch.testing.assert_close(got.dynamics, expected, rtol=1e-12, atol=0)  # float64
    torch.testing.assert_close(got.representation, expected, rtol=1e-12, atol=0)


def test_each_term_trains_one_side() -> None:
    posterior, prior = (torch.randn(1, 2, 3, 2, 4, requires_grad=True) for _ in range(2))
    got = latent_losses(posterior, prior, no_borders(posterior), unimix=0.01, free_bits=0.0)
    to_posterior, to_prior = torch.autograd.grad(
        got.dynamics.sum(), (posterior, prior), retain_graph=True, materialize_grads=True
    )
    assert to_posterior.count_nonzero() == 0
    assert (to_prior[:, :, :-1] != 0).all()
    assert to_prior[:, :, -1].count_nonzero() == 0, "what the last step foretells is not in the window"
    to_posterior, to_prior = torch.autograd.grad(
        got.representation.sum(), (posterior, prior), materialize_grads=True
    )
    assert to_prior.count_nonzero() == 0
    assert (to_posterior[:, :, 1:] != 0).all()
    assert to_posterior[:, :, 0].count_nonzero() == 0, "nothing foretold the first step"
    assert not got.kl.requires_grad


def test_free_bits_stop_a_task_and_leave_its_neighbour() -> None:
    posterior = torch.zeros(2, 1, 3, 1, 4)
    posterior[0, ..., 0] = 0.5  # task 0: close to the prior, far below one nat
    posterior[1, ..., 0] = 20.0  # task 1: certain against a uniform prior, ln 4 = 1.386 nats
    posterior.requires_grad_()
    prior = torch.zeros(2, 1, 3, 1, 4, requires_grad=True)
    got = latent_losses(posterior, prior, no_borders(prior), unimix=0.01, free_bits=1.0)
    assert got.kl[0] < 0.1
    assert got.kl[1] > 1.3
    assert got.dynamics[0].item() == got.representation[0].item() == 1.0
    assert got.dynamics[1].item() == got.representation[1].item() == got.kl[1].item()
    to_posterior, to_prior = torch.autograd.grad(got.dynamics.sum() + got.representation.sum(), (posterior, prior))
    assert to_posterior[0].count_nonzero() == to_prior[0].count_nonzero() == 0
    assert to_posterior[1].count_nonzero() > 0
    assert to_prior[1].count_nonzero() > 0


def test_floor_acts_after_the_mean() -> None:
    # Pairs of ln 4 = 1.386 and 0 nats: floored one by one their mean would be 1.19, after the mean (0.69) it is 1.
    posterior = torch.zeros(1, 1, 3, 1, 4)
    posterior[0, 0, 1, 0, 0] = 50.0
    got = latent_losses(posterior, torch.zeros_like(posterior), no_borders(posterior), unimix=0.0, free_bits=1.0)
    assert got.kl.item() == pytest.approx(math.log(4) / 2, rel=1e-6)  # float32
    assert got.dynamics.item() == 1.0


@pytest.mark.parametrize("border", [1, 2, 4])
def test_what_lies_across_a_border_does_not_count(border: int) -> None:
    posterior, prior = torch.randn(2, 1, 2, 5, 3, 4).unbind()
    leads_on = no_borders(posterior)
    leads_on[0, 1, border - 1] = False
    before = latent_losses(posterior, prior, leads_on, unimix=0.01, free_bits=0.0)
    prior[0, 1, border - 1] = 9 * torch.randn(3, 4)  # foretells the step that opens an episode
    after = latent_losses(posterior, prior, leads_on, unimix=0.01, free_bits=0.0)
    assert torch.equal(before.dynamics, after.dynamics)
    assert torch.equal(before.representation, after.representation)
    without = latent_losses(posterior, prior, no_borders(posterior), unimix=0.01, free_bits=0.0)
    assert without.kl.item() != pytest.approx(after.kl.item(), rel=1e-3), "the changed prior would show if it counted"


def test_mean_runs_over_the_pairs_that_count() -> None:
    # Pair (0, 1) has ln 4 nats and counts, pair (1, 2) crosses a border: the mean is ln 4, not half of it.
    posterior = torch.zeros(1, 1, 3, 1, 4)
    posterior[0, 0, 1, 0, 0] = 50.0
    leads_on = torch.tensor([[[True, False]]])
    got = latent_losses(posterior, torch.zeros_like(posterior), leads_on, unimix=0.0, free_bits=0.0)
    assert got.kl.item() == pytest.approx(math.log(4), rel=1e-6)  # float32


def test_no_pair_at_all_gives_the_floor() -> None:
    posterior = torch.randn(1, 2, 3, 1, 4)
    leads_on = torch.zeros(1, 2, 2, dtype=torch.bool)
    got = latent_losses(posterior, torch.zeros_like(posterior), leads_on, unimix=0.01, free_bits=1.0)
    assert (got.kl.item(), got.dynamics.item(), got.representation.item()) == (0.0, 1.0, 1.0)
