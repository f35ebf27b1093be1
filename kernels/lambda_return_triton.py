"""The Triton side of lambda_return: one launch walks all rows backwards in time."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels.custom_op import custom_op
from mow.kernels.dispatch import INTERPRETED, compute_dtype
from mow.kernels.row_layout_triton import row_layout, row_offset

# One row per thread; neighbouring steps of a row share a cache line, so reading step after step costs one pass.
_BLOCK_ROWS = 16 if INTERPRETED else 128
_NUM_WARPS = 4


@triton.jit
def lambda_return_kernel(  # type: ignore[no-untyped-def]
    reward_ptr,
    continuation_ptr,
    value_ptr,
    return_ptr,
    num_rows,
    num_steps,
    reward_inner,
    reward_outer_stride,
    reward_inner_stride,
    continuation_inner,
    continuation_outer_stride,
    continuation_inner_stride,
    value_inner,
    value_outer_stride,
    value_inner_stride,
    LAM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    dtype: tl.constexpr = return_ptr.dtype.element_ty
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < num_rows
    # All four pointers stand at the last step and move back together; the value is one step ahead.
    last = num_steps - 1
    reward_ptr += row_offset(row, reward_inner, reward_outer_stride, reward_inner_stride) + last
    continuation_ptr += row_offset(row, continuation_inner, continuation_outer_stride, continuation_inner_stride) + last
    value_ptr += row_offset(row, value_inner, value_outer_stride, value_inner_stride) + num_steps
    return_ptr += row.to(tl.int64) * num_steps + last
    following = tl.load(value_ptr, mask=is_row, other=0.0).to(dtype)  # G_{t+1}
    for step in range(0, num_steps):
        value = tl.load(value_ptr - step, mask=is_row, other=0.0).to(dtype)
        reward = tl.load(reward_ptr - step, mask=is_row, other=0.0).to(dtype)
        continuation = tl.load(continuation_ptr - step, mask=is_row, other=0.0).to(dtype)
        following = reward + continuation * ((1.0 - LAM) * value + LAM * following)
        tl.store(return_ptr - step, following, mask=is_row)


def lambda_return_triton(reward: Tensor, continuation: Tensor, value: Tensor, lam: float) -> Tensor:
    """lambda_return; arguments already checked. Has no backward, as targets carry no gradient."""
    returns: Tensor = torch.ops.mow.lambda_return(reward, continuation, value, lam)
    return returns


def _launch(reward: Tensor, continuation: Tensor, value: Tensor, lam: float) -> Tensor:
    returns = _fake(reward, continuation, value, lam)
    if returns.numel() == 0:
        return returns
    num_steps = reward.shape[-1]
    num_rows = reward.numel() // num_steps
    layouts = [row_layout(tensor, 1) for tensor in (reward, continuation, value)]
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device(reward.device) if reward.is_cuda else nullcontext():
        lambda_return_kernel[(triton.cdiv(num_rows, _BLOCK_ROWS),)](
            *(layout.tensor for layout in layouts),
            returns,
            num_rows,
            num_steps,
            *(stride for layout in layouts for stride in layout.strides),
            LAM=lam,
            BLOCK_ROWS=_BLOCK_ROWS,
            num_warps=_NUM_WARPS,
            enable_fp_fusion=True,
        )
    return returns


def _fake(reward: Tensor, continuation: Tensor, value: Tensor, lam: float) -> Tensor:
    return torch.empty(reward.shape, dtype=compute_dtype(reward, continuation, value), device=reward.device)


custom_op("lambda_return(Tensor reward, Tensor continuation, Tensor value, float lam) -> Tensor", _launch, _fake)
