"""Cost of stepping many tasks together over the simulators alone.

    python -m bench -k envs -s                                          prints a table per benchmark
    python -m bench -k envs --benchmark-json=run.json;  python -m bench.render run.json

The subject steps tasks in worker processes, one per core, each step with actions from this process and frames back to
it. Peers (bench/env_peers.py): bare processes with the same simulators, which meet this process at the end of a turn
(the bound) or after every step; for Atari also gymnasium's AsyncVectorEnv and the emulator's own vector env. All give
the maximum of the last two frames, 64 x 64 RGB, area resize, all 18 actions; frames are compared before anything is
timed. Time is the wall clock; steps per CPU second count the work of all processes.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from bench.env_peers import (
    Actions,
    BareWorkers,
    EmulatorVector,
    Frames,
    GymnasiumAsync,
    MakeSimulator,
    Peer,
    a_place,
    bare_game,
    bare_task,
)
from bench.floors import Work
from bench.race import Contestant, Inputs, Race, table
from mow import envs
from mow.envs.task_sets import ATARI26
from mow.envs.vector import make_vector
from mow.system.machine import available_cores

_ROUNDS = 15
_STEPS = 20  # of every task in a turn
_CPU_TURNS = 4
_BOUND = "bare processes, free"


class Ours:
    """The subject, with the actions of the peers: indices, or places drawn from them for continuous tasks."""

    def __init__(self, tasks: Sequence[str], *, workers: int) -> None:
        self.envs = make_vector(tasks, seed=0, num_workers=workers, options={"action_set": "full"})
        self.frame = self.envs.reset()[0]

    def encoded(self, row: Actions) -> np.ndarray:
        """[K] -> [K, A]."""
        layout = self.envs.layout
        action = np.zeros((len(row), layout.size), np.float32)
        action[layout.discrete, row[layout.discrete]] = 1.0
        for k in np.flatnonzero(~layout.discrete):
            used = np.flatnonzero(layout.continuous_mask[k]) + layout.num_discrete
            action[k, used] = a_place(int(row[k]), len(used))
        return action

    def play(self, actions: Actions) -> Frames:
        for row in actions:
            self.frame = self.envs.step(self.encoded(row)).frame
        return self.frame

    def close(self) -> None:
        self.envs.close()


class InThisProcess:
    """An emulator per game, one after the other: the frames that the peers must give."""

    def __init__(self, tasks: Sequence[str], make: MakeSimulator) -> None:
        made = [make(task) for task in tasks]
        self.frame, self._steps = np.stack([frame for frame, _ in made]), [step for _, step in made]

    def play(self, actions: Actions) -> Frames:
        for row in actions:
            self.frame = np.stack([step(int(index)) for step, index in zip(self._steps, row, strict=True)])
        return self.frame

    def close(self) -> None:
        """Nothing to end."""


def turn(peer: Peer, twin: Peer) -> Contestant:
    """A turn of the peer. Returns: its last frames, and an env in this process that gives the right ones."""
    return lambda actions: (peer.play(actions), twin)


def check_played(played: tuple[Frames, Peer], inputs: Inputs) -> None:
    frame, twin = played
    wanted = twin.play(*inputs)
    different = [k for k in range(len(wanted)) if not np.array_equal(frame[k], wanted[k])]
    assert not different, f"the frames of tasks {different} are not those of an emulator in this process"


def draw_actions(num_tasks: int, num_steps: int = _STEPS) -> tuple[Actions]:
    return (np.random.default_rng(0).integers(0, 18, (num_steps, num_tasks)),)


def needs(suite: str) -> None:
    """Skip where a suite is unknown or its simulator not installed."""
    if suite not in envs.SUITES:
        pytest.skip(f"mow.envs has no suite {suite}")
    missing = [module for module in envs.SUITES[suite].needs if find_spec(module) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: {envs.SUITES[suite].remedy}")


def race_steps(race: Race, tasks: Sequence[str], make: MakeSimulator, others: dict[str, Callable[[], Peer]]) -> None:
    """Race a turn of the subject against bare processes and others, and note the steps per CPU second of each."""
    with ExitStack() as stack:
        ours: Peer = stack.enter_context(closing(Ours(tasks, workers=available_cores())))
        serial: Peer = stack.enter_context(closing(Ours(tasks, workers=0)))
        bare = partial(BareWorkers, tasks, make, workers=available_cores())
        makers: dict[str, Callable[[], Peer]] = {_BOUND: partial(bare, lockstep=False)}
        if others:
            makers |= {"bare processes, in step": partial(bare, lockstep=True), **others}
        peers = {name: stack.enter_context(closing(made())) for name, made in makers.items()}
        race.run(
            turn(ours, serial),
            {name: turn(peer, InThisProcess(tasks, make)) for name, peer in peers.items()},
            make=partial(draw_actions, len(tasks)),
            check=check_played,
            work=Work(0.0, float(_STEPS * ours.frame.nbytes)),
        )
        if race.benchmark.stats is not None:
            rates = {name: per_cpu_second(peer, len(tasks)) for name, peer in {"ours": ours, **peers}.items()}
            race.benchmark.extra_info["steps_per_cpu_second"] = rates


@pytest.mark.parametrize("tasks", [ATARI26], ids=["atari26"])
def test_steps(race: Race, tasks: tuple[str, ...]) -> None:
    needs("atari")
    race = race.on_the_cpu(_ROUNDS)
    others: dict[str, Callable[[], Peer]] = {"gymnasium AsyncVectorEnv": partial(GymnasiumAsync, tasks),
                                             "emulator's vector env": partial(EmulatorVector, tasks)}  # fmt: skip
    race_steps(race, tasks, bare_game, others)
    show(race, "steps of 26 games", len(tasks) * _STEPS, "agent steps/s")


@pytest.mark.parametrize("name", ["mt10", "mt50", "dmc18"])
def test_robots(race: Race, name: str) -> None:
    """Rendered steps; the bare processes step the same tasks, each with this package's wrapper."""
    tasks = envs.SETS.get(name)
    if tasks is None:
        pytest.skip(f"mow.envs has no set {name}")
    needs(tasks[0].partition(":")[0])
    race = race.on_the_cpu(_ROUNDS)
    race_steps(race, tasks, bare_task, {})
    by = f"worker processes, {gl_renderer()}"  # the serial env has drawn in this process
    show(race, f"steps of {name}", len(tasks) * _STEPS, "rendered steps/s", by)


