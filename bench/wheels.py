"""Wheels for a machine without a network.

    python -m bench.wheels fetch FOLDER --python 3.12     where there is a network: what the other machine may lack
    python -m bench.wheels install FOLDER                 on the other machine, from the root of the checkout

`fetch` asks pip for wheels of another Python and platform, by name and without their dependencies, so torch, triton,
NumPy, SciPy, OpenCV, TensorBoard and what else a machine with a GPU brings along are not among them. `install` lets pip
take from FOLDER what is missing and leave the rest as it is; it compiles the extension with the build tools in FOLDER.

    --robots         Meta-World and MuJoCo as well, 47 MB
    --platform ...   pip compares these word for word: name another if it finds no wheel
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TRAINING = ("gymnasium", "farama-notifications", "cloudpickle", "ale-py", "tyro", "docstring-parser", "typeguard")
BUILDING = ("setuptools<81", "pybind11", "ninja")
TESTING = ("pytest", "iniconfig", "pluggy", "pytest-benchmark", "py-cpuinfo2", "hypothesis", "sortedcontainers")
ROBOTS = ("metaworld", "mujoco==3.3.0", "glfw", "pyopengl", "etils", "imageio", "packaging")
PLATFORMS = tuple(f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "2010", "1"))

_PIP = (sys.executable, "-m", "pip")


def fetching(folder: Path, python: str, platforms: Sequence[str], *, robots: bool) -> list[str]:
    """pip's command."""
    names = [*TRAINING, *BUILDING, *TESTING, *(ROBOTS if robots else ())]
    words = [*_PIP, "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    words += ["--python-version", python, "--dest", str(folder)]
    for platform in platforms:
        words += ["--platform", platform]
    return [*words, *names]


def installing(folder: Path, *, dry_run: bool) -> list[str]:
    """pip's command: the package, with its robots where their wheels are there, and what tests import."""
    there = [path.name.split("-")[0] for path in folder.glob("*.whl")]
    package = ".[metaworld]" if "metaworld" in there else "."
    # A dry run shows that the words are right and the package describes itself; what is missing is not looked for.
    dry = ["--dry-run", "--no-deps", "--no-build-isolation"] if dry_run else []
    words = [*_PIP, "install", *dry, "--no-index", "--find-links", str(folder)]
    return [*words, "pytest", "pytest-benchmark", "hypothesis", "--editable", package]


def main(arguments: Sequence[str] | None = None) -> int:
    """pip's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.wheels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("fetch", "install"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", metavar="3.12", help="version on the other machine")
    parser.add_argument("--platform", nargs="+", default=PLATFORMS, help=f"default: {' '.join(PLATFORMS)}")
    parser.add_argument("--robots", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="install nothing")
    asked = parser.parse_args(arguments)
    if asked.what == "install":
        return subprocess.run(installing(asked.folder, dry_run=asked.dry_run), check=False).returncode
    if asked.python is None:
        parser.error("fetch needs --python: the version on the other machine, such as 3.12")
    words = fetching(asked.folder, asked.python, asked.platform, robots=asked.robots)
    code = subprocess.run(words, check=False).returncode
    if code != 0:
        return code
    wheels = list(asked.folder.glob("*.whl"))
    print(f"{len(wheels)} wheels, {sum(path.stat().st_size for path in wheels) / 1e6:.0f} MB, in {asked.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
