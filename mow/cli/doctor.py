"""Check whether this machine is fit to train: mow doctor

Prints a line for everything that training needs: `ok`, `note` (training runs, something else does not, or slower) or
`BROKEN`, the latter two with a remedy. Exit code 1 if something needed is broken. Only the standard library is imported
here, and what loads a library runs in a process of its own, so that a missing or broken one is reported too.
"""

import ctypes
import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mow.system.console import complain, program, tell
from mow.system.machine import allowed_cores, available_cores, free_memory, total_memory
from mow.system.shell import command

_TIMEOUT_S = 180.0  # of a check; loading torch from a cold disk takes tens of seconds
_LITTLE_MEMORY = 2e9  # bytes; quickstart takes 1.2e9 at most
_REINSTALL = "pip install --force-reinstall"
_BUILD = "run `pip install -e .` in the checkout (it needs a C++ compiler)"


@dataclass(frozen=True)
class Package:
    """A package that pip installs."""

    module: str
    project: str  # its name on PyPI
    use: str = ""  # what does not work without it; empty: training
    extra: str = ""  # of this package that installs it; empty: it is a requirement


PACKAGES = (
    Package("numpy", "numpy"),
    Package("scipy", "scipy"),
    Package("tyro", "tyro"),
    Package("rich", "rich", "the live panel"),
    Package("torch.utils.tensorboard", "tensorboard"),
    Package("triton", "triton", "fast kernels on a GPU"),
    Package("gymnasium", "gymnasium", "Atari and imagined environments"),
    Package("ale_py", "ale-py", "Atari"),
    Package("cv2", "opencv-python-headless", "Atari and pictures"),
    Package("matplotlib.figure", "matplotlib", "the plot of mow ablate"),
    Package("PIL.Image", "pillow", "the GIFs of mow evaluate"),
    Package("safetensors.torch", "safetensors", "mow export and its files"),
    Package("mujoco", "mujoco", "robots", "dmc"),
    Package("metaworld", "metaworld", "robots", "metaworld"),
    Package("dm_control", "dm_control", "robots", "dmc"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Literal["ok", "note", "BROKEN"]
    found: str
    remedy: str = ""


@program("mow doctor")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 training can run, 1 something needed is broken, 2 for an argument: there are none."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--help"], ["-h"]):
        tell(sys.stdout, __doc__ or "")
        return 0
    if words:
        complain(f"mow doctor: takes no arguments, got {command(*words)}: leave them out")
        return 2
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        remedy = f": {finding.remedy}" if finding.remedy else ""
        tell(sys.stdout, f"{finding.verdict:<7}{finding.name:<{width + 2}}{finding.found}{remedy}\n")
    broken = [finding.name for finding in findings if finding.verdict == "BROKEN"]
    tell(sys.stdout, f"training cannot run: {', '.join(broken)}\n" if broken else "training can run\n")
    return int(bool(broken))


def examine() -> list[Finding]:
    """All findings, in the order of the report."""
    there = [one for one in PACKAGES if importlib.util.find_spec(one.module.partition(".")[0]) is not None]
    checks = [*((name,) for name in CHECKS if name != "load"), *(("load", one.module) for one in there)]
    with ThreadPoolExecutor(available_cores()) as pool:
        answers = dict(zip(checks, pool.map(ask, checks), strict=True))
    free, cwd = free_memory(), Path.cwd()
    memory = f"{free / 1e9:.1f} GB free of {total_memory() / 1e9:.1f} GB in all"
    return [
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        *reported("torch", answers["torch",], f"{_REINSTALL} {requirement('torch')}", needed=True),
        *(package(one, answers.get(("load", one.module))) for one in PACKAGES),
        *reported("mow._C", answers["extension",], f"delete mow/_C*.so, then {_BUILD}", needed=True),
        *reported("Atari", answers["atari",], f"{_REINSTALL} {requirement('ale-py')} {requirement('gymnasium')}"),
        *reported("GL", answers["graphics",], "reinstall the library that this line names"),
        *reported("codec", answers["codec",], "mend what the lines above report"),
        Finding("memory", "ok", memory) if free >= _LITTLE_MEMORY
        else Finding("memory", "note", memory, "close other programs, or take fewer --total-steps"),
        Finding("disk", "ok", f"{shutil.disk_usage(cwd).free / 1e9:.1f} GB free in {cwd}"),
    ]  # fmt: skip


def ask(check: Sequence[str]) -> list[Finding] | str:
    """Run one of CHECKS in a process of its own. Returns: its findings, or one line on why it has none."""
    words = [sys.executable, "-c", "import sys; from mow.cli.doctor import answer; answer(*sys.argv[1:])", *check]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no answer in {_TIMEOUT_S:.0f} s"
    if done.returncode < 0:
        return f"the process died of {signal.Signals(-done.returncode).name}"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].strip()
    try:
        # A library may print when it loads; the answer is the last line.
        return [Finding(**one) for one in json.loads(done.stdout.splitlines()[-1])]
    except (IndexError, ValueError):
        return "the process ended without an answer"


def reported(name: str, given: list[Finding] | str, remedy: str, *, needed: bool = False) -> Sequence[Finding]:
    """The findings of a check, or one with its failure. Args: needed: training does not run without it."""
    if isinstance(given, str):
        return [Finding(name, "BROKEN" if needed else "note", f"cannot be used ({given})", remedy)]
    return given


