"""The Triton side of gather_frames: every frame is read once and written once, by a few programs each."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels.custom_op import custom_op

# Entries of a frame per program; a frame of 64 x 64 x 3 takes three programs.
_BLOCK = 4096
_NUM_WARPS = 4

# 1 / 255 as a sum of two float32: with them all 256 quotients come out as the division rounds them, in two
# instructions in place of the thirty of a division.
_INVERSE = tl.constexpr(float(torch.tensor(1 / 255)))
_REST = tl.constexpr(1 / 255 - float(torch.tensor(1 / 255)))
_MAX_PROGRAMS = 2**16 - 1  # of a launch's second axis


@triton.jit
def gather_frames_kernel(  # type: ignore[no-untyped-def]
    ring_ptr,
    rows_ptr,
    start_ptr,
    out_ptr,
    num_windows,  # B
    length,
    capacity,
    PIXELS: tl.constexpr,  # H * W, known so that the division by it is a shift
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    frame = tl.program_id(0)  # of K * B * L
    window = frame // length
    row = tl.load(rows_ptr + window // num_windows)
    position = (tl.load(start_ptr + window) + frame % length) % capacity
    size: tl.constexpr = PIXELS * CHANNELS
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # in the frame as it is written
    is_entry = place < size
    source = place if CHANNELS_LAST else place % PIXELS * CHANNELS + place // PIXELS
    # 64-bit: a ring of frames passes 2^31 bytes at 175,000 of them.
    byte = tl.load(ring_ptr + (row * capacity + position) * size + source, mask=is_entry, other=0)
    byte = byte.to(tl.float32)
    scaled = tl.fma(byte, _INVERSE, byte * _REST)  # byte / 255, to the bit
    tl.store(out_ptr + frame.to(tl.int64) * size + place, scaled.to(out_ptr.dtype.element_ty), mask=is_entry)


def gather_frames_triton(
    ring: Tensor, rows: Tensor, start: Tensor, length: int, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """gather_frames; arguments already checked."""
    frames: Tensor = torch.ops.mow.gather_frames(ring, rows, start, length, dtype, channels_last)
    return frames


def _launch(ring: Tensor, rows: Tensor, start: Tensor, length: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    frames = _fake(ring, rows, start, length, dtype, channels_last)
    if frames.numel() == 0:
        return frames
    _, capacity, height, width, channels = ring.shape
    blocks = triton.cdiv(height * width * channels, _BLOCK)
    if blocks > _MAX_PROGRAMS:
        raise ValueError(f"frames of {height}x{width}x{channels} are too large: {_MAX_PROGRAMS * _BLOCK} numbers fit")
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device(ring.device) if ring.is_cuda else nullcontext():
        gather_frames_kernel[(start.numel() * length, blocks)](
            ring,
            rows.contiguous(),
            start.contiguous(),
            frames,
            start.shape[1],
            length,
            capacity,
            PIXELS=height * width,
            CHANNELS=channels,
            CHANNELS_LAST=channels_last,
            BLOCK=_BLOCK,
            num_warps=_NUM_WARPS,
        )
    return frames


def _fake(ring: Tensor, rows: Tensor, start: Tensor, length: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    height, width, channels = ring.shape[2:]
    leading = (*start.shape, length)
    if channels_last:
        return torch.empty((*leading, height, width, channels), dtype=dtype, device=ring.device).movedim(-1, -3)
    return torch.empty((*leading, channels, height, width), dtype=dtype, device=ring.device)


custom_op(
    "gather_frames(Tensor ring, Tensor rows, Tensor start, int length, ScalarType dtype, bool channels_last) -> Tensor",
    _launch,
    _fake,
)
