"""Windows of frames out of a ring on the same device, in the layout and dtype that convolutions take."""

import torch
from torch import Tensor

from mow.kernels.dispatch import Backend, backends, choose

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def gather_frames(
    ring: Tensor,
    rows: Tensor,
    start: Tensor,
    length: int,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Gather windows and scale their bytes, in one pass over memory.

        x[k, b, i, c, y, x] = ring[rows[k], (start[k, b] + i) mod capacity, y, x, c] / 255,   0 <= i < L

    Nothing waits for the device, so it can be captured in a CUDA graph; the values of `rows` and `start` are therefore
    not looked at. On a GPU one out of range reads memory that is not the ring's: take them from draw_windows.

    Args:
        ring: uint8 [R, capacity, H, W, C], contiguous.
        rows: int64 [K], the ring row of each task.
        start: int64 [K, B], ring position of each window's first step.
        length: L, 1 to capacity.
        dtype: of the result: float32, bfloat16 or float16, rounded once.
        channels_last: lay the result out with channels fastest, as the ring is.
        backend: "auto", or the name of an implementation.
    Returns: [K, B, L, C, H, W] in 0 to 1.
    Raises: ValueError where shapes, dtypes or devices do not fit.
    """
    if ring.dim() != 5 or ring.dtype != torch.uint8 or not ring.is_contiguous():
        raise ValueError(f"ring must be contiguous uint8 [R, capacity, H, W, C], got {ring.dtype} {[*ring.shape]} with "
                         f"strides {ring.stride()}: pass the whole ring")
    if rows.dim() != 1 or start.dim() != 2 or len(rows) != len(start):
        raise ValueError(f"expected rows [K] and start [K, B], got {[*rows.shape]} and {[*start.shape]}: a row each")
    if rows.dtype != torch.int64 or start.dtype != torch.int64:
        raise ValueError(f"rows and start must be int64, got {rows.dtype} and {start.dtype}: convert with .long()")
    if not ring.device == rows.device == start.device:
        raise ValueError(f"ring, rows and start must share a device, got {ring.device}, {rows.device} and "
                         f"{start.device}: move them with .to()")
    if not 1 <= length <= ring.shape[1]:
        raise ValueError(f"length must be in 1 to capacity {ring.shape[1]}, got {length}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    if choose("gather_frames", backend, backends(ring)) == "triton":
        # Loaded when first chosen: triton takes longer to import than all of this package.
        from mow.kernels.gather_frames_triton import gather_frames_triton

        return gather_frames_triton(ring, rows, start, length, dtype, channels_last)
    return _reference(ring, rows, start, length, dtype, channels_last)


def _reference(
    ring: Tensor, rows: Tensor, start: Tensor, length: int, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    step = torch.arange(length, device=ring.device)
    position = (start.unsqueeze(-1) + step) % ring.shape[1]  # [K, B, L]
    window = ring[rows[:, None, None], position]  # [K, B, L, H, W, C]
    # Divided by a tensor: by a number, a GPU would multiply with its rounded inverse.
    scaled = (window.float() / window.new_full((1,), 255.0, dtype=torch.float32)).to(dtype)
    moved = scaled.movedim(-1, -3)  # [K, B, L, C, H, W]
    return moved if channels_last else moved.contiguous()
