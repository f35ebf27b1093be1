"""How a kernel walks the rows of a strided tensor without a copy: over at most two levels of leading axes."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

# Kernels number rows in 32 bits; the last program may reach past the last row by a tile.
_MAX_ROWS = 2**31 - 2**16


class RowLayout(NamedTuple):
    """Row r of `tensor` begins at element (r // inner) * outer_stride + (r % inner) * inner_stride.

    With one level, inner is 1: Triton then makes it a constant, and the divisions vanish.
    """

    tensor: Tensor  # what to read: the tensor that was given, or a contiguous copy
    inner: int
    outer_stride: int
    inner_stride: int

    @property
    def strides(self) -> tuple[int, int, int]:
        """The three integers, in the order in which the kernels take them."""
        return self.inner, self.outer_stride, self.inner_stride


def row_layout(tensor: Tensor, num_trailing: int) -> RowLayout:
    """The rows of `tensor`: all but the last `num_trailing` axes, in the order of their indices.

    A slice of one axis, such as the steps 1 to L of [K, B, L, S, C], has two levels and is read where it lies. What has
    more, or whose trailing axes are not one contiguous block, is copied.
    Raises: ValueError if there are too many rows for 32 bits.
    """
    num_leading = tensor.dim() - num_trailing
    sizes, strides = tensor.shape[:num_leading], tensor.stride()[:num_leading]
    if sizes.numel() > _MAX_ROWS:
        raise ValueError(f"expected at most {_MAX_ROWS} rows, got {sizes.numel()}: split the batch")
    levels: list[tuple[int, int]] = []  # (size, stride), innermost first
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if levels and stride == levels[-1][0] * levels[-1][1]:
            levels[-1] = (levels[-1][0] * size, levels[-1][1])
        else:
            levels.append((size, stride))
    if len(levels) > 2 or not _is_block(tensor, num_trailing):
        return row_layout(tensor.contiguous(), num_trailing)
    if len(levels) == 2:
        (inner, inner_stride), (_, outer_stride) = levels
        return RowLayout(tensor, inner, outer_stride, inner_stride)
    return RowLayout(tensor, 1, levels[0][1] if levels else 1, 1)


def _is_block(tensor: Tensor, num_trailing: int) -> bool:
    expected = 1
    for axis in range(-1, -num_trailing - 1, -1):
        if tensor.shape[axis] != 1 and tensor.stride(axis) != expected:
            return False
        expected *= tensor.shape[axis]
    return True


@triton.jit
def row_offset(row, inner, outer_stride, inner_stride):  # type: ignore[no-untyped-def]
    """Where the rows `row` begin, in elements: 64 bits, since a tensor may have more than 2^31 of them."""
    return (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
