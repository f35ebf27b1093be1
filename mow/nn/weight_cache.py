"""Weights that stand still: what a layer makes of them for its tasks, made once while nobody changes them.

Acting and imagining read the same weights step after step. Gathering them for every (task, slot) pair and multiplying
them by the task embeddings takes a CPU as long as the rest of a layer where rows are few.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Kept = dict[tuple[int, int, bool], tuple[object, object, Any]]

_in_use: ContextVar[Kept | None] = ContextVar("reading", default=None)


class WeightCache:
    """Keeps what layers made of their weights until `forget`, which whoever changes a weight must call."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: Kept = {}

    @contextmanager
    def use(self) -> Iterator[None]:
        """Within it layers look here first, where no gradient is asked for.

        Not on a GPU: kernels read weights where they lie, and what a CUDA graph makes must stay in that graph.
        """
        token = _in_use.set(self._kept if self.device.type == "cpu" else None)
        try:
            yield
        finally:
            _in_use.reset(token)

    def invalidate(self) -> None:
        """A weight is about to change, or has."""
        self._kept.clear()


def is_active() -> bool:
    """Whether what is made of weights now is kept."""
    return not torch.compiler.is_compiling() and _in_use.get() is not None and not torch.is_grad_enabled()


def cached(owner: object, plan: object, make: Callable[[], T]) -> T:
    """What `make` returns; where weights stand still, what it returned the first time for this owner and plan."""
    if not is_active():
        return make()
    kept = _in_use.get()
    assert kept is not None, "weights stand still only where they are kept"
    # Both objects are kept too, so that no other ones come to have their ids. Autocast makes other numbers.
    key = (id(owner), id(plan), torch.is_autocast_enabled("cpu"))
    if key not in kept:
        kept[key] = (owner, plan, make())
    made: T = kept[key][2]
    return made
