import pytest
import torch

from mow.nn.effective_rank import effective_count, effective_rank


def test_effective_count_by_hand():
    shares = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.75, 0.25, 0.0]])
    want = torch.tensor([2.0, 1.0, 4 / 3**0.75])
    torch.testing.assert_close(effective_count(shares), want)


def spread(strengths, num_states=40, width=7, dtype=torch.float64):
    """States about zero with the given singular values."""
    half = num_states // 2
    left, _ = torch.linalg.qr(torch.randn(half, len(strengths), dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(width, len(strengths), dtype=torch.float64))
    rows = left @ torch.diag(torch.tensor(strengths, dtype=torch.float64)) @ right.mT
    return torch.cat([rows, -rows]).to(dtype)  # each state with its opposite: the mean is 0


@pytest.mark.parametrize(("rank", "width"), [(1, 7), (2, 7), (5, 7), (7, 7), (1, 300), (15, 300)])
def test_effective_rank_of_equal_directions_is_their_number(rank, width):
    # Rounding in float64, nothing else.
    assert effective_rank(spread([3.0] * rank, width=width)).item() == pytest.approx(rank, rel=1e-9)


def test_effective_rank_by_hand():
    assert effective_rank(spread([3.0, 1.0])).item() == pytest.approx(4 / 3**0.75, rel=1e-9)


def test_effective_rank_ignores_scale_and_offset():
    states = spread([3.0, 2.0, 1.0])
    # The offset takes some six of the sixteen digits.
    assert effective_rank(1e3 * states + 1e6).item() == pytest.approx(effective_rank(states).item(), rel=1e-6)


def test_effective_rank_in_float32_and_stacked():
    states = torch.stack([spread([1.0], dtype=torch.float32), spread([1.0, 1.0], dtype=torch.float32)])
    # Float32 entries leave about 1e-7 in each of the directions that are not there; -p ln p makes some 2e-6 of each.
    torch.testing.assert_close(effective_rank(states), torch.tensor([1.0, 2.0]).double(), rtol=1e-4, atol=0)


def test_effective_rank_of_fewer_states_than_width():
    assert effective_rank(torch.tensor([[1.0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0]])).item() == 1.0


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3])
def test_states_all_alike_have_no_rank(value):
    assert effective_rank(torch.full((30, 8), value)).item() == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_not_finite_are_told_apart(value):
    states = torch.stack([spread([1.0]), spread([1.0])])
    states[1, 3, 2] = value
    rank = effective_rank(states)
    assert rank[0].item() == pytest.approx(1.0)
    assert rank[1].isnan()
