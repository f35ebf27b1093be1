"""Triton kernels for the gradients of expert_linear other than that of its input. Conventions: expert_linear_kernels.

Every sum runs in a fixed order: partial sums are written side by side and added by a second kernel, never atomically,
so the same call gives the same bits.
"""

import triton
import triton.language as tl

from mow.kernels.expert_linear_kernels import find_tile


@triton.jit
def slope(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Derivative of the activation at x, which for relu may also be its output."""
    if ACTIVATION == "relu":
        return tl.where(x <= 0.0, 0.0, 1.0)
    if ACTIVATION == "silu":
        s = tl.sigmoid(x)
        return s * (1.0 + x * (1.0 - s))
    if ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
    return tl.full(x.shape, 1.0, tl.float32)


@triton.jit
def pre_grad_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, pre_ptr, dpre_ptr, partial_ptr, num_slots, num_rows, N, rows_per_chunk, num_chunks,
    dy_stride_task, dy_stride_slot, dy_stride_row,
    ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dpre = dy * act'(pre), if dpre_ptr; and its sums over the rows of each chunk, if partial_ptr.

    dy has a contiguous last axis; pre and dpre [K, J, R, N] and partial [K * J, chunks, N] are contiguous.
    """
    column_tiles = tl.cdiv(N, BLOCK_N)
    n = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    chunk = tl.program_id(0) // column_tiles % num_chunks
    pair = (tl.program_id(0) // column_tiles // num_chunks).to(tl.int64)
    dy_at = dy_ptr + (pair // num_slots) * dy_stride_task + (pair % num_slots) * dy_stride_slot
    total = tl.zeros((BLOCK_N,), tl.float32)
    begin = chunk * rows_per_chunk
    for first in range(begin, tl.minimum(begin + rows_per_chunk, num_rows), BLOCK_R):
        r = (first + tl.arange(0, BLOCK_R)).to(tl.int64)
        inside = (r < num_rows)[:, None] & (n < N)[None, :]
        d = tl.load(dy_at + (r * dy_stride_row)[:, None] + n[None, :], mask=inside, other=0.0).to(tl.float32)
        at = (pair * num_rows + r)[:, None] * N + n[None, :]
        if pre_ptr is not None:
            d *= slope(tl.load(pre_ptr + at, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
        if dpre_ptr is not None:
            tl.store(dpre_ptr + at, d.to(dpre_ptr.dtype.element_ty), mask=inside)
        total += tl.sum(d, 0)
    if partial_ptr is not None:
        tl.store(partial_ptr + (pair * num_chunks + chunk) * N + n, total, mask=n < N)


@triton.jit
def sum_members_kernel(pair_sum_ptr, member_ptr, offset_ptr, out_ptr, N, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[e] = sum of pair_sum[p] over the pairs p of expert e, in order; zero for an idle one. Both have width N."""
    column_tiles = tl.cdiv(N, BLOCK_N)
    expert = tl.program_id(0) // column_tiles
    n = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for i in range(tl.load(offset_ptr + expert), tl.load(offset_ptr + expert + 1)):
        total += tl.load(pair_sum_ptr + tl.load(member_ptr + i) * N + n, mask=n < N, other=0.0)
    tl.store(out_ptr + expert * N + n, total, mask=n < N)


@triton.jit
def dw_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, x_ptr, dw_ptr, partial_ptr, member_ptr, offset_ptr,
    num_slots, num_rows, N, K, num_experts, rows_per_chunk,
    dy_stride_task, dy_stride_slot, dy_stride_row, x_stride_task, x_stride_slot, x_stride_row,
    WHOLE_TILES: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dw[e] = sum over the rows of its pairs of dy^T x: [N, K], one tile of it for one chunk of the expert's rows.

    An expert with more rows than one chunk holds leaves one partial sum per chunk, [chunks, N, K] float32; the others
    write dw at once. WHOLE_TILES: a tile of BLOCK_K rows never reaches from one pair into the next.
    """
    column_tiles = tl.cdiv(K, BLOCK_N)
    tiles = tl.cdiv(N, BLOCK_M) * column_tiles
    chunk = tl.program_id(0) // tiles
    expert, row, member, end = find_tile(offset_ptr, chunk, num_rows, num_experts, rows_per_chunk, EXPERTS)
    if expert < num_experts:
        num_members_rows = (end - member) * num_rows
        stop = tl.minimum(row + rows_per_chunk, num_members_rows)
        n = tl.program_id(0) % tiles // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
        column = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        n_wrapped, column_wrapped = n % N, column % K
        c = tl.arange(0, BLOCK_K)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(row, stop, BLOCK_K):
            if WHOLE_TILES:
                pair = tl.load(member_ptr + member + first // num_rows).to(tl.int64)
                r = (first % num_rows + c).to(tl.int64)
                dy_row = (pair // num_slots) * dy_stride_task + (pair % num_slots) * dy_stride_slot + r * dy_stride_row
                x_row = (pair // num_slots) * x_stride_task + (pair % num_slots) * x_stride_slot + r * x_stride_row
                dy = tl.load(dy_ptr + dy_row[None, :] + n_wrapped[:, None])
                x = tl.load(x_ptr + x_row[:, None] + column_wrapped[None, :])
            else:
                i = first + c
                inside = i < stop
                i = tl.where(inside, i, first)
                pair = tl.load(member_ptr + member + i // num_rows).to(tl.int64)
                r = (i % num_rows).to(tl.int64)
                dy_row = (pair // num_slots) * dy_stride_task + (pair % num_slots) * dy_stride_slot + r * dy_stride_row
                x_row = (pair // num_slots) * x_stride_task + (pair % num_slots) * x_stride_slot + r * x_stride_row
                dy = tl.load(dy_ptr + dy_row[None, :] + n_wrapped[:, None], mask=inside[None, :], other=0.0)
                x = tl.load(x_ptr + x_row[:, None] + column_wrapped[None, :], mask=inside[:, None], other=0.0)
            if UPCAST:
                dy = dy.to(tl.float32)
                x = x.to(tl.float32)
            acc = tl.dot(dy, x, acc, input_precision=PRECISION)
        at = n.to(tl.int64)[:, None] * K + column[None, :]
        stored = (n < N)[:, None] & (column < K)[None, :]
        if num_members_rows <= rows_per_chunk:
            dw_at = dw_ptr + expert.to(tl.int64) * N * K + at
            tl.store(dw_at, acc.to(dw_ptr.dtype.element_ty), mask=stored)
        else:
            tl.store(partial_ptr + chunk.to(tl.int64) * N * K + at, acc, mask=stored)


@triton.jit
def dw_sum_kernel(  # type: ignore[no-untyped-def]
    partial_ptr, dw_ptr, offset_ptr, num_rows, num_weights, num_experts, rows_per_chunk,
    EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the partial sums of dw_kernel, chunk by chunk; zero for an expert without a pair; else nothing to do."""
    blocks = tl.cdiv(num_weights, BLOCK)
    expert = tl.program_id(0) // blocks
    e = tl.arange(0, EXPERTS)
    first = tl.load(offset_ptr + e, mask=e < num_experts, other=0)
    last = tl.load(offset_ptr + e + 1, mask=e < num_experts, other=0)
    chunks = ((last - first) * num_rows + rows_per_chunk - 1) // rows_per_chunk
    count = tl.sum(tl.where(e == expert, chunks, 0), 0)
    if count != 1:
        begin = tl.sum(tl.where(e < expert, chunks, 0), 0)
        at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        inside = at < num_weights
        total = tl.zeros((BLOCK,), tl.float32)
        partial_at = partial_ptr + begin.to(tl.int64) * num_weights + at
        for _ in range(0, count):
            total += tl.load(partial_at, mask=inside, other=0.0)
            partial_at += num_weights
        dw_at = dw_ptr + expert.to(tl.int64) * num_weights + at
        tl.store(dw_at, total.to(dw_ptr.dtype.element_ty), mask=inside)
