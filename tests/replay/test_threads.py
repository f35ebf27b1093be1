"""One thread writes while others read: no torn frame, no race, no byte out of bounds."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mow.replay import ReplayBuffer
from mow.replay.packed import why_not_packed
from mow.replay.store_choice import StoreKind

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (16, 16, 3)

needs_packing = pytest.mark.skipif(why_not_packed() != "", reason=why_not_packed() or "frames can be packed")


def run_all(writer: Callable[[], None], readers: list[Callable[[], None]]) -> None:
    """All at once; the first error of any of them, or of a thread that does not end, fails the test."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in [writer, *readers]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


@pytest.mark.parametrize("store", ["raw", pytest.param("packed", marks=needs_packing)])
def test_one_thread_adds_while_four_sample(store: StoreKind) -> None:
    """Every field of a step tells the step; the buffer wraps ten times meanwhile."""
    num_tasks, capacity, num_steps = 2, 60, 600
    buffer = ReplayBuffer(num_tasks, capacity, SHAPE, 1, seed=0, store=store)
    flags = np.zeros(num_tasks, dtype=np.bool_)

    def add(step: int) -> None:
        frame = np.full((num_tasks, *SHAPE), step % 251, dtype=np.uint8)
        frame[1] += 1
        number = np.full(num_tasks, step, dtype=np.float32)
        buffer.add(frame, number[:, None], number, flags, flags, flags, flags)

    for step in range(capacity):
        add(step)
    done = threading.Event()

    def write() -> None:
        for step in range(capacity, num_steps):
            add(step)
        done.set()

    def read(stream: int) -> None:
        counter = 0
        while not done.is_set() or counter == 0:
            batch = buffer.sample(4, 20, counter=counter, stream=stream)
            counter += 1
            step = batch.reward.long()  # [K, B, L]
            assert torch.equal(step, step[:, :, :1] + torch.arange(20))
            assert torch.equal(batch.action[..., 0], batch.reward)
            shade = step % 251 + torch.arange(num_tasks)[:, None, None]
            assert torch.equal(batch.frame.long(), shade[..., None, None, None].expand_as(batch.frame))

    run_all(write, [lambda stream=stream: read(stream) for stream in range(4)])  # type: ignore[misc]
    assert buffer.num_steps == num_steps


@needs_packing
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_a_sanitizer_finds_nothing(sanitizer: str, tmp_path: Path) -> None:
    """csrc/ and packed_stress.cpp, built and run under ThreadSanitizer, then under Address- and UBSanitizer."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    built = subprocess.run([compiler, *flags, probe, "-o", tmp_path / "probe"], capture_output=True)
    if built.returncode or subprocess.run([tmp_path / "probe"], capture_output=True).returncode:
        pytest.skip(f"{compiler} cannot build or run with -fsanitize={sanitizer}")
    sources = ["tests/replay/packed_stress.cpp", "csrc/packed.cpp", "csrc/crc32c.cpp", "csrc/spill.cpp"]
    program = tmp_path / "packed_stress"
    subprocess.run([compiler, *flags, "-Icsrc", *sources, "-o", program, "-ldl"], check=True, timeout=300, cwd=ROOT)
    for folder in ([], [tmp_path]):
        done = subprocess.run([program, "2", *folder], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert done.stderr == ""
