"""Checks that load a library: python -m mow.cli.doctor_probes NAME [MODULE] prints its findings as JSON.

mow.cli.doctor runs each one in a process of its own, because a broken library may end its process. Only the standard
library is imported before the name of the check is read. A check raises whatever its library raises.
"""

import ctypes
import ctypes.util
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mow.system.machine import allowed_cores, available_cores

BUILD = "run `pip install -e .` in the checkout (it needs a C++ compiler)"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Literal["ok", "note", "BROKEN"]
    found: str
    remedy: str = ""


def version(project: str) -> str | None:
    """The installed version of a project on PyPI; None if it is not installed."""
    try:
        return importlib.metadata.version(project)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirement(project: str) -> str:
    """What this package requires of `project`, quoted for a shell: 'torch>=2.11'; else the bare name."""
    for line in (importlib.metadata.requires("mow") if version("mow") else None) or ():
        wanted = line.partition(";")[0].strip()
        if re.split(r"[<>=!~\[ ]", wanted)[0] == project:
            return f"'{wanted}'"
    return project


def judged(project: str, installed: str, *, needed: bool, found: str = "") -> Finding:
    """Whether an installed version is new enough. Args: found: text of the finding, the version by default."""
    least = re.search(r">=([\d.]+)", requirement(project))
    if least is not None and () < _numbers(installed) < _numbers(least[1]):
        remedy = f"pip install -U {requirement(project)}"
        return Finding(project, "BROKEN" if needed else "note", f"{installed} is older than {least[1]}", remedy)
    return Finding(project, "ok", found or installed)


def _numbers(text: str) -> tuple[int, ...]:
    """(2, 13, 0) of 2.13.0+cpu; empty where a version does not begin with numbers."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def torch_and_gpu() -> list[Finding]:
    """Add eight numbers on the CPU and two on every GPU: a device that is listed may still not work."""
    import torch

    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        (torch.ones(2, device=f"cuda:{index}") + 1).sum().item()
        devices.append(f"{device.name}, {device.total_memory / 1e9:.0f} GB, sm_{device.major}{device.minor}")
    total = float(torch.ones(8).sum())
    assert total == 8.0, f"torch adds eight ones to {total}"
    cuda = torch.version.cuda or ""
    built = f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}"
    return [
        judged("torch", torch.__version__, needed=True, found=built),
        gpu(devices, cuda, driver=has_nvidia_driver()),
        threads(torch.get_num_threads(), available_cores(), allowed_cores()),
    ]


def gpu(devices: Sequence[str], cuda: str, *, driver: bool) -> Finding:
    """Args: devices: that torch can use. cuda: version that torch was built for. driver: whether one is installed."""
    if devices:
        return Finding("GPU", "ok", "; ".join(devices))
    if not driver:
        return Finding("GPU", "ok", "none; training runs on the CPU")
    if not cuda:
        remedy = "install a CUDA build of torch (pytorch.org has the command)"
        return Finding("GPU", "note", "there is one, but torch was built without CUDA", remedy)
    remedy = f"compare nvidia-smi with CUDA {cuda}, and look at CUDA_VISIBLE_DEVICES"
    return Finding("GPU", "note", "there is a driver, but torch finds no device", remedy)


def threads(used: int, cores: int, allowed: int) -> Finding:
    """Args: used: threads of torch. cores: that quotas leave. allowed: cores of the affinity mask."""
    quota = f" (a CPU quota, of {allowed})" if cores < allowed else ""
    setting = os.environ.get("OMP_NUM_THREADS", "not set")
    found = f"{cores} cores for this process{quota}, torch uses {used}, OMP_NUM_THREADS {setting}"
    if used > cores:
        return Finding("threads", "note", found, f"set OMP_NUM_THREADS={cores}: more threads than cores are slower")
    return Finding("threads", "ok", found)


def extension() -> list[Finding]:
    """How mow._C was built."""
    from mow import _C

    if _C.with_cuda:
        return [Finding("mow._C", "ok", f"built with CUDA {_C.nvcc_version} for sm_{_C.cuda_archs}")]
    built = f"built without CUDA ({_C.cuda_reason})"
    if has_nvidia_driver():
        return [Finding("mow._C", "note", built, f"with nvcc on the PATH, {BUILD}")]
    return [Finding("mow._C", "ok", built)]


def codec() -> list[Finding]:
    """Pack a block of zeros."""
    from mow.replay.lz4 import REMEDY, pack

    if pack(bytes(4096)) is None:
        return [Finding("codec", "note", "no liblz4; replay cannot be packed", REMEDY)]
    return [Finding("codec", "ok", "liblz4")]


def atari() -> list[Finding]:
    """Play a step of Pong, and look for the ROMs of the benchmark."""
    from ale_py import roms

    from mow.envs import make
    from mow.envs.task_sets import ATARI26

    env = make("atari:Pong", seed=0, options={})
    env.reset()
    env.step(0)
    env.close()
    known = {rom.replace("_", "") for rom in roms.get_all_rom_ids()}
    missing = [name for name in (task.removeprefix("atari:") for task in ATARI26) if name.lower() not in known]
    if missing:
        return [Finding("Atari ROMs", "note", f"missing: {', '.join(missing)}", "pip install --force-reinstall ale-py")]
    return [Finding("Atari ROMs", "ok", "all 26 games of the benchmark; Pong plays")]


def graphics() -> list[Finding]:
    """Load the libraries that MuJoCo can draw with on a machine without a screen."""
    libraries = [name for name in map(ctypes.util.find_library, ("EGL", "GL", "OSMesa")) if name is not None]
    for library in libraries:
        ctypes.CDLL(library)
    return [gl(libraries, os.environ)]


def gl(libraries: Sequence[str], environ: Mapping[str, str]) -> Finding:
    """Args: libraries: file names of those that load."""
    chosen = environ.get("MUJOCO_GL", "")
    works = {
        "egl": any("EGL" in name for name in libraries) and any(name.startswith("libGL.") for name in libraries),
        "osmesa": any("OSMesa" in name for name in libraries),
    }
    packages = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}
    missing = chosen if chosen in works else "egl"
    remedy = f"apt-get install -y --no-install-recommends {packages[missing]}"
    if chosen in works and not works[chosen]:
        return Finding("GL", "note", f"MUJOCO_GL={chosen}, whose library is missing", remedy)
    usable = [name for name, there in works.items() if there]
    if not usable:
        return Finding("GL", "note", "neither EGL nor OSMesa; only MuJoCo draws with it", remedy)
    return Finding("GL", "ok", f"{' and '.join(usable)} ({', '.join(libraries)}), MUJOCO_GL {chosen or 'not set'}")


def package(module: str) -> list[Finding]:
    """Load a module."""
    importlib.import_module(module)
    return []


PROBES: dict[str, Callable[..., list[Finding]]] = {
    "torch": torch_and_gpu, "extension": extension, "codec": codec, "atari": atari, "graphics": graphics,
    "package": package,
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps([asdict(finding) for finding in PROBES[sys.argv[1]](*sys.argv[2:])]))
