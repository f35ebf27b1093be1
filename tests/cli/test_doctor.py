"""mow doctor on this machine, and on machines that are broken in one way or another."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mow.cli import doctor, doctor_probes
from mow.cli.doctor import Answer, Package, ask, extension, memory, optional, package
from mow.cli.doctor_probes import PROBES, gl, gpu, judged, requirement, threads

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
    assert re.match(r"BROKEN torch +the process died of SIGABRT: pip install --force-reinstall", said["torch"])
    assert "BROKEN numpy" in said["numpy"]
    assert "numpy was built for another Python" in said["numpy"]
    assert "first line" not in said["numpy"]
    assert re.match(r"BROKEN tyro +tyro left: pip install", said["tyro"])
    assert "SIGSEGV; needed for Atari" in said["opencv-python-headless"]
    assert "the process ended without an answer" in said["ale-py"]
    assert said["python"].startswith("ok")
    assert said["GPU"].startswith("note")
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
    assert "Check whether this machine is fit to train" in capsys.readouterr().out


def test_a_probe_that_never_ends(monkeypatch):
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 0.01)
    assert ask(["graphics"]) == Answer(failure="no answer in 0 s", died=True)


def test_probes_answer():
    assert ask(["package", "json"]) == Answer()
    assert [one.name for one in ask(["graphics"]).findings] == ["GL"]
    assert ask(["package", "no_such_module"]).failure == "ModuleNotFoundError: No module named 'no_such_module'"


def test_packages(monkeypatch):
    assert package(NUMPY, Answer()).verdict == "ok"
    missing = package(NUMPY, None)
    assert (missing.verdict, missing.found) == ("BROKEN", "not installed")
    assert missing.remedy.startswith("pip install ")
    # What only some tasks need does not keep others from training, unless it ends the process.
    assert package(TRITON, Answer(failure="ImportError: x")).verdict == "note"
    assert package(TRITON, Answer(failure="died", died=True)).verdict == "BROKEN"
    for driver, verdict in ((True, "note"), (False, "ok")):
        monkeypatch.setattr(doctor, "has_nvidia_driver", lambda driver=driver: driver)
        assert package(TRITON, None).verdict == verdict


def test_simulators(monkeypatch):
    robots = Package("metaworld", "metaworld", "robots", "metaworld")
    assert package(robots, Answer(failure="died", died=True)).verdict == "note"
    missing = package(robots, None)
    assert (missing.verdict, missing.remedy) == ("note", "pip install -e '.[metaworld]' in the checkout")
    monkeypatch.setattr(doctor, "version", lambda _: None)
    assert package(robots, Answer()).found == "of unknown version"


def test_old_versions(monkeypatch):
    monkeypatch.setattr(doctor_probes, "requirement", lambda project: f"'{project}>=2.11'")
    for new in ("2.11.0+cu128", "10.0", "of unknown version"):
        assert judged("torch", new, needed=True).verdict == "ok"
    found = judged("torch", "2.9.1", needed=True)
    assert (found.verdict, found.found) == ("BROKEN", "2.9.1 is older than 2.11")
    assert found.remedy == "pip install -U 'torch>=2.11'"
    assert judged("triton", "2.9", needed=False).verdict == "note"
    assert doctor.python((3, 10)).verdict == "BROKEN"


def test_requirements_are_those_of_the_package(monkeypatch):
    wanted = ["torch>=2.11", 'triton>=3.6; platform_system == "Linux"', "arch<8; extra == 'ablate'", "scipy"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1")
    assert requirement("torch") == "'torch>=2.11'"
    assert requirement("triton") == "'triton>=3.6'"
    assert requirement("arch") == "'arch<8'"
    assert requirement("tor") == "tor"


def test_gpus():
    assert gpu([], "", driver=False).found == "none; training runs on the CPU"
    assert gpu([], "", driver=True).verdict == "note"
    assert "CUDA build of torch" in gpu([], "", driver=True).remedy
    assert "CUDA_VISIBLE_DEVICES" in gpu([], "13.0", driver=True).remedy
    assert gpu(["H200, 150 GB, sm_90"], "13.0", driver=True).found == "H200, 150 GB, sm_90"


def test_the_extension(monkeypatch):
    from mow import _C

    built = {"with_cuda": False, "cuda_archs": "", "nvcc_version": "", "cuda_reason": "built with MOW_BUILD=cpu"}
    for name, value in built.items():
        monkeypatch.setattr(_C, name, value)
    for driver, verdict in ((False, "ok"), (True, "note")):
        monkeypatch.setattr(doctor_probes, "has_nvidia_driver", lambda driver=driver: driver)
        assert PROBES["extension"]()[0].verdict == verdict
    for name, value in {"with_cuda": True, "nvcc_version": "13.0", "cuda_archs": "80;90"}.items():
        monkeypatch.setattr(_C, name, value)
    (found,) = PROBES["extension"]()
    assert (found.verdict, found.found) == ("ok", "built with CUDA 13.0 for sm_80;90")
    (missing,) = extension(Answer(failure="ImportError: no _C"))
    assert (missing.verdict, "pip install -e ." in missing.remedy) == ("note", True)
    assert extension(Answer(failure="died", died=True))[0].verdict == "BROKEN"


def test_graphics():
    both = ["libEGL.so.1", "libGL.so.1"]
    assert gl(both, {}).verdict == "ok"
    assert gl(["libOSMesa.so.8"], {"MUJOCO_GL": "osmesa"}).verdict == "ok"
    egl = "apt-get install -y --no-install-recommends libegl1 libgl1"
    assert gl(["libEGL.so.1"], {}).remedy == egl
    assert gl([], {"MUJOCO_GL": "egl"}).remedy == egl
    found = gl(both, {"MUJOCO_GL": "osmesa"})
    assert (found.verdict, found.remedy) == ("note", "apt-get install -y --no-install-recommends libosmesa6")


def test_roms_and_codec(monkeypatch):
    from ale_py import roms

    assert PROBES["atari"]()[0].verdict == "ok"
    known = roms.get_all_rom_ids()
    monkeypatch.setattr(roms, "get_all_rom_ids", lambda: [rom for rom in known if rom != "pong"])
    assert PROBES["atari"]()[0].found == "missing: Pong"
    assert PROBES["codec"]()[0].verdict == "ok"
    monkeypatch.setattr("mow.replay.lz4.pack", lambda _: None)
    (found,) = PROBES["codec"]()
    assert (found.verdict, "liblz4" in found.remedy) == ("note", True)
    (found,) = optional("Atari ROMs", Answer(failure="x"), "y")
    assert (found.verdict, found.found, found.remedy) == ("note", "cannot be used (x)", "y")


def test_memory():
    plenty, little = memory(3_000_000_000), memory(1_000_000_000)
    assert (plenty.verdict, little.verdict) == ("ok", "note")
    assert plenty.found.startswith("3.0 GB free of ")


def test_threads():
    assert threads(2, 2, 64).verdict == "ok"
    assert threads(2, 2, 64).found.startswith("2 cores for this process (a CPU quota, of 64)")
    assert "OMP_NUM_THREADS=2" in threads(64, 2, 64).remedy
