import pytest
import torch

from mow.kernels import RoutePlan, route_plan, rows_of
from mow.kernels.route_plan import pairs_by_expert

PLAN = route_plan(torch.tensor([[0, 2], [2, 0], [2, 3]]), 4)


def test_rows_by_hand():
    stacked = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert rows_of(stacked, PLAN).tolist() == [[[1.0], [3.0]], [[3.0], [1.0]], [[3.0], [4.0]]]


@pytest.mark.parametrize("transposed", [False, True], ids=["as stored", "transposed"])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (4, 2, 3, 5)])
def test_the_gradient_is_that_of_indexing(shape, transposed):
    torch.manual_seed(0)
    stacked = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 2, *shape[1:], dtype=torch.float64)
    if transposed and len(shape) > 2:
        upstream = upstream.mT.contiguous().mT
    (want,) = torch.autograd.grad(stacked[PLAN.routes], stacked, upstream)
    (got,) = torch.autograd.grad(rows_of(stacked, PLAN), stacked, upstream)
    torch.testing.assert_close(got, want)
    assert not got[1].any(), "nobody uses expert 1"


def test_the_gradient_of_a_matmul_by_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: x @ rows_of(weight[:, :, :3], PLAN).mT, (x, weight))


def test_a_task_alone():
    alone = PLAN.of_task(1)
    assert (alone.routes.tolist(), alone.num_experts) == ([[2, 0]], 4)


@pytest.mark.parametrize("shape", [(4,), (4, 5, 3)])
def test_a_lone_pair_that_the_host_knows_is_a_view(shape):
    torch.manual_seed(0)
    stacked = torch.randn(shape, requires_grad=True)
    told = RoutePlan(torch.tensor([[1], [3]]), 4, ((1,), (3,))).of_task(1)
    asked = route_plan(torch.tensor([[3]]), 4)
    got, want = rows_of(stacked, told), rows_of(stacked, asked)
    assert got.data_ptr() == stacked[3].data_ptr() != want.data_ptr()
    assert torch.equal(got, want)
    upstream = torch.randn_like(want)
    gradients = [torch.autograd.grad(rows, stacked, upstream)[0] for rows in (got, want)]
    assert torch.equal(*gradients)


def test_pairs_by_hand():
    member, offset = pairs_by_expert(PLAN.routes, 4)
    assert member.tolist() == [0, 3, 1, 2, 4, 5]
    assert offset.tolist() == [0, 2, 2, 5, 6]
