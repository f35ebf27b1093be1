"""Memory for time: what the backward pass needs is computed a second time instead of being kept.

Numbers stay the same, to the bit: dropout draws the same masks again, and batch norm, which has counted its statistics
the first time, does not count them twice.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

Recompute = Literal["none", "transformers", "all"]
Call = Callable[..., Any]

_again: ContextVar[bool] = ContextVar("again", default=False)


def recomputing() -> bool:
    """Whether this is the second time, in a backward pass."""
    # A compiler cannot trace the variable; what is compiled keeps its activations.
    return not torch.compiler.is_compiling() and _again.get()


def plain_call(function: Call, *arguments: Any) -> Any:
    """Just calls; autograd keeps what it needs."""
    return function(*arguments)


def checkpointed_call(function: Call, *arguments: Any) -> Any:
    """Calls; only the arguments are kept, and the call is made again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _marked()


@contextmanager
def _marked() -> Iterator[None]:
    token = _again.set(True)
    try:
        yield
    finally:
        _again.reset(token)
