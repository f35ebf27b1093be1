"""Policy, entropy and value terms: by hand, weighted by survival, with their stop-gradients."""

import math

import pytest
import torch

from mow.losses import entropy_bonus, entropy_unit, policy_loss, value_loss


def test_policy_loss_by_hand() -> None:
    # Task 0, ratios 2 and 1: -(min(2 * 1, 1.2 * 1) * 1 + 3 * 0.5) / (1 + 0.5) = -2.7 / 1.5.
    # Task 1, ratios 2 and 1/2: -(min(-2, -1.2) + min(2 / 2, 0.8 * 2)) / 2 = -(-2 + 1) / 2.
    old = torch.full((2, 1, 2), -1.0)
    log_prob = old + torch.tensor([[[2.0, 1.0]], [[2.0, 0.5]]]).log()
    advantage = torch.tensor([[[1.0, 3.0]], [[-1.0, 2.0]]])
    weight = torch.tensor([[[1.0, 0.5]], [[1.0, 1.0]]])
    assert policy_loss(log_prob, old, advantage, weight, clip=0.2).tolist() == pytest.approx([-1.8, 0.5])


def test_a_policy_that_moved_far_enough_is_not_pulled_further() -> None:
    # Ratio 2: a good action is likely enough already, a bad one is still to be unlearnt; at 1/2 the other way round.
    log_prob = torch.tensor([[[2.0, 2.0, 0.5, 0.5]]]).log().requires_grad_()
    advantage = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    policy_loss(log_prob, torch.zeros(1, 1, 4), advantage, torch.ones(1, 1, 4)).sum().backward()
    assert log_prob.grad.tolist() == [[[0.0, 0.5, -0.125, 0.0]]]


def test_the_first_step_is_the_score_function() -> None:
    log_prob = torch.randn(2, 3, 4, requires_grad=True)
    advantage = torch.randn(2, 3, 4, requires_grad=True)
    loss = policy_loss(log_prob, log_prob, advantage, torch.ones(2, 3, 4)).sum()
    to_log_prob, to_advantage = torch.autograd.grad(loss, (log_prob, advantage), materialize_grads=True)
    assert to_advantage.count_nonzero() == 0
    # B T = 12: gradient descent raises the log-probability of actions that did better than expected.
    torch.testing.assert_close(to_log_prob, -advantage.detach() / 12, rtol=1e-6, atol=0)  # float32


def test_entropy_by_hand() -> None:
    entropy = torch.tensor([[[0.5, 1.0], [1.5, 9.0]]])
    weight = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    assert entropy_bonus(entropy, weight).tolist() == [1.0]  # (0.5 + 1 + 1.5) / 3


def test_value_loss_by_hand() -> None:
    # Bins -20, 0, 20 and a target of 0: -ln p_1. p = (1/4, 1/2, 1/4) costs ln 2, p = (1/2, 1/4, 1/4) costs ln 4.
    logits = torch.tensor([[1 / 4, 1 / 2, 1 / 4], [1 / 2, 1 / 4, 1 / 4]]).log().view(1, 1, 2, 3)
    got = value_loss(logits, torch.zeros(1, 1, 2), torch.tensor([[[1.0, 3.0]]]))
    assert got.tolist() == pytest.approx([(math.log(2) + 3 * math.log(4)) / 4], rel=1e-6)  # float32


def test_the_target_carries_no_gradient() -> None:
    logits = torch.randn(1, 2, 3, 5, requires_grad=True)
    target = torch.randn(1, 2, 3, requires_grad=True)
    loss = value_loss(logits, target, torch.ones(1, 2, 3)).sum()
    to_logits, to_target = torch.autograd.grad(loss, (logits, target), materialize_grads=True)
    assert to_target.count_nonzero() == 0
    assert to_logits.count_nonzero() == to_logits.numel()


def test_entropy_is_measured_by_what_it_can_be() -> None:
    discrete = torch.zeros(5, 18, dtype=torch.bool)
    for task, number in enumerate((18, 3, 1)):
        discrete[task, :number] = True
    continuous = torch.zeros(5, 6, dtype=torch.bool)
    continuous[3, :6] = continuous[4, :1] = True
    unit = entropy_unit(discrete, continuous)
    assert unit.tolist() == pytest.approx([math.log(18), math.log(3), 1.0, 6.0, 1.0])
    assert entropy_unit(discrete, torch.zeros(5, 0, dtype=torch.bool))[:3].tolist() == unit[:3].tolist()


def test_states_after_the_end_do_not_count() -> None:
    weight = torch.ones(2, 3, 4)
    weight[0, 1, 2:] = 0.0
    log_prob, old, advantage, entropy, target = torch.randn(5, 2, 3, 4).unbind()
    logits = torch.randn(2, 3, 4, 7)

    def losses() -> torch.Tensor:
        return torch.stack(
            [
                policy_loss(log_prob, old, advantage, weight),
                entropy_bonus(entropy, weight),
                value_loss(logits, target, weight),
            ]
        )

    before = losses()
    for x in (log_prob, advantage, entropy, target, logits):
        x[0, 1, 2:] = 1e6
    assert torch.equal(losses(), before)
    log_prob[0, 1, 1] = 1e6
    assert losses()[0, 0] != before[0, 0], "the last state before the end does count"


def test_a_task_without_states_costs_nothing() -> None:
    weight = torch.ones(2, 1, 3)
    weight[0] = 0.0
    log_prob = torch.randn(2, 1, 3, requires_grad=True)
    loss = policy_loss(log_prob, log_prob.detach(), torch.ones(2, 1, 3), weight)
    assert loss[0].item() == 0.0
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    assert gradient[0].count_nonzero() == 0
    assert gradient[1].count_nonzero() == 3


def test_a_bad_action_that_became_far_likelier_does_not_pull_without_bound() -> None:
    # Ratio 100 counts as 3, with no gradient; without the bound the pull would be 100.
    log_prob = torch.tensor([[[100.0, 2.5]]]).log().requires_grad_()
    loss = policy_loss(log_prob, torch.zeros(1, 1, 2), torch.tensor([[[-1.0, -1.0]]]), torch.ones(1, 1, 2))
    assert loss.item() == pytest.approx((3.0 + 2.5) / 2)
    loss.sum().backward()
    assert log_prob.grad.flatten().tolist() == pytest.approx([0.0, 1.25])
