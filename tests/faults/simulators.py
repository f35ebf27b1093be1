"""Simulators that misbehave, as gymnasium environments: "gym:tests.faults.simulators:KIND-v0", one kind each.

All show the same task as Plain: 3 actions, reward 1, episodes of 6 steps, a picture of the step and of the seed.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

LENGTH = 6  # steps of an episode
FAILS_AT = 15  # steps after construction, the middle of the third episode


class Plain(gymnasium.Env):
    """A square whose place is the step and whose colour comes from the seed."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it
    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Discrete(LENGTH + 1)

    def __init__(self, render_mode: str) -> None:
        self.render_mode, self.total = render_mode, 0

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[int, dict[str, object]]:
        super().reset(seed=seed)
        self.colour, self.at = self.np_random.integers(50, 200, 3), 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.at, self.total = self.at + 1, self.total + 1
        return self.at, 1.0, self.at == LENGTH, False, {}

    def render(self) -> Any:
        picture = np.zeros((128, 192, 3), np.uint8)
        picture[:, 24 * self.at : 24 * self.at + 24] = self.colour
        return picture


def _raises(error: type[BaseException], *arguments: object) -> Callable[[Any], Any]:
    def fail(_: Any) -> Any:
        raise error(*arguments)

    return fail


def _endless(answer: Any) -> Any:
    return _endless(answer)


def _with(place: int, value: object) -> Callable[[Any], Any]:
    return lambda answer: (*answer[:place], value, *answer[place + 1 :])


# What becomes of the answer of a step that must count as a failure.
BAD_STEPS: dict[str, Callable[[Any], Any]] = {
    "Exit": lambda _: sys.exit(),
    "Memory": _raises(MemoryError),
    "Recursion": _endless,
    "StopIteration": _raises(StopIteration),
    "ManyLines": _raises(RuntimeError, "\nfirst\nsecond"),
    "FourValues": lambda answer: answer[:4],
    "NoAnswer": lambda _: None,
    "Huge": _with(1, 1e39),
    "MinusHuge": _with(1, -1e39),
    "HugeInt": _with(1, 10**400),
    "Nan": _with(1, float("nan")),
    "Infinite": _with(1, np.float32("inf")),
    "RewardNone": _with(1, None),
    "RewardArray": _with(1, np.ones(2)),
    "RewardComplex": _with(1, 1j),
    "RewardText": _with(1, "1.0"),
    "TerminatedText": _with(2, "no"),
    "TruncatedNone": _with(3, None),
    "TerminatedArray": _with(2, np.array([True, False])),
    "InfoNone": _with(4, None),
    "InfoList": _with(4, ["success"]),
    "SuccessArray": _with(4, {"is_success": np.ones(2)}),
}

# What becomes of a picture that must count as a failure.
BAD_PICTURES: dict[str, Callable[[np.ndarray], Any]] = {
    "Grey": lambda picture: picture[..., 0],
    "Ints": lambda picture: picture.astype(np.int64),
    "Floats255": lambda picture: picture.astype(np.float32),
    "NanPicture": lambda picture: picture / np.float32("nan"),
    "TwoChannels": lambda picture: picture[..., :2],
    "Empty": lambda picture: picture[:0],
    "PictureNone": lambda picture: None,
    "PictureList": lambda picture: [picture],
}

_buffer = np.zeros((128, 192, 3), np.uint8)


def _shared(picture: np.ndarray) -> np.ndarray:
    _buffer[:] = picture
    return _buffer


def _read_only(picture: np.ndarray) -> np.ndarray:
    picture.setflags(write=False)
    return picture


# Odd, but the same picture.
ODD_PICTURES: dict[str, Callable[[np.ndarray], Any]] = {
    "Rgba": lambda picture: np.concatenate([picture, picture[..., :1]], axis=2),
    "Floats": lambda picture: picture / np.float32(255),
    "FloatsRgba": lambda picture: np.concatenate([picture, picture[..., :1]], axis=2) / 255,
    "Fortran": np.asfortranarray,
    "Mirrored": lambda picture: np.ascontiguousarray(picture[:, ::-1])[:, ::-1],
    "Shared": _shared,
    "ReadOnly": _read_only,
    "Doubled": lambda picture: picture.repeat(2, axis=0).repeat(2, axis=1),
}

# Odd, but the same answer.
ODD_STEPS: dict[str, Callable[[Any], Any]] = {
    "RewardBool": _with(1, True),
    "RewardInt": _with(1, 1),
    "RewardFloat16": _with(1, np.float16(1)),
    "RewardOneEntry": _with(1, np.ones(1)),
    "FlagsOfNumpy": lambda answer: (*answer[:2], np.bool_(answer[2]), np.array(answer[3]), answer[4]),
    "FlagsOfInts": lambda answer: (*answer[:2], int(answer[2]), 0, answer[4]),
}


