"""What mow.cli.doctor asks of this machine: python -m mow.cli.doctor_probes NAME prints one JSON object.

Each question is asked in a process of its own, because a broken library may take its process with it. Only the
standard library is imported before the question is known.
"""

import ctypes
import ctypes.util
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

Answer = dict[str, Any]


def package(module: str) -> Answer:
    """Whether a module loads."""
    importlib.import_module(module)
    return {}


def torch_and_gpu() -> Answer:
    """What torch is and which devices it can use."""
    import torch

    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        (torch.ones(2, device=f"cuda:{index}") + 1).sum().item()  # a device that is listed may still not run
        devices.append(f"{found.name}, {found.total_memory / 1e9:.0f} GB, sm_{found.major}{found.minor}")
    sum_of_ones = float(torch.ones(8).sum())
    assert sum_of_ones == 8.0, f"torch adds eight ones to {sum_of_ones}"
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or "",
        "devices": devices,
        "threads": torch.get_num_threads(),
    }


def extension() -> Answer:
    """How mow._C was built, and whether it can pack frames."""
    from mow import _C
    from mow.replay.lz4 import why_missing

    return {
        "cuda": _C.with_cuda,
        "archs": _C.cuda_archs,
        "nvcc": _C.nvcc_version,
        "reason": _C.cuda_reason,
        "why_no_lz4": why_missing(),
    }


def codec() -> Answer:
    """Whether saved replay can be packed, and the memory that this process may still take."""
    from mow.replay.lz4 import REMEDY, pack
    from mow.system.machine import free_memory

    return {"packs": pack(bytes(4096)) is not None, "remedy": REMEDY, "free_bytes": free_memory()}


def atari() -> Answer:
    """Games of the benchmark whose ROM is missing, and whether one of them can be played."""
    from ale_py import roms

    from mow.envs import make
    from mow.envs.task_sets import ATARI26

    known = set(roms.get_all_rom_ids())
    env = make("atari:Pong", seed=0, options={})
    env.reset()
    env.step(0)
    env.close()
    names = [task.removeprefix("atari:") for task in ATARI26]
    return {"missing": [name for name in names if name.lower() not in {rom.replace("_", "") for rom in known}]}


def graphics() -> Answer:
    """The libraries that MuJoCo can draw with, without a screen."""
    loaded = []
    for name in ("EGL", "GL", "OSMesa"):
        library = ctypes.util.find_library(name)
        if library is None:
            continue
        ctypes.CDLL(library)
        loaded.append(library)
    return {"loaded": loaded}


PROBES: dict[str, Callable[[], Answer]] = {
    "torch": torch_and_gpu,
    "extension": extension,
    "codec": codec,
    "atari": atari,
    "graphics": graphics,
}


def main(arguments: Sequence[str]) -> None:
    """`NAME` of PROBES, or `package MODULE`. Raises: whatever the question raises: its last line is the answer then."""
    name, *rest = arguments
    print(json.dumps(package(*rest) if name == "package" else PROBES[name]()))


if __name__ == "__main__":
    main(sys.argv[1:])
