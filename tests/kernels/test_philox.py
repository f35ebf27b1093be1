"""Known answers of Random123, and the numbers of a row depend on seed, offset and row alone."""

import pytest
import torch

from mow.kernels import PhiloxState, philox4x32, uniform

FULL = 0xFFFFFFFF


def words(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


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


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """The same generator in Python integers, one counter at a time."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & FULL, (a >> 32) ^ c3 ^ k1, a & FULL
        k0, k1 = (k0 + 0x9E3779B9) & FULL, (k1 + 0xBB67AE85) & FULL
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answer(counter: list[int], key: list[int], answer: list[int]) -> None:
    assert philox4x32(words(key), words(counter).unsqueeze(1)).flatten().tolist() == answer


def test_many_counters_at_once_equal_plain_integers() -> None:
    key, counter = torch.randint(0, 2**32, (2,)), torch.randint(0, 2**32, (4, 63))
    expected = [plain_philox(column, key.tolist()) for column in counter.T.tolist()]
    assert philox4x32(key, counter).T.tolist() == expected


def test_uniform_by_hand() -> None:
    got = uniform(PhiloxState.from_seed(0, "cpu"), 4)
    # The four words of the zero counter above, their top 24 bits as a fraction.
    assert got.tolist() == [w * 2.0**-24 for w in (0x6627E8, 0xE169C5, 0xBC57AC, 0x9B00DB)]
    assert got.dtype == torch.float32


def test_uniform_uses_all_words_of_seed_and_offset() -> None:
    seed, offset = 0x1234567_89ABCDEF, 0x7EDCBA9_87654321
    got = uniform(PhiloxState(words([seed, offset])), 9)[8]  # row 8 is word 0 of block 2
    word = plain_philox([2, 0, offset & FULL, offset >> 32], [seed & FULL, seed >> 32])[0]
    assert got.item() == (word >> 8) * 2.0**-24


def test_row_does_not_depend_on_num_rows() -> None:
    rng = PhiloxState.from_seed(7, "cpu")
    full = uniform(rng, 1000)
    for num_rows in (0, 1, 2, 3, 4, 5, 13, 63, 999):
        assert torch.equal(uniform(rng, num_rows), full[:num_rows])


def test_range_and_moments() -> None:
    num = 100_000
    u = uniform(PhiloxState.from_seed(1, "cpu"), num).double()
    assert u.min() >= 0
    assert u.max() < 1
    # Mean 1/2 with standard error sqrt(1/12/n), variance 1/12 with sqrt(1/180/n): five standard errors each.
    assert abs(u.mean() - 1 / 2) < 5 * (1 / 12 / num) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / num) ** 0.5


@pytest.mark.parametrize("change", ["seed", "offset"])
def test_streams_are_uncorrelated(change: str) -> None:
    num = 100_000
    a, b = PhiloxState.from_seed(3, "cpu"), PhiloxState.from_seed(4 if change == "seed" else 3, "cpu")
    if change == "offset":
        b.advance()
    correlation = torch.corrcoef(torch.stack((uniform(a, num), uniform(b, num))).double())[0, 1]
    assert abs(correlation) < 5 / num**0.5  # five standard errors


def test_replay_from_state() -> None:
    rng = PhiloxState.from_seed(5, "cpu")
    rng.advance()
    state = rng.state()
    later = []
    for _ in range(3):
        later.append(uniform(rng, 13))
        rng.advance()
    assert not torch.equal(later[0], later[1])
    assert state.tolist() == [5, 1]  # a copy: advancing did not reach it
    other = PhiloxState.from_seed(0, "cpu")
    other.load(state)
    for expected in later:
        assert torch.equal(uniform(other, 13), expected)
        other.advance()
    assert state.tolist() == [5, 1]


def test_advance_works_in_place() -> None:
    rng = PhiloxState.from_seed(5, "cpu")
    pointer = rng.seed_offset.data_ptr()
    rng.advance()
    rng.load(torch.tensor([8, 9]))
    assert rng.seed_offset.data_ptr() == pointer  # a captured graph goes on reading this memory
    assert rng.seed_offset.tolist() == [8, 9]


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_range(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*63\), got {seed}: take it modulo"):
        PhiloxState.from_seed(seed, "cpu")


@pytest.mark.parametrize("bad", [torch.zeros(2), torch.zeros(3, dtype=torch.int64)])
def test_state_shape_and_dtype(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"a Philox state is int64 \[2\]"):
        PhiloxState(bad)
    with pytest.raises(ValueError, match=r"a Philox state is int64 \[2\]"):
        PhiloxState.from_seed(0, "cpu").load(bad)
