"""How a launch of Triton kernels becomes an op of PyTorch: one step to autograd, torch.compile and opcheck.

Defined by hand: the decorator torch.library.custom_op costs several times as much per call, and a rollout makes
hundreds of calls.
"""

from collections.abc import Callable
from typing import Any

import torch

from mow.kernels.dispatch import INTERPRETED

_LIBRARY = torch.library.Library("mow", "FRAGMENT")
_KEY = "CPU" if INTERPRETED else "CUDA"
launches: dict[str, Callable[..., Any]] = {}  # by the name of the op


def custom_op(
    schema: str,
    launch: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Make torch.ops.mow.NAME of a `schema` "NAME(arguments) -> results".

    Args:
        launch: runs the kernels.
        fake: makes results without values, whose shapes, dtypes and strides are those that `launch` gives.
        setup_context, backward: as torch.library.register_autograd wants them; without, the op has no gradient.
    """
    name, _, _ = schema.partition("(")
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, launch, _KEY)
    launches[name] = launch
    torch.library.register_fake(f"mow::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"mow::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
