"""Inference cache of tensors that layers derive from their weights: computed once, reused until a weight changes.

Acting and imagination read the same weights step after step. With few rows, gathering them for every (task, slot) pair
and multiplying them by the task embeddings takes a CPU as long as the rest of the layer. On a GPU kernels read weights
in place; conversions of weights and rows of norms would be a third of a rollout's launches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Kept = dict[tuple[int, int, bool], tuple[object, object, Any]]

_in_use: ContextVar["WeightCache | None"] = ContextVar("in_use", default=None)


class WeightCache:
    """Values that layers derived from their weights; call `invalidate` after every change of a weight."""

    def __init__(self, device: torch.device) -> None:
        self.kept: Kept = {}
        self.lasts = device.type == "cpu"

    @contextmanager
    def use(self) -> Iterator[None]:
        """Within the block `cached` reads and fills this cache, as long as gradients are disabled.

        On a GPU it is empty again after the outermost block: tensors made in a CUDA graph must stay in that graph.
        """
        token = _in_use.set(self)
        try:
            yield
        finally:
            _in_use.reset(token)
            if not self.lasts and _in_use.get() is None:
                self.kept.clear()

    def invalidate(self) -> None:
        """Drop all values: a weight is about to change, or has changed."""
        self.kept.clear()


def _active() -> WeightCache | None:
    """The cache inside of `WeightCache.use`, without gradient and outside of a compiler."""
    return None if torch.compiler.is_compiling() or torch.is_grad_enabled() else _in_use.get()


def is_active() -> bool:
    """True where `cached` keeps what it makes."""
    return _active() is not None


def gathers() -> bool:
    """True where layers keep their weights gathered for every (task, slot) pair: a cache is active, on a CPU."""
    cache = _active()
    return cache is not None and cache.lasts


def cached(owner: object, plan: object, make: Callable[[], T]) -> T:
    """Return make(); where a cache is active, its first result for this owner and plan."""
    cache = _active()
    if cache is None:
        return make()
    kept = cache.kept
    # The entry holds both objects, so that their ids are not reused. Autocast gives other numbers.
    key = (id(owner), id(plan), torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"))
    if key not in kept:
        kept[key] = (owner, plan, make())
    made: T = kept[key][2]
    return made
