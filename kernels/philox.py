"""Philox4x32-10, a counter-based generator: the number of a row depends on (seed, offset, row) and nothing else.

So a run can be replayed from two integers, every backend draws the same numbers, and the state lives on the device,
where a CUDA graph can advance it.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF  # keeps a 32-bit word of an int64 lane
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_KEY_BUMP = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10


class PhiloxState:
    """Seed and offset of a random stream, int64 [2] on a device; whoever draws also advances.

    Raises: ValueError if seed_offset is not int64 [2].
    """

    def __init__(self, seed_offset: Tensor) -> None:
        _check_seed_offset(seed_offset)
        self.seed_offset = seed_offset

    @classmethod
    def from_seed(cls, seed: int, device: torch.device | str) -> "PhiloxState":
        """The start of stream `seed`. Raises: ValueError if the seed is outside [0, 2^63)."""
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {seed}: take it modulo 2**63")
        return cls(torch.tensor([seed, 0], dtype=torch.int64, device=device))

    def advance(self) -> None:
        """Move to fresh numbers. In place on the device: no wait for the host, and CUDA graphs replay it."""
        self.seed_offset[1].add_(1)

    def state(self) -> Tensor:
        """What a checkpoint needs: int64 [2] on the CPU, a copy."""
        return self.seed_offset.to("cpu", copy=True)

    def load(self, state: Tensor) -> None:
        """Continue from a state(). Raises: ValueError if it is not int64 [2]."""
        _check_seed_offset(state)
        self.seed_offset.copy_(state)


def _check_seed_offset(seed_offset: Tensor) -> None:
    if seed_offset.dtype != torch.int64 or seed_offset.shape != (2,):
        raise ValueError(
            f"a Philox state is int64 [2] (seed, offset), got {seed_offset.dtype} {list(seed_offset.shape)}: "
            "make one with PhiloxState.from_seed"
        )


def philox4x32(key: Tensor, counter: Tensor) -> Tensor:
    """Ten rounds of Philox over n counters.

        (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0));   k <- k + bump

    Args:
        key: int64 [2], words in [0, 2^32).
        counter: int64 [4, n], words in [0, 2^32).
    Returns: int64 [4, n], words in [0, 2^32).
    Source: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3 (2011), section 3.3.
    """
    # Constants are computed on the device: copying them from the host would end a CUDA graph capture.
    step = torch.arange(2, device=key.device)
    multiplier = (_MULTIPLIER[0] + (_MULTIPLIER[1] - _MULTIPLIER[0]) * step).unsqueeze(1)  # [2, 1]
    bump = _KEY_BUMP[0] + (_KEY_BUMP[1] - _KEY_BUMP[0]) * step
    keys = (key + torch.arange(_NUM_ROUNDS, device=key.device).unsqueeze(1) * bump).unsqueeze(2)  # [rounds, 2, 1]
    even, odd = counter[0::2], counter[1::2]  # [2, n] each: the words (c0, c2) and (c1, c3)
    for round_key in keys.unbind():
        # The product wraps modulo 2^64 and the shift keeps the sign, so only the masked 32 bits mean anything.
        product = (even * multiplier).flip(0)
        even = ((product >> 32) ^ odd ^ round_key) & _MASK
        odd = product  # its low words; the bits above them are masked when they come out
    return torch.stack((even, odd & _MASK), dim=1).flatten(0, 1)  # [4, n]


def uniform(rng: PhiloxState, num_rows: int) -> Tensor:
    """One uniform number per row from the current offset; does not advance.

        u_r = 2^-24 * top 24 bits of word r mod 4 of philox(key = seed, counter = (r div 4, 0, offset low, offset high))

    Args:
        rng: the stream.
        num_rows: how many; the number of row r does not depend on it.
    Returns: float32 [num_rows] in [0, 1 - 2^-24], exact multiples of 2^-24.
    Source: as philox4x32.
    """
    low_high = torch.stack((rng.seed_offset, rng.seed_offset >> 32)) & _MASK  # [2 words, seed and offset]
    block = torch.arange((num_rows + 3) // 4, device=rng.seed_offset.device)
    offset = low_high[:, 1:].expand(2, block.numel())
    counter = torch.cat((torch.stack((block, torch.zeros_like(block))), offset))  # [4, blocks]
    word = philox4x32(low_high[:, 0], counter).T.flatten()[:num_rows]  # row r at 4 * (r div 4) + r mod 4
    return (word >> 8).float() * 2.0**-24
