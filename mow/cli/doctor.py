"""Check whether this machine is fit to train: mow doctor

Prints a line for everything that training needs: `ok`, `note` (training runs, something else does not, or slower) or
`BROKEN`, the latter two with a remedy. Exit code 1 if something needed is broken. Only the standard library is imported
here, and what loads a library runs in a process of its own, so that a missing or broken one is reported too.
"""

import importlib.util
import json
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mow.cli.doctor_probes import BUILD, Finding, has_nvidia_driver, judged, requirement, version
from mow.system.console import complain, program, tell
from mow.system.machine import available_cores, free_memory, total_memory
from mow.system.shell import command

_TIMEOUT_S = 180.0  # of a check; loading torch from a cold disk takes tens of seconds
_LITTLE_MEMORY = 2e9  # bytes; quickstart takes 1.2e9 at most
_REINSTALL = "pip install --force-reinstall"


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
class Answer:
    """The findings of a check, or one line on why it has none."""

    findings: tuple[Finding, ...] = ()
    failure: str = ""
    died: bool = False  # its process was ended by a signal, by exit() of a library or by the timeout


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
    checks: list[tuple[str, ...]] = [("torch",), ("extension",), ("atari",), ("graphics",), ("codec",)]
    checks += [("package", one.module) for one in PACKAGES if _is_installed(one)]
    with ThreadPoolExecutor(available_cores()) as pool:
        answers = dict(zip(checks, pool.map(ask, checks), strict=True))
    return [
        python(sys.version_info[:2]),
        *torch(answers["torch",]),
        *(package(one, answers.get(("package", one.module))) for one in PACKAGES),
        *extension(answers["extension",]),
        *optional("Atari ROMs", answers["atari",], f"{_REINSTALL} {requirement('ale-py')} {requirement('gymnasium')}"),
        *optional("GL", answers["graphics",], "reinstall the library that this line names"),
        *optional("codec", answers["codec",], "mend what the lines above report"),
        memory(free_memory()),
        Finding("disk", "ok", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free in {Path.cwd()}"),
    ]


def ask(check: Sequence[str]) -> Answer:
    """Run a check of mow.cli.doctor_probes in a process of its own."""
    words = [sys.executable, "-m", "mow.cli.doctor_probes", *check]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Answer(failure=f"no answer in {_TIMEOUT_S:.0f} s", died=True)
    if done.returncode < 0:
        names = {one.value: one.name for one in signal.Signals}
        name = names.get(-done.returncode, f"signal {-done.returncode}")
        return Answer(failure=f"the process died of {name}", died=True)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        return Answer(failure=lines[-1] if lines else f"exit code {done.returncode}")
    try:
        # A library may print when it loads; the answer is the last line.
        return Answer(tuple(Finding(**one) for one in json.loads(done.stdout.splitlines()[-1])))
    except (IndexError, ValueError):
        return Answer(failure="the process ended without an answer", died=True)


def _is_installed(one: Package) -> bool:
    return importlib.util.find_spec(one.module.partition(".")[0]) is not None


def python(installed: tuple[int, ...]) -> Finding:
    found = f"{platform.python_version()} on {platform.platform()}"
    if installed < (3, 11):
        return Finding("python", "BROKEN", found, "use Python 3.11 or newer")
    return Finding("python", "ok", found)


def torch(answer: Answer) -> Sequence[Finding]:
    if not answer.failure:
        return answer.findings
    broken = Finding("torch", "BROKEN", answer.failure, f"{_REINSTALL} {requirement('torch')}")
    return broken, Finding("GPU", "note", "unknown without torch", broken.remedy)


def package(one: Package, answer: Answer | None) -> Finding:
    """Args: answer: None if the package is not installed."""
    verdict: Literal["note", "BROKEN"] = "note" if one.use else "BROKEN"
    use = f"; needed for {one.use}" if one.use else ""
    install = f"pip install -e '.[{one.extra}]' in the checkout" if one.extra else ""
    if answer is None and one.project == "triton" and not has_nvidia_driver():
        return Finding("triton", "ok", "not installed; only a GPU needs it")
    if answer is None:
        remedy = install or f"pip install {requirement(one.project)}"
        return Finding(one.project, verdict, f"not installed{use}", remedy)
    if answer.failure:
        # A library of training that ends its process ends the run too; only what --tasks asks for is never loaded.
        verdict = "BROKEN" if answer.died and not one.extra else verdict
        remedy = install or f"{_REINSTALL} {requirement(one.project)}"
        return Finding(one.project, verdict, f"{answer.failure}{use}", remedy)
    return judged(one.project, version(one.project) or "of unknown version", needed=not one.use)


def extension(answer: Answer) -> Sequence[Finding]:
    if answer.died:
        return (Finding("mow._C", "BROKEN", answer.failure, f"delete mow/_C*.so, then {BUILD}"),)
    if answer.failure:
        return (Finding("mow._C", "note", f"{answer.failure}; replay uses the slower NumPy reference", BUILD),)
    return answer.findings


def optional(name: str, answer: Answer, remedy: str) -> Sequence[Finding]:
    """A check without which training runs."""
    return (Finding(name, "note", f"cannot be used ({answer.failure})", remedy),) if answer.failure else answer.findings


def memory(free: int) -> Finding:
    found = f"{free / 1e9:.1f} GB free of {total_memory() / 1e9:.1f} GB in all"
    if free < _LITTLE_MEMORY:
        return Finding("memory", "note", found, "close other programs, or take fewer --total-steps")
    return Finding("memory", "ok", found)


if __name__ == "__main__":
    sys.exit(main())
