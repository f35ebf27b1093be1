"""The system's LZ4, loaded when first needed, through the C functions that its authors keep stable."""

import ctypes
import logging
from functools import cache

_NAMES = ("liblz4.so.1", "liblz4.1.dylib", "/opt/homebrew/lib/liblz4.1.dylib", "/usr/local/lib/liblz4.1.dylib")
REMEDY = "install it, such as by `apt install liblz4-1`"


@cache
def _library() -> ctypes.CDLL | None:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        # Sizes are C ints: blocks above 2 GB are none of ours.
        library.LZ4_compressBound.argtypes = [ctypes.c_int]
        for function in (library.LZ4_compress_default, library.LZ4_decompress_safe):
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        return library
    return None


@cache
def _say_missing() -> None:
    """Cached, so that a process says it once."""
    logging.getLogger("mow").warning("liblz4 is missing, so saved replay is not packed: %s", REMEDY)


def pack(block: bytes) -> bytes | None:
    """LZ4 of a block; None where it takes 90 % of the block or more, or where liblz4 is missing (said once)."""
    library = _library()
    if library is None:
        _say_missing()
        return None
    packed = ctypes.create_string_buffer(library.LZ4_compressBound(len(block)))
    num_bytes = library.LZ4_compress_default(block, packed, len(block), len(packed))
    if num_bytes <= 0 or num_bytes >= 0.9 * len(block):
        return None
    return packed.raw[:num_bytes]


def unpack(packed: bytes, num_bytes: int) -> bytes:
    """The block of `num_bytes` that was packed.

    Raises: ImportError where liblz4 is missing; ValueError where `packed` is not LZ4 of that many bytes.
    """
    library = _library()
    if library is None:
        raise ImportError(f"saved replay was packed with LZ4, and liblz4 is missing here: {REMEDY}")
    block = ctypes.create_string_buffer(num_bytes)
    got = library.LZ4_decompress_safe(packed, block, len(packed), num_bytes)
    if got != num_bytes:
        raise ValueError(f"expected LZ4 of {num_bytes} bytes, got what unpacks to {got}: the block is damaged")
    return block.raw
