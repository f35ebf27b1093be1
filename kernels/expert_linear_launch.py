"""How the kernels of expert_linear are launched: tilings, grids and memory, without gradients or registration.

No launch waits for the device, and no grid depends on the routing: a grid holds the most tiles that any routing can
need, and programs past the last tile end at once. So every launch can be captured in a CUDA graph.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mow.kernels.dispatch import INTERPRETED
from mow.kernels.expert_linear_grads import dw_kernel, dw_sum_kernel, pre_grad_kernel, sum_members_kernel
from mow.kernels.expert_linear_kernels import dx_shared_kernel, packed_kernel, tma_kernel
from mow.kernels.tuned import ODD_TILING, POINTER_TILING, Tiling, precision_of, tiling

# Up to so many rows per task a kernel reads a float32 weight as it is and rounds it on the way to a 16-bit product:
# few row tiles share a weight, and a rounded copy would cost more bytes than it saves.
CAST_IN_KERNEL_ROWS = 128

# The sums over rows are bound by bytes, so one shape serves all: rows and columns of a tile, rows of a partial sum.
_SUM_TILE, _SUM_CHUNK = ((16, 32), 32) if INTERPRETED else ((32, 128), 256)
_SUM_BLOCK = 1024  # weights per program, where partial sums of their gradient are added

_VECTOR = 16  # numbers; sizes and strides that are multiples of it let Triton read in whole vectors


def launch_forward(
    input: Tensor, weight: Tensor, routes: Tensor, member_P: Tensor, offset_E: Tensor, bias: Tensor | None,
    task_bias: Tensor | None, residual: Tensor | None, activation: str, pre: Tensor | None, output: Tensor,
) -> None:  # fmt: skip
    """output = act(x W^T + bias + task_bias) + residual; what the activation saw goes to `pre`, if any.

    Shapes as in expert_linear; `pre` and `output` are contiguous.
    """
    num_rows, num_inputs = input.shape[2:]
    cut = tiling("forward", input.device, input.dtype, num_rows, weight.shape[1], num_inputs)
    with torch.cuda.device_of(input):
        as_it_lies = cut.implementation == "tma" and residual is None and all(map(describable, (input, weight, output)))
        x = input if as_it_lies else aligned(input)
        weight = weight if as_it_lies else _aligned_weight(weight, x, cut, rows=False)
        terms = (_contiguous(bias), _contiguous(task_bias), residual)
        _launch_layer(x, weight, False, routes, member_P, offset_E, terms, activation, pre, output, cut)


def launch_dx(dpre: Tensor, weight: Tensor, routes: Tensor, member_P: Tensor, offset_E: Tensor, dx: Tensor) -> None:
    """dx[k, j] = dpre[k, j] W[e]; or, where dx is [K, 1, R, I] and there are several slots, their sum."""
    num_outputs, num_inputs = weight.shape[1:]
    cut = tiling("dx", dpre.device, dpre.dtype, dpre.shape[2], num_outputs, num_inputs)
    with torch.cuda.device_of(dpre):
        dpre = aligned(dpre)
        weight = _aligned_weight(weight, dpre, cut, rows=True)
        wide = dx if weight.shape[2] == num_inputs else dx.new_empty((*dx.shape[:3], weight.shape[2]))
        if dx.shape[1] == routes.shape[1]:
            # The layer itself, with the weight read the other way round.
            no_terms = (None, None, None)
            _launch_layer(dpre, weight, True, routes, member_P, offset_E, no_terms, "none", None, wide, cut)
        else:
            _launch_dx_shared(dpre, weight, routes, wide, cut)
        if wide is not dx:
            dx.copy_(wide[..., :num_inputs])


def launch_dw(dpre: Tensor, input: Tensor, member_P: Tensor, offset_E: Tensor, dw: Tensor) -> None:
    """dw[e] = sum over the pairs of e of dpre^T x; zero for an idle expert. dw [E, N, I] is contiguous."""
    num_experts, num_outputs, num_inputs = dw.shape
    cut = tiling("dw", dpre.device, dpre.dtype, dpre.shape[2], num_outputs, num_inputs)
    with torch.cuda.device_of(dpre):
        dpre, input = aligned(dpre), aligned(input)
        shape = (num_experts, dpre.shape[3], input.shape[3])
        wide = dw if shape == dw.shape else dw.new_empty(shape)
        _launch_dw(dpre, input, member_P, offset_E, wide, cut)
        if wide is not dw:
            dw.copy_(wide[:, :num_outputs, :num_inputs])


def launch_dpre(
    dy: Tensor, seen: Tensor | None, activation: str, dpre: Tensor | None, partial: Tensor | None
) -> None:  # fmt: skip
    """dpre = dy * act'(seen), if asked for; and its sums over chunks of rows, partial [K * J, chunks, N] float32."""
    num_tasks, num_slots, num_rows, num_outputs = dy.shape
    dy = dy if dy.stride(3) == 1 else dy.contiguous()
    num_chunks = sum_chunks(num_rows)
    rows, columns = _SUM_TILE
    grid = (num_tasks * num_slots * num_chunks * triton.cdiv(num_outputs, columns),)
    with torch.cuda.device_of(dy):
        pre_grad_kernel[grid](
            dy, seen, dpre, partial, num_slots, num_rows, num_outputs, _SUM_CHUNK, num_chunks, *dy.stride()[:3],
            ACTIVATION=activation, BLOCK_R=rows, BLOCK_N=columns, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def launch_sum_members(pair_sum: Tensor, member_P: Tensor, offset_E: Tensor, out: Tensor) -> None:
    """out[e] = sum of pair_sum[p] over the pairs of e: [K, J, N] -> [E, N], both float32 and contiguous."""
    num_experts, num_outputs = out.shape
    columns = _SUM_TILE[1]
    with torch.cuda.device_of(pair_sum):
        sum_members_kernel[(num_experts * triton.cdiv(num_outputs, columns),)](
            pair_sum, member_P, offset_E, out, num_outputs, BLOCK_N=columns, num_warps=1, enable_fp_fusion=True
        )


def sum_chunks(num_rows: int) -> int:
    """Into how many partial sums launch_dpre cuts the rows of a pair."""
    return triton.cdiv(num_rows, _SUM_CHUNK)


def most_tiles(num_pairs: int, num_rows: int, num_experts: int, rows_per_tile: int) -> int:
    """The most tiles that any routing needs if every expert begins a new one.

    sum_e ceil(n_e / m) <= sum_e (n_e + m - 1) / m over the experts with a row: at most min(E, pairs) of them.
    """
    return (num_pairs * num_rows + min(num_experts, num_pairs) * (rows_per_tile - 1)) // rows_per_tile


def chunk_rows(all_rows: int, num_experts: int, tiles: int, block: int, num_processors: int) -> int:
    """How many rows of an expert one program of dw sums over.

    Twice the mean of an expert, so that even a lopsided routing has no program that works much longer than the others,
    while with an even one each expert is one chunk and no partial sum is written; or fewer, where that leaves the
    processors short of work. A multiple of `block`.
    """
    chunks = max(1, num_experts // 2, triton.cdiv(2 * num_processors, tiles))
    return triton.cdiv(max(1, triton.cdiv(all_rows, chunks)), block) * block


def stages_asked(cut: Tiling, index_in_loop: bool) -> int:
    """The num_stages that gives a kernel the buffers of its tiling.

    Where a loop reads an index before the tile that it names, Triton shares its stages out over both loads: s stages
    leave (s - 1) // 2 + 1 buffers for the tiles.
    """
    return 2 * cut.num_stages - 1 if index_in_loop else cut.num_stages


def is_aligned(tensor: Tensor, *, rows: bool = False) -> bool:
    """Whether the kernels can read the tensor in whole vectors along its last axis, and sum over that one in blocks.

    So they can if the axis is contiguous and its size and all other strides are multiples of 16, which is what Triton
    makes use of; with `rows`, the size of the axis before must be one too.
    """
    strides = [tensor.stride(i) for i in range(tensor.dim() - 1) if tensor.shape[i] > 1]
    numbers = [tensor.shape[-1], *strides, *([tensor.shape[-2]] if rows else [])]
    return tensor.stride(-1) == 1 and tensor.data_ptr() % 16 == 0 and not any(n % _VECTOR for n in numbers)


def aligned(tensor: Tensor, *, rows: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor, converted to dtype if given; or a copy in which is_aligned holds, made larger with zeros.

    Zeros add nothing to a sum, and one pass over the tensor costs less than reading its numbers one by one.
    """
    if is_aligned(tensor, rows=rows):
        return tensor if dtype is None else tensor.to(dtype)
    shape = [-(-n // _VECTOR) * _VECTOR for n in tensor.shape[-2:]]
    wide = tensor.new_zeros((*tensor.shape[:-2], shape[0] if rows else tensor.shape[-2], shape[1]), dtype=dtype)
    wide[..., : tensor.shape[-2], : tensor.shape[-1]].copy_(tensor)
    return wide


def describable(tensor: Tensor) -> bool:
    """Whether the copy engine can address it: 16-bit, the last axis contiguous, all else on 16-byte boundaries."""
    strides = [stride for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size > 1]
    boundaries = tensor.data_ptr() % 16 == 0 and all(stride > 0 and stride % 8 == 0 for stride in strides)
    return boundaries and tensor.itemsize == 2 and tensor.stride(-1) == 1


Terms = tuple[Tensor | None, Tensor | None, Tensor | None]  # bias, task_bias, residual


def _launch_layer(
    x: Tensor, weight: Tensor, transposed: bool, routes: Tensor, member_P: Tensor, offset_E: Tensor, terms: Terms,
    activation: str, pre: Tensor | None, y: Tensor, cut: Tiling,
) -> None:  # fmt: skip
    """y[k, j] = act(x[k, j] W[e]^T + ...), or W[e] if transposed, by the copy engine or through pointers."""
    bias, task_bias, residual = terms
    if cut.implementation == "tma":
        if residual is None and describable(x) and describable(y):
            _launch_tma(x, weight, transposed, routes, bias, task_bias, activation, pre, y, cut)
            return
        cut = POINTER_TILING
    num_columns = y.shape[3]
    if num_columns % _VECTOR and x.itemsize == 2 and cut.block_m > 32:
        cut = ODD_TILING
    if residual is not None and residual.stride(3) != 1:
        residual = residual.contiguous()
    num_tasks, num_slots, num_rows = y.shape[:3]
    num_experts = weight.shape[0]
    if transposed:
        weight = weight.mT
    row_tiles = most_tiles(num_tasks * num_slots, num_rows, num_experts, cut.block_m)
    packed_kernel[(row_tiles * triton.cdiv(num_columns, cut.block_n),)](
        x, weight, bias, task_bias, residual, pre, y, member_P, offset_E,
        num_slots, num_rows, num_columns, x.shape[3], num_experts,
        *_input_strides(x), *weight.stride(), *((0, 0, 0) if residual is None else residual.stride()[:3]),
        ACTIVATION=activation, EVEN_K=x.shape[3] % cut.block_k == 0,
        EXPERTS=triton.next_power_of_2(num_experts), **_precision(x), **_blocks(cut),
    )  # fmt: skip


def _launch_dx_shared(dpre: Tensor, weight: Tensor, routes: Tensor, dx: Tensor, cut: Tiling) -> None:
    if cut.implementation == "tma":
        if describable(dpre):
            _launch_tma(dpre, weight, True, routes, None, None, "none", None, dx, cut)
            return
        cut = POINTER_TILING
    num_tasks, num_slots = routes.shape
    num_rows, num_columns = dx.shape[2:]
    grid = (num_tasks * triton.cdiv(num_rows, cut.block_m) * triton.cdiv(num_columns, cut.block_n),)
    dx_shared_kernel[grid](
        dpre, weight, dx, routes.contiguous(), num_slots, num_rows, dpre.shape[3], num_columns,
        *dpre.stride()[:3], *weight.stride(),
        EVEN_N=dpre.shape[3] % cut.block_k == 0, **_precision(dpre), **_blocks(cut),
    )  # fmt: skip


def _launch_dw(dpre: Tensor, input: Tensor, member_P: Tensor, offset_E: Tensor, dw: Tensor, cut: Tiling) -> None:
    num_slots, num_rows = dpre.shape[1:3]
    num_experts, num_outputs, num_inputs = dw.shape
    tiles = triton.cdiv(num_outputs, cut.block_m) * triton.cdiv(num_inputs, cut.block_n)
    all_rows = member_P.numel() * num_rows
    rows_per_chunk = chunk_rows(all_rows, num_experts, tiles, cut.block_k, _num_processors(dpre.device))
    chunks = most_tiles(member_P.numel(), num_rows, num_experts, rows_per_chunk)
    experts = triton.next_power_of_2(num_experts)
    partial = dpre.new_empty((chunks, num_outputs, num_inputs), dtype=torch.float32)
    dw_kernel[(chunks * tiles,)](
        dpre, input, dw, partial, member_P, offset_E,
        num_slots, num_rows, num_outputs, num_inputs, num_experts, rows_per_chunk,
        *dpre.stride()[:3], *_input_strides(input),
        WHOLE_TILES=num_rows % cut.block_k == 0, EXPERTS=experts, **_precision(dpre),
        **_blocks(cut, index_in_loop=True),
    )  # fmt: skip
    num_weights = num_outputs * num_inputs
    dw_sum_kernel[(num_experts * triton.cdiv(num_weights, _SUM_BLOCK),)](
        partial, dw, offset_E, num_rows, num_weights, num_experts, rows_per_chunk,
        EXPERTS=experts, BLOCK=_SUM_BLOCK, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def _launch_tma(
    x: Tensor, weight: Tensor, transposed: bool, routes: Tensor, bias: Tensor | None, task_bias: Tensor | None,
    activation: str, pre: Tensor | None, y: Tensor, cut: Tiling,
) -> None:  # fmt: skip
    if pre is not None and cut.block_n > 128:
        cut = replace(cut, block_n=128)  # two wide tiles to write would spill registers
    num_tasks, num_slots = routes.shape
    num_rows, num_columns = y.shape[2:]
    sum_slots = y.shape[1] == 1 and num_slots > 1
    groups = num_tasks if sum_slots else num_tasks * num_slots
    tiles = groups * triton.cdiv(num_rows, cut.block_m) * triton.cdiv(num_columns, cut.block_n)
    programs = min(tiles, _num_processors(x.device))
    of_x, of_y = [1, 1, cut.block_m, cut.block_k], [1, 1, cut.block_m, cut.block_n]
    of_w = [1, cut.block_k, cut.block_n] if transposed else [1, cut.block_n, cut.block_k]
    tma_kernel[(programs,)](
        _described(x, of_x), _described(weight, of_w), _described(y, of_y),
        None if pre is None else _described(pre, of_y), bias, task_bias, routes.contiguous(),
        groups, num_slots, num_rows, num_columns, x.shape[3],
        ACTIVATION=activation, SUM_SLOTS=sum_slots, SHARED_INPUT=x.shape[1] == 1, TRANSPOSED=transposed,
        PROGRAMS=programs, UPCAST=INTERPRETED, **_blocks(cut, index_in_loop=sum_slots),
    )  # fmt: skip


def _described(tensor: Tensor, block: list[int]) -> Any:
    # Along an axis of size one nothing is ever stepped, but its stride must be a legal one.
    strides = [8 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return TensorDescriptor(tensor, list(tensor.shape), [*strides[:-1], 1], block)


def _aligned_weight(weight: Tensor, x: Tensor, cut: Tiling, *, rows: bool) -> Tensor:
    """The weight as the kernel reads it: rounded to the dtype of x first, unless the kernel may do that by itself."""
    in_kernel = cut.implementation != "tma" and x.shape[2] <= CAST_IN_KERNEL_ROWS
    return weight if in_kernel and is_aligned(weight, rows=rows) else aligned(weight, rows=rows, dtype=x.dtype)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _input_strides(x: Tensor) -> tuple[int, int, int]:
    """Of task, slot and row; a slot axis of size one is shared by all slots."""
    return x.stride(0), 0 if x.shape[1] == 1 else x.stride(1), x.stride(2)


def _precision(x: Tensor) -> dict[str, object]:
    return {"PRECISION": "tf32" if precision_of(x.dtype) == "tf32" else "ieee", "UPCAST": INTERPRETED}


def _blocks(cut: Tiling, *, index_in_loop: bool = False) -> dict[str, object]:
    blocks = {"BLOCK_M": cut.block_m, "BLOCK_N": cut.block_n, "BLOCK_K": cut.block_k}
    stages = stages_asked(cut, index_in_loop)
    return {**blocks, "num_warps": cut.num_warps, "num_stages": stages, "enable_fp_fusion": True}


def _num_processors(device: torch.device) -> int:
    return _ask_processors(device.index or 0) if device.type == "cuda" else 4  # the interpreter has none


@cache
def _ask_processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
