"""Is this machine fit to train? mow doctor

Prints a line for everything that training stands on: `ok`, `note` (training runs, something else does not, or slower)
or `BROKEN`, each of the latter two with its remedy. Exit code 1 if something needed is broken. Only the standard
library is imported here, and every check runs in a process of its own (mow.cli.doctor_probes), so that a missing or
broken part is reported too.
"""

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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mow.system.console import complain, program, tell
from mow.system.machine import allowed_cores, available_cores, total_memory
from mow.system.shell import command

_PATIENCE = 180.0  # seconds that a question may take; loading torch from a cold disk takes tens
_LITTLE_MEMORY = 2e9  # bytes; quickstart takes 1.2e9 at most
_BUILD = "run `pip install -e .` in the checkout (it needs a C++ compiler)"
_OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Literal["ok", "note", "BROKEN"]
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Answer:
    """What a probe said, or why it did not."""

    content: dict[str, Any]
    failure: str = ""  # one line; empty where it answered
    died: bool = False  # it did not end by itself: a signal, or no patience left


@dataclass(frozen=True)
class Package:
    """Something that pip installs."""

    module: str
    project: str  # its name on PyPI
    use: str = ""  # what does not work without it; empty: training


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
    Package("matplotlib.figure", "matplotlib", "the plot of mow.evaluate.ablate"),
    Package("PIL.Image", "pillow", "the GIFs of mow evaluate"),
    Package("safetensors.torch", "safetensors", "mow.inference.export and what it wrote"),
)
# The robots' suites: module and what asks for it.
SIMULATORS = {"mujoco": "dmc", "metaworld": "metaworld", "dm_control": "dmc"}


@program("mow doctor")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 training can run, 1 something needed is broken, 2 an argument was given that is none."""
    told = list(sys.argv[1:] if arguments is None else arguments)
    if told in (["--help"], ["-h"]):
        tell(sys.stdout, __doc__ or "")
        return 0
    if told:
        complain(f"mow doctor: takes no arguments, got {command(*told)}: leave them out")
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
    installed = [one for one in PACKAGES if _is_there(one.module)]
    questions: list[tuple[str, ...]] = [(name,) for name in ("torch", "extension", "codec", "atari", "graphics")]
    questions += [("package", one.module) for one in installed]
    questions += [("package", name) for name in SIMULATORS if _is_there(name)]
    with ThreadPoolExecutor(available_cores()) as pool:
        answers = dict(zip(questions, pool.map(ask, questions), strict=True))
    torch = answers["torch",]
    has_gpu = bool(torch.content.get("devices"))
    return [
        python(),
        *torch_and_gpu(torch),
        *(package(one, answers.get(("package", one.module)), has_gpu=has_gpu) for one in PACKAGES),
        *(simulator(name, answers.get(("package", name))) for name in SIMULATORS),
        extension(answers["extension",], has_gpu=has_gpu),
        atari(answers["atari",]),
        graphics(answers["graphics",], os.environ),
        *codec_and_memory(answers["codec",]),
        threads(torch),
        disk(),
    ]


def ask(question: Sequence[str]) -> Answer:
    """Ask in a process of its own; whatever happens to it is an answer."""
    words = [sys.executable, "-m", "mow.cli.doctor_probes", *question]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return Answer({}, f"no answer in {_PATIENCE:.0f} s", died=True)
    if done.returncode < 0:
        return Answer({}, f"the process died of {_signal_name(-done.returncode)}", died=True)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        return Answer({}, lines[-1] if lines else f"exit code {done.returncode}")
    try:
        return Answer(json.loads(done.stdout.splitlines()[-1]))  # what a library prints when it loads stands before
    except (IndexError, ValueError):
        return Answer({}, "the process ended without an answer", died=True)


def _signal_name(number: int) -> str:
    known = {one.value: one.name for one in signal.Signals}
    return known.get(number, f"signal {number}")


def _is_there(module: str) -> bool:
    """Whether its top package is installed; loads nothing."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None


