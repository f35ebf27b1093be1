"""The three integers of a layout lead to every row of a strided tensor, without a copy where two levels suffice."""

import pytest
import torch

pytest.importorskip("triton", reason="the layout serves Triton kernels")

from mow.kernels.row_layout_triton import RowLayout, row_layout

GRID = torch.arange(2 * 3 * 5 * 4 * 6).view(2, 3, 5, 4, 6)


def rows_by_layout(layout: RowLayout, num_rows: int, size: int) -> torch.Tensor:
    """What a kernel reads: `size` neighbours from the beginning of each row."""
    row = torch.arange(num_rows)
    start = row // layout.inner * layout.outer_stride + row % layout.inner * layout.inner_stride
    memory = layout.tensor.as_strided((layout.tensor.untyped_storage().nbytes() // 8,), (1,), 0)
    return memory[layout.tensor.storage_offset() + start.unsqueeze(1) + torch.arange(size)]


@pytest.mark.parametrize("num_trailing", [1, 2])
@pytest.mark.parametrize(
    ("tensor", "copied"),
    [
        (GRID, False),
        (GRID[:, :, 1:], False),
        (GRID[:, :, :-1], False),
        (GRID[:, 1:2], False),
        (GRID[:1, :, 2:3], False),
        (GRID[0, 0, 0:1], False),
        (GRID.transpose(0, 1)[:, :1], False),
        (GRID[0, 0, :1].expand(5, -1, -1), False),
        (GRID[:, :1].expand(-1, 3, -1, -1, -1), True),
        (GRID[:, ::2, 1:], True),  # three levels
        (GRID[..., ::2], True),
        (GRID.transpose(-1, -2), True),
        (GRID[:0], False),
    ],
)
def test_every_row_is_found(tensor: torch.Tensor, copied: bool, num_trailing: int) -> None:
    layout = row_layout(tensor, num_trailing)
    assert (layout.tensor.data_ptr() != tensor.data_ptr()) == copied
    rows = tensor.flatten(tensor.dim() - num_trailing).reshape(-1, tensor.shape[-num_trailing:].numel())
    assert torch.equal(rows_by_layout(layout, *rows.shape), rows)


def test_contiguous_rows_need_no_division() -> None:
    assert row_layout(GRID, 2).strides == (1, 24, 1)
    assert row_layout(GRID[:, :, 1:], 2).strides == (4, 120, 24)
    assert row_layout(GRID[0, 0, 0, 0], 1).strides == (1, 1, 1)  # a single row


def test_too_many_rows() -> None:
    with pytest.raises(ValueError, match=r"at most 2147418112 rows, got 2147483648: split the batch"):
        row_layout(torch.empty(1, 1).expand(2**31, 1), 1)
