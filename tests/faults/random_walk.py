"""A random walk of faults through runs: python -m tests.faults.random_walk FOLDER NUMBER SEED

Each step of the walk starts a run of seconds in FOLDER/run, or goes on with it, and plants one fault of a random kind
at a random moment, with or without workers; one of the run's tasks has a simulator of a random kind that misbehaves
at its 15th step. Whatever happens, the run ends in order (exit code 0 or 1, one line) or is killed, every checkpoint
that it lists can be read, the newest is never older than before, and the next step goes on from it. A run that
reaches its end is removed and a new one begins. Prints one JSON object: how often each kind was met, and how the
process ended.

Children are forked, so that torch is loaded once.
"""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mow import train
from mow.cli.resume import find_resumption
from mow.config import EnvConfig
from mow.engine.trainer import Trainer
from mow.methods.mow.learner import Learner
from mow.nn.finite import NotFinite
from mow.runs.checkpoint import load_checkpoint
from mow.runs.failures import exit_code
from mow.runs.paths import checkpoints
from tests.faults.simulators import BAD_PICTURES, BAD_STEPS, task
from tests.small import run_config

Fault = Callable[[int], None]  # plants itself so that it strikes the n-th time

STEPS, EVERY, UPDATES_EVERY = 24, 4, 4  # steps of a run, between two checkpoints, and between two updates


def _before(owner: Any, name: str, moment: int, strike: Callable[[], None]) -> None:
    """`strike` before the moment-th call of a function."""
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment:
            strike()
        return original(*arguments, **named)

    setattr(owner, name, counted)


def _raises(error: BaseException) -> Callable[[], None]:
    def strike() -> None:
        raise error

    return strike


def _signal(number: signal.Signals) -> Fault:
    return lambda moment: _before(Trainer, "_store_step", moment, lambda: os.kill(os.getpid(), number))


def _disk(name: str, code: int) -> Fault:
    return lambda moment: _before(os, name, moment, _raises(OSError(code, os.strerror(code))))


def _not_finite(moment: int) -> None:
    _before(Learner, "update_world_model", 1 + moment // UPDATES_EVERY, _raises(NotFinite("planted")))


def _own_mistake(moment: int) -> None:
    _before(Trainer, "_store_step", moment, _raises(AttributeError("planted")))


def _no_memory(moment: int) -> None:
    _before(Learner, "update_agent", 1 + moment // UPDATES_EVERY, _raises(MemoryError("planted")))


def _worker_killed(moment: int) -> None:
    from mow.envs.vector_workers import WorkerVectorEnv

    def strike() -> None:
        for envs in _MADE:
            os.kill(envs._workers[moment % len(envs._workers)].process.pid, signal.SIGKILL)

    original = WorkerVectorEnv.__init__

    def made(self: WorkerVectorEnv, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        _MADE.append(self)

    setattr(WorkerVectorEnv, "__init__", made)  # noqa: B010 - mypy takes an assignment for an override
    _before(Trainer, "_store_step", moment, strike)


_MADE: list[Any] = []

FAULTS: dict[str, Fault] = {
    "none": lambda moment: None,
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGINT": _signal(signal.SIGINT),
    "SIGHUP": _signal(signal.SIGHUP),
    "SIGKILL": _signal(signal.SIGKILL),
    "disk full at a flush": _disk("fsync", errno.ENOSPC),
    "disk broken at a flush": _disk("fsync", errno.EIO),
    "no flush of this kind": _disk("fsync", errno.EINVAL),
    "no links": _disk("link", errno.EPERM),
    "not finite": _not_finite,
    "out of memory": _no_memory,
    "a mistake of ours": _own_mistake,
    "a worker is killed": _worker_killed,
}
SIMULATORS = (*BAD_STEPS, *BAD_PICTURES)


def _work(folder: Path, simulator: str, kind: str, moment: int, num_workers: int) -> int:
    """One run in this process, with the fault planted; its exit code."""
    sys.stdout = sys.stderr = open(folder.with_suffix(".log"), "w", encoding="utf-8")  # noqa: SIM115 - the process ends
    words = ["--env.num-workers", str(num_workers)]
    FAULTS[kind](moment)
    if checkpoints(folder):
        resumption = find_resumption(["--resume", str(folder), *words])
        return exit_code("mow.train", lambda: _ignored(train.run(resumption.config, resumption)))
    shutil.rmtree(folder, ignore_errors=True)
    often = dataclasses.replace(
        run_config().schedule, world_model_every=UPDATES_EVERY, agent_every=UPDATES_EVERY
    )
    config = run_config(
        tasks=("dummy:count-0", "dummy:slide", task(simulator)), folder=str(folder), total_steps=STEPS,
        checkpoint_every=EVERY, evaluation_episodes=1, schedule=often, env=EnvConfig(num_workers=num_workers),
    )  # fmt: skip
    return exit_code("mow.train", lambda: _ignored(train.run(config)))


def _ignored(run: Trainer | None) -> None:
    """A run that ended in order."""


def _newest(folder: Path) -> int:
    """Step of the newest checkpoint, 0 without one. Every one that is listed can be read."""
    steps = [load_checkpoint(path, torch.device("cpu"))["step"] for path in checkpoints(folder)]
    return max(steps, default=0)


def walk(folder: Path, number: int, seed: int) -> dict[str, dict[str, int]]:
    """Kind -> how it ended -> how often."""
    draw, met = random.Random(seed), {kind: Counter[str]() for kind in (*FAULTS, *SIMULATORS)}
    run, torn, simulator = folder / "run", 0, draw.choice(SIMULATORS)
    for index in range(number):
        kind, moment, num_workers = draw.choice(list(FAULTS)), draw.randint(1, STEPS), draw.choice((0, 2))
        before = _newest(run)
        child = os.fork()
        if child == 0:
            os._exit(_work(run, simulator, kind, moment, num_workers))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = run.with_suffix(".log").read_text(encoding="utf-8")
        where = f"step {index}: {kind} at {moment}, {simulator}, {num_workers} workers: exit code {code}\n{said}"
        assert code in ((0, 1, -signal.SIGKILL) if kind == "SIGKILL" else (0, 1)), where
        assert "Traceback (most recent call last)" not in said, where
        after = _newest(run)
        assert after >= before, where
        print(index, kind, moment, simulator, num_workers, code, file=sys.stderr, flush=True)
        for what in (kind, simulator):
            met[what][{0: "in order", 1: "failed"}.get(code, "killed")] += 1
        if code == 0 and (run / "scores.json").exists():
            assert after == STEPS, where
            shutil.rmtree(run)
            torn, simulator = 0, draw.choice(SIMULATORS)
        torn += 1
        assert torn < 60, f"no run ended in {torn} steps\n{where}"
    return {kind: dict(found) for kind, found in met.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(walk(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
