"""The weighted loss by hand, and where its scale comes to rest."""

import math

import pytest
import torch

from mow.losses import harmony_loss


def test_harmony_by_hand() -> None:
    # sigma = 1: L + ln 2. sigma = 4: L / 4 + ln 5.
    got = harmony_loss(torch.tensor([3.0, 3.0]), torch.tensor([0.0, math.log(4)]))
    assert got.tolist() == pytest.approx([3 + math.log(2), 0.75 + math.log(5)], rel=1e-6)  # float32


@pytest.mark.parametrize("loss", [0.01, 0.5, 1.0, 40.0, 3000.0])
def test_descent_ends_where_sigma_squared_is_loss_times_one_plus_sigma(loss: float) -> None:
    log_sigma = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_sigma], max_iter=200, tolerance_grad=1e-9, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )
    value = torch.tensor([loss], dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = harmony_loss(value, log_sigma).sum()
        total.backward()
        return total

    optimizer.step(closure)
    sigma = log_sigma.exp().item()
    assert sigma**2 == pytest.approx(loss * (1 + sigma), rel=1e-6)  # the search stops at 1e-9
    assert sigma == pytest.approx((loss + math.sqrt(loss**2 + 4 * loss)) / 2, rel=1e-6)


def test_a_loud_task_weighs_one_in_the_end() -> None:
    loss = torch.tensor(1e4, dtype=torch.float64)
    sigma = (loss + (loss**2 + 4 * loss).sqrt()) / 2
    weighted = loss / sigma
    assert weighted.item() == pytest.approx(1.0, rel=1e-3)  # L / (L + 1)
    # Gradient of the loss itself is 1 / sigma: a task whose loss is 10^4 times larger pulls no harder.
    loss.requires_grad_()
    (gradient,) = torch.autograd.grad(harmony_loss(loss, sigma.log()), loss)
    assert gradient.item() == pytest.approx(1 / sigma.item(), rel=1e-12)  # float64


def test_any_shape_elementwise() -> None:
    loss, log_sigma = torch.rand(2, 3, 4).unbind()
    whole = harmony_loss(loss, log_sigma)
    assert whole.shape == (3, 4)
    assert torch.equal(whole[1, 2], harmony_loss(loss[1, 2], log_sigma[1, 2]))
