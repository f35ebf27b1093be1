"""Checks of config fields; each failure is one line that names field, bound and value."""

import dataclasses
import math
from typing import Any

LARGEST_SEED = 2**32 - 1  # of a new run
_LARGEST_STREAM = 2**63 - 1  # what random streams take; scores and reports are played with seeds above the run's
_LARGEST_INT = 2**31 - 1  # of sizes and counts
_FLOATS = 1e-37, 3e38  # normal numbers of float32


def usable(config: Any) -> None:
    """All fields hold what some run can use: numbers that the models can compute with, text for one line.

    Raises: ValueError.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str):
                require(is_plain(one), f"{field.name} must be text without control characters, got {one!r}")
            elif isinstance(one, int):
                most = _LARGEST_STREAM if field.name == "seed" else _LARGEST_INT
                require(abs(one) <= most, f"{field.name} must be at most {most}, got {one}")
            elif isinstance(one, float):
                low, high = _FLOATS
                require(math.isfinite(one), f"{field.name} must be finite, got {one}")
                require(one == 0 or low <= abs(one) <= high, f"{field.name} must be 0 or {low} to {high}, got {one}")


def is_plain(text: str) -> bool:
    """True if a text fits into one line of UTF-8: no control characters, no bytes of another encoding."""
    return not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029" or 0xD800 <= ord(c) < 0xE000 for c in text)


def require(ok: bool, message: str) -> None:
    """Raises: ValueError with the message unless ok."""
    if not ok:
        raise ValueError(message)


def positive(config: object, *names: str) -> None:
    """The named fields are above 0. Raises: ValueError."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be above 0, got {value}")


def not_negative(config: object, *names: str) -> None:
    """The named fields are 0 or more. Raises: ValueError."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{name} must be 0 or more, got {value}")


def at_most(config: object, most: float, *names: str) -> None:
    """The named fields are no larger than `most`. Raises: ValueError."""
    for name in names:
        value = getattr(config, name)
        require(value <= most, f"{name} must be at most {most}, got {value}")


def fraction(config: object, *names: str) -> None:
    """The named fields lie in [0, 1]. Raises: ValueError."""
    for name in names:
        value = getattr(config, name)
        require(0.0 <= value <= 1.0, f"{name} must lie in [0, 1], got {value}")
