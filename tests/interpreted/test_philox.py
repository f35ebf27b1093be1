"""The generator inside a kernel: Random123's known answers, and the numbers of mow.kernels.uniform."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from mow.kernels import PhiloxState, philox4x32, uniform
from mow.kernels import philox_triton as device

FULL = 0xFFFFFFFF

# The vectors of Random123's kat_vectors file for philox4x32-10: counter, key, answer.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([FULL] * 4, [FULL] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]

_philox4x32: Any = device.philox4x32
_uniform_rows: Any = device.uniform_rows


@triton.jit
def words_kernel(key_ptr, counter_ptr, word_ptr, num, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """int64 [2] and [4, num] words -> int64 [4, num]."""
    i = tl.arange(0, BLOCK)
    inside = i < num
    c0 = tl.load(counter_ptr + i, mask=inside, other=0).to(tl.uint32)
    c1 = tl.load(counter_ptr + num + i, mask=inside, other=0).to(tl.uint32)
    c2 = tl.load(counter_ptr + 2 * num + i, mask=inside, other=0).to(tl.uint32)
    c3 = tl.load(counter_ptr + 3 * num + i, mask=inside, other=0).to(tl.uint32)
    key_low, key_high = tl.load(key_ptr).to(tl.uint32), tl.load(key_ptr + 1).to(tl.uint32)
    w0, w1, w2, w3 = _philox4x32(key_low, key_high, c0, c1, c2, c3)
    tl.store(word_ptr + i, w0.to(tl.int64), mask=inside)
    tl.store(word_ptr + num + i, w1.to(tl.int64), mask=inside)
    tl.store(word_ptr + 2 * num + i, w2.to(tl.int64), mask=inside)
    tl.store(word_ptr + 3 * num + i, w3.to(tl.int64), mask=inside)


@triton.jit
def uniform_kernel(seed_offset_ptr, u_ptr, num_rows, NUM_BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    pid = tl.program_id(0)
    row = pid * (4 * NUM_BLOCKS) + tl.arange(0, 4 * NUM_BLOCKS)
    tl.store(u_ptr + row, _uniform_rows(seed_offset_ptr, pid * NUM_BLOCKS, NUM_BLOCKS), mask=row < num_rows)


def words(key: Tensor, counter: Tensor) -> Tensor:
    word = torch.empty_like(counter)
    num = counter.shape[1]
    words_kernel[(1,)](key, counter, word, num, BLOCK=triton.next_power_of_2(num))
    return word


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answer(counter: list[int], key: list[int], answer: list[int]) -> None:
    assert words(torch.tensor(key), torch.tensor(counter).unsqueeze(1)).flatten().tolist() == answer


def test_many_counters_equal_the_reference() -> None:
    key, counter = torch.randint(0, 2**32, (2,)), torch.randint(0, 2**32, (4, 63))
    assert torch.equal(words(key, counter), philox4x32(key, counter))


@pytest.mark.parametrize(("num_blocks", "num_rows"), [(1, 1), (1, 13), (4, 64), (4, 131), (16, 131)])
def test_uniform_rows_equal_the_reference(num_blocks: int, num_rows: int) -> None:
    # Every one of the four words of seed and offset matters here.
    rng = PhiloxState(torch.tensor([0x1234567_89ABCDEF, 0x7EDCBA9_87654321]))
    u = torch.empty(num_rows)
    uniform_kernel[(triton.cdiv(num_rows, 4 * num_blocks),)](rng.seed_offset, u, num_rows, NUM_BLOCKS=num_blocks)
    assert torch.equal(u, uniform(rng, num_rows))