def package(one: Package, given: list[Finding] | str | None) -> Finding:
    """Args: given: of the check that loads it; None if the package is not installed."""
    remedy = f"{_REINSTALL} {requirement(one.project)}"
    if one.extra:
        remedy = f"pip install -e '.[{one.extra}]' in the checkout"
    if given is None and one.project == "triton" and not has_nvidia_driver():
        return Finding("triton", "ok", "not installed; only a GPU needs it")
    if given is None or isinstance(given, str):
        use = f"; needed for {one.use}" if one.use else ""
        return Finding(one.project, "note" if one.use else "BROKEN", f"{given or 'not installed'}{use}", remedy)
    return Finding(one.project, "ok", version(one.project) or "of unknown version")


def version(project: str) -> str | None:
    """The installed version of a project on PyPI; None if it is not installed."""
    try:
        return importlib.metadata.version(project)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirement(project: str) -> str:
    """The requirement of this package on `project`, quoted for a shell: 'torch>=2.11'; else the bare name."""
    for line in (importlib.metadata.requires("mow") if version("mow") else None) or ():
        wanted = line.partition(";")[0].strip()
        if re.split(r"[<>=!~\[ ]", wanted)[0] == project:
            return f"'{wanted}'"
    return project


def has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


# Checks, each in a process of its own: a broken library may end it. A check raises whatever its library raises. ------


def check_torch() -> list[Finding]:
    """Add two numbers on the CPU and on every GPU: a device that is listed may still not work."""
    import torch

    (torch.ones(2) + 1).sum().item()
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        (torch.ones(2, device=f"cuda:{index}") + 1).sum().item()
        devices.append(f"{device.name}, {device.total_memory / 1e9:.0f} GB, sm_{device.major}{device.minor}")
    cuda, used, cores = torch.version.cuda, torch.get_num_threads(), available_cores()
    quota = f" (a CPU quota, of {allowed_cores()})" if cores < allowed_cores() else ""
    setting = f"{cores} cores for this process{quota}, torch uses {used}, OMP_NUM_THREADS " + (
        os.environ.get("OMP_NUM_THREADS", "not set")
    )
    if devices:
        gpu = Finding("GPU", "ok", "; ".join(devices))
    elif not has_nvidia_driver():
        gpu = Finding("GPU", "ok", "none; training runs on the CPU")
    else:
        remedy = "install a CUDA build of torch (pytorch.org has the command), and look at CUDA_VISIBLE_DEVICES"
        gpu = Finding("GPU", "note", "there is a driver, but torch finds no device", remedy)
    threads = Finding("threads", "ok", setting)
    if used > cores:
        threads = Finding("threads", "note", setting, f"set OMP_NUM_THREADS={cores}: more threads are slower")
    built = f"{torch.__version__}, built {f'for CUDA {cuda}' if cuda else 'without CUDA'}"
    return [Finding("torch", "ok", built), gpu, threads]


def check_extension() -> list[Finding]:
    """Import mow._C, and report its CUDA part."""
    try:
        from mow import _C
    except ImportError as error:
        return [Finding("mow._C", "note", f"{error}; replay uses the slower NumPy reference", _BUILD)]
    if _C.with_cuda:
        return [Finding("mow._C", "ok", f"built with CUDA {_C.nvcc_version} for sm_{_C.cuda_archs}")]
    built = f"built without CUDA ({_C.cuda_reason})"
    if has_nvidia_driver():
        return [Finding("mow._C", "note", built, f"with nvcc on the PATH, {_BUILD}")]
    return [Finding("mow._C", "ok", built)]


def check_codec() -> list[Finding]:
    """Pack a block of zeros."""
    from mow.replay.lz4 import REMEDY, pack

    if pack(bytes(4096)) is None:
        return [Finding("codec", "note", "no liblz4; replay cannot be packed", REMEDY)]
    return [Finding("codec", "ok", "liblz4")]


def check_atari() -> list[Finding]:
    """Play a step of Pong, with the ROM that ale-py brings."""
    from mow.envs import make

    env = make("atari:Pong", seed=0, options={})
    env.reset()
    env.step(0)
    env.close()
    return [Finding("Atari", "ok", "Pong plays")]


def check_graphics() -> list[Finding]:
    """Load the libraries that MuJoCo can draw with on a machine without a screen."""
    libraries = [name for name in map(ctypes.util.find_library, ("EGL", "GL", "OSMesa")) if name is not None]
    for library in libraries:
        ctypes.CDLL(library)
    return [gl(libraries, os.environ.get("MUJOCO_GL", ""))]


def gl(libraries: Sequence[str], chosen: str) -> Finding:
    """Args: libraries: file names of those that load. chosen: value of MUJOCO_GL."""
    works = {
        "egl": any("EGL" in name for name in libraries) and any(name.startswith("libGL.") for name in libraries),
        "osmesa": any("OSMesa" in name for name in libraries),
    }
    wanted = {chosen} & works.keys() or works.keys()
    usable = [name for name in works if name in wanted and works[name]]
    if not usable:
        packages = "libosmesa6" if chosen == "osmesa" else "libegl1 libgl1"
        found = f"no library for {' or '.join(sorted(wanted))}; only MuJoCo draws with it"
        return Finding("GL", "note", found, f"apt-get install -y --no-install-recommends {packages}")
    return Finding("GL", "ok", f"{' and '.join(usable)} ({', '.join(libraries)}), MUJOCO_GL {chosen or 'not set'}")


def check_loading(module: str) -> list[Finding]:
    importlib.import_module(module)
    return []


CHECKS: dict[str, Callable[..., list[Finding]]] = {
    "torch": check_torch, "extension": check_extension, "codec": check_codec, "atari": check_atari,
    "graphics": check_graphics, "load": check_loading,
}  # fmt: skip


def answer(name: str, *words: str) -> None:
    """Print the findings of a check as JSON."""
    print(json.dumps([asdict(finding) for finding in CHECKS[name](*words)]))


if __name__ == "__main__":
    sys.exit(main())
