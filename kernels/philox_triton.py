"""Philox4x32-10 inside a kernel: the same numbers as mow.kernels.philox, from the state that lies on the device."""

import triton
import triton.language as tl


@triton.jit
def philox4x32(key_low, key_high, c0, c1, c2, c3):  # type: ignore[no-untyped-def]
    """Ten rounds over blocks of uint32 words; see philox.philox4x32. The key may be one word for the whole block."""
    for _ in tl.static_range(10):
        # One 64-bit product has the high and the low word that a round needs.
        even = c0.to(tl.uint64) * 0xD2511F53
        odd = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (odd >> 32).to(tl.uint32) ^ c1 ^ key_low
        c1 = odd.to(tl.uint32)
        c2 = (even >> 32).to(tl.uint32) ^ c3 ^ key_high
        c3 = even.to(tl.uint32)
        # The keys wrap modulo 2^32.
        key_low = tl.add(key_low, 0x9E3779B9, sanitize_overflow=False)
        key_high = tl.add(key_high, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def uniform_rows(seed_offset_ptr, first_block, NUM_BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """philox.uniform of the rows 4 * first_block and following: float32 [4 * NUM_BLOCKS].

    Four rows share a block of four words. Drawing whole blocks costs a quarter of drawing one per row and keeping one
    word of it.
    """
    seed = tl.load(seed_offset_ptr).to(tl.uint64)
    offset = tl.load(seed_offset_ptr + 1).to(tl.uint64)
    block = (first_block + tl.arange(0, NUM_BLOCKS)).to(tl.uint32)
    zero = tl.zeros([NUM_BLOCKS], dtype=tl.uint32)
    offset_low = zero + offset.to(tl.uint32)
    offset_high = zero + (offset >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(seed.to(tl.uint32), (seed >> 32).to(tl.uint32), block, zero, offset_low, offset_high)
    word = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))  # w0, w1, w2, w3 of each block in turn
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
