"""The device and the threads of a run, from its config, and the most memory that was in use."""

import resource
from typing import TYPE_CHECKING

from mow.config import RunConfig
from mow.errors import UsageError
from mow.system import ranks
from mow.system.threads import Threads, threads_here

if TYPE_CHECKING:
    import torch


def threads_of(config: RunConfig) -> Threads:
    """Cores of PyTorch, replay and environments in a run of `config`."""
    return threads_here(-(-len(config.tasks) // ranks.size()), config.env.num_workers)


def num_workers(config: RunConfig) -> int:
    """Processes for the environments."""
    return threads_of(config).workers


def pick_device(name: str) -> "torch.device":
    """The device of a name on the command line. Raises: UsageError if it is unknown or not here."""
    import torch

    from mow.kernels import check_default_backend

    if ranks.size() > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        name = f"cuda:{ranks.local_rank()}"
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no {name} here ({torch.cuda.device_count()} CUDA devices found): use --device cpu")
    try:
        check_default_backend(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return device


def process_peak() -> int:
    """Largest resident memory of this process, bytes: everything in it, the replay too."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_bytes(device: "torch.device") -> int:
    """Peak memory of the learner's device, bytes."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak()
