"""Imagined returns against hand-worked numbers and a direct loop; the running range of returns per task."""

import itertools

import pytest
import torch
from torch import Tensor

from mow.losses.returns import ReturnScale, imagined_return

CPU = torch.device("cpu")


def storm_return(reward: Tensor, terminated: Tensor, value: Tensor, discount: float, lam: float) -> Tensor:
    """G_t = r_t + discount (1 - c_t) [(1 - lam) v(s_t) + lam G_{t+1}], G_T = v(s_T), written out for one row."""
    following, returns = value[-1], torch.empty_like(reward)
    for t in reversed(range(len(reward))):
        going_on = 0.0 if terminated[t] else 1.0
        following = reward[t] + discount * going_on * ((1 - lam) * value[t] + lam * following)
        returns[t] = following
    return returns


def test_imagined_return_by_hand() -> None:
    # discount = lam = 1/2. R_1 = 2 + 1/2 * 8 = 6; R_0 = 1 + 1/2 (1/2 * 4 + 1/2 * 6) = 3.5.
    reward, value = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[9.0, 4.0, 8.0]]])
    terminated = torch.zeros(1, 1, 2, dtype=torch.bool)
    assert imagined_return(reward, terminated, value, discount=0.5, lam=0.5).tolist() == [[[3.5, 6.0]]]


def test_nothing_counts_after_the_end() -> None:
    # The end after action 0: R_0 = r_0 = 1. What stands behind it has its own return, 2 + 1/2 * 8.
    reward, value = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[9.0, 4.0, 8.0]]])
    terminated = torch.tensor([[[True, False]]])
    assert imagined_return(reward, terminated, value, discount=0.5, lam=0.5).tolist() == [[[1.0, 6.0]]]


def test_an_expected_end_takes_its_share() -> None:
    # R_1 = 2 + 1/2 * 8 = 6 for certain; R_0 = 1 + 1/2 (1 - 1/4) [1/2 * 4 + 1/2 * 6] = 2.875.
    reward, value = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[9.0, 4.0, 8.0]]])
    terminated = torch.tensor([[[0.25, 0.0]]])
    assert imagined_return(reward, terminated, value, discount=0.5, lam=0.5).tolist() == [[[2.875, 6.0]]]


def test_storm_index_by_hand() -> None:
    # R_1 = 2 + 1/2 (1/2 * 4 + 1/2 * 8) = 5; R_0 = 1 + 1/2 (1/2 * 9 + 1/2 * 5) = 4.5.
    reward, value = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[9.0, 4.0, 8.0]]])
    terminated = torch.zeros(1, 1, 2, dtype=torch.bool)
    got = imagined_return(reward, terminated, value, discount=0.5, lam=0.5, storm_index=True)
    assert got.tolist() == [[[4.5, 5.0]]]


@pytest.mark.parametrize("horizon", [1, 2, 3, 16])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_storm_index_is_storms_recursion(horizon: int, lam: float) -> None:
    reward = torch.randn(2, 3, horizon, dtype=torch.float64)
    value = torch.randn(2, 3, horizon + 1, dtype=torch.float64)
    terminated = torch.rand(2, 3, horizon) < 0.2
    got = imagined_return(reward, terminated, value, discount=0.985, lam=lam, storm_index=True)
    for k, b in itertools.product(range(2), range(3)):
        expected = storm_return(reward[k, b], terminated[k, b], value[k, b], 0.985, lam)
        # The continuation is a float32 tensor, so that the discount is rounded to 2^-24.
        torch.testing.assert_close(got[k, b], expected, rtol=1e-6, atol=1e-6)


def test_scale_by_hand() -> None:
    # 21 returns 0, 10, .., 200: the 5th percentile is the second, 10, the 95th the 20th, 190. S = 180.
    returns = torch.arange(0.0, 201.0, 10.0).view(1, 1, 21)
    scale = ReturnScale(1, 0.99, CPU)
    first = scale.update(returns, torch.ones(1, 1, 21))
    assert first.item() == pytest.approx(180.0, rel=1e-5), "the first update must count in full"
    # The next returns are twice as large. The averages have weights 0.99 * 0.01 and 0.01: (0.99 + 2) / 1.99 * 180.
    second = scale.update(2 * returns, torch.ones(1, 1, 21))
    assert second.item() == pytest.approx(180.0 * 2.99 / 1.99, rel=1e-4)  # float32 of 1 - 0.99


def test_scale_is_never_below_one() -> None:
    scale = ReturnScale(1, 0.99, CPU)
    assert scale.update(torch.linspace(0, 0.5, 20).view(1, 1, 20), torch.ones(1, 1, 20)).item() == 1.0


def test_tasks_do_not_touch_each_other() -> None:
    weight = torch.ones(2, 2, 8)
    quiet, loud = 10 * torch.randn(2, 8), 1e4 * torch.randn(2, 8)
    together = ReturnScale(2, 0.9, CPU)
    alone = ReturnScale(1, 0.9, CPU)
    for _ in range(3):
        both = together.update(torch.stack([quiet, loud]), weight)
        single = alone.update(quiet.unsqueeze(0), weight[:1])
        assert both[0].item() == single.item()
        assert both[1] > 100 * both[0]


def test_states_without_weight_are_ignored() -> None:
    returns = torch.arange(0.0, 201.0, 10.0).view(1, 1, 21)
    padded = torch.cat([returns, torch.full((1, 1, 9), 1e9)], dim=-1)
    weight = torch.cat([torch.full((1, 1, 21), 0.3), torch.zeros(1, 1, 9)], dim=-1)
    got = ReturnScale(1, 0.99, CPU).update(padded, weight)
    assert got.item() == pytest.approx(180.0, rel=1e-5)


def test_a_task_without_states_keeps_its_scale() -> None:
    scale = ReturnScale(2, 0.9, CPU)
    returns = torch.stack([torch.linspace(0, 200, 21), torch.linspace(0, 400, 21)]).unsqueeze(1)  # [2, 1, 21]
    before = scale.update(returns, torch.ones(2, 1, 21))
    weight = torch.ones(2, 1, 21)
    weight[0] = 0.0
    for _ in range(5):
        after = scale.update(3 * returns, weight)
    assert after[0].item() == pytest.approx(before[0].item(), rel=1e-5)  # float32
    assert after[1] > 1.5 * before[1]


def test_a_task_seen_late_starts_with_its_own_first_range() -> None:
    scale = ReturnScale(2, 0.99, CPU)
    returns = torch.arange(0.0, 201.0, 10.0).expand(2, 1, 21)
    weight = torch.ones(2, 1, 21)
    weight[0] = 0.0
    unseen = scale.update(returns, weight)
    assert unseen.tolist() == pytest.approx([1.0, 180.0], rel=1e-5)
    first = scale.update(returns, torch.ones(2, 1, 21))
    assert first.tolist() == pytest.approx([180.0, 180.0], rel=1e-5), "the correction counts each task's own updates"


def test_state_goes_round() -> None:
    one, other = ReturnScale(2, 0.9, CPU), ReturnScale(2, 0.9, CPU)
    returns, weight = 50 * torch.randn(3, 2, 2, 8), torch.ones(2, 2, 8)
    one.update(returns[0], weight)
    one.update(returns[1], weight)
    other.update(returns[1], weight)  # counts fewer updates until it has loaded the state of `one`
    other.load_state_dict({name: x.clone() for name, x in one.state_dict().items()})
    assert torch.equal(one.update(returns[2], weight), other.update(returns[2], weight))
