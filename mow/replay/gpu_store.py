"""A ring of raw frames in the memory of a GPU; windows are gathered there by csrc/gather.cu.

Letters: R rows, K tasks, B windows per task, L steps per window, H and W the sides of a frame in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mow.replay.sampler import REMEDY, build_info, gather_windows_cuda
from mow.replay.stores import Frames, FrameStore, Int64Array, nothing_left

_SHARE = 3  # the ring may take one third of the free memory of the device where the choice is "auto"


def why_not_on_gpu(device: torch.device | None) -> str:
    """Reason why frames cannot be kept in the memory of `device`, with the remedy; empty where they can."""
    if device is None or device.type != "cuda" or not torch.cuda.is_available():
        return f"it needs a CUDA device, got {device}: use replay.store auto"
    if build_info()["cuda"]:
        return ""
    return f"mow._C lacks its CUDA part ({build_info()['reason']}): install the CUDA toolkit and {REMEDY}"


def fits_on_gpu(num_bytes: int, device: torch.device | None) -> bool:
    """True if "auto" keeps frames of so many bytes on `device`: a third of its free memory has room for them."""
    return not why_not_on_gpu(device) and _SHARE * num_bytes <= torch.cuda.mem_get_info(device)[0]


class GpuStore(FrameStore):
    """The last `capacity` frames of R rows in a ring on a device; main memory holds none.

    Appends and gathers are queued on one stream of the store, so that they keep their order on the device whatever
    stream is current; the current stream waits for a gather. With a CPU device the ring is an ordinary tensor and the
    gather torch.index_select, for tests without a GPU. One thread at a time.
    """

    memory_bytes = projected_bytes = 0

    def __init__(self, num_rows: int, capacity: int, frame_shape: Sequence[int], device: torch.device) -> None:
        """Reserve nothing yet: the ring is allocated whole with the first step.

        Raises: ValueError for a size below 1; MemoryError where the device has less memory free than the ring takes.
        """
        super().__init__(num_rows, capacity, frame_shape)
        self.device = device
        self.device_bytes = num_rows * capacity * self.frame_bytes  # memory of the device that the ring takes
        self._ring: Tensor | None = None  # [R, capacity, H, W, 3]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if device.type == "cuda" and self.device_bytes > (free := torch.cuda.mem_get_info(device)[0]):
            raise MemoryError(f"frames take {self.device_bytes / 1e9:.2f} GB of {device}, {free / 1e9:.2f} GB is free")

    def append(self, frame: Frames) -> None:
        self._check_frames(frame)
        with self._queue():
            if self._ring is None:
                self._ring = torch.zeros(self.num_rows, self.capacity, *self.frame_shape, dtype=torch.uint8,
                                         device=self.device)
            self._ring[:, self.num_steps % self.capacity] = torch.tensor(frame).to(self.device)
        self.num_steps += 1

    def gather_on_device(self, rows: Int64Array, first: Int64Array, length: int) -> Tensor:
        """Windows as gather copies them, as a new tensor uint8 [K, B, L, H, W, 3] on the device.

        The current stream waits for it; steps appended later do not change it. Raises: as gather.
        """
        self._check_windows(rows, first, length)
        assert self._ring is not None  # a window was checked, so a step was appended
        with self._queue():
            out = torch.empty(*first.shape, length, *self.frame_shape, dtype=torch.uint8, device=self.device)
            row, start = (torch.from_numpy(index).to(self.device) for index in (rows, first % self.capacity))
            if self.device.type == "cuda":
                gather_windows_cuda(self._ring, row, start, length, out)
            else:
                position = (start[:, :, None] + torch.arange(length)) % self.capacity  # [K, B, L]
                index = (row[:, None, None] * self.capacity + position).flatten()
                torch.index_select(self._ring.flatten(0, 1), 0, index, out=out.flatten(0, 2))
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            out.record_stream(current)
        return out

    def begin_gather(self, rows: Int64Array, first: Int64Array, length: int, out: Frames) -> Callable[[], None]:
        self._check_windows(rows, first, length, out)
        torch.from_numpy(out).copy_(self.gather_on_device(rows, first, length))
        return nothing_left

    @contextmanager
    def _queue(self) -> Iterator[None]:
        """Queue on the stream of the store, behind what the current stream has queued."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield
