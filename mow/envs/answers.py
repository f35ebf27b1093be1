"""Checks of what simulators answer. Each returns the plain form of an answer or raises ValueError, naming the task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE, Frame

_UINT8 = np.dtype(np.uint8)
_LARGEST = float(np.finfo(np.float32).max)  # rewards are stored as float32
_ROUNDING = 1e-3  # how far a picture of floats may leave [0, 1]


def reward_of(name: str, answer: Any) -> float:
    """Any real number that float32 holds; also an array of one entry."""
    reward = answer if type(answer) is float else _number(name, answer)
    if not -_LARGEST <= reward <= _LARGEST:
        expected = "a reward within the range of float32" if abs(reward) < float("inf") else "a finite reward"
        raise ValueError(f"{name}: expected {expected}, got {reward}")
    return reward


def _number(name: str, answer: Any) -> float:
    entry = answer.item() if isinstance(answer, np.ndarray | np.generic) and answer.size == 1 else answer
    if isinstance(entry, str | bytes | bytearray | np.ndarray):
        raise ValueError(f"{name}: expected a number as reward, got {_shown(answer)}")
    try:
        return float(entry)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected a number as reward, got {_shown(answer)}") from error


def flag_of(name: str, answer: Any, what: str) -> bool:
    """A bool, 0 or 1; also an array of one such entry. Args: what: its name, for the message."""
    if type(answer) is bool:
        return answer
    entry = answer.item() if isinstance(answer, np.ndarray | np.generic) and answer.size == 1 else answer
    if not isinstance(entry, int) or entry not in (0, 1):
        raise ValueError(f"{name}: expected a bool as {what}, got {_shown(answer)}")
    return bool(entry)


def info_of(name: str, answer: Any, keys: tuple[str, ...] = ("life_lost", "success")) -> dict[str, bool]:
    """The entries of an info that are used, any truth values."""
    used: dict[str, bool] = {}
    if type(answer) is dict and not answer:
        return used
    if not isinstance(answer, Mapping):
        raise ValueError(f"{name}: expected a dict as info, got {_shown(answer)}")
    for key in keys:
        if key in answer:
            try:
                used[key] = bool(answer[key])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: expected a bool as info[{key!r}], got {_shown(answer[key])}") from error
    return used


def parts_of(name: str, answer: Any, parts: tuple[str, ...]) -> Any:
    """A tuple with one entry for each of `parts`."""
    if type(answer) is tuple and len(answer) == len(parts):
        return answer
    if not isinstance(answer, tuple | list) or len(answer) != len(parts):
        got = f"{len(answer)} values" if isinstance(answer, tuple | list) else _shown(answer)
        raise ValueError(f"{name}: expected ({', '.join(parts)}), got {got}")
    return answer


def frame_of(name: str, answer: Any) -> Frame:
    """uint8 [64, 64, 3]."""
    if not isinstance(answer, np.ndarray) or answer.shape != FRAME_SHAPE or answer.dtype != _UINT8:
        raise ValueError(f"{name}: expected a frame uint8 {[*FRAME_SHAPE]}, got {_shown(answer)}")
    return answer


def picture_of(name: str, answer: Any) -> NDArray[np.uint8]:
    """A picture of any size, uint8 [H, W, 3] in one piece: of uint8 or floats in [0, 1], [H, W, 3] or with alpha."""
    expected = f"{name}: expected render() to give uint8, or floats in [0, 1], [height, width, 3 or 4]"
    if not isinstance(answer, np.ndarray) or answer.ndim != 3 or answer.shape[2] not in (3, 4) or not answer.size:
        raise ValueError(f"{expected}, got {_shown(answer)}")
    picture = answer[..., :3]
    if np.issubdtype(picture.dtype, np.floating):
        if not (picture.min() >= -_ROUNDING and picture.max() <= 1.0 + _ROUNDING):
            raise ValueError(f"{expected}, got {_shown(answer)} from {picture.min():g} to {picture.max():g}")
        picture = np.rint(picture.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    elif picture.dtype != np.uint8:
        raise ValueError(f"{expected}, got {_shown(answer)}")
    return np.ascontiguousarray(picture)


def _shown(answer: Any) -> str:
    """A value for a message: arrays by type and shape, others by their text, cut short."""
    if isinstance(answer, np.ndarray):
        return f"{answer.dtype} {[*answer.shape]}"
    text = repr(answer)
    return text if len(text) <= 60 else f"{text[:57]}..."
