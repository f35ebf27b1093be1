"""Activation checkpointing: the backward pass recomputes activations instead of storing them.

Numbers stay the same, to the bit: dropout draws the same masks again, and batch norm, which has counted its statistics
the first time, does not count them twice.
"""

from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar, Token
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

Recompute = Literal["none", "transformers", "all"]
Call = Callable[..., Any]

_again: ContextVar[bool] = ContextVar("again", default=False)


def recomputing() -> bool:
    """True while a backward pass recomputes activations."""
    # A compiler cannot trace the variable; what is compiled keeps its activations.
    return not torch.compiler.is_compiling() and _again.get()


def plain_call(function: Call, *arguments: Any) -> Any:
    """Call `function`; autograd stores its activations."""
    return function(*arguments)


def checkpointed_call(function: Call, *arguments: Any) -> Any:
    """Call `function`, storing the arguments only; the backward pass calls it again."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    contexts = nullcontext(), _Marked()
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=lambda: contexts)


class _Marked:
    """Sets the mark; entered anew by every backward pass through the same graph."""

    _token: Token[bool]

    def __enter__(self) -> None:
        self._token = _again.set(True)

    def __exit__(self, *_: object) -> None:
        _again.reset(self._token)
