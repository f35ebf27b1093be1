"""Two-hot loss and decoding beside plain PyTorch.  python -m bench -k two_hot

Loss: forward and backward. Peers write the target as a dense [N, V] tensor, as most code does; the same under
torch.compile on a GPU.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from bench import floors
from bench.race import TOLERANCE, Race, close_to, dtype_of, forward_alone, peers_of, with_backward
from mow.kernels import TwoHotForm, symexp, symlog, two_hot_decode, two_hot_loss

_LOW, _HIGH, _BINS = -20.0, 20.0, 255
# 26 x 1,024 rollouts of 17 states.
ROWS = [452_608, 17_408] if torch.cuda.is_available() else [512]

Batch = tuple[Tensor, Tensor, Tensor]


def make_batch(num_rows: int, device: str) -> Batch:
    """Logits [N, V], targets [N], gradient of the loss [N]."""
    logits = torch.randn(num_rows, _BINS, device=device).to(dtype_of(device)).requires_grad_()
    return logits, 100 * torch.randn(num_rows, device=device), torch.rand(num_rows, device=device)


def _bins(like: Tensor) -> Tensor:
    return torch.linspace(_LOW, _HIGH, _BINS, device=like.device, dtype=like.dtype)


def dense_loss(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_i target_i ln p_i with the whole row of targets written out; in the dtype of the target."""
    bins, y = _bins(target), symlog(target).clamp(_LOW, _HIGH)
    step = (_HIGH - _LOW) / (_BINS - 1)
    two_hot = (1 - (y.unsqueeze(-1) - bins).abs() / step).clamp_min(0)  # [N, V]
    return -(two_hot * logits.to(target.dtype).log_softmax(dim=-1)).sum(dim=-1)


def dense_decode(logits: Tensor, target: Tensor, form: TwoHotForm) -> Tensor:
    number = logits if logits.dtype == torch.float64 else logits.float()
    prob, bins = number.softmax(dim=-1), _bins(number)
    return (prob * symexp(bins)).sum(dim=-1) if form == "mean_of_symexp" else symexp((prob * bins).sum(dim=-1))


def check_loss(output: tuple[Tensor, Tensor], inputs: Batch) -> None:
    exact = inputs[0].detach().double().requires_grad_()
    loss, gradient = with_backward(dense_loss)(exact, *(x.double() for x in inputs[1:]))
    # Float32 logarithms of 255 probabilities; the weights of a target between bins have lost some digits to symlog.
    close_to(loss, output[0], 1e-5)
    close_to(gradient, output[1], max(1e-4, TOLERANCE[output[1].dtype]))


def check_decode(output: Tensor, inputs: Batch, form: TwoHotForm) -> None:
    exact = dense_decode(inputs[0].detach().double(), inputs[1], form)
    # The terms of the mean nearly cancel in float32.
    close_to(exact, output, 1e-4)


@pytest.mark.parametrize("num_rows", ROWS)
def test_loss(race: Race, num_rows: int) -> None:
    kind = race.device.kind
    race.run(
        with_backward(lambda logits, target: two_hot_loss(logits, target, backend=race.backend)),
        peers_of("dense target", dense_loss, with_backward, kind),
        make=partial(make_batch, num_rows, kind),
        check=check_loss,
        work=floors.two_hot_loss_training(num_rows, _BINS, race.itemsize),
    )


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("form", ["symexp_of_mean", "mean_of_symexp"])
def test_decode(race: Race, num_rows: int, form: TwoHotForm) -> None:
    kind = race.device.kind
    race.run(
        forward_alone(lambda logits, target: two_hot_decode(logits, form=form, backend=race.backend)),
        peers_of("softmax, sum", partial(dense_decode, form=form), forward_alone, kind),
        make=partial(make_batch, num_rows, kind),
        check=partial(check_decode, form=form),
        work=floors.two_hot_decode(num_rows, _BINS, race.itemsize),
    )
