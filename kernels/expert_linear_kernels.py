"""Triton kernels of expert_linear: the layer itself and the gradient of its input.

Conventions of all kernels here and in expert_linear_grads.py. R rows per (task, slot) pair, J slots, E experts; a
layer maps K inputs to N outputs. What one program reads is found from two small tables of fixed size (member_P and
offset_E of RoutePlan.by_expert), so the grid depends on sizes alone, never on the routing. Addresses are 64-bit. Sums
are float32. UPCAST is set under Triton's interpreter only, whose bfloat16 arithmetic is wrong.
"""

import triton
import triton.language as tl


@triton.jit
def find_tile(offset_ptr, tile, num_rows, num_experts, rows_per_tile, EXPERTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a tile lies if the rows of all pairs of an expert stand in line and every expert begins a new tile.

    Summed up again by each program: a scan of some dozen numbers costs less than reading one more table, which would
    have to be made anew for every number of rows.
    Returns: expert (at least num_experts past the last tile), first row in the expert's line, and the bounds of its
        members.
    """
    e = tl.arange(0, EXPERTS)
    first = tl.load(offset_ptr + e, mask=e < num_experts, other=0)
    last = tl.load(offset_ptr + e + 1, mask=e < num_experts, other=0)
    tiles = ((last - first) * num_rows + rows_per_tile - 1) // rows_per_tile
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    before = tl.sum(tl.where(e < expert, tiles, 0), 0)
    member = tl.sum(tl.where(e == expert, first, 0), 0)
    end = tl.sum(tl.where(e == expert, last, 0), 0)
    return expert, (tile - before) * rows_per_tile, member, end


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    if ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)  # unlike maximum, it lets NaN through
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def packed_kernel(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, bias_ptr, task_bias_ptr, residual_ptr, pre_ptr, y_ptr, member_ptr, offset_ptr,
    num_slots, num_rows, N, K, num_experts,
    x_stride_task, x_stride_slot, x_stride_row, w_stride_e, w_stride_n, w_stride_k,
    residual_stride_task, residual_stride_slot, residual_stride_row,
    ACTIVATION: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of rows, of several tasks if they are short, times one tile of the outputs of their expert.

    pre_ptr, if any, keeps what the activation saw. y, pre and both biases are contiguous; x and the residual have
    contiguous last axes.
    """
    # All column tiles of one row tile run together: its rows stay in the cache.
    column_tiles = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0) // column_tiles
    expert, row, member, end = find_tile(offset_ptr, tile, num_rows, num_experts, BLOCK_M, EXPERTS)
    if expert < num_experts:
        i = row + tl.arange(0, BLOCK_M)
        inside = i < (end - member) * num_rows
        i = tl.where(inside, i, row)  # rows past the last repeat one and are not stored
        pair = tl.load(member_ptr + member + i // num_rows)
        r = (i % num_rows).to(tl.int64)
        task, slot = (pair // num_slots).to(tl.int64), (pair % num_slots).to(tl.int64)
        n = (tl.program_id(0) % column_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
        n_wrapped = n % N  # keeps the addresses contiguous where a select would break up the loads
        c = tl.arange(0, BLOCK_K)
        x_at = x_ptr + (task * x_stride_task + slot * x_stride_slot + r * x_stride_row)[:, None] + c[None, :]
        w_at = w_ptr + expert.to(tl.int64) * w_stride_e
        w_at += c[:, None] * w_stride_k + n_wrapped[None, :] * w_stride_n
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, K, BLOCK_K):
            if EVEN_K:
                x = tl.load(x_at)
                w = tl.load(w_at)
            else:
                x = tl.load(x_at, mask=c[None, :] < K - first, other=0.0)
                w = tl.load(w_at, mask=c[:, None] < K - first, other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            else:
                w = w.to(x.dtype)  # a float32 weight under 16-bit autocast
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
            x_at += BLOCK_K
            w_at += BLOCK_K * w_stride_k
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + expert * N + n_wrapped).to(tl.float32)[None, :]
        if task_bias_ptr is not None:
            acc += tl.load(task_bias_ptr + pair[:, None] * N + n_wrapped[None, :]).to(tl.float32)
        stored = inside[:, None] & (n < N)[None, :]
        y_at = (pair.to(tl.int64) * num_rows + r)[:, None] * N + n[None, :]
        if pre_ptr is not None:
            tl.store(pre_ptr + y_at, acc.to(pre_ptr.dtype.element_ty), mask=stored)
        acc = activate(acc, ACTIVATION)
        if residual_ptr is not None:
            row_at = task * residual_stride_task + slot * residual_stride_slot + r * residual_stride_row
            acc += tl.load(residual_ptr + row_at[:, None] + n[None, :], mask=stored, other=0.0).to(tl.float32)
        tl.store(y_ptr + y_at, acc.to(y_ptr.dtype.element_ty), mask=stored)


@triton.jit
def tma_kernel(  # type: ignore[no-untyped-def]
    x_desc, w_desc, y_desc, pre_desc, bias_ptr, task_bias_ptr, route_ptr,
    num_groups, num_slots, num_rows, N, K,
    ACTIVATION: tl.constexpr, SUM_SLOTS: tl.constexpr, SHARED_INPUT: tl.constexpr, TRANSPOSED: tl.constexpr,
    PROGRAMS: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Persistent programs that go through the tiles of all groups; tiles travel by the copy engine.

    A group is a (task, slot) pair; or, for the gradient of an input that the slots of a task share (SUM_SLOTS), a
    task, whose slots are then summed over together with the outputs. Descriptors: x, y, pre 4-d [task, slot, row,
    column] and w [expert, n, k], or [expert, k, n] if TRANSPOSED. The copy engine fills what lies outside with
    zeros and drops what is written there, so R, N and K need not be multiples of the block.
    """
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    column_tiles = tl.cdiv(N, BLOCK_N)
    steps = tl.cdiv(K, BLOCK_K)
    slots_summed = num_slots if SUM_SLOTS else 1
    for tile in tl.range(tl.program_id(0), num_groups * row_tiles * column_tiles, PROGRAMS, flatten=True):
        group = tile // (row_tiles * column_tiles)
        m = (tile // column_tiles) % row_tiles * BLOCK_M
        n = tile % column_tiles * BLOCK_N
        task = group if SUM_SLOTS else group // num_slots
        slot = 0 if SUM_SLOTS else group % num_slots
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        expert = tl.load(route_ptr + task * num_slots + slot).to(tl.int32)
        j = slot
        # The sum runs over slots and columns in one loop, so that loads of the next slot overlap with this one's.
        for i in range(0, slots_summed * steps):
            if SUM_SLOTS:
                j = i // steps
                expert = tl.load(route_ptr + task * num_slots + j).to(tl.int32)
            c = i % steps * BLOCK_K
            x = x_desc.load([task, 0 if SHARED_INPUT else j, m, c]).reshape(BLOCK_M, BLOCK_K)
            if TRANSPOSED:
                w = w_desc.load([expert, c, n]).reshape(BLOCK_K, BLOCK_N)
            else:
                w = w_desc.load([expert, n, c]).reshape(BLOCK_N, BLOCK_K).T
            if UPCAST:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            acc = tl.dot(x, w, acc)
        columns = n + tl.arange(0, BLOCK_N)
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + expert * N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        if task_bias_ptr is not None:
            acc += tl.load(task_bias_ptr + group * N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        if pre_desc is not None:
            pre_desc.store([task, slot, m, n], acc.to(pre_desc.dtype).reshape(1, 1, BLOCK_M, BLOCK_N))
        acc = activate(acc, ACTIVATION)
        y_desc.store([task, slot, m, n], acc.to(y_desc.dtype).reshape(1, 1, BLOCK_M, BLOCK_N))


@triton.jit
def dx_shared_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, w_ptr, dx_ptr, route_ptr, num_slots, num_rows, N, K,
    dy_stride_task, dy_stride_slot, dy_stride_row, w_stride_e, w_stride_n, w_stride_k,
    EVEN_N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx[k] = sum_j dy[k, j] W[e(k, j)] for an input that all slots of a task share: [K, R, K].

    One sum over (slot, output): no buffer per slot, nothing added atomically. The block sizes follow the role in this
    product: BLOCK_N columns of dx, BLOCK_K outputs of the layer per step.
    """
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    column_tiles = tl.cdiv(K, BLOCK_N)
    task = tl.program_id(0) // (row_tiles * column_tiles)
    r = (tl.program_id(0) // column_tiles) % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    r_wrapped = (r % num_rows).to(tl.int64)
    column = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    column_wrapped = column % K
    c = tl.arange(0, BLOCK_K)
    task_at = dy_ptr + task.to(tl.int64) * dy_stride_task
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # Two loops rather than one over both: reading the expert within the inner loop would undo its pipelining.
    for j in range(0, num_slots):
        expert = tl.load(route_ptr + task * num_slots + j)
        dy_at = task_at + j * dy_stride_slot + (r_wrapped * dy_stride_row)[:, None] + c[None, :]
        w_at = w_ptr + expert * w_stride_e + column_wrapped[None, :] * w_stride_k + c[:, None] * w_stride_n
        for first in range(0, N, BLOCK_K):
            if EVEN_N:
                dy = tl.load(dy_at)
                w = tl.load(w_at)
            else:
                dy = tl.load(dy_at, mask=c[None, :] < N - first, other=0.0)
                w = tl.load(w_at, mask=c[:, None] < N - first, other=0.0)
            if UPCAST:
                dy = dy.to(tl.float32)
                w = w.to(tl.float32)
            else:
                w = w.to(dy.dtype)
            acc = tl.dot(dy, w, acc, input_precision=PRECISION)
            dy_at += BLOCK_K
            w_at += BLOCK_K * w_stride_n
    dx_at = (task.to(tl.int64) * num_rows + r)[:, None] * K + column[None, :]
    stored = (r < num_rows)[:, None] & (column < K)[None, :]
    tl.store(dx_ptr + dx_at, acc.to(dx_ptr.dtype.element_ty), mask=stored)
