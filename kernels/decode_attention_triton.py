"""The Triton side of decode_attention: append and attention in one pass over the cache.

One program serves some (sequence, head) rows and walks their cached tokens. It reads every cached number once, writes
the new row on the way, and its softmax runs online, so the cache may have any length. With one query per row no matrix
unit is of use: the step is bound by the bytes of the cache, and what counts is that enough of them are on their way.
"""

import math
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels.custom_op import custom_op

# A row belongs to threads of one warp that have 16 bytes each of a token: no warp waits for another's sum.
_NUM_WARPS = 4
# Keys and values of the next three tokens are copied to shared memory (4 KB a token) while one is worked on. A program
# has 40 registers per thread and 12 KB, so a multiprocessor holds about a dozen, with over 100 KB on their way.
_STAGES = 4


@triton.jit(do_not_specialize=["position"])
def decode_attention_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    key_ptr,
    value_ptr,
    keys_ptr,
    values_ptr,
    mask_ptr,
    output_ptr,
    num_rows,  # K * J * B * heads
    position,
    num_sequences,  # B
    pairs,  # J * B
    num_heads,
    cache_stride,  # capacity * d
    mask_stride_task,
    mask_stride_sequence,
    mask_stride_token,
    SCALE: tl.constexpr,  # log2(e) / sqrt(d)
    SIZE: tl.constexpr,  # d
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STAGES: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if keys_ptr.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    size = tl.arange(0, BLOCK_SIZE)
    is_row = row < num_rows
    is_size = size < SIZE
    inside = is_row[:, None] & is_size[None, :]
    sequence = row // num_heads
    task, sequence_of_task = (sequence // pairs).to(tl.int64), (sequence % num_sequences).to(tl.int64)
    seen = mask_ptr + task * mask_stride_task + sequence_of_task * mask_stride_sequence

    row = row.to(tl.int64)
    token = row[:, None] * SIZE + size[None, :]
    key = tl.load(key_ptr + token, mask=inside, other=0.0)
    value = tl.load(value_ptr + token, mask=inside, other=0.0)
    query = tl.load(query_ptr + token, mask=inside, other=0.0).to(dtype) * SCALE
    cache = row[:, None] * cache_stride + size[None, :]
    tl.store(keys_ptr + cache + position * SIZE, key, mask=inside)
    tl.store(values_ptr + cache + position * SIZE, value, mask=inside)

    # The new token stays in registers, so nothing that this launch writes is read again.
    sees_itself = tl.load(seen + position * mask_stride_token, mask=is_row, other=0) != 0
    largest = tl.where(sees_itself, tl.sum(query * key.to(dtype), axis=1), -float("inf"))  # [rows]
    total = tl.where(sees_itself, 1.0, 0.0).to(dtype)
    output = tl.where(sees_itself[:, None], value.to(dtype), 0.0)  # [rows, d]
    for step in tl.range(0, position, num_stages=STAGES):
        place = cache + step * SIZE
        past_key = tl.load(keys_ptr + place, mask=inside, other=0.0).to(dtype)  # [rows, d]
        past_value = tl.load(values_ptr + place, mask=inside, other=0.0).to(dtype)
        sees = tl.load(seen + step * mask_stride_token, mask=is_row, other=0) != 0
        score = tl.where(sees, tl.sum(query * past_key, axis=1), -float("inf"))  # [rows]
        larger = tl.maximum(largest, score)
        # While nothing is visible the maximum is -inf, and -inf - -inf is not a number: with 0 the weights are 0.
        shift = tl.where(larger == -float("inf"), 0.0, larger)
        weight, fade = tl.exp2(score - shift), tl.exp2(largest - shift)
        total = total * fade + weight
        output = output * fade[:, None] + weight[:, None] * past_value
        largest = larger
    output = output / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(output_ptr + token, output.to(output_ptr.dtype.element_ty), mask=inside)


def tile_of(size: int, itemsize: int) -> tuple[int, int]:
    """BLOCK_ROWS and BLOCK_SIZE for heads of `size` numbers of `itemsize` bytes: 16 bytes of a token per thread."""
    block_size = triton.next_power_of_2(size)
    return max(1, 32 * _NUM_WARPS * 16 // (block_size * itemsize)), block_size


def decode_attention_triton(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, mask: Tensor, position: int
) -> Tensor:
    """decode_attention's kernel; arguments as there, already checked. Strided tokens are copied, strided masks read."""
    output: Tensor = torch.ops.mow.decode_attention(query, key, value, keys, values, mask, position)
    return output


def _launch(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, mask: Tensor, position: int
) -> Tensor:
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    output = torch.empty_like(query)
    _, num_slots, num_sequences, num_heads, size = query.shape
    num_rows = query.numel() // size
    if num_rows == 0:
        return output
    block_rows, block_size = tile_of(size, query.itemsize)
    assert num_rows < 2**31, num_rows  # the kernel numbers them in 32 bits; their cache would not fit a GPU
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        decode_attention_kernel[(triton.cdiv(num_rows, block_rows),)](
            query,
            key,
            value,
            keys,
            values,
            mask.view(torch.uint8),
            output,
            num_rows,
            position,
            num_sequences,
            num_slots * num_sequences,
            num_heads,
            keys.shape[4] * size,
            *mask.stride(),
            SCALE=math.log2(math.e) / math.sqrt(size),
            SIZE=size,
            BLOCK_ROWS=block_rows,
            BLOCK_SIZE=block_size,
            STAGES=_STAGES,
            num_warps=_NUM_WARPS,
            enable_fp_fusion=True,
        )
    return output


def _fake(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, mask: Tensor, position: int
) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


custom_op(
    "decode_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, Tensor mask, "
    "SymInt position) -> Tensor",
    _launch,
    _fake,
)