def _handled() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _prints() -> None:
    print("printed by a simulator")


# What is done to the process at construction, reset, step and close.
RUDE: dict[str, Callable[[], object]] = {
    "Folder": lambda: os.chdir("/"),
    "Prints": _prints,
    "Signals": _handled,
    "Seeds": lambda: (random.seed(0), np.random.seed(0)),
    "Thread": lambda: threading.Thread(target=time.sleep, args=(1,), daemon=True).start(),
}


class Odd(Plain):
    """Changes what a step answers or what is drawn, at once or from a step on; or the process."""

    def __init__(
        self, render_mode: str, steps: Any = None, pictures: Any = None, rude: Any = None, start: int = 0
    ) -> None:
        super().__init__(render_mode)
        self.steps, self.pictures, self.rude, self.start = steps, pictures, rude, start
        self._be_rude()

    def _be_rude(self) -> None:
        if self.rude:
            self.rude()

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[int, dict[str, object]]:
        self._be_rude()
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self._be_rude()
        answer = super().step(action)
        return self.steps(answer) if self.steps and self.total >= self.start else answer

    def render(self) -> Any:
        picture = super().render()
        return self.pictures(picture) if self.pictures and self.total >= self.start else picture

    def close(self) -> None:
        self._be_rude()


class NoRenderMode(Plain):
    def __init__(self) -> None:
        super().__init__("rgb_array")


class FailsToStart(Plain):
    def __init__(self, render_mode: str, error: type[BaseException]) -> None:
        raise error("no licence")


class FailsToReset(Plain):
    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[int, dict[str, object]]:
        raise OSError("no licence")


class FailsToClose(Plain):
    def close(self) -> None:
        raise RuntimeError("it is stuck")


class Slow(Plain):
    """Steps of 20 ms, resets of 0.3 s, and no end."""

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[int, dict[str, object]]:
        time.sleep(0.3)
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        time.sleep(0.02)
        self.at, self.total = self.at + 1, self.total + 1
        return self.at, 1.0, False, False, {}

    def render(self) -> Any:
        return np.full((64, 64, 3), self.at % 256, np.uint8)


class Worst(Odd):
    """Leaves the folder, prints, exits now and then, and fails to close."""

    def close(self) -> None:
        raise SystemExit(1)


def _everywhere() -> None:
    os.chdir("/")
    print("printed by a simulator")
    RUDE["Signals"]()


def _register() -> None:
    failing = {"start": FAILS_AT}
    kinds: dict[str, tuple[type, dict[str, object]]] = {
        "Plain": (Plain, {}),
        **{name: (Odd, {"steps": change, **failing}) for name, change in BAD_STEPS.items()},
        **{name: (Odd, {"pictures": change, **failing}) for name, change in BAD_PICTURES.items()},
        **{f"{name}First": (Odd, {"pictures": change}) for name, change in BAD_PICTURES.items()},
        **{name: (Odd, {"steps": change}) for name, change in ODD_STEPS.items()},
        **{name: (Odd, {"pictures": change}) for name, change in ODD_PICTURES.items()},
        **{name: (Odd, {"rude": deed}) for name, deed in RUDE.items()},
        "Died": (Odd, {"steps": lambda _: os._exit(3), **failing}),
        "Segfault": (Odd, {"steps": lambda _: os.kill(os.getpid(), signal.SIGSEGV), **failing}),
        "CtrlC": (Odd, {"steps": lambda _: signal.raise_signal(signal.SIGINT), **failing}),
        "DiesFirst": (Odd, {"pictures": lambda _: os._exit(3)}),
        "NoRenderMode": (NoRenderMode, {}),
        "FailsToReset": (FailsToReset, {}),
        "FailsToClose": (FailsToClose, {}),
        "Slow": (Slow, {}),
        "Worst": (Worst, {"steps": BAD_STEPS["Exit"], "rude": _everywhere, **failing}),
    }
    for error in (RuntimeError, SystemExit, MemoryError, ImportError):
        kinds[f"{error.__name__}First"] = (FailsToStart, {"error": error})
    for name, (kind, arguments) in kinds.items():
        gymnasium.register(f"{name}-v0", kind, kwargs=arguments)


_register()


def task(kind: str) -> str:
    """Its name among the tasks."""
    return f"gym:tests.faults.simulators:{kind}-v0"
