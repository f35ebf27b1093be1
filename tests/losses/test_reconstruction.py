"""Squared error on [0, 1] pixels: summed over the image, averaged over the task's windows."""

import pytest
import torch

from mow.losses import reconstruction_loss
from mow.losses.reconstruction import sum_of_squares


def test_reconstruction_by_hand() -> None:
    frame = torch.zeros(2, 1, 2, 64, 64, 3, dtype=torch.uint8)
    decoded = torch.zeros(2, 1, 2, 64, 64, 3)
    # Task 0, step 0: one white value (255 -> 1) decoded as 0.5, another as 0: 0.25 + 1. Step 1 is exact: mean 0.625.
    frame[0, 0, 0, 5, 7, 1] = 255
    decoded[0, 0, 0, 5, 7, 1] = 0.5
    frame[0, 0, 0, 63, 63, 2] = 255
    # Task 1: all 12,288 values of both steps are off by 51 / 255 = 0.2: 12,288 * 0.04 = 491.52.
    frame[1] = 51
    got = reconstruction_loss(decoded, frame)
    assert got.shape == (2,)
    assert got[0].item() == 0.625  # exact in binary
    assert got[1].item() == pytest.approx(491.52, rel=1e-5)  # a float32 sum of 12,288 terms


def test_a_task_is_a_mean_over_its_windows_alone() -> None:
    decoded = torch.rand(2, 3, 4, 64, 64, 3)
    frame = torch.randint(0, 256, (2, 3, 4, 64, 64, 3), dtype=torch.uint8)
    whole = reconstruction_loss(decoded, frame)
    windows = torch.stack([reconstruction_loss(decoded[:, b : b + 1], frame[:, b : b + 1]) for b in range(3)])
    torch.testing.assert_close(whole, windows.mean(dim=0), rtol=1e-6, atol=0)  # float32 means in another order


def test_gradient_is_twice_the_error_over_the_steps() -> None:
    decoded = torch.rand(1, 2, 3, 64, 64, 3, requires_grad=True)
    frame = torch.randint(0, 256, (1, 2, 3, 64, 64, 3), dtype=torch.uint8)
    (gradient,) = torch.autograd.grad(reconstruction_loss(decoded, frame).sum(), decoded)
    expected = 2 * (decoded.detach() - frame / 255) / 6  # B L = 6
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)  # float32


def test_half_precision_is_summed_in_float32() -> None:
    decoded = torch.ones(1, 1, 1, 64, 64, 3, dtype=torch.bfloat16)
    # In bfloat16 a running sum of ones would stop at 256.
    assert reconstruction_loss(decoded, torch.zeros_like(decoded, dtype=torch.uint8)).item() == 12_288


def test_sum_of_squares_has_the_gradient_of_what_it_says() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(sum_of_squares(x), x.square().sum(dim=-1))
    assert torch.autograd.gradcheck(sum_of_squares, x)
    ours, plain = (torch.autograd.grad(f.cos().sum(), x)[0] for f in (sum_of_squares(x), x.square().sum(dim=-1)))
    assert torch.equal(ours, plain)
