'''The ops that take most time, a file each: equation, checks, a plain PyTorch reference, the choice of a kernel.

To add one, such as y = sign(x) max(|x| - t, 0), write first the public op with its reference,
kernels/soft_threshold.py; on a CPU nothing else runs. It is exported below, and README's table of equations gets a
row.

```python
import torch
from torch import Tensor

from mow.kernels.dispatch import Backend, backends, choose, compute_dtype


def soft_threshold(x: Tensor, *, threshold: float, backend: Backend = "auto") -> Tensor:
    """Move every entry towards 0, and stop there.

        y = sign(x) max(|x| - t, 0)

    Args: x: any shape; threshold: t, 0 or more; backend: "auto", or the name of an implementation.
    Returns: the shape of x, float64 if x has it, else float32.
    Raises: ValueError if the dtype is wrong or the threshold below 0.
    Source: Donoho 1995.
    """
    if threshold < 0.0:
        raise ValueError(f"threshold must be 0 or more, got {threshold}: give its size")
    compute_dtype(x)
    if choose("soft_threshold", backend, backends(x)) == "triton":
        from mow.kernels.soft_threshold_triton import soft_threshold_triton

        return soft_threshold_triton(x, threshold)
    return _reference(x, threshold)


def _reference(x: Tensor, threshold: float) -> Tensor:
    x = x.to(compute_dtype(x))
    return x.sign() * (x.abs() - threshold).relu()
```

Then its test, tests/kernels/test_soft_threshold.py: numbers by hand, gradients, odd shapes and dtypes, errors.

```python
def test_soft_threshold_by_hand():
    x = torch.tensor([-3.0, -0.5, 0.0, 0.25, 2.0])
    assert soft_threshold(x, threshold=0.5).tolist() == [-2.5, 0.0, 0.0, 0.0, 1.5]


def test_soft_threshold_gradient():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: soft_threshold(x, threshold=0.3), x)
```

Then kernels/soft_threshold_triton.py, imported only when it is chosen. Addresses are 64-bit; `fake` has the shapes and
dtypes that `launch` gives; the op says what its backward needs.

```python
import torch
import triton
import triton.language as tl

from mow.kernels.custom_op import custom_op
from mow.kernels.dispatch import compute_dtype


@triton.jit
def soft_threshold_kernel(x_ptr, y_ptr, size, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < size, other=0.0).to(y_ptr.dtype.element_ty)
    size_left = tl.maximum(tl.abs(x) - THRESHOLD, 0.0)
    tl.store(y_ptr + at, tl.where(x < 0, -size_left, size_left), mask=at < size)


def soft_threshold_triton(x, threshold):
    return torch.ops.mow.soft_threshold(x, threshold)


def _launch(x, threshold):
    y = _fake(x, threshold)
    if y.numel():
        grid = (triton.cdiv(y.numel(), 1024),)
        soft_threshold_kernel[grid](x.contiguous(), y, y.numel(), THRESHOLD=threshold, BLOCK=1024)
    return y


def _fake(x, threshold):
    return torch.empty(x.shape, dtype=compute_dtype(x), device=x.device)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(output)
    ctx.dtype = inputs[0].dtype


def _backward(ctx, grad):
    (y,) = ctx.saved_tensors
    return (grad * (y != 0)).to(ctx.dtype), None


custom_op("soft_threshold(Tensor x, float threshold) -> Tensor", _launch, _fake,
          setup_context=_keep, backward=_backward)
```

Without a GPU it is tested in Triton's interpreter, against the reference, in tests/interpreted/test_soft_threshold.py:

```python
def test_soft_threshold_matches_the_reference():
    for shape in ((1,), (63,), (3, 700), (0, 4)):
        x = torch.randn(shape, requires_grad=True)
        y, expected = (soft_threshold(x, threshold=0.3, backend=name) for name in ("triton", "reference"))
        assert torch.equal(y, expected)
        grads = [torch.autograd.grad(one.sum(), x)[0] for one in (y, expected)]
        assert torch.equal(*grads)
```

Last bench/bench_soft_threshold.py times it against its peers; it stays if it beats `torch.compile` of the reference.
'''

if __name__ != "mow.kernels":
    raise ImportError(f"imported as {__name__!r}: write 'from mow.kernels import ...' (this folder is that package)")

from mow.kernels.add_layer_norm import add_layer_norm
from mow.kernels.batch_norm_relu import batch_norm_relu
from mow.kernels.categorical_kl import categorical_kl
from mow.kernels.decode_attention import decode_attention
from mow.kernels.dispatch import Backend, check_default_backend, choose
from mow.kernels.expert_linear import Activation, expert_linear
from mow.kernels.lambda_return import lambda_return
from mow.kernels.philox import PhiloxState, philox4x32, uniform
from mow.kernels.route_plan import RoutePlan, gathered, pairs_by_expert, route_plan, rows_of
from mow.kernels.sample_onehot import sample_onehot, unimix_prob
from mow.kernels.softmax import softmax
from mow.kernels.two_hot import TwoHotForm, symexp, symlog, two_hot_decode, two_hot_loss

__all__ = [
    "Activation",
    "Backend",
    "PhiloxState",
    "RoutePlan",
    "TwoHotForm",
    "add_layer_norm",
    "batch_norm_relu",
    "categorical_kl",
    "check_default_backend",
    "choose",
    "decode_attention",
    "expert_linear",
    "gathered",
    "lambda_return",
    "pairs_by_expert",
    "philox4x32",
    "route_plan",
    "rows_of",
    "sample_onehot",
    "softmax",
    "symexp",
    "symlog",
    "two_hot_decode",
    "two_hot_loss",
    "uniform",
    "unimix_prob",
]
