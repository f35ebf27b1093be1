"""What the kernels of the latents and the returns owe their references, on any device that can run them.

The tests under Triton's interpreter and those on a GPU make the same comparisons: the reference runs in float64 on the
same rounded inputs, and every output and every gradient is compared.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mow.kernels import PhiloxState, categorical_kl, lambda_return, two_hot_decode, two_hot_loss, uniform, unimix_prob
from mow.kernels.dispatch import INTERPRETED

Op = Callable[..., Tensor | tuple[Tensor, ...]]

# Relative Frobenius errors of a kernel's results by their dtype. Float32: exponents of up to 20, which are off by some
# 5 * 10^-7 of themselves. Half precision: outputs are float32 all the same, gradients are rounded once, to 11 and to 8
# bits, where the interpreter truncates.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCE)

# Groups and classes: one, odd, more groups than a tile holds, the sizes of the models, the largest byte.
LATENT_SHAPES = [(1, 1, 1), (13, 3, 63), (2, 3, 4, 5), (3, 32, 32), (2, 2, 256), (5, 70, 2)]
LOGIT_SHAPES = [(13, 255), (3, 5, 41), (1, 2), (7, 64), (5, 3), (2, 1000)]
BINS = [(-20.0, 20.0), (-1.0, 3.0)]


def random_logits(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator)).to(device, dtype)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference, as a share of the expected one; absolute where that is zero."""
    got, expected = got.detach().double(), expected.detach().double()
    size = expected.norm()
    return float((got - expected).norm() / (size if size > 0 else 1.0))


def check_against_float64(op: Op, *inputs: Tensor, slack: float = 1.0, **options: float | str) -> None:
    """op(*inputs, **options, backend=...): the kernel's outputs and gradients against the reference's in float64.

    Inputs that require a gradient are checked for it, with a random gradient of every output. `slack` multiplies the
    tolerance.
    """
    results = []
    for backend, leaves in (("triton", inputs), ("reference", [x.detach().double() for x in inputs])):
        leaves = [x.detach().requires_grad_(given.requires_grad) for x, given in zip(leaves, inputs, strict=True)]
        outputs = op(*leaves, **options, backend=backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]
        wanted = [x for x in leaves if x.requires_grad]
        results.append((*outputs, *(torch.autograd.grad(outputs, wanted, cotangents) if wanted else ())))
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        error = relative_error(got, expected)
        assert error <= slack * TOLERANCE[got.dtype], f"{error} in a result of {got.dtype} {list(got.shape)}"


def check_kl(shape: tuple[int, ...], unimix: float, dtype: torch.dtype, device: str) -> None:
    posterior, prior = (random_logits(shape, dtype, device, seed).requires_grad_() for seed in (0, 1))
    check_against_float64(categorical_kl, posterior, prior, unimix=unimix)


def check_two_hot(shape: tuple[int, ...], bins: tuple[float, float], dtype: torch.dtype, device: str) -> None:
    low, high = bins
    logits = random_logits(shape, dtype, device).requires_grad_()
    # From within the middle bins to beyond the ends, both signs.
    target = random_logits(shape[:-1], torch.float32, device, seed=2).sinh().to(dtype)
    check_against_float64(two_hot_loss, logits, target, low=low, high=high)
    # The gradient of a number of up to e^20 overflows float16.
    largest = 5.0 if dtype == torch.float16 else high
    # An error d of the mean is a relative error d of large numbers, and a mean of up to 20 is off by up to 20 ulp.
    slack = 4.0 if dtype == torch.float32 else 1.0
    for form in ("mean_of_symexp", "symexp_of_mean"):
        check_against_float64(two_hot_decode, logits, slack=slack, low=max(low, -largest), high=largest, form=form)


def check_nearly_symmetric(device: str) -> None:
    """Far bins that are as likely as their mirror images but for rounding, as of a head that has learnt for a while.

    What they add is a difference of numbers of 1e3: in float32 it must come out as in float64, to 1e-5 of what each
    pair adds.
    """
    place = torch.linspace(-20, 20, 255)
    half = (-place.abs() + 0.1 * torch.randn(64, 255, generator=torch.Generator().manual_seed(3))).clamp_min(-12)
    logits = (half + half.flip(-1) + 1e-6 * random_logits((64, 255), torch.float32, "cpu", seed=4)).to(device)
    exact = logits.double()
    pairs = exact.softmax(-1) * torch.sinh(place.to(exact).abs()) * 2
    added = (pairs - pairs.flip(-1)).abs().sum(-1) / 2
    expected = two_hot_decode(exact, form="mean_of_symexp", backend="reference")
    for backend in ("triton", "reference"):
        if backend == "triton" and device == "cpu" and not INTERPRETED:
            continue
        got = two_hot_decode(logits, form="mean_of_symexp", backend=backend)
        assert ((got.double() - expected).abs() <= 1e-5 * added).all(), backend


def check_lambda_return(shape: tuple[int, ...], lam: float, dtype: torch.dtype, device: str) -> None:
    *leading, num_steps = shape
    reward = random_logits(shape, dtype, device)
    continuation = random_logits(shape, torch.float32, device, seed=1).sigmoid().to(dtype)
    value = random_logits((*leading, num_steps + 1), dtype, device, seed=2)
    check_against_float64(lambda_return, reward, continuation, value, lam=lam)


def check_draw(index: Tensor, logits: Tensor, stream: PhiloxState, unimix: float) -> None:
    """Every row's class is the one that float64 draws with the stream's numbers, or lies across a tie of rounding.

    A cdf in float32 sums C terms, each rounded by at most 2^-24 of the sum.
    """
    prob = unimix_prob(logits.detach().double(), unimix).flatten(0, -2)  # [rows, C]
    u = uniform(stream, prob.shape[0]).double()
    cdf = prob.cumsum(dim=-1)
    threshold = u * cdf[:, -1]
    expected = (cdf <= threshold.unsqueeze(1)).sum(dim=-1)
    got = index.flatten().long()
    first, last = torch.minimum(got, expected), torch.maximum(got, expected)
    tie = logits.shape[-1] * 2.0**-24
    for row in (first != last).nonzero().flatten().tolist():
        crossed = cdf[row, first[row] : last[row]]
        assert (crossed - threshold[row]).abs().max() < tie, f"row {row}: class {got[row]}, expected {expected[row]}"
    assert (first != last).sum() <= 1e-4 * got.numel() + 1  # ties are rare: C of them in 2^24 numbers
    assert prob.gather(1, got.unsqueeze(1)).gt(0).all()
