"""List and show the environments: mow envs [--protocol] [--preview NAME ... OUT.png]

Without arguments all suites, tasks and sets are listed, and whether their simulators are installed; nothing is loaded.
"""

import argparse
import math
import sys
import textwrap
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import numpy as np

from mow import envs
from mow.envs.base import FRAME_SHAPE, ActionLayout, Frame
from mow.envs.guarded import GuardedEnv
from mow.envs.suites import Protocol, Suite
from mow.envs.tiny import TASKS as TINY_TASKS
from mow.system.console import complain, program, tell
from mow.system.shell import typed_path

_WIDTH = 118


class _Parser(argparse.ArgumentParser):
    """One line for what is wrong instead of the page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the arguments")


@program("mow envs")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 it cannot be (one line with the reason), 130 interrupted."""
    try:
        options = _read(sys.argv[1:] if arguments is None else arguments)
        if options.preview:
            _preview(options)
        else:
            _say(protocols() if options.protocol else listing())
    except (ImportError, ValueError) as error:
        complain(f"mow envs: {error}")
        return 2
    return 0


def _say(text: str) -> None:
    tell(sys.stdout, text + "\n")


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises: ValueError in one line; SystemExit(0) after printing help."""
    parser = _Parser(prog="mow envs", description="List the tasks that can be played, or look at some.",
                     allow_abbrev=False)
    parser.add_argument("--protocol", action="store_true", help="what an episode is in each suite, in Markdown")
    parser.add_argument("--preview", nargs="+", metavar="NAME", default=[],
                        help="tasks or sets, then the .png to draw them in: --preview atari26 out.png")
    parser.add_argument("--steps", type=int, default=60, help="random steps before the frame (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is previewed (%(default)s)")
    options = parser.parse_args(arguments)
    for name in ("steps", "seed"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} must be 0 or more, got {getattr(options, name)}")
    return options


def _preview(options: argparse.Namespace) -> None:
    *names, last = options.preview
    out = typed_path(last)
    if not names or out.suffix != ".png" or not out.parent.is_dir():
        raise ValueError(f"--preview needs names and then a .png in an existing folder, got "
                         f"{' '.join(options.preview)}: write --preview atari26 out.png")
    tasks = envs.expand(names)
    for task in tasks:
        envs.check_task(task, "frame")
    frames = [frame_after(task, num_steps=options.steps, seed=options.seed) for task in tasks]
    for task, frame in zip(tasks, frames, strict=True):
        if (frame == frame[0, 0]).all():
            _say(f"{task} shows nothing but one colour after {options.steps} steps")
    _draw_sheet(frames, tasks, out)
    _say(f"{len(tasks)} tasks after {options.steps} random steps: {out}")


def frame_after(task: str, *, num_steps: int, seed: int) -> Frame:
    """Frame of a task after `num_steps` random steps, over as many episodes as that takes: [64, 64, 3].

    Raises: ValueError, ImportError as GuardedEnv.
    """
    env = GuardedEnv(task, seed=seed, options={})
    layout, rng = ActionLayout.from_tasks([env.task]), np.random.default_rng(seed)
    with closing(env):
        frame = env.reset(seed=seed)[0]
        for _ in range(num_steps):
            frame, _, terminated, truncated, _ = env.step(layout.decode(0, layout.random(rng)[0]))
            if terminated or truncated:
                frame = env.reset()[0]
    return frame


def _draw_sheet(frames: Sequence[Frame], titles: Sequence[str], path: Path) -> None:
    """All frames at twice their size, each below its title, in rows. Raises: OSError if the file cannot be written."""
    from PIL import Image, ImageDraw

    side, title_height, gap = 2 * FRAME_SHAPE[0], 16, 6
    columns = math.ceil(1.3 * math.sqrt(len(frames)))
    width, height = side + gap, side + title_height + gap
    sheet = Image.new("RGB", (columns * width + gap, math.ceil(len(frames) / columns) * height + gap), "white")
    for number, (frame, title) in enumerate(zip(frames, titles, strict=True)):
        left, top = gap + number % columns * width, gap + number // columns * height
        size = min(12.0, 1.7 * side / len(title))  # a letter is about 0.6 of its size wide
        ImageDraw.Draw(sheet).text((left, top), title, fill="black", font_size=size)
        sheet.paste(Image.fromarray(frame.repeat(2, axis=0).repeat(2, axis=1)), (left, top + title_height))
    sheet.save(path)


def protocols() -> str:
    """The protocols of all suites in Markdown, one column each."""
    lines = [f"| | {' | '.join(f'`{suite}`' for suite in envs.SUITES)} |", f"| --- {'| --- ' * len(envs.SUITES)}|"]
    for each in fields(Protocol):
        cells = (getattr(suite.protocol, each.name) for suite in envs.SUITES.values())
        lines.append(f"| {each.name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def listing() -> str:
    """All suites with their tasks, then the sets; loads no simulator."""
    lines = []
    for suite in envs.SUITES.values():
        lines += [f"{suite.name}: {_installed(suite)}", f"  observations: {', '.join(suite.observations)}",
                  f"  actions: {suite.protocol.actions}", f"  horizon: {suite.protocol.horizon}"]
        if suite.name == "tiny":
            lines += [f"  tiny:{name:<8}{task.NUM_ACTIONS} {'discrete' if task.DISCRETE else 'continuous'} actions, "
                      f"at most {task.TIME_LIMIT} steps" for name, task in TINY_TASKS.items()]
        elif suite.tasks:
            lines += _wrapped(f"{len(suite.tasks)} tasks: ", suite.tasks)
        else:
            lines.append("  gym:ID for any id that is registered, as gym:CartPole-v1, gym:MiniGrid-Empty-5x5-v0, "
                         "gym:package:Id-v0")
        lines.append("")
    lines.append("sets, each short for its tasks:")
    for name, tasks in envs.SETS.items():
        lines += _wrapped(f"{name} ({len(tasks)}): ", tasks)
    lines += ["", "mow envs --preview NAME ... OUT.png   draws frames of tasks or sets",
              "mow envs --protocol                   prints what an episode is in each suite"]
    return "\n".join(lines)


def _installed(suite: Suite) -> str:
    missing = [module for module in suite.needs if find_spec(module) is None]
    return f"not installed, {', '.join(missing)} missing: {suite.remedy}" if missing else "installed"


def _wrapped(title: str, names: Sequence[str]) -> list[str]:
    return textwrap.wrap(title + " ".join(names), _WIDTH, initial_indent="  ", subsequent_indent="    ",
                         break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())
