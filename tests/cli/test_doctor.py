"""mow doctor on this machine, and on machines that are broken in one way or another."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mow.cli import doctor
from mow.cli.doctor import CHECKS, Package, ask, gl, package, reported, requirement

ROOT = Path(__file__).resolve().parents[2]
NUMPY = Package("numpy", "numpy")
TRITON = Package("triton", "triton", "fast kernels on a GPU")


def test_this_machine_can_train(capsys, monkeypatch):
    # The others take long to load.
    quick = tuple(one for one in doctor.PACKAGES if one.project in ("numpy", "tyro", "ale-py"))
    monkeypatch.setattr(doctor, "PACKAGES", quick)
    assert doctor.main([]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "training can run"
    names = [line.split()[1] for line in said[:-1]]
    for name in ("python", "torch", "GPU", "numpy", "ale-py", "mow._C", "Atari", "GL", "codec", "memory", "threads"):
        assert name in names
    for line in said[:-1]:
        assert re.match(r"(ok  |note|BROKEN)", line)
        # Whatever is not ok has a remedy behind a colon.
        assert line.startswith("ok") or ": " in line
    assert any(importlib.metadata.version("numpy") in line for line in said)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Packages that cannot be loaded, each in its own way, before all others on the path."""
    for name, text in {
        "torch": "import os; os.abort()",
        "numpy": "raise RuntimeError('first line\\nnumpy was built for another Python')",
        "tyro": "raise SystemExit('tyro left')",
        "ale_py": "import sys; sys.exit(0)",
        "cv2": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")


def test_broken_packages_are_reported(broken):
    done = subprocess.run([sys.executable, "-m", "mow.cli.doctor"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == ""
    said = {line.split()[1]: line for line in done.stdout.splitlines()[:-1]}
    assert re.match(r"BROKEN torch +cannot be used \(the process died of SIGABRT\): pip install", said["torch"])
    assert "BROKEN numpy" in said["numpy"]
    assert "numpy was built for another Python" in said["numpy"]
    assert "first line" not in said["numpy"]
    assert re.match(r"BROKEN tyro +tyro left: pip install", said["tyro"])
    assert "SIGSEGV; needed for Atari" in said["opencv-python-headless"]
    assert "the process ended without an answer" in said["ale-py"]
    assert said["python"].startswith("ok")
    assert said["scipy"].startswith("BROKEN")  # it loads numpy
    assert done.stdout.splitlines()[-1].startswith("training cannot run: torch, numpy")


def test_the_doctor_itself_loads_the_standard_library_alone():
    program = """if True:
        import sys
        import mow.cli.doctor
        assert not {"numpy", "torch", "gymnasium", "tyro", "mow.envs"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_arguments(capsys):
    assert doctor.main(["--gpu"]) == 2
    assert capsys.readouterr().err == "mow doctor: takes no arguments, got --gpu: leave them out\n"
    assert doctor.main(["--help"]) == 0
    assert "Check whether this machine is fit to train" in capsys.readouterr().out


def test_a_check_that_never_ends(monkeypatch):
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 0.01)
    assert ask(["graphics"]) == "no answer in 0 s"


def test_checks_answer():
    assert ask(["load", "json"]) == []
    assert [one.name for one in ask(["graphics"])] == ["GL"]
    assert ask(["load", "no_such_module"]) == "ModuleNotFoundError: No module named 'no_such_module'"


def test_packages(monkeypatch):
    assert package(NUMPY, []).verdict == "ok"
    missing = package(NUMPY, None)
    assert (missing.verdict, missing.found) == ("BROKEN", "not installed")
    assert missing.remedy.startswith("pip install ")
    # What only some tasks need does not keep others from training.
    assert package(TRITON, "ImportError: x").verdict == "note"
    for driver, verdict in ((True, "note"), (False, "ok")):
        monkeypatch.setattr(doctor, "has_nvidia_driver", lambda driver=driver: driver)
        assert package(TRITON, None).verdict == verdict


def test_simulators(monkeypatch):
    robots = Package("metaworld", "metaworld", "robots", "metaworld")
    missing = package(robots, None)
    assert (missing.verdict, missing.remedy) == ("note", "pip install -e '.[metaworld]' in the checkout")
    monkeypatch.setattr(doctor, "version", lambda _: None)
    assert package(robots, []).found == "of unknown version"


def test_requirements_are_those_of_the_package(monkeypatch):
    wanted = ["torch>=2.11", 'triton>=3.6; platform_system == "Linux"', "arch<8; extra == 'ablate'", "scipy"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1")
    assert requirement("torch") == "'torch>=2.11'"
    assert requirement("triton") == "'triton>=3.6'"
    assert requirement("arch") == "'arch<8'"
    assert requirement("tor") == "tor"


def test_the_extension(monkeypatch):
    from mow import _C

    built = {"with_cuda": False, "cuda_archs": "", "nvcc_version": "", "cuda_reason": "built with MOW_BUILD=cpu"}
    for name, value in built.items():
        monkeypatch.setattr(_C, name, value)
    for driver, verdict in ((False, "ok"), (True, "note")):
        monkeypatch.setattr(doctor, "has_nvidia_driver", lambda driver=driver: driver)
        assert CHECKS["extension"]()[0].verdict == verdict
    for name, value in {"with_cuda": True, "nvcc_version": "13.0", "cuda_archs": "80;90"}.items():
        monkeypatch.setattr(_C, name, value)
    (found,) = CHECKS["extension"]()
    assert (found.verdict, found.found) == ("ok", "built with CUDA 13.0 for sm_80;90")
    (broken,) = reported("mow._C", "died", "build it", needed=True)
    assert (broken.verdict, broken.remedy) == ("BROKEN", "build it")


def test_graphics():
    both = ["libEGL.so.1", "libGL.so.1"]
    assert gl(both, "").verdict == "ok"
    assert gl(["libOSMesa.so.8"], "osmesa").verdict == "ok"
    egl = "apt-get install -y --no-install-recommends libegl1 libgl1"
    assert gl(["libEGL.so.1"], "").remedy == egl
    assert gl([], "egl").remedy == egl
    found = gl(both, "osmesa")
    assert (found.verdict, found.remedy) == ("note", "apt-get install -y --no-install-recommends libosmesa6")


def test_atari_and_codec(monkeypatch):
    assert CHECKS["atari"]()[0].verdict == "ok"
    assert CHECKS["codec"]()[0].verdict == "ok"
    monkeypatch.setattr("mow.replay.lz4.pack", lambda _: None)
    (found,) = CHECKS["codec"]()
    assert (found.verdict, "liblz4" in found.remedy) == ("note", True)
    (found,) = reported("Atari", "x", "y")
    assert (found.verdict, found.found, found.remedy) == ("note", "cannot be used (x)", "y")
