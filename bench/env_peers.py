"""Other ways to step many environments: bare processes, gymnasium's AsyncVectorEnv, the emulator's own vector env.

Each takes actions int [N, K] (N steps of K tasks) and returns the last frames uint8 [K, 64, 64, 3]. No torch here,
since the bare processes load this module.
"""

import ctypes
import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mow.envs.base import FRAME_SHAPE

Frames = NDArray[np.uint8]  # [K, 64, 64, 3]
Actions = NDArray[np.int64]  # [N, K]
Simulator = Callable[[int], Frames]  # index of an action -> next frame; after an episode the next one begins
MakeSimulator = Callable[[str], tuple[Frames, Simulator]]

FRAME_SKIP = 4


class Peer(Protocol):
    """All tasks, reset and ready to step."""

    frame: Frames  # [K, 64, 64, 3] the newest

    def play(self, actions: Actions) -> Frames: ...

    def close(self) -> None: ...


def bare_game(task: str) -> tuple[Frames, Simulator]:
    """The emulator alone: 4 frames per action, maximum of the last two, area resize, no no-ops."""
    import ale_py
    import cv2
    import gymnasium

    cv2.setNumThreads(0)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", 0)
    ale.setFloat("repeat_action_probability", 0.0)
    rom = ale_py.roms.get_rom_path(_rom(task))
    assert rom is not None, task
    ale.loadROM(rom)
    screens = np.zeros((2, *ale.getScreenDims(), 3), np.uint8)

    def picture() -> Frames:
        ale.getScreenRGB(screens[0])
        return screens[0]

    def shrink(screen: Frames) -> Frames:
        return cast(Frames, cv2.resize(screen, FRAME_SHAPE[:2], interpolation=cv2.INTER_AREA))

    def step(action: int) -> Frames:
        for frame in range(FRAME_SKIP):
            ale.act(action)
            if frame == FRAME_SKIP - 2:
                ale.getScreenRGB(screens[1])
        if ale.game_over():
            ale.reset_game()
            return shrink(picture())
        return shrink(np.maximum(picture(), screens[1], out=screens[0]))

    ale.reset_game()
    return shrink(picture()), step


def bare_task(task: str) -> tuple[Frames, Simulator]:
    """A continuous task of this package by itself; the index of an action gives a place in [-1, 1]^n."""
    from mow.envs import make

    env = make(task, seed=0, options={})

    def step(action: int) -> Frames:
        frame, _, terminated, truncated, _ = env.step(a_place(action, env.task.num_actions))
        return env.reset()[0] if terminated or truncated else frame

    return env.reset(seed=0)[0], step


def a_place(index: int, num_actions: int) -> NDArray[np.float32]:
    return np.random.default_rng(index).uniform(-1.0, 1.0, num_actions).astype(np.float32)


class BareWorkers:
    """Processes that loop over their tasks; they meet this one once per call, or with `lockstep` after every step."""

    def __init__(self, tasks: Sequence[str], make: MakeSimulator, *, workers: int, lockstep: bool) -> None:
        context = multiprocessing.get_context("spawn")
        shape = (len(tasks), *FRAME_SHAPE)
        memory: Any = context.RawArray(ctypes.c_uint8, int(np.prod(shape)))
        self.frame = np.frombuffer(memory, np.uint8).reshape(shape)
        self._lockstep = lockstep
        self._connections, self._processes = [], []
        for first in range(min(workers, len(tasks))):
            mine = {k: tasks[k] for k in range(first, len(tasks), workers)}
            ours, theirs = context.Pipe()
            process = context.Process(target=_bare_worker, args=(theirs, memory, shape, mine, make), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        self._meet()

    def play(self, actions: Actions) -> Frames:
        for part in np.split(actions, len(actions) if self._lockstep else 1):
            for connection in self._connections:
                connection.send(part)
            self._meet()
        return self.frame.copy()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join()

    def _meet(self) -> None:
        for connection in self._connections:
            connection.recv()


def _bare_worker(
    connection: Connection, memory: Any, shape: tuple[int, ...], tasks: dict[int, str], make: MakeSimulator
) -> None:
    frames = np.frombuffer(memory, np.uint8).reshape(shape)
    steps = {}
    for k, task in tasks.items():
        frames[k], steps[k] = make(task)
    connection.send("ready")
    while True:
        try:
            actions = connection.recv()
        except EOFError:
            return
        for row in actions:
            for k, step in steps.items():
                frames[k] = step(int(row[k]))
        connection.send("done")


class GymnasiumAsync:
    """gymnasium's AsyncVectorEnv, one process per game, with its AtariPreprocessing."""

    def __init__(self, tasks: Sequence[str]) -> None:
        import gymnasium

        self._envs = gymnasium.vector.AsyncVectorEnv([partial(_preprocessed, task) for task in tasks])
        self.frame: Frames = self._envs.reset(seed=0)[0]

    def play(self, actions: Actions) -> Frames:
        for row in actions:
            self.frame = self._envs.step(row)[0]
        return self.frame.copy()

    def close(self) -> None:
        self._envs.close()


def _preprocessed(task: str) -> Any:
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    game = gymnasium.make(
        f"ALE/{task.partition(':')[2]}-v5", frameskip=1, repeat_action_probability=0.0, full_action_space=True
    )
    return gymnasium.wrappers.AtariPreprocessing(
        game, noop_max=0, frame_skip=FRAME_SKIP, screen_size=FRAME_SHAPE[0], grayscale_obs=False
    )


class EmulatorVector:
    """The emulator's own vector env in C++ threads, an object per game; all are sent to before any is waited for."""

    def __init__(self, tasks: Sequence[str]) -> None:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        self._envs = [
            ale_py.AtariVectorEnv(
                _rom(task), num_envs=1, num_threads=1, img_height=FRAME_SHAPE[0], img_width=FRAME_SHAPE[1],
                grayscale=False, stack_num=1, frameskip=FRAME_SKIP, maxpool=True, noop_max=0,
                repeat_action_probability=0.0, full_action_space=True, reward_clipping=False, use_fire_reset=False,
                episodic_life=False,
            )
            for task in tasks
        ]  # fmt: skip
        self.frame = np.stack([env.reset(seed=0)[0].reshape(FRAME_SHAPE) for env in self._envs])

    def play(self, actions: Actions) -> Frames:
        for row in actions:
            for env, action in zip(self._envs, row, strict=True):
                env.send(np.array([action]))
            for k, env in enumerate(self._envs):
                self.frame[k] = env.recv()[0].reshape(FRAME_SHAPE)
        return self.frame.copy()

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _rom(task: str) -> str:
    import gymnasium

    return str(gymnasium.spec(f"ALE/{task.partition(':')[2]}-v5").kwargs["game"])
