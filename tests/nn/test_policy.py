"""The policy against torch.distributions: discrete, continuous, and both in one run."""

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from mow.kernels import PhiloxState
from mow.nn.policy import ActionMask, Policy


def rng(seed: int = 0) -> PhiloxState:
    return PhiloxState.from_seed(seed, "cpu")


def discrete(*rows: list[int]) -> ActionMask:
    legal = torch.tensor(rows, dtype=torch.bool)
    return ActionMask(legal, torch.zeros(len(rows), 0, dtype=torch.bool))


def mixed() -> ActionMask:
    """Task 0: three of four discrete actions. Task 1: two of three continuous dimensions."""
    return ActionMask(
        torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool),
        torch.tensor([[0, 0, 0], [1, 1, 0]], dtype=torch.bool),
    )


def reference(outputs: Tensor) -> tuple[Categorical, Normal]:
    """What `mixed()` means for its two tasks, made with torch alone from outputs [2, ..., 4 + 6]."""
    legal = outputs[0][..., [0, 1, 3]]
    mean, spread = outputs[1][..., 4:6], outputs[1][..., 7:9]
    return Categorical(logits=legal), Normal(mean.tanh(), 0.1 + 0.9 * spread.sigmoid())


def test_discrete_by_hand() -> None:
    # Logits 0, ln 3 and an illegal one: p = (1/4, 3/4, 0). H = 1/4 ln 4 + 3/4 ln 4/3 = 0.5623.
    policy = Policy(torch.tensor([[[0.0, 1.0986123, 50.0]]]), discrete([1, 1, 0]))
    assert policy.log_prob(torch.tensor([[[0.0, 1.0, 0.0]]])).item() == pytest.approx(-0.2876821, rel=1e-5)  # ln 3/4
    assert policy.entropy().item() == pytest.approx(0.5623351, rel=1e-5)


def test_gaussian_by_hand() -> None:
    # Mean tanh 0 = 0, std 0.1 + 0.9 / 2 = 0.55; at a = 0.55: -1/2 - ln 0.55 - ln sqrt(2 pi) = -0.8211.
    mask = ActionMask(torch.zeros(1, 0, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool))
    policy = Policy(torch.zeros(1, 1, 2), mask)
    assert policy.log_prob(torch.full((1, 1, 1), 0.55)).item() == pytest.approx(-0.8211015, rel=1e-5)
    assert policy.entropy().item() == pytest.approx(0.8211015, rel=1e-5)  # 1/2 + ln 0.55 + ln sqrt(2 pi)


def test_illegal_actions_are_never_drawn_even_where_their_logit_is_highest() -> None:
    mask = discrete([0, 1, 0, 1, 0], [1, 0, 0, 0, 0])
    outputs = torch.tensor([30.0, 0.0, 30.0, 1.0, 30.0]).expand(2, 20_000, 5)
    action, raw = Policy(outputs, mask).sample(rng())
    assert torch.equal(action, raw)
    assert torch.equal(action.sum(dim=-1), torch.ones(2, 20_000))
    drawn = action.sum(dim=1)  # [2, 5]
    assert (drawn[~mask.discrete] == 0).all()
    assert (drawn[mask.discrete] > 0).all()


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    action, _ = Policy(logits.expand(1, 40_000, 4), discrete([1, 1, 0, 1])).sample(rng(3))
    counts = action[0].sum(dim=0)[[0, 1, 3]].double()
    expected = 40_000 * logits[[0, 1, 3]].double().softmax(dim=0)
    # One fixed seed; a correct sampler is refused with probability 10^-4 before the seed is chosen.
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-4


def test_raw_continuous_draws_are_normal_and_actions_clipped() -> None:
    mask = ActionMask(torch.zeros(1, 0, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool))
    outputs = torch.tensor([2.0, -0.3, 4.0, -4.0]).expand(1, 20_000, 4)
    action, raw = Policy(outputs, mask).sample(rng(5))
    mean, std = torch.tensor([2.0, -0.3]).tanh(), 0.1 + 0.9 * torch.tensor([4.0, -4.0]).sigmoid()
    for dim in range(2):
        z = (raw[0, :, dim] - mean[dim]) / std[dim]
        assert kstest(z.numpy(), "norm").pvalue > 1e-4  # one fixed seed, as above
    assert abs(torch.corrcoef(raw[0].T)[0, 1].item()) < 0.03, "four standard deviations of 1 / sqrt(20000)"
    assert raw.max() > 1.5
    assert torch.equal(action, raw.clamp(-1, 1))


