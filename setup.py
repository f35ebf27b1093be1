"""Builds the extension mow._C from csrc/ with pybind11 and ninja; torch is not needed. Metadata is in pyproject.toml.

    MOW_BUILD       auto (default): with CUDA where nvcc works, no GPU need be visible; cpu: without;
                    cuda: a missing or broken nvcc is an error
    MOW_CUDA_ARCHS  such as "80;90"; default: those of DEFAULT_ARCHS that nvcc knows
    CUDA_HOME, CXX  the toolkit and the C++ compiler to take
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "80;86;89;90;100;120"


@dataclass(frozen=True)
class Cuda:
    nvcc: str
    version: str
    archs: list[str]
    cudart: Path


def find_nvcc() -> str | None:
    """The first nvcc of: CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda*."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [f"{home}/bin/nvcc" for home in homes if home] + [shutil.which("nvcc") or ""]
    candidates += sorted(map(str, Path("/usr/local").glob("cuda*/bin/nvcc")), reverse=True)
    return next((nvcc for nvcc in candidates if Path(nvcc).is_file()), None)


def probe_nvcc(nvcc: str) -> Cuda:
    """Ask nvcc for its version, architectures and folder. RuntimeError: no good nvcc; ValueError: no good wish."""

    def ask(*args: str) -> str:
        try:
            answer = subprocess.run([nvcc, *args], text=True, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"{nvcc} does not work: {error}") from error
        return answer.stdout + answer.stderr

    version = re.search(r"release ([\d.]+)", ask("--version"))
    known = re.findall(r"sm_(\w+)", ask("--list-gpu-code"))
    # nvcc may be a link or a script anywhere: only its dry run tells where the toolkit lies.
    top = re.search(r"TOP=(\S+)", ask("-dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull))
    if version is None or top is None:
        raise RuntimeError(f"{nvcc} does not name its version and folder: is it NVIDIA's compiler?")
    asked = os.environ.get("MOW_CUDA_ARCHS", "")
    archs = asked.split(";") if asked else [arch for arch in DEFAULT_ARCHS.split(";") if arch in known]
    if not archs or not set(archs) <= set(known):
        kind = ValueError if asked else RuntimeError
        raise kind(f"MOW_CUDA_ARCHS={asked or DEFAULT_ARCHS!r}: nvcc {version[1]} knows {';'.join(known)}")
    folders = ["lib64", "lib", f"targets/{os.uname().machine}-linux/lib", "targets/sbsa-linux/lib"]
    libraries = [Path(top[1]).resolve() / folder / "libcudart_static.a" for folder in folders]
    cudart = next((library for library in libraries if library.exists()), None)
    if cudart is None:
        raise RuntimeError(f"no libcudart_static.a below {top[1]}: install the whole CUDA toolkit")
    return Cuda(nvcc, version[1], archs, cudart)


def choose_cuda(mode: str) -> tuple[Cuda | None, str]:
    """The toolkit to build with, or None and why; with mode cuda, its absence is a RuntimeError."""
    if mode not in ("auto", "cpu", "cuda"):
        raise ValueError(f"MOW_BUILD must be auto, cpu or cuda, got {mode!r}")
    if mode == "cpu":
        return None, "built with MOW_BUILD=cpu"
    try:
        nvcc = find_nvcc()
        if nvcc is None:
            raise RuntimeError("no nvcc found: install the CUDA toolkit or set CUDA_HOME")
        return probe_nvcc(nvcc), ""
    except RuntimeError as error:
        if mode == "cuda":
            raise
        return None, str(error)


def write_if_new(path: Path, text: str) -> None:
    """An untouched time stamp is what keeps ninja from building again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_ninja(folder: Path, target: Path, cuda: Cuda | None) -> None:
    """One build.ninja: C++ and CUDA side by side, headers tracked by -MMD, one link, all symbols but one hidden."""
    import pybind11
    from ninja.ninja_syntax import Writer

    cxx = os.environ.get("CXX", "c++")
    include = " ".join(f'-I"{path}"' for path in (folder, pybind11.get_include(), sysconfig.get_path("include")))
    compile_args = f"-MMD -MF $out.d -std=c++17 -O3 {include} -c $in -o $out"
    rules = {"cxx": f"{cxx} -Wall -Wextra -fPIC -fvisibility=hidden -pthread {compile_args}"}
    link = "-s -Wl,--exclude-libs,ALL"
    if cuda:
        code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in cuda.archs]
        # PTX of the newest architecture serves GPUs to come; that of 90 those between 90 and the newest.
        ptx = {"90", cuda.archs[-1]} & set(cuda.archs)
        code += [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in sorted(ptx)]
        flags = f"-ccbin {cxx} -Xcompiler -fPIC,-fvisibility=hidden -Xfatbin -compress-all {' '.join(code)}"
        rules["nvcc"] = f"{cuda.nvcc} {flags} {compile_args}"
        link = f'"{cuda.cudart}" -ldl -lrt {link}'  # static: importing mow._C needs nothing of CUDA
    with (folder / "build.ninja.new").open("w") as file:
        ninja, objects = Writer(file, width=4096), []
        for rule, command in rules.items():
            ninja.rule(rule, command, depfile="$out.d", deps="gcc")
            for source in sorted((ROOT / "csrc").glob("*.cpp" if rule == "cxx" else "*.cu")):
                objects += ninja.build(f"{source.name}.o", rule, str(source))
        ninja.rule("link", f"{cxx} -shared -pthread $in -o $out {link}")
        ninja.build(str(target), "link", objects)
    write_if_new(folder / "build.ninja", (folder / "build.ninja.new").read_text())


class NinjaBuild(build_ext):
    """Builds mow._C; where nvcc passes the probe but cannot compile, MOW_BUILD=auto goes on without CUDA."""

    def build_extension(self, ext: Extension) -> None:
        mode = os.environ.get("MOW_BUILD") or "auto"
        try:
            cuda, reason = choose_cuda(mode)
        except (RuntimeError, ValueError) as error:
            print(f"setup.py: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        try:
            self.run_ninja(ext, cuda, reason)
        except subprocess.CalledProcessError:
            if cuda is None or mode == "cuda":
                raise
            self.run_ninja(ext, None, f"{cuda.nvcc} could not compile csrc/: MOW_BUILD=cuda shows its errors")

    def run_ninja(self, ext: Extension, cuda: Cuda | None, reason: str) -> None:
        # Under pip's build isolation ninja is on the PATH; ninja.BIN_DIR knows the places of an installed package only.
        from ninja import BIN_DIR

        ninja = shutil.which("ninja") or str(Path(BIN_DIR) / "ninja")
        folder = ROOT / "build" / f"ninja-{sysconfig.get_config_var('SOABI')}"
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        # What the extension tells about its own build. A header, as quotes in -D options do not survive ninja.
        config = {"WITH_CUDA": int(cuda is not None), "CUDA_REASON": reason}
        config |= {"CUDA_ARCHS": ";".join(cuda.archs) if cuda else "", "NVCC_VERSION": cuda.version if cuda else ""}
        header = "".join(f"#define MOW_{name} {json.dumps(value)}\n" for name, value in config.items())
        write_if_new(folder / "mow_config.h", header)
        write_ninja(folder, target, cuda)
        subprocess.run([ninja, "-C", str(folder), "-v"], check=True)


if __name__ == "__main__":
    sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").iterdir())]
    cpp = [source for source in sources if source.endswith(".cpp")]
    others = [source for source in sources if not source.endswith(".cpp")]  # the sdist carries these too
    setup(ext_modules=[Extension("mow._C", cpp, depends=others)], cmdclass={"build_ext": NinjaBuild})
