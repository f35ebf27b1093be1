"""Which implementation of an op runs, and in which precision: decided here, said once, never changed in silence."""

import importlib.util
import logging
import os
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "triton"]

# What "auto" means throughout this process: MOW_BACKEND=reference keeps a GPU on plain PyTorch.
_DEFAULT = os.environ.get("MOW_BACKEND") or "auto"
_CHOSEN: dict[tuple[str, str, tuple[str, ...]], str] = {}

# Looked for without loading it: triton takes longer to import than all of this package.
_TRITON = importlib.util.find_spec("triton") is not None
# Triton's interpreter runs kernels on the CPU, one program at a time: for tests, never for speed. Triton reads the
# switch while it is imported, so it holds for the whole process.
INTERPRETED = _TRITON and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _offers(on_gpu: bool, triton: bool, interpreted: bool) -> tuple[str, ...]:
    if triton and interpreted:
        return ("reference", "triton")
    return ("triton", "reference") if triton and on_gpu else ("reference",)


_ON_GPU = _offers(True, _TRITON, INTERPRETED)
_ON_CPU = _offers(False, _TRITON, INTERPRETED)


def backends(tensor: Tensor) -> tuple[str, ...]:
    """The implementations that an op with a Triton kernel has where `tensor` lies, best first.

    On a GPU Triton comes first. On the CPU there is the reference; where TRITON_INTERPRET=1 was set before the start,
    the kernels too, but last, so that they run only for who asks for them by name.
    """
    if not tensor.is_cuda:
        return _ON_CPU
    if not _TRITON:
        _say_that_triton_is_missing()
    return _ON_GPU


@cache
def _warn_once() -> None:
    logging.getLogger("mow").warning("triton is not installed: every op runs as plain PyTorch; pip install triton")


def _say_that_triton_is_missing() -> None:
    _warn_once()


# As with choose below: torch.compile runs it while tracing.
torch.compiler.assume_constant_result(_say_that_triton_is_missing)


def check_default_backend(device: torch.device) -> None:
    """Raises: ValueError if MOW_BACKEND names what no op has on this device."""
    available = ("auto", *(_ON_GPU if device.type == "cuda" else _ON_CPU))
    if _DEFAULT not in available:
        names = " or ".join(map(repr, available))
        raise ValueError(f"MOW_BACKEND is {_DEFAULT!r}, which is not to be had on {device}: set it to {names}")


def choose(op: str, backend: Backend, available: tuple[str, ...]) -> str:
    """The implementation of `op` that `backend` asks for; a dict lookup from the second call on.

    Args:
        op: name of the op, for the log and the error.
        backend: "auto" takes the first of `available`, or what MOW_BACKEND named at the start; any other name exactly
            that one.
        available: what this op can run here, best first.
    Returns: one of `available`. The first answer for each triple of arguments is logged to "mow", at level INFO where
        there was a choice.
    Raises: ValueError if `backend` is not available.
    """
    key = (op, backend, available)
    chosen = _CHOSEN.get(key)
    if chosen is None:
        wanted = _DEFAULT if backend == "auto" else backend
        chosen = available[0] if wanted == "auto" else wanted
        if chosen not in available:
            names = " or ".join(repr(name) for name in ("auto", *available))
            source = " (from MOW_BACKEND)" if backend == "auto" else ""
            raise ValueError(f"{op} has no backend {wanted!r} here{source}: choose {names}")
        # Where there is nothing to choose, as on a CPU, there is nothing to tell.
        logging.getLogger("mow").log(logging.INFO if len(available) > 1 else logging.DEBUG, "%s: %s", op, chosen)
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
