"""The system's LZ4, opened at run time through the C functions that its authors keep stable since version 1.8.3."""

import ctypes
from functools import cache

_NAME = "liblz4.so.1"
_FUNCTIONS = ("LZ4_compress_default", "LZ4_decompress_safe", "LZ4_decompress_safe_partial")
REMEDY = "install it, such as by `apt install liblz4-1`"


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_NAME)
        # Sizes are C ints: blocks are far below 2 GB.
        library.LZ4_compressBound.argtypes = [ctypes.c_int]
        for name in _FUNCTIONS[:2]:
            getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        library.LZ4_decompress_safe_partial  # noqa: B018 - since version 1.8.3
        return library
    except (OSError, AttributeError):
        return None


def why_missing() -> str:
    """Reason why LZ4 cannot be used, with the remedy; empty where it can."""
    return "" if _library() else f"there is no {_NAME} of LZ4 1.8.3 or newer: {REMEDY}"


def addresses() -> tuple[int, int, int]:
    """Addresses of compress, decompress and partial decompress, for mow._C.use_lz4. The library must be there."""
    compress, decompress, partial = (ctypes.cast(getattr(_library(), name), ctypes.c_void_p) for name in _FUNCTIONS)
    return compress.value or 0, decompress.value or 0, partial.value or 0


def pack(block: bytes) -> bytes | None:
    """LZ4 of a block; None where it takes 90 % of the block or more, or where liblz4 is missing."""
    library = _library()
    if library is None:
        return None
    packed = ctypes.create_string_buffer(library.LZ4_compressBound(len(block)))
    num_bytes = library.LZ4_compress_default(block, packed, len(block), len(packed))
    return packed.raw[:num_bytes] if 0 < num_bytes < 0.9 * len(block) else None


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