@pytest.mark.parametrize("middle", [(), (3,), (2, 5)])
def test_log_prob_and_entropy_against_torch(middle: tuple[int, ...]) -> None:
    outputs = 2 * torch.randn(2, *middle, 10)
    policy = Policy(outputs, mixed())
    _, raw = policy.sample(rng())
    categorical, normal = reference(outputs.double())
    index = raw[0][..., [0, 1, 3]].argmax(dim=-1)
    expected = torch.stack([categorical.log_prob(index), normal.log_prob(raw[1][..., 4:6].double()).sum(dim=-1)])
    got = policy.log_prob(raw)
    assert got.shape == (2, *middle)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)  # float32 against float64
    expected = torch.stack([categorical.entropy(), normal.entropy().sum(dim=-1)])
    torch.testing.assert_close(policy.entropy().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("middle", [(), (2, 5)])
def test_divergence_against_torch(middle: tuple[int, ...]) -> None:
    outputs = 2 * torch.randn(2, 2, *middle, 10)
    one, other = (Policy(x, mixed()) for x in outputs)
    (categorical, normal), (other_categorical, other_normal) = (reference(x.double()) for x in outputs)
    expected = [kl_divergence(categorical, other_categorical), kl_divergence(normal, other_normal).sum(dim=-1)]
    torch.testing.assert_close(one.divergence(other).double(), torch.stack(expected), rtol=1e-5, atol=1e-5)  # as above
    assert one.divergence(one).abs().max() < 1e-6


def test_gradients_against_torch() -> None:
    outputs = torch.randn(2, 6, 10, requires_grad=True)
    policy = Policy(outputs, mixed())
    _, raw = policy.sample(rng())
    ours = torch.autograd.grad(policy.log_prob(raw).sum() + 0.3 * policy.entropy().sum(), outputs)[0]
    exact = outputs.detach().double().requires_grad_()
    categorical, normal = reference(exact)
    log_prob = categorical.log_prob(raw[0][..., [0, 1, 3]].argmax(dim=-1)).sum()
    log_prob = log_prob + normal.log_prob(raw[1][..., 4:6].double()).sum()
    entropy = categorical.entropy().sum() + normal.entropy().sum()
    theirs = torch.autograd.grad(log_prob + 0.3 * entropy, exact)[0]
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)  # float32; squares of z up to 10
    assert ours[0, :, 4:].count_nonzero() == 0, "a discrete task leaves the Gaussian outputs alone"
    assert ours[1, :, :4].count_nonzero() == 0, "a continuous task leaves the logits alone"
    assert ours[0, :, 2].count_nonzero() == 0, "an illegal action learns nothing"


def test_the_block_that_a_task_does_not_use_is_zero_and_counts_for_nothing() -> None:
    outputs = torch.randn(2, 50, 10)
    policy = Policy(outputs, mixed())
    action, raw = policy.sample(rng())
    for x in (action, raw):
        assert x.shape == (2, 50, 7)
        assert x[0, :, 4:].count_nonzero() == 0
        assert x[1, :, :4].count_nonzero() == 0
        assert x[1, :, 6].count_nonzero() == 0, "the dimension that task 1 lacks"
    changed = outputs.clone()
    changed[0, :, 4:] = 7.0
    changed[1, :, :4] = -7.0
    changed[1, :, [6, 9]] = 5.0
    other = Policy(changed, mixed())
    assert torch.equal(policy.log_prob(raw), other.log_prob(raw))
    assert torch.equal(policy.entropy(), other.entropy())


def test_same_seed_same_actions_and_a_draw_advances() -> None:
    policy = Policy(torch.randn(2, 30, 10), mixed())
    state = rng(1)
    first, second, again = policy.sample(state)[1], policy.sample(state)[1], policy.sample(rng(1))[1]
    assert torch.equal(first, again)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_a_continuous_draw_advances() -> None:
    mask = ActionMask(torch.zeros(1, 0, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool))
    policy, state = Policy(torch.zeros(1, 5, 4), mask), rng(1)
    assert not torch.equal(policy.sample(state)[1], policy.sample(state)[1])


def test_samples_carry_no_gradient_and_half_precision_works() -> None:
    outputs = torch.randn(2, 4, 10, dtype=torch.bfloat16, requires_grad=True)
    policy = Policy(outputs, mixed())
    action, raw = policy.sample(rng())
    assert not action.requires_grad
    assert not raw.requires_grad
    assert action.dtype == policy.log_prob(raw).dtype == policy.entropy().dtype == torch.float32
    assert policy.log_prob(raw).isfinite().all()


def test_one_legal_action_has_no_entropy() -> None:
    policy = Policy(torch.randn(1, 3, 4), discrete([0, 0, 1, 0]))
    assert policy.entropy().tolist() == [[0.0, 0.0, 0.0]]
    assert policy.log_prob(policy.sample(rng())[1]).tolist() == [[0.0, 0.0, 0.0]]


def test_mask_counts_and_reorders() -> None:
    mask = mixed()
    assert (mask.num_outputs, mask.action_size) == (10, 7)
    swapped = mask.reorder(torch.tensor([1, 0]))
    assert torch.equal(swapped.discrete[1], mask.discrete[0])
    assert torch.equal(swapped.continuous[0], mask.continuous[1])
