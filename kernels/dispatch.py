"""Which implementation of an op runs, and in which precision: decided here, said once, never changed in silence."""

import logging
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "triton"]

_CHOSEN: dict[tuple[str, str, tuple[str, ...]], str] = {}


def choose(op: str, backend: Backend, available: tuple[str, ...]) -> str:
    """The implementation of `op` that `backend` asks for; a dict lookup from the second call on.

    Args:
        op: name of the op, for the log and the error.
        backend: "auto" takes the first of `available`, any other name exactly that one.
        available: what this op can run here, best first.
    Returns: one of `available`. The first answer for each triple of arguments is logged to "mow" at level INFO.
    Raises: ValueError if `backend` is not available.
    """
    key = (op, backend, available)
    chosen = _CHOSEN.get(key)
    if chosen is None:
        chosen = available[0] if backend == "auto" else backend
        if chosen not in available:
            names = " or ".join(repr(name) for name in ("auto", *available))
            raise ValueError(f"{op} has no backend {backend!r} here: choose {names}")
        logging.getLogger("mow").info("%s: %s", op, chosen)
        _CHOSEN[key] = chosen
    return chosen


# torch.compile then runs choose while tracing and keeps the answer: it cannot trace a log line. Called rather than
# written as a decorator because it marks the function in place and, being untyped, would hide its signature.
torch.compiler.assume_constant_result(choose)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of an op's arithmetic: float64 if any tensor has it (for gradient checks), float32 otherwise.

    Inputs converted to it stay in it under autocast too as long as no matmul follows: autocast lowers nothing else
    that the references use.
    Raises: ValueError if a tensor is not of a floating dtype.
    """
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"expected floating-point tensors, got {tensor.dtype}: convert with .float()")
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
