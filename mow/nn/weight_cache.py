"""Inference cache of tensors that layers derive from their weights: computed once, reused until a weight changes.

Acting and imagination read the same weights step after step. With few rows, gathering them for every (task, slot) pair
and multiplying them by the task embeddings takes a CPU as long as the rest of the layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Kept = dict[tuple[int, int, bool], tuple[object, object, Any]]

_in_use: ContextVar[Kept | None] = ContextVar("in_use", default=None)


class WeightCache:
    """Values that layers derived from their weights; call `invalidate` after every change of a weight."""

    def __init__(self, device: torch.device) -> None:
        self._kept: Kept | None = {} if device.type == "cpu" else None

    @contextmanager
    def use(self) -> Iterator[None]:
        """Within the block `cached` reads and fills this cache, as long as gradients are disabled.

        No effect on a GPU: kernels read weights in place, and tensors made in a CUDA graph must stay in that graph.
        """
        token = _in_use.set(self._kept)
        try:
            yield
        finally:
            _in_use.reset(token)

    def invalidate(self) -> None:
        """Drop all values: a weight is about to change, or has changed."""
        if self._kept is not None:
            self._kept.clear()


def is_active() -> bool:
    """True inside `WeightCache.use`, without gradient and outside of a compiler."""
    return not torch.compiler.is_compiling() and _in_use.get() is not None and not torch.is_grad_enabled()


def cached(owner: object, plan: object, make: Callable[[], T]) -> T:
    """Return make(); where a cache is active, its first result for this owner and plan."""
    kept = _in_use.get() if is_active() else None
    if kept is None:
        return make()
    # The entry holds both objects, so that their ids are not reused. Autocast gives other numbers.
    key = (id(owner), id(plan), torch.is_autocast_enabled("cpu"))
    if key not in kept:
        kept[key] = (owner, plan, make())
    made: T = kept[key][2]
    return made
