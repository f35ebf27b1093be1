"""Reward, termination and task heads: values by hand, one number per task."""

import math

import pytest
import torch

from mow.losses import reward_loss, task_loss, termination_loss


def test_reward_loss_by_hand() -> None:
    # Three bins at -20, 0, 20. Reward 0 sits on the middle one: -ln p_1. Symlog 5 lies a quarter of the way to the
    # last: -(3/4 ln p_1 + 1/4 ln p_2). With p = (1/2, 1/4, 1/4) both give ln 4; with p = (1/8, 1/8, 3/4) they differ.
    logits = torch.tensor([[1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4]]).log().view(2, 1, 1, 3).expand(2, 1, 2, 3)
    reward = torch.tensor([0.0, math.exp(5) - 1]).expand(2, 1, 2)
    got = reward_loss(logits, reward)
    second = (math.log(8) + 0.75 * math.log(8) + 0.25 * math.log(4 / 3)) / 2
    assert got.tolist() == pytest.approx([math.log(4), second], rel=1e-5)  # float32


def test_reward_loss_is_least_at_the_code_of_the_reward() -> None:
    reward = torch.tensor([[[3.0, -40.0]]])
    logits = torch.zeros(1, 1, 2, 255, requires_grad=True)
    # Cross-entropy has the gradient p - code: descending it must end at two bins per reward whose mean is its symlog.
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        reward_loss(logits, reward).sum().backward()
        optimizer.step()
    mean = logits.detach().softmax(dim=-1) @ torch.linspace(-20, 20, 255)
    expected = reward.sign() * reward.abs().log1p()
    # The 253 other bins keep a little mass after 300 steps; a wrong bin would be off by 0.157.
    torch.testing.assert_close(mean, expected, rtol=0, atol=2e-2)


def test_termination_loss_by_hand() -> None:
    # Logit ln 3 means p = 3/4. Task 0: one end foreseen with 3/4, one step wrongly with 3/4: (ln 4/3 + ln 4) / 2.
    # Task 1: logits of 0 cost ln 2 whatever happens.
    logits = torch.tensor([[[math.log(3), math.log(3)]], [[0.0, 0.0]]])
    terminated = torch.tensor([[[True, False]], [[True, True]]])
    got = termination_loss(logits, terminated)
    assert got.tolist() == pytest.approx([(math.log(4 / 3) + math.log(4)) / 2, math.log(2)], rel=1e-6)  # float32


def test_termination_loss_survives_certainty() -> None:
    logits = torch.tensor([[[200.0, -200.0]]], requires_grad=True)
    loss = termination_loss(logits, torch.tensor([[[False, True]]]))
    assert loss.item() == 200.0
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.tolist() == [[[0.5, -0.5]]]  # (sigmoid - target) / 2 steps


@pytest.mark.parametrize("num_tasks", [1, 2, 26])
def test_task_loss_of_no_idea_is_ln_k(num_tasks: int) -> None:
    got = task_loss(torch.zeros(num_tasks, 2, 3, num_tasks))
    assert got.tolist() == pytest.approx([math.log(num_tasks)] * num_tasks, rel=1e-6)  # float32


def test_task_loss_by_hand() -> None:
    # Every step says p = (3/4, 1/4): task 0 pays ln 4/3, task 1 pays ln 4.
    logits = torch.tensor([0.75, 0.25]).log().expand(2, 1, 2, 2)
    assert task_loss(logits).tolist() == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-6)  # float32


def test_task_loss_counts_every_step_of_its_own_task() -> None:
    logits = torch.zeros(3, 2, 4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(task_loss(logits).sum(), logits)
    # (1/3 - [own task]) / (B L): up for the own entry, down for the others, at each of the 8 steps.
    expected = (torch.full((3, 3), 1 / 3) - torch.eye(3)).view(3, 1, 1, 3).expand(3, 2, 4, 3) / 8
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)  # float32
