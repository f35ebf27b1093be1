"""setup.py: what it probes, what it falls back to, and whether the extension tells the truth about it."""

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from mow.replay import build_info

ROOT = Path(__file__).resolve().parent.parent
needs_extension = pytest.mark.skipif(not build_info()["compiled"], reason="mow._C is not built")


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, on a machine without any toolkit."""
    spec = importlib.util.spec_from_file_location("mow_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mow_setup", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    for name in ("CUDA_HOME", "CUDA_PATH", "MOW_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    return module


def fake_toolkit(folder: Path, script: str, *, with_library: bool = True) -> Path:
    """A CUDA_HOME whose nvcc is a shell script."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/nvcc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/nvcc").chmod(0o755)
    if with_library:
        (folder / "lib64").mkdir()
        (folder / "lib64/libcudart_static.a").write_text("")
    return folder


def answers(folder: Path) -> str:
    """An nvcc that knows two architectures."""
    return f"""case $1 in
        --version) echo 'Cuda compilation tools, release 12.8, V12.8.93';;
        --list-gpu-code) echo sm_80; echo sm_90;;
        -dryrun) echo '#$ TOP={folder}' >&2;;
    esac"""


def test_a_working_nvcc_is_taken(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_toolkit(tmp_path / "cuda", answers(tmp_path / "cuda"))
    monkeypatch.setenv("CUDA_HOME", str(home))
    cuda, reason = setup.choose_cuda("auto")
    assert reason == ""
    assert (cuda.nvcc, cuda.version, cuda.archs) == (str(home / "bin/nvcc"), "12.8", ["80", "90"])
    assert cuda.cudart == home / "lib64/libcudart_static.a"
    monkeypatch.setenv("MOW_CUDA_ARCHS", "90")
    assert setup.choose_cuda("cuda")[0].archs == ["90"]


def test_an_architecture_that_nvcc_does_not_know_is_an_error(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path / "cuda", answers(tmp_path / "cuda"))))
    monkeypatch.setenv("MOW_CUDA_ARCHS", "80;999")
    with pytest.raises(ValueError, match=r"MOW_CUDA_ARCHS='80;999': nvcc 12\.8 knows 80;90"):
        setup.choose_cuda("auto")


@pytest.mark.parametrize(
    ("script", "with_library", "reason"),
    [
        ("exit 1", True, "does not work: .* exit status 1"),
        ("echo hello", True, "does not name its version and folder: is it NVIDIA's compiler"),
        (None, False, "no libcudart_static.a below"),
    ],
)
def test_a_broken_nvcc_means_no_cuda_unless_cuda_was_asked_for(
    setup: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str | None,
    with_library: bool,
    reason: str,
) -> None:
    script = script or answers(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path / "cuda", script, with_library=with_library)))
    cuda, got = setup.choose_cuda("auto")
    assert cuda is None
    with pytest.raises(RuntimeError, match=reason) as error:
        setup.choose_cuda("cuda")
    assert got == str(error.value)


def test_without_nvcc(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "find_nvcc", lambda: None)
    assert setup.choose_cuda("auto") == (None, "no nvcc found: install the CUDA toolkit or set CUDA_HOME")
    with pytest.raises(RuntimeError, match="no nvcc found: install the CUDA toolkit or set CUDA_HOME"):
        setup.choose_cuda("cuda")


def test_mode_cpu_does_not_look_for_nvcc(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "find_nvcc", lambda: pytest.fail("looked for nvcc"))
    assert setup.choose_cuda("cpu") == (None, "built with MOW_BUILD=cpu")


def test_an_unknown_mode_is_refused(setup: ModuleType) -> None:
    with pytest.raises(ValueError, match="MOW_BUILD must be auto, cpu or cuda, got 'gpu'"):
        setup.choose_cuda("gpu")


def test_an_untouched_build_file_keeps_its_time(setup: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "build.ninja"
    setup.write_if_new(path, "one")
    before = path.stat().st_mtime_ns
    setup.write_if_new(path, "one")
    assert path.stat().st_mtime_ns == before
    setup.write_if_new(path, "two")
    assert path.read_text() == "two"


def test_the_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    """All of csrc/, headers too, and the data files of the package are inside."""
    command = ["setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, timeout=120)
    with tarfile.open(next(tmp_path.glob("mow-*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = [*(ROOT / "csrc").iterdir(), *(ROOT / "mow/kernels/tuned").glob("*.json"), *(ROOT / "mow").rglob("*.py")]
    assert len(needed) > 100
    assert {str(path.relative_to(ROOT)) for path in needed} <= names


@needs_extension
def test_build_info_tells_what_the_extension_has() -> None:
    from mow import _C

    info = build_info()
    assert info["cuda"] == hasattr(_C, "gather_windows_cuda")
    assert bool(info["reason"]) != info["cuda"]
    assert bool(info["archs"]) == bool(info["nvcc"]) == info["cuda"]


@needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files with readelf")
def test_the_extension_links_neither_torch_nor_cuda_and_exports_its_entry_only() -> None:
    from mow import _C

    def lines(*command: str) -> list[str]:
        return subprocess.run([*command, _C.__file__], capture_output=True, text=True, check=True).stdout.splitlines()

    needed = " ".join(line for line in lines("readelf", "-d") if "NEEDED" in line)
    assert "libstdc++" in needed
    assert "torch" not in needed
    assert "cud" not in needed
    exported = {line.split()[-1] for line in lines("nm", "-D", "--defined-only") if line.split()[-2] == "T"}
    assert exported == {"PyInit__C"}


def test_without_the_extension_build_info_says_why() -> None:
    program = """if True:
        import sys
        sys.modules["mow._C"] = None
        from mow.replay import build_info
        info = build_info()
        assert not info["compiled"] and not info["cuda"] and "mow._C" in info["reason"], info
    """
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"MOW_BUILD": "gpu"}, "setup.py: MOW_BUILD must be auto, cpu or cuda, got 'gpu'"),
        ({"MOW_BUILD": "cuda", "CUDA_HOME": "", "CUDA_PATH": "", "PATH": ""}, "setup.py: "),
    ],
)
def test_a_variable_that_cannot_be_used_is_one_line(variables: dict[str, str], says: str) -> None:
    if "PATH" in variables and list(Path("/usr/local").glob("cuda*/bin/nvcc")):
        pytest.skip("there is an nvcc")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(says)
    assert "Traceback" not in done.stderr
