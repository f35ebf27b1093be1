"""Runs of a grid of methods and seeds, each a process of its own.

A run is `python -m mow.train PARENT --field VALUE ...`: the overrides turn the parent preset into the method. Folders:

    ROOT/METHOD/seed-0/          run folder (storm: one more level, a run per task)
    ROOT/METHOD/seed-0.log       output of the run
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from mow.config import RUNTIME_FIELDS
from mow.errors import UsageError
from mow.evaluate.ablation_table import read_scores
from mow.methods.mow.ablations import flat, variants
from mow.methods.mow.config import MowConfig
from mow.methods.mow.presets import PRESETS, in_proportion
from mow.methods.registry import read_config
from mow.runs.folder import claimed
from mow.runs.paths import checkpoints
from mow.system.file_names import file_name
from mow.system.machine import available_cores
from mow.system.shell import as_word

PATHS = ("folder", "replay.disk")  # fields of a config
# Fields that may differ between a finished run and the one of the command line.
_ASIDE = RUNTIME_FIELDS | {"preset", "folder", "insight_every"}


@dataclass(frozen=True)
class Job:
    """One run of the grid."""

    method: str
    seed: int
    config: MowConfig  # with the run folder
    arguments: tuple[str, ...]  # of python -m mow.train

    @property
    def folder(self) -> Path:
        return Path(self.config.folder)

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def name(self) -> str:
        """`no_experts seed 1`, or `storm seed 1 tiny:goal`."""
        return " ".join([self.method, f"seed {self.seed}", *(self.config.tasks if self.method == "storm" else ())])


@dataclass
class _Running:
    number: int
    job: Job
    process: subprocess.Popen
    started: float


def plan(parent: MowConfig, methods: Sequence[str], seeds: int, root: Path) -> list[Job]:
    """All runs, seed by seed, so that a grid that is stopped early still compares all methods.

    Raises: ValueError if a method does not apply to this parent.
    """
    jobs = []
    for seed in range(seeds):
        for method in methods:
            for config in variants(parent, method):
                folder = root / method / f"seed-{seed}"
                if method == "storm":
                    folder = folder / file_name(config.tasks[0])
                run = replace(config, seed=seed, folder=str(folder), report=False)
                # The phases of the preset, as the command line shortens them with --total-steps.
                preset = in_proportion(PRESETS[parent.preset](), run.total_steps)
                jobs.append(Job(method, seed, run, (parent.preset, *overrides(preset, run))))
    return jobs


def overrides(base: MowConfig, config: MowConfig) -> list[str]:
    """Words of a command line that turn `base` into `config`, without the preset's name."""
    words, old = [], flat(base)
    for path, value in flat(config).items():
        if path == "preset" or value == old[path]:
            continue
        group, _, name = path.replace("_", "-").rpartition(".")
        flag = f"--{group}." if group else "--"
        if isinstance(value, bool):
            words.append(f"{flag}{name}" if value else f"{flag}no-{name}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"{flag}{name}", *(as_word(Path(one)) if path in PATHS else str(one) for one in values)]
    return words


def unfinished(jobs: Sequence[Job], say: Callable[[str], None]) -> list[Job]:
    """The jobs without scores. The folder of a stopped run is kept if it has a checkpoint and removed otherwise.

    Raises: UsageError if a run has another config, a folder holds something else than a run, or another process trains
        in a folder that would be removed.
    """
    left = []
    for job in jobs:
        if read_scores(job.folder / "scores.json") is None:
            left.append(job)
        else:
            check_same(job.folder / "config.json", job.config)
    for job in left:
        if not job.folder.exists() or not any(job.folder.iterdir()):
            continue
        if not (job.folder / "config.json").exists():
            raise UsageError(f"{job.folder} holds something else than a run: give another --folder")
        if _has_checkpoint(job):
            check_same(job.folder / "config.json", job.config)
            say(f"{job.name} was not finished: it goes on from its last checkpoint")
            continue
        with claimed(job.folder):
            say(f"{job.name} was not finished: {job.folder} is removed, it starts afresh")
            shutil.rmtree(job.folder)
    return left


def check_same(path: Path, config: MowConfig) -> None:
    """Compare a saved config with `config`. Raises: UsageError if a field differs that affects the results."""
    try:
        saved = flat(read_config(path))
    except ValueError as error:
        raise UsageError(str(error)) from error
    for name, wanted in flat(config).items():
        if name not in _ASIDE and saved[name] != wanted:
            raise UsageError(f"{path} was made with {name} {saved[name]}, now it is {wanted}: give another --folder")


def _has_checkpoint(job: Job) -> bool:
    return bool(checkpoints(job.folder))


def train_command(job: Job) -> list[str]:
    """Command of a run; it resumes where there is a checkpoint."""
    words = ("--resume", as_word(job.folder)) if _has_checkpoint(job) else job.arguments
    return [sys.executable, "-m", "mow.train", *words]


def run_all(
    jobs: Sequence[Job],
    *,
    at_once: int,
    say: Callable[[str], None],
    command: Callable[[Job], list[str]] = train_command,
) -> int:
    """Run the jobs, `at_once` processes at a time; a failure is printed and does not stop the others.

    Several at a time share the cores: each gets OMP_NUM_THREADS = cores // at_once. KeyboardInterrupt ends them.
    Returns: the number of failed jobs.
    """
    env = dict(os.environ)
    if at_once > 1:
        env["OMP_NUM_THREADS"] = str(max(1, available_cores() // at_once))
    waiting, running, failed, started = deque(enumerate(jobs, 1)), list[_Running](), 0, time.monotonic()
    # Time is counted by task, since a run of one task is shorter than one of all.
    tasks_left, tasks_done = sum(len(job.config.tasks) for job in jobs), 0
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number, job = waiting.popleft()
                say(f"[{number}/{len(jobs)}] {job.name}: started, log: {job.log}")
                running.append(_start(number, job, command(job), env))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                tasks_done += len(one.job.config.tasks)
                tasks_left -= len(one.job.config.tasks)
                eta = (time.monotonic() - started) / tasks_done * tasks_left
                failed += not _succeeded(one)
                say(f"[{one.number}/{len(jobs)}] {_outcome(one)}, ETA {_clock(eta)}")
            time.sleep(0.1)
    finally:
        _stop(running, say)
    return failed


def _start(number: int, job: Job, command: list[str], env: dict[str, str]) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a" if _has_checkpoint(job) else "w", encoding="utf-8") as log:
        # In a process group of its own: else Ctrl-C in a terminal would reach a run twice, from the terminal and from
        # _stop, and the second one ends it without a checkpoint.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, process_group=0
        )
    return _Running(number, job, process, time.monotonic())


def _succeeded(one: _Running) -> bool:
    return one.process.returncode == 0 and read_scores(one.job.folder / "scores.json") is not None


def _outcome(one: _Running) -> str:
    took = _clock(time.monotonic() - one.started)
    if not _succeeded(one):
        lines = one.job.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return f"{one.job.name}: FAILED after {took} with exit code {one.process.returncode}, {one.job.log}: {last}"
    mean = (read_scores(one.job.folder / "scores.json") or {}).get("mean_normalised")
    return f"{one.job.name}: score {'-' if mean is None else f'{mean:.2f}'} in {took}"


def _stop(running: Sequence[_Running], say: Callable[[str], None]) -> None:
    """Send SIGTERM to every run and wait until all have saved and ended.

    A second Ctrl-C or SIGTERM kills the runs that are left. SIGHUP, which a closed terminal may send twice, does not.
    """
    for one in running:
        one.process.terminate()  # not SIGINT, which the background jobs of a shell ignore
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with contextlib.suppress(OSError):  # where the console is gone
            for one in running:
                if one.process.poll() is None:
                    say(f"waiting for {one.job.name} to save and end; a second Ctrl-C kills it, and loses what came "
                        "after its last checkpoint")
        for one in running:
            one.process.wait()
    finally:
        signal.signal(signal.SIGHUP, before)
        for one in running:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds: 0:04:05."""
    return str(timedelta(seconds=round(seconds)))
