"""torch.compile and CUDA graphs, where the config switches them on: tried at the start, one line where it fails."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mow.errors import UsageError
from mow.methods.mow.config import MowConfig


@contextmanager
def updates_as_asked(config: MowConfig, device: torch.device) -> Iterator[str]:
    """Gives a line on how updates will run; inside, code that cannot be compiled ends in one line.

    No silent fallback to plain PyTorch.
    Raises: UsageError with the remedy, at the start where the machine lacks a GPU or a compiler.
    """
    optim = config.optim
    if optim.cuda_graph and device.type != "cuda":
        raise UsageError(f"optim.cuda_graph needs a GPU, this run is on {device}: use --optim.no-cuda-graph")
    try:
        if optim.compile:
            _try_compiler(device)
        updates = "through torch.compile, the first ones take minutes" if optim.compile else "plain PyTorch"
        rollouts = "replayed from one CUDA graph" if optim.cuda_graph else "op by op"
        muon = f"; Muon in {optim.muon_precision}" if optim.matrices == "muon" else ""
        yield f"updates: {updates}; rollouts: {rollouts}{muon}"
    except Exception as error:
        if not optim.compile or not isinstance(error, _compiler_errors()):
            raise
        raise UsageError(f"torch.compile failed ({_first_line(error)}): use --optim.no-compile, or mend the compiler "
                         "(C++ on a CPU, Triton on a GPU)") from error


def _compiler_errors() -> tuple[type[Exception], ...]:
    # Imported only after a failure: they come with the compiler, which takes seconds to load.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


def _try_compiler(device: torch.device) -> None:
    x = torch.ones(16, device=device, requires_grad=True)
    torch.compile(_something, fullgraph=True)(x).backward()


def _something(x: Tensor) -> Tensor:
    return (x.sin() * x).sum()


def _first_line(error: Exception) -> str:
    cause = getattr(error, "inner_exception", error)  # of what generates code, beneath the tracer
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
