"""Frames on a GPU: the same batches as raw frames, saves that either store reads, one line where there is no GPU.

Without a GPU the ring is a CPU tensor; tests/replay/test_stores.py has every window of every state. The tests marked
gpu do the same with the CUDA gather.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mow.replay import GpuStore, Prefetcher, ReplayBuffer, Request, gpu_store, load, save, store_choice
from mow.replay.store_choice import make_store
from mow.train import main
from tests.replay.test_buffer import same, step_of
from tests.test_train import DUMMY

CPU = torch.device("cpu")


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU counts as a device with room for frames."""
    monkeypatch.setattr(store_choice, "why_not_on_gpu", lambda device: "")


def buffers(device: torch.device = CPU, capacity: int = 13) -> tuple[ReplayBuffer, ReplayBuffer]:
    """Two that differ in their stores alone."""
    raw = ReplayBuffer(3, capacity, (2, 4, 3), 5, seed=4, store="raw")
    return raw, ReplayBuffer(3, capacity, (2, 4, 3), 5, seed=4, store="gpu", device=device)


def check_batches(device: torch.device) -> None:
    """Through the wrap of the ring and a new order of tasks, with and without `out`."""
    raw, here = buffers(device)
    for index in range(31):
        if index == 20:
            raw.reorder([2, 0, 1])
            here.reorder([2, 0, 1])
        for buffer in (raw, here):
            buffer.add(**step_of(index))
        if index >= 3:
            want, got = (buffer.sample(2, 4, counter=index, stream=0) for buffer in (raw, here))
            assert got.frame.device.type == device.type
            assert same(want, got.to(CPU))
    out = raw.sample(2, 4, counter=99, stream=0)
    out.frame.zero_()
    assert here.sample(2, 4, counter=31, stream=0, out=out) is out
    assert same(out, raw.sample(2, 4, counter=31, stream=0))


def check_later_steps(device: torch.device) -> None:
    """Prefetched batches are those of the step at which they were published, though the ring is written over."""
    batches = []
    for buffer in buffers(device):
        with Prefetcher(buffer, depth=2, device=device) as prefetch:
            for index in range(60):
                prefetch.wait()
                buffer.add(**step_of(index))
                if index >= 5:
                    batches.append(prefetch.next(Request(3, 5, index, 1)).to(CPU))
    half = len(batches) // 2
    assert all(same(*pair) for pair in zip(batches[:half], batches[half:], strict=True))


def test_batches_are_those_of_raw_frames(allowed: None) -> None:
    check_batches(CPU)


def test_later_steps_do_not_change_a_batch(allowed: None) -> None:
    check_later_steps(CPU)


@pytest.mark.gpu
def test_batches_on_a_gpu() -> None:
    check_batches(torch.device("cuda"))


@pytest.mark.gpu
def test_later_steps_do_not_change_a_batch_on_a_gpu() -> None:
    check_later_steps(torch.device("cuda"))


def test_either_store_reads_the_save_of_the_other(tmp_path: Path, allowed: None) -> None:
    for name, (one, other) in {"raw": buffers(), "gpu": buffers()[::-1]}.items():
        for index in range(29):
            one.add(**step_of(index))
        one.reorder([1, 2, 0])
        save(one, tmp_path / name)
        assert load(tmp_path / name, other) == 29
        assert same(*(buffer.sample(4, 6, counter=1, stream=0) for buffer in (one, other)))
        for buffer in (one, other):
            buffer.add(**step_of(29))
        assert same(*(buffer.sample(4, 6, counter=2, stream=0) for buffer in (one, other)))


def test_main_memory_holds_no_frame(allowed: None) -> None:
    _, buffer = buffers()
    columns = sum(ring.nbytes for ring in buffer.columns.values())
    assert isinstance(buffer.store, GpuStore)
    assert buffer.store._ring is None  # a dry run takes no memory
    buffer.add(**step_of(0))
    assert (buffer.memory_bytes, buffer.store.device_bytes) == (columns, 3 * 13 * 24)
    assert buffer.describe() == ("replay (gpu): 1 of 13 steps of 3 tasks in 0.00 GB, 0.00 GB more on cpu, 0.00 GB once "
                                 "full")  # fmt: skip


@pytest.mark.parametrize("device", [None, CPU])
def test_no_gpu_is_an_error(device: torch.device | None) -> None:
    with pytest.raises(ValueError, match=r"replay.store gpu cannot be used: it needs a CUDA device, got .*: use"):
        make_store("gpu", 1, 1, (2, 4, 3), device=device)


def test_an_extension_without_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    info: dict[str, Any] = {"cuda": False, "reason": "built with MOW_BUILD=cpu"}
    monkeypatch.setattr(gpu_store, "build_info", lambda: info)
    cuda = torch.device("cuda")
    with pytest.raises(ValueError, match=r"lacks its CUDA part \(built with MOW_BUILD=cpu\): install"):
        make_store("gpu", 1, 1, (2, 4, 3), device=cuda)
    assert not gpu_store.fits_on_gpu(0, cuda)


def test_auto_takes_a_third_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_store, "why_not_on_gpu", lambda device: "")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300, 1_000))
    assert [gpu_store.fits_on_gpu(size, torch.device("cuda")) for size in (100, 101)] == [True, False]
    monkeypatch.setattr(store_choice, "fits_on_gpu", lambda num_bytes, device: num_bytes <= 240)
    kinds = [type(make_store("auto", 1, steps, (2, 4, 3), device=CPU)).__name__ for steps in (10, 11)]
    assert kinds == ["GpuStore", "RawStore"]


def test_frames_beyond_the_memory_of_the_device_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 10))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    with pytest.raises(MemoryError, match=r"frames take 0.00 GB of cuda, 0.00 GB is free"):
        GpuStore(1, 1, (2, 4, 3), torch.device("cuda"))


def test_a_run_without_a_gpu_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--replay.store", "gpu", "--device", "cpu", "--folder", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", *DUMMY, *flags])
    assert stopped.value.code == 2
    assert "replay.store gpu cannot be used: it needs a CUDA device, got cpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_window_that_is_not_held_is_refused() -> None:
    store = GpuStore(2, 5, (2, 4, 3), CPU)
    for step in range(7):
        store.append(np.full((2, 2, 4, 3), step, np.uint8))
    with pytest.raises(ValueError, match="first must be in 2 to 4"):
        store.gather_on_device(np.arange(2), np.array([[1], [2]]), 3)
