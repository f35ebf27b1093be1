"""The doctor: what it says of this machine, and of machines that are broken in one way or another."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mow.cli import doctor
from mow.cli.doctor import Answer, Package, ask, atari, codec_and_memory, extension, graphics, package, simulator
from mow.cli.doctor_probes import PROBES

ROOT = Path(__file__).resolve().parents[2]
NUMPY = Package("numpy", "numpy")
TRITON = Package("triton", "triton", "fast kernels on a GPU")
VERSIONS = {"version": "2.13.0+cpu", "cuda": "", "devices": [], "threads": 1}
BUILT = {"cuda": False, "archs": "", "nvcc": "", "reason": "built with MOW_BUILD=cpu", "why_no_lz4": ""}


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


def test_nothing_that_is_broken_takes_the_doctor_along(broken):
    done = subprocess.run([sys.executable, "-m", "mow.cli.doctor"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == ""
    said = {line.split()[1]: line for line in done.stdout.splitlines()[:-1]}
    assert re.match(r"BROKEN torch +the process died of SIGABRT: pip install --force-reinstall", said["torch"])
    assert "BROKEN numpy" in said["numpy"]
    assert "numpy was built for another Python" in said["numpy"]
    assert "first line" not in said["numpy"]
    assert re.match(r"BROKEN tyro +tyro left: pip install", said["tyro"])
    assert "SIGSEGV; needed for Atari" in said["opencv-python-headless"]
    assert "the process ended without an answer" in said["ale-py"]
    assert said["python"].startswith("ok")
    assert said["threads"].startswith("ok")
    assert said["scipy"].startswith("BROKEN")  # it loads numpy
    assert done.stdout.splitlines()[-1].startswith("training cannot run: torch, numpy")


def test_the_doctor_itself_loads_the_standard_library_alone():
    program = """if True:
        import sys
        import mow.cli.doctor, mow.cli.doctor_probes
        assert not {"numpy", "torch", "gymnasium", "tyro", "mow.envs"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_arguments(capsys):
    assert doctor.main(["--gpu"]) == 2
    assert capsys.readouterr().err == "mow doctor: takes no arguments, got --gpu: leave them out\n"
    assert doctor.main(["--help"]) == 0
    assert "Is this machine fit to train?" in capsys.readouterr().out


def test_a_probe_that_never_ends(monkeypatch):
    monkeypatch.setattr(doctor, "_PATIENCE", 0.01)
    assert ask(["graphics"]) == Answer({}, "no answer in 0 s", died=True)


def test_probes_answer(monkeypatch):
    assert ask(["package", "json"]) == Answer({})
    assert ask(["package", "no_such_module"]).failure == "ModuleNotFoundError: No module named 'no_such_module'"
    assert set(PROBES) == {"torch", "extension", "codec", "atari", "graphics"}


def test_packages():
    assert package(NUMPY, Answer({}), has_gpu=False).verdict == "ok"
    missing = package(NUMPY, None, has_gpu=False)
    assert (missing.verdict, missing.found) == ("BROKEN", "not installed")
    assert missing.remedy.startswith("pip install ")
    assert package(TRITON, None, has_gpu=False).verdict == "ok"
    assert package(TRITON, None, has_gpu=True).verdict == "note"
    # What only some tasks need does not keep others from training, unless it kills the process.
    assert package(TRITON, Answer({}, "ImportError: x"), has_gpu=True).verdict == "note"
    assert package(TRITON, Answer({}, "died", died=True), has_gpu=True).verdict == "BROKEN"


def test_old_versions(monkeypatch):
    monkeypatch.setattr(doctor, "requirement", lambda project: f"'{project}>=2.11'")
    assert doctor.too_old("torch", "2.11.0+cu128", needed=True) is None
    assert doctor.too_old("torch", "10.0", needed=True) is None
    found = doctor.too_old("torch", "2.9.1", needed=True)
    assert (found.verdict, found.found) == ("BROKEN", "2.9.1 is older than 2.11")
    assert found.remedy == "pip install -U 'torch>=2.11'"
    assert doctor.too_old("triton", "2.9", needed=False).verdict == "note"


def test_requirements_are_those_of_the_package(monkeypatch):
    wanted = ["torch>=2.11", 'triton>=3.6; platform_system == "Linux"', "arch<8; extra == 'ablate'", "scipy"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1")
    assert doctor.requirement("torch") == "'torch>=2.11'"
    assert doctor.requirement("triton") == "'triton>=3.6'"
    assert doctor.requirement("arch") == "'arch<8'"
    assert doctor.requirement("tor") == "tor"


def test_gpus(monkeypatch):
    def judged(driver, **changes):
        monkeypatch.setattr(doctor, "_has_nvidia_driver", lambda: driver)
        return doctor.torch_and_gpu(Answer({**VERSIONS, **changes}))[1]

    assert judged(False).found == "none; training runs on the CPU"
    assert judged(True).verdict == "note"
    assert "CUDA build of torch" in judged(True).remedy
    assert "CUDA_VISIBLE_DEVICES" in judged(True, cuda="13.0").remedy
    assert judged(True, cuda="13.0", devices=["H200, 150 GB, sm_90"]).found == "H200, 150 GB, sm_90"


def test_the_extension():
    assert extension(Answer(BUILT), has_gpu=False).verdict == "ok"
    assert extension(Answer(BUILT), has_gpu=True).verdict == "note"
    with_cuda = extension(Answer({**BUILT, "cuda": True, "nvcc": "13.0", "archs": "80;90"}), has_gpu=True)
    assert (with_cuda.verdict, with_cuda.found) == ("ok", "built with CUDA 13.0 for sm_80;90")
    missing = extension(Answer({}, "ImportError: no _C"), has_gpu=False)
    assert (missing.verdict, "pip install -e ." in missing.remedy) == ("note", True)
    assert extension(Answer({}, "died", died=True), has_gpu=False).verdict == "BROKEN"


def test_graphics():
    both = Answer({"loaded": ["libEGL.so.1", "libGL.so.1"]})
    assert graphics(both, {}).verdict == "ok"
    assert graphics(Answer({"loaded": ["libOSMesa.so.8"]}), {"MUJOCO_GL": "osmesa"}).verdict == "ok"
    egl = "apt-get install -y --no-install-recommends libegl1 libgl1"
    assert graphics(Answer({"loaded": ["libEGL.so.1"]}), {}).remedy == egl
    assert graphics(Answer({"loaded": []}), {"MUJOCO_GL": "egl"}).remedy == egl
    found = graphics(both, {"MUJOCO_GL": "osmesa"})
    assert (found.verdict, found.remedy) == ("note", "apt-get install -y --no-install-recommends libosmesa6")


def test_roms_codec_and_memory():
    assert atari(Answer({"missing": []})).verdict == "ok"
    assert atari(Answer({"missing": ["Pong"]})).found == "missing: Pong"
    assert "Pong cannot be played (x)" in atari(Answer({}, "x")).found
    good, plenty = codec_and_memory(Answer({"packs": True, "remedy": "r", "free_bytes": 3e9}))
    assert (good.verdict, plenty.verdict) == ("ok", "ok")
    assert plenty.found.startswith("3.0 GB free of ")
    bad, little = codec_and_memory(Answer({"packs": False, "remedy": "apt install liblz4-1", "free_bytes": 1e9}))
    assert (bad.verdict, bad.remedy, little.verdict) == ("note", "apt install liblz4-1", "note")
    assert [found.verdict for found in codec_and_memory(Answer({}, "x"))] == ["note", "note"]


def test_simulators(monkeypatch):
    assert simulator("mujoco", Answer({}, "ImportError: x")).verdict == "note"
    missing = simulator("metaworld", None)
    assert (missing.verdict, missing.remedy) == ("note", "pip install -e '.[metaworld]' in the checkout")
    monkeypatch.setattr(doctor, "_has_metadata", lambda _: False)
    assert simulator("dm_control", Answer({})).found == "of unknown version"


def test_threads(monkeypatch):
    monkeypatch.setattr(doctor, "available_cores", lambda: 2)
    monkeypatch.setattr(doctor, "allowed_cores", lambda: 64)
    assert doctor.threads(Answer({"threads": 2})).verdict == "ok"
    assert doctor.threads(Answer({"threads": 2})).found.startswith("2 cores for this process (a CPU quota, of 64)")
    assert "OMP_NUM_THREADS=2" in doctor.threads(Answer({"threads": 64})).remedy
    assert "torch uses unknown" in doctor.threads(Answer({}, "x")).found
