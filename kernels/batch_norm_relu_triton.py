"""The Triton side of batch_norm_relu: one pass, a place of all channels per row of a tile."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels.custom_op import custom_op
from mow.kernels.dispatch import INTERPRETED

_TILE = 1024 if INTERPRETED else 8192  # numbers of a program: 64 per thread
_NUM_WARPS = 4


@triton.jit
def batch_norm_relu_kernel(  # type: ignore[no-untyped-def]
    x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, y_ptr, num_rows, eps,
    C: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c = tl.arange(0, BLOCK_C)
    is_c = c < C
    scale = tl.load(weight_ptr + c, mask=is_c, other=0.0) * tl.rsqrt(tl.load(var_ptr + c, mask=is_c, other=1.0) + eps)
    shift = tl.load(bias_ptr + c, mask=is_c, other=0.0) - tl.load(mean_ptr + c, mask=is_c, other=0.0) * scale
    inside = (row < num_rows)[:, None] & is_c[None, :]
    place = row[:, None] * C + c[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    y = tl.maximum(x * scale[None, :] + shift[None, :], 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


def tile_of(num_channels: int) -> tuple[int, int]:
    """BLOCK_ROWS and BLOCK_C."""
    block_c = triton.next_power_of_2(num_channels)
    return max(1, _TILE // block_c), block_c


def batch_norm_relu_triton(
    input: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """batch_norm_relu; arguments already checked."""
    y: Tensor = torch.ops.mow.batch_norm_relu(input, mean, var, weight, bias, eps)
    return y


def _launch(input: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    y = _fake(input, mean, var, weight, bias, eps)
    if y.numel() == 0:
        return y
    num_channels = input.shape[1]
    num_rows = input.numel() // num_channels
    block_rows, block_c = tile_of(num_channels)
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device(input.device) if input.is_cuda else nullcontext():
        batch_norm_relu_kernel[(triton.cdiv(num_rows, block_rows),)](
            input, *(vector.float().contiguous() for vector in (mean, var, weight, bias)), y, num_rows, eps,
            C=num_channels, BLOCK_ROWS=block_rows, BLOCK_C=block_c, num_warps=_NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return y


def _fake(input: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(input, memory_format=torch.channels_last)


custom_op(
    "batch_norm_relu(Tensor input, Tensor mean, Tensor var, Tensor weight, Tensor bias, float eps) -> Tensor",
    _launch,
    _fake,
)
