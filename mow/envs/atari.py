"""Atari 2600 games as 64 x 64 RGB tasks. Needs ale-py and OpenCV."""

import base64
from collections.abc import Mapping
from typing import Any

import ale_py
import cv2
import numpy as np
from ale_py import roms

from mow.envs.base import FRAME_SHAPE, Action, Frame, TaskSpec

FRAME_SKIP = 4
NUM_ACTIONS = 18  # ALE numbers its actions 0..17 in all games
MAX_NO_OPS = 30
TIME_LIMIT = 27_000  # agent steps; with a frame skip of 4, 108,000 frames or half an hour of play

_ROMS = {rom.title().replace("_", ""): rom for rom in roms.get_all_rom_ids()}  # MsPacman -> ms_pacman


class AtariEnv:
    """One game; actions are always indices into the full set of 18.

    Protocol "100k": each action held for 4 frames, maximum of the last 2 screens, area-averaged to 64 x 64; actions
    are not sticky; 1 to 30 random no-op frames open an episode; every episode has other randomness.
    Protocol "storm": the same pictures, but each frame repeats the previous action with probability 0.25, no no-ops,
    and every episode opens with the seed of the construction, whatever seed the reset is given.
    Under both, rewards are not clipped, and a lost life sets info["life_lost"] and ends nothing.

    Args:
        name: of the game, as in "ALE/<name>-v5".
        seed: of the no-ops and of the emulator, until a reset brings another.
        protocol: "100k" or "storm".
        action_set: "minimal" leaves only those actions legal that do something in this game, "full" all 18.
        time_limit: agent steps after which an episode is truncated.
    Raises: ValueError if an option has none of these values.
    Source: SimPLe (Kaiser et al. 2020) for the 100k protocol; STORM (Zhang et al. 2023), released code, for the other.
    Differs: only screens of the same step are pooled, so a game that ends within the skip shows its last screen
        alone, where gymnasium's AtariPreprocessing mixes in one of an earlier step. A reset of "100k" seeds the
        no-ops, its only randomness, and presses the console's switch instead of loading the game anew (4 ms, not 90):
        state that a game keeps across that stays (of the 26 only Assault does).
    """

    def __init__(
        self, name: str, *, seed: int, protocol: object = "100k", action_set: object = "minimal",
        time_limit: object = TIME_LIMIT,
    ) -> None:
        if protocol not in ("100k", "storm"):
            raise ValueError(f"unknown protocol {protocol!r}: expected '100k' or 'storm'")
        if action_set not in ("minimal", "full"):
            raise ValueError(f"unknown action_set {action_set!r}: expected 'minimal' or 'full'")
        if not isinstance(time_limit, int) or time_limit < 1:
            raise ValueError(f"time_limit counts agent steps, got {time_limit!r}: expected an int >= 1")
        self._storm = protocol == "storm"
        self._first_seed = seed
        self._time_limit = time_limit
        # A resize of one screen gains nothing from threads, and the workers share the cores already.
        cv2.setNumThreads(0)
        # The logger belongs to the class: set before the first game is made, or ALE prints a banner.
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        # Not gymnasium's environment: it loads a game as it is made and once more as it is seeded, and to load one is
        # what starting costs (90 ms, most of it a table of colours that the emulator computes each time).
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.25 if self._storm else 0.0)
        self._ale.setInt("max_num_frames_per_episode", 0)  # no limit of its own: that would count the no-ops
        self._rom: Any = roms.get_rom_path(_ROMS[name])
        self._load(seed)
        height, width = self._ale.getScreenDims()
        self._screens = np.zeros((2, height, width, 3), np.uint8)  # the last two of a step, the latest first
        self._running, self._num_steps, self._lives = False, 0, 0
        allowed = {action.value for action in self._ale.getMinimalActionSet()}
        legal = tuple(action_set == "full" or index in allowed for index in range(NUM_ACTIONS))
        words = f"{protocol}, {action_set} actions"
        self.task = TaskSpec(f"atari:{name}", True, NUM_ACTIONS, legal, FRAME_SKIP, words)

    def reset(self, *, seed: int | None = None) -> tuple[Frame, dict[str, object]]:
        """Open an episode: [64, 64, 3]. Without a seed the randomness of the episode before goes on."""
        if self._storm:
            self._load(self._first_seed)  # which alone seeds the sticky actions
        else:
            if seed is not None:
                self._seed(seed)
            self._ale.reset_game()
        num_no_ops = 0 if self._storm else int(self._rng.integers(1, MAX_NO_OPS + 1))
        for _ in range(num_no_ops):
            self._ale.act(0)
            if self._ale.game_over():
                self._ale.reset_game()
        self._running, self._num_steps, self._lives = True, 0, self._ale.lives()
        self._ale.getScreenRGB(self._screens[0])
        return self._resize(), {}

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, object]]:
        """Hold one action for 4 frames. Raises: ValueError if it is illegal; RuntimeError if the episode is over."""
        index = int(action)
        if not 0 <= index < NUM_ACTIONS or not self.task.legal[index]:
            legal = np.flatnonzero(self.task.legal).tolist()
            raise ValueError(f"{self.task.name}: got action {index}, expected one of {legal}: mask the policy's logits")
        if not self._running:
            raise RuntimeError(f"{self.task.name}: no episode is running: call reset first")
        reward, terminated = self._hold(index)
        self._num_steps += 1
        truncated = self._num_steps >= self._time_limit and not terminated
        self._running = not (terminated or truncated)
        before, self._lives = self._lives, self._ale.lives()
        return self._resize(), reward, terminated, truncated, {"life_lost": self._lives < before}

    def close(self) -> None:
        """Nothing to free."""

    def state_dict(self) -> dict[str, Any]:
        """See base.Resumable. The emulator's part holds its randomness too."""
        console = base64.b64encode(self._ale.cloneSystemState().serialize()).decode()
        own = {"running": self._running, "num_steps": self._num_steps, "lives": self._lives}
        return {**own, "console": console, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See base.Resumable."""
        self._ale.restoreSystemState(ale_py.ALEState(base64.b64decode(state["console"])))
        self._rng.bit_generator.state = state["rng"]
        self._running, self._num_steps, self._lives = state["running"], state["num_steps"], state["lives"]

    def _seed(self, seed: int) -> None:
        """Begin the randomness anew: the no-ops' now, the emulator's when a game is loaded; as gymnasium does it."""
        own, emulator = np.random.SeedSequence(seed).generate_state(2)
        self._rng = np.random.default_rng(int(own))
        self._ale.setInt("random_seed", int(emulator.astype(np.int32)))

    def _load(self, seed: int) -> None:
        """The game as if the console had just been switched on."""
        self._seed(seed)
        self._ale.loadROM(self._rom)
        self._ale.reset_game()

    def _hold(self, index: int) -> tuple[float, bool]:
        """Repeat an action; leave in the first screen what the agent is to see. Returns reward and game over."""
        reward = 0.0
        for frame in range(FRAME_SKIP):
            reward += self._ale.act(index)
            if self._ale.game_over() or frame == FRAME_SKIP - 1:
                break
            if frame == FRAME_SKIP - 2:
                self._ale.getScreenRGB(self._screens[1])
        self._ale.getScreenRGB(self._screens[0])
        # Many games draw half of their sprites on every other frame: the maximum shows both halves.
        if frame == FRAME_SKIP - 1:
            np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        return reward, bool(self._ale.game_over())

    def _resize(self) -> Frame:
        shrunk: Frame = cv2.resize(self._screens[0], FRAME_SHAPE[:2], interpolation=cv2.INTER_AREA)
        return shrunk


make = AtariEnv