# Judgements ----------------------------------------------------------------------------------------------------------


def python() -> Finding:
    found = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("python", "BROKEN", found, "use Python 3.11 or newer")
    return Finding("python", "ok", found)


def torch_and_gpu(answer: Answer) -> list[Finding]:
    if answer.failure:
        remedy = f"pip install --force-reinstall {requirement('torch')}"
        return [Finding("torch", "BROKEN", answer.failure, remedy), Finding("GPU", "note", "unknown without torch")]
    version, cuda = answer.content["version"], answer.content["cuda"]
    torch = too_old("torch", version, needed=True) or Finding(
        "torch", "ok", f"{version}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}"
    )
    devices = answer.content["devices"]
    if devices:
        return [torch, Finding("GPU", "ok", "; ".join(devices))]
    if not _has_nvidia_driver():
        return [torch, Finding("GPU", "ok", "none; training runs on the CPU")]
    if not cuda:
        return [torch, Finding("GPU", "note", "there is one, but torch was built without CUDA",
                               "install a CUDA build of torch (pytorch.org has the command)")]  # fmt: skip
    return [torch, Finding("GPU", "note", "there is a driver, but torch finds no device",
                           f"compare nvidia-smi with CUDA {cuda}, and look at CUDA_VISIBLE_DEVICES")]  # fmt: skip


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def package(one: Package, answer: Answer | None, *, has_gpu: bool) -> Finding:
    """Args: answer: None where it is not installed."""
    verdict: Literal["note", "BROKEN"] = "note" if one.use else "BROKEN"
    use = f"; needed for {one.use}" if one.use else ""
    if answer is None and one.project == "triton" and not has_gpu:
        return Finding("triton", "ok", "not installed; only a GPU needs it")
    if answer is None:
        return Finding(one.project, verdict, f"not installed{use}", f"pip install {requirement(one.project)}")
    if answer.failure:
        remedy = f"pip install --force-reinstall {requirement(one.project)}"
        # A library that kills its process takes with it whoever would have done without.
        return Finding(one.project, "BROKEN" if answer.died else verdict, f"{answer.failure}{use}", remedy)
    version = importlib.metadata.version(one.project) if _has_metadata(one.project) else "of unknown version"
    return too_old(one.project, version, needed=not one.use) or Finding(one.project, "ok", version)


def too_old(project: str, version: str, *, needed: bool) -> Finding | None:
    """What is wrong with an installed version, if it is older than this package asks for."""
    least = re.search(r">=([\d.]+)", requirement(project))
    if least is None or _numbers(version) >= _numbers(least[1]):
        return None
    verdict: Literal["note", "BROKEN"] = "BROKEN" if needed else "note"
    return Finding(project, verdict, f"{version} is older than {least[1]}", f"pip install -U {requirement(project)}")


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 13, 0) of 2.13.0+cpu; empty where a version does not begin with numbers."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _has_metadata(project: str) -> bool:
    try:
        importlib.metadata.version(project)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def requirement(project: str) -> str:
    """What this package asks for, quoted for a shell: 'torch>=2.11'; the bare name where that is not known."""
    asked = importlib.metadata.requires("mow") if _has_metadata("mow") else None
    for line in asked or ():
        wanted = line.partition(";")[0].strip()
        if re.split(r"[<>=!~\[ ]", wanted)[0] == project:
            return f"'{wanted}'"
    return project


def simulator(name: str, answer: Answer | None) -> Finding:
    """One that only suites of robots ask for."""
    remedy = f"pip install -e '.[{SIMULATORS[name]}]' in the checkout"
    if answer is None:
        return Finding(name, "note", "not installed; needed for robots", remedy)
    if answer.failure:
        return Finding(name, "note", answer.failure, remedy)
    return Finding(name, "ok", importlib.metadata.version(name) if _has_metadata(name) else "of unknown version")