def per_cpu_second(peer: Peer, num_tasks: int) -> int:
    """Agent steps per CPU second of all processes together, which a busy machine changes little."""
    (actions,) = draw_actions(num_tasks)
    before = computed_seconds()
    for _ in range(_CPU_TURNS):
        peer.play(actions)
    return round(_CPU_TURNS * actions.size / (computed_seconds() - before))


def computed_seconds() -> float:
    """CPU seconds of this process, its threads and the processes that it started."""
    own = os.times()
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user mode and in the kernel
    return own.user + own.system + ticks / os.sysconf("SC_CLK_TCK")


def gl_renderer() -> str:
    """Name of the OpenGL renderer, a GPU or software on the CPU. A context must be current."""
    gl = import_module("OpenGL.GL")
    name: bytes | None = gl.glGetString(gl.GL_RENDERER)
    return name.decode() if name else "no context"


def show(race: Race, title: str, num_steps: int, unit: str, by: str = "worker processes") -> None:
    """Add machine and load to the numbers, and print the table."""
    cores, load = available_cores(), os.getloadavg()[0]
    race.note(_BOUND, backend=by, cores=cores, load_before=round(load, 2), turn_steps=num_steps)
    info = race.benchmark.extra_info
    rates = info.get("steps_per_cpu_second", {}).items()
    beside = {name if name != "ours" else by: f"{rate:,} per CPU second" for name, rate in rates}
    print(table(f"{title}; {cores} cores, load {load:.1f}", info, num_steps, unit, beside))
