"""Checks of what simulators answer. Each returns the plain form of an answer or raises ValueError with the task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE, Frame, Observation

_LARGEST = float(np.finfo(np.float32).max)  # rewards are stored as float32
_ROUNDING = 1e-3  # by which a picture of floats may leave [0, 1]


def reward_of(name: str, answer: Any) -> float:
    """A number within the range of float32; also an array of one entry."""
    try:
        reward = answer if type(answer) is float else float("nan" if isinstance(answer, str) else _entry(answer))
    except (TypeError, ValueError, OverflowError):
        reward = float("nan")
    if not -_LARGEST <= reward <= _LARGEST:
        raise ValueError(f"{name}: expected a finite number within float32 as reward, got {_shown(answer)}")
    return reward


def flag_of(name: str, answer: Any, what: str) -> bool:
    """A bool, 0 or 1; also an array of one such entry. Args: what: name of the flag in the message."""
    entry = answer if type(answer) is bool else _entry(answer)
    if not isinstance(entry, int) or entry not in (0, 1):
        raise ValueError(f"{name}: expected a bool as {what}, got {_shown(answer)}")
    return bool(entry)


def info_of(name: str, answer: Any, keys: tuple[str, ...] = ("life_lost", "success")) -> dict[str, bool]:
    """The entries `keys` of an info, any truth values, where it has them."""
    if not isinstance(answer, Mapping):
        raise ValueError(f"{name}: expected a dict as info, got {_shown(answer)}")
    return {key: flag_of(name, answer[key], f"info[{key!r}]") for key in keys if key in answer}


def parts_of(name: str, answer: Any, parts: tuple[str, ...]) -> Any:
    """A tuple with one entry for each of `parts`."""
    if not isinstance(answer, tuple | list) or len(answer) != len(parts):
        raise ValueError(f"{name}: expected ({', '.join(parts)}), got {_shown(answer)}")
    return answer


def frame_of(name: str, answer: Any) -> Frame:
    """A frame uint8 [64, 64, 3]."""
    if not isinstance(answer, np.ndarray) or answer.shape != FRAME_SHAPE or answer.dtype != np.uint8:
        raise ValueError(f"{name}: expected a frame uint8 {[*FRAME_SHAPE]}, got {_shown(answer)}")
    return answer


def state_of(name: str, answer: Any, size: int) -> Observation:
    """A state float32 [size] of finite numbers."""
    if not isinstance(answer, np.ndarray) or answer.shape != (size,) or answer.dtype != np.float32:
        raise ValueError(f"{name}: expected a state float32 [{size}], got {_shown(answer)}")
    if not np.isfinite(answer).all():
        raise ValueError(f"{name}: expected finite numbers as state, got {answer.tolist()}")
    return answer


def picture_of(name: str, answer: Any) -> NDArray[np.uint8]:
    """A picture of any size as contiguous uint8 [H, W, 3], from uint8 or floats in [0, 1], [H, W, 3] or with alpha."""
    picture = answer[..., :3] if isinstance(answer, np.ndarray) and answer.ndim == 3 and answer.size else None
    floats = picture is not None and np.issubdtype(picture.dtype, np.floating)
    if picture is not None and floats and picture.min() >= -_ROUNDING and picture.max() <= 1.0 + _ROUNDING:
        picture = np.rint(picture.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    if picture is None or picture.dtype != np.uint8 or answer.shape[2] not in (3, 4):
        expected = "uint8, or floats in [0, 1], [height, width, 3 or 4]"
        raise ValueError(f"{name}: expected render() to give {expected}, got {_shown(answer)}")
    return np.ascontiguousarray(picture)


def _entry(answer: Any) -> Any:
    """The entry of an array of one, or the answer itself."""
    return answer.item() if isinstance(answer, np.ndarray | np.generic) and answer.size == 1 else answer


def _shown(answer: Any) -> str:
    """A value for a message: arrays by type and shape, others by their text, cut short."""
    if isinstance(answer, np.ndarray):
        return f"{answer.dtype} {[*answer.shape]}"
    text = repr(answer)
    return text if len(text) <= 60 else f"{text[:57]}..."