def extension(answer: Answer, *, has_gpu: bool) -> Finding:
    if answer.died:
        return Finding("mow._C", "BROKEN", answer.failure, f"delete mow/_C*.so, then {_BUILD}")
    if answer.failure:
        return Finding("mow._C", "note", f"{answer.failure}; replay uses the slower NumPy reference", _BUILD)
    content = answer.content
    if content["cuda"]:
        return Finding("mow._C", "ok", f"built with CUDA {content['nvcc']} for sm_{content['archs']}")
    built = f"built without CUDA ({content['reason']})"
    if has_gpu:
        return Finding("mow._C", "note", built, f"with nvcc on the PATH, {_BUILD}")
    return Finding("mow._C", "ok", built)


def atari(answer: Answer) -> Finding:
    if answer.failure:
        remedy = f"pip install --force-reinstall {requirement('ale-py')} {requirement('gymnasium')}"
        return Finding("Atari ROMs", "note", f"Pong cannot be played ({answer.failure})", remedy)
    missing = answer.content["missing"]
    if missing:
        return Finding("Atari ROMs", "note", f"missing: {', '.join(missing)}", "pip install --force-reinstall ale-py")
    return Finding("Atari ROMs", "ok", "all 26 games of the benchmark; Pong plays")


def graphics(answer: Answer, environ: Mapping[str, str]) -> Finding:
    """What MuJoCo needs to draw on a machine without a screen."""
    loaded = answer.content.get("loaded", [])
    told = environ.get("MUJOCO_GL")
    has = {
        "egl": any("EGL" in name for name in loaded) and any(name.startswith("libGL.") for name in loaded),
        "osmesa": any("OSMesa" in name for name in loaded),
    }
    apt = {
        "egl": "apt-get install -y --no-install-recommends libegl1 libgl1",
        "osmesa": "apt-get install -y --no-install-recommends libosmesa6",
    }
    if told in has and not has[told]:
        return Finding("GL", "note", f"MUJOCO_GL={told}, whose library is missing", apt[told])
    usable = [name for name, there in has.items() if there]
    if not usable:
        return Finding("GL", "note", answer.failure or "neither EGL nor OSMesa; only MuJoCo draws with it", apt["egl"])
    return Finding("GL", "ok", f"{' and '.join(usable)} ({', '.join(loaded)}), MUJOCO_GL {told or 'not set'}")


def codec_and_memory(answer: Answer) -> list[Finding]:
    if answer.failure:
        return [
            Finding("codec", "note", f"liblz4 could not be tried ({answer.failure})", "see the lines above"),
            Finding("memory", "note", f"{total_memory() / 1e9:.1f} GB in all, free: unknown", "see the lines above"),
        ]
    content, total = answer.content, f"{total_memory() / 1e9:.1f} GB in all"
    found = Finding("codec", "ok", "liblz4")
    if not content["packs"]:
        found = Finding("codec", "note", "no liblz4; replay cannot be packed", content["remedy"])
    free = content["free_bytes"]
    if free < _LITTLE_MEMORY:
        remedy = "close other programs, or take fewer --total-steps"
        return [found, Finding("memory", "note", f"{free / 1e9:.1f} GB free of {total}", remedy)]
    return [found, Finding("memory", "ok", f"{free / 1e9:.1f} GB free of {total}")]


def threads(torch: Answer) -> Finding:
    cores, allowed = available_cores(), allowed_cores()
    used = torch.content.get("threads", "unknown")
    quota = f" (a CPU quota, of {allowed})" if cores < allowed else ""
    told = os.environ.get("OMP_NUM_THREADS")
    found = f"{cores} cores for this process{quota}, torch uses {used}, OMP_NUM_THREADS {told}"
    if isinstance(used, int) and used > cores:
        return Finding("threads", "note", found, f"set OMP_NUM_THREADS={cores}: more threads than cores are slower")
    return Finding("threads", "ok", found)


def disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding("disk", "ok", f"{free / 1e9:.1f} GB free in {Path.cwd()}")


if __name__ == "__main__":
    sys.exit(main())
