"""Worker processes: what they load, how they fail, and that they always end (mow/envs/vector_workers.py)."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mow.envs.base import EnvFailure
from mow.envs.vector import WorkerVectorEnv, make_vector

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

TWO = ("dummy:count-1", "dummy:slide")


def make(tasks: tuple[str, ...] = TWO, num_workers: int = 1, **options: object) -> WorkerVectorEnv:
    return WorkerVectorEnv(tasks, seed=0, num_workers=num_workers, options=options)


def pids(env: WorkerVectorEnv) -> list[int]:
    found = [worker.process.pid for worker in env._workers]
    assert all(found)
    return [pid for pid in found if pid is not None]


def runs(pid: int) -> bool:
    """Alive and not only waiting to be buried by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not runs(pid)


def play(env: WorkerVectorEnv, num_steps: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        env.step(env.layout.random(rng))


@pytest.mark.parametrize("tasks", [TWO, TWO[::-1]])
def test_an_error_names_the_task_and_carries_the_traceback(tasks: tuple[str, ...]) -> None:
    env = make(tasks, fail_at=3)
    (pid,) = pids(env)
    env.reset()
    play(env, 3)
    with pytest.raises(EnvFailure) as caught:
        play(env, 1)
    message = str(caught.value)
    said = f"{tasks[0]}: RuntimeError: {tasks[0]}: fails at step 3, as set (seed 0, simulator 1, action "
    assert caught.value.line.startswith(said)
    assert message.startswith(f"{caught.value.line}\n")
    assert "Traceback" in message
    assert "_fail_if_set" in message
    assert tasks[1] not in message
    assert gone(pid)
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


def test_an_error_in_one_worker_ends_the_others() -> None:
    env = make(num_workers=2, fail_at=7)  # no episode is over before
    both = pids(env)
    env.reset()
    with pytest.raises(EnvFailure, match="fails at step 7"):
        play(env, 8)
    assert all(gone(pid) for pid in both)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_first_reset_that_fails_is_one_line_at_the_start(num_workers: int) -> None:
    with pytest.raises(ValueError, match="fails at step 0") as caught:
        make_vector(TWO, seed=0, num_workers=num_workers, options={"fail_at": 0})
    line = r"dummy:count-1: its simulator fails: RuntimeError: .*, as set \(envs/dummy\.py, line \d+\)"
    assert re.fullmatch(line.replace("count-1", "(count-1|slide)"), str(caught.value))


def test_an_error_at_the_start_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match=r"^dummy:(count-1|slide): unknown option 'speed': expected some of"):
        make(speed=3)


def test_a_missing_simulator_is_told_as_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "ale_py.py").write_text("raise ImportError('not here')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    code = "from mow.envs.vector import make_vector; make_vector(['atari:Pong'], seed=0, num_workers=1, options={})"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "\nValueError: task 'atari:Pong' cannot load its simulator (not here): pip install" in done.stderr


@pytest.mark.parametrize("between", ["steps", "step and reset"])
def test_a_killed_worker_is_named(between: str) -> None:
    tasks = ("dummy:count-0", "dummy:count-1", "dummy:count-2")
    env = make(tasks, num_workers=2)  # the second worker owns the second task alone
    env.reset()
    victim = pids(env)[1]
    os.kill(victim, signal.SIGKILL)
    assert gone(victim)
    with pytest.raises(RuntimeError, match=r"dummy:count-1: its worker died with exit code -9"):
        play(env, 1) if between == "steps" else env.reset()


def test_a_hung_task_is_named_and_its_worker_ended() -> None:
    env = make(hang_at=1)
    env.reset()
    play(env, 1)
    (pid,) = pids(env)
    env._timeout_s = 0.5  # starting took longer than this test wants to wait
    with pytest.raises(RuntimeError, match=r"dummy:count-1: its worker gave no answer within 0\.5 s"):
        play(env, 1)
    assert gone(pid)


def test_a_stopped_worker_is_named_and_ended() -> None:
    env = make()
    env.reset()
    (pid,) = pids(env)
    os.kill(pid, signal.SIGSTOP)
    env._timeout_s = 0.5
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"dummy:count-1, dummy:slide: its worker gave no answer within 0\.5 s"):
        play(env, 1)
    assert 0.5 <= time.monotonic() - start < 10  # the limit, a second of grace, and a slow machine
    assert gone(pid)


def test_close_ends_processes_and_frees_memory() -> None:
    def num_shared() -> int:
        return sum("pym-" in line for line in Path("/proc/self/maps").read_text().splitlines())

    make().close()
    baseline = num_shared()
    assert baseline > 0  # multiprocessing keeps small blocks for later use; what is closed must be used again
    for _ in range(4):
        env = make(tasks=TWO * 20, num_workers=2)
        env.reset()
        both = pids(env)
        env.close()
        assert all(gone(pid) for pid in both)
    assert num_shared() <= baseline + 1  # at most the one block that 40 tasks need


def test_a_forgotten_object_ends_its_processes() -> None:
    env = make()
    (pid,) = pids(env)
    assert runs(pid)
    del env
    assert gone(pid)


SCRIPT = """
import os, signal, sys, time
{imports}
from mow.envs.vector import WorkerVectorEnv

env = WorkerVectorEnv(("dummy:count-1", "dummy:slide"), seed=0, num_workers=2, options={options})
env.reset()
print(*(worker.process.pid for worker in env._workers), flush=True)
{end}
"""


def run_script(folder: Path, imports: str, end: str, options: dict[str, int]) -> "subprocess.Popen[str]":
    # A file without a __main__ guard, as users write them: starting workers must not run it again.
    script = folder / "script.py"
    script.write_text(SCRIPT.format(imports=imports, end=end, options=options))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)", "sys.exit(3)", "raise ValueError"]
)
def test_workers_leave_with_their_parent(tmp_path: Path, end: str) -> None:
    parent = run_script(tmp_path, "", end, {})
    out, err = parent.communicate(timeout=60)
    workers = [int(pid) for pid in out.split()]
    assert len(workers) == 2, err
    assert parent.returncode != 0
    assert all(gone(pid) for pid in workers)
    assert "leaked" not in err


def test_workers_leave_with_their_parent_even_when_they_hang(tmp_path: Path) -> None:
    steps = "for _ in (1, 2): env.step(env.layout.random(np.random.default_rng(0)))"
    parent = run_script(tmp_path, "import numpy as np", steps, {"hang_at": 1})
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    time.sleep(0.5)  # the second step is long under way, and no worker reads its pipe any more
    parent.kill()
    parent.communicate(timeout=60)
    assert all(gone(pid) for pid in workers)


def test_workers_never_load_torch(tmp_path: Path) -> None:
    parent = run_script(tmp_path, "import torch", "sys.stdin.readline()", {})
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    loaded = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in [parent.pid, *workers]}
    parent.communicate("\n", timeout=60)
    assert "libtorch" in loaded[parent.pid]  # so the sign is a good one
    for pid in workers:
        assert "numpy" in loaded[pid]
        assert "torch" not in loaded[pid]


def test_workers_compute_on_one_thread_and_leave_what_a_terminal_sends_to_the_parent() -> None:
    env = make()
    (pid,) = pids(env)
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert {b"OMP_NUM_THREADS=1", b"OPENBLAS_NUM_THREADS=1", b"MKL_NUM_THREADS=1"} <= set(environment)
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C, and that it was closed
        os.kill(pid, number)
    env.reset()
    assert pids(env) == [pid]
    env.close()
