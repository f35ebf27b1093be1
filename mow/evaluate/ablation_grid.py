"""Runs of a grid of methods and seeds, each a process of its own.

A run is `python -m mow.train PARENT --field VALUE ...`: the overrides turn the parent preset into the method. Folders:

    ROOT/METHOD/seed-0/          run folder (storm: one more level, a run per task)
    ROOT/METHOD/seed-0.log       output of the run
"""

import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType

from mow.config import RUNTIME_FIELDS
from mow.errors import UsageError
from mow.evaluate.ablation_table import read_scores
from mow.methods.mow.ablations import flat, variants
from mow.methods.mow.config import MowConfig
from mow.methods.mow.presets import PRESETS, in_proportion
from mow.methods.registry import read_config
from mow.runs.folder import claimed
from mow.runs.paths import checkpoints
from mow.runs.signals import Stopped, StopSwitch
from mow.system.console import say
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


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without scores. The folder of a stopped run is kept if it has a checkpoint and removed otherwise.

    Raises: UsageError if a run has another config, a folder holds something else than a run, or another process trains
        in a folder that would be removed.
    """
    left = []
    for job in jobs:
        scored, config = read_scores(job.folder / "scores.json") is not None, job.folder / "config.json"
        if not scored:
            left.append(job)
        if scored or checkpoints(job.folder):
            check_same(config, job.config)
        elif job.folder.exists() and any(job.folder.iterdir()):
            if not config.exists():
                raise UsageError(f"{job.folder} holds something else than a run: give another --folder")
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


def train_command(job: Job) -> list[str]:
    """Command of a run; it resumes where there is a checkpoint."""
    words = ("--resume", as_word(job.folder)) if checkpoints(job.folder) else job.arguments
    return [sys.executable, "-m", "mow.train", *words]


class _PatientSwitch(StopSwitch):
    """A second signal changes nothing: `timeout` sends two at once, and the runs must have the time to save."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def run_all(jobs: Sequence[Job], *, at_once: int, command: Callable[[Job], list[str]] = train_command) -> int:
    """Run the jobs, `at_once` processes at a time; a failure is printed and does not stop the others.

    Several at a time share the cores: each gets OMP_NUM_THREADS = cores // at_once. After SIGINT, SIGTERM or SIGHUP the
    runs save and end.
    Returns: the number of failed jobs.
    Raises: KeyboardInterrupt after a signal, once all runs have ended.
    """
    env = dict(os.environ)
    if at_once > 1:
        env["OMP_NUM_THREADS"] = str(max(1, available_cores() // at_once))
    waiting, failed = deque(enumerate(jobs, 1)), 0
    running: dict[subprocess.Popen, tuple[str, Job, float]] = {}  # process -> [2/9] NAME, job, start
    with _PatientSwitch() as switch:
        try:
            while waiting or running:
                switch.check()
                while waiting and len(running) < at_once:
                    number, job = waiting.popleft()
                    name = f"[{number}/{len(jobs)}] {job.name}"
                    say(f"{name}: started, log: {job.log}")
                    running[_start(job, command(job), env)] = name, job, time.monotonic()
                for process in [process for process in running if process.poll() is not None]:
                    name, job, started = running.pop(process)
                    outcome, succeeded = _outcome(job, process.returncode)
                    failed += not succeeded
                    say(f"{name}: {timedelta(seconds=round(time.monotonic() - started))}, {outcome}")
                time.sleep(0.1)
        except Stopped:
            say(f"interrupted: waiting for {len(running)} runs to save; the same command goes on from there")
            raise KeyboardInterrupt from None
        finally:
            for process in running:
                process.terminate()  # not SIGINT, which the background jobs of a shell ignore
            for process in running:
                process.wait()
    return failed


def _start(job: Job, command: list[str], env: dict[str, str]) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a" if checkpoints(job.folder) else "w", encoding="utf-8") as log:
        # In a process group of its own: else Ctrl-C in a terminal would reach a run twice, from the terminal and from
        # run_all, and the second one ends it without a checkpoint.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, process_group=0
        )


def _outcome(job: Job, code: int) -> tuple[str, bool]:
    """(a phrase for the console, whether the run succeeded)"""
    scores = read_scores(job.folder / "scores.json")
    if code == 0 and scores is not None:
        mean = scores["mean_normalised"]
        return f"score {'-' if mean is None else f'{mean:.2f}'}", True
    lines = [line.strip() for line in job.log.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    return f"FAILED with exit code {code}, {job.log}: {lines[-1] if lines else 'no output'}", False
