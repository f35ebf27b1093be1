"""Zero where every expert carries its share; otherwise pushes the over-used ones down."""

import pytest
import torch

from mow.losses import balance_loss, expert_use


def test_balance_by_hand() -> None:
    # K = 2, J = 2, E = 3, share K J / E = 4/3. Loads 2, 1.5, 0.5: (2/3)^2 + (1/6)^2 + (5/6)^2 = 42/36.
    load_KE = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 0.5]])
    assert balance_loss(load_KE).item() == pytest.approx(42 / 36, rel=1e-6)  # float32
    assert expert_use(load_KE).tolist() == pytest.approx([0.5, 0.375, 0.125])


def test_zero_at_perfect_balance() -> None:
    load_KE = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]], requires_grad=True)
    loss = balance_loss(load_KE)
    (gradient,) = torch.autograd.grad(loss, load_KE)
    assert loss.item() == 0.0
    assert gradient.count_nonzero() == 0


def test_gradient_pushes_overused_experts_down_and_idle_ones_up() -> None:
    load_KE = torch.tensor([[1.5, 0.5, 0.0], [1.2, 0.5, 0.3]], requires_grad=True)
    (gradient,) = torch.autograd.grad(balance_loss(load_KE), load_KE)
    # 2 (column sum - share) for every task alike; loads 2.7, 1, 0.3 against a share of 4/3.
    expected = [2 * (2.7 - 4 / 3), 2 * (1 - 4 / 3), 2 * (0.3 - 4 / 3)]
    for row in gradient:
        assert row.tolist() == pytest.approx(expected, rel=1e-5)  # float32


def test_descent_on_router_logits_levels_the_loads() -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    before = balance_loss(2 * logits.softmax(dim=1)).item()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(balance_loss(2 * logits.softmax(dim=1)), logits)
        logits = (logits - 0.05 * gradient).detach().requires_grad_()
    load_KE = 2 * logits.softmax(dim=1)
    assert before > 1e-2, "the start must be out of balance for the rest to say something"
    assert balance_loss(load_KE).item() < 1e-4 * before
    assert expert_use(load_KE).tolist() == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_use_of_no_load_is_zero() -> None:
    assert expert_use(torch.zeros(2, 3)).tolist() == [0, 0, 0]
