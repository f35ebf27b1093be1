import pytest
import torch

from mow.kernels import softmax


def test_by_hand():
    got = softmax(torch.tensor([[0.0, 1.0], [1000.0, 1000.0]]).log())
    torch.testing.assert_close(got, torch.tensor([[0.0, 1.0], [0.5, 0.5]]))


@pytest.mark.parametrize("classes", [1, 2, 8, 15, 16, 33])
def test_values_and_gradients_are_those_of_torch(classes):
    torch.manual_seed(0)
    logits = (30 * torch.randn(4, 7, classes, dtype=torch.float64)).requires_grad_()
    upstream = torch.randn(4, 7, classes, dtype=torch.float64)
    want, got = logits.softmax(dim=-1), softmax(logits)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(p, logits, upstream)[0] for p in (want, got)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_in_its_row(value):
    logits = torch.zeros(3, 4)
    logits[1] = value
    got = softmax(logits)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], torch.full((2, 4), 0.25))
    logits[1, 1:] = 0.0
    assert torch.equal(softmax(logits).isnan(), logits.softmax(dim=-1).isnan())
