"""The most memory that has been in use so far."""

import resource

import torch


def process_peak() -> int:
    """Largest resident memory of this process, bytes: everything in it, the replay too."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_bytes(device: torch.device) -> int:
    """Peak memory of the learner's device, bytes."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak()


def measured_peak(device: torch.device) -> str:
    """Peak memory of the learner's device, in words."""
    if device.type == "cuda":
        return f"{peak_bytes(device) / 1e9:.2f} GB on {device}"
    return f"{peak_bytes(device) / 1e9:.2f} GB in this process, simulators and replay included"
