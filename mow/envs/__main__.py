"""List and show the environments: mow envs [--protocol] [--preview NAME ... OUT.png]

Without arguments all suites, tasks and sets are listed, and whether their simulators are installed; nothing is loaded.
"""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from mow import envs
from mow.envs.protocols import PROTOCOLS, table
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
            _say(table(tuple(envs.SUITES)) if options.protocol else listing())
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
    for name, most in (("steps", 1_000_000), ("seed", 2**32 - 1)):
        value = getattr(options, name)
        if not 0 <= value <= most:
            bound = "0 or more" if value < 0 else f"at most {most}"
            raise ValueError(f"--{name} must be {bound}, got {value}")
    return options


def _preview(options: argparse.Namespace) -> None:
    *names, last = options.preview
    out = typed_path(last)
    if not names or out.suffix != ".png" or not out.parent.is_dir():
        raise ValueError(f"--preview needs names and then a .png in an existing folder, got "
                         f"{' '.join(options.preview)}: write --preview atari26 out.png")
    tasks = list(dict.fromkeys(task for name in names for task in envs.SETS.get(name, (name,))))
    for task in tasks:
        if ":" not in task:
            raise ValueError(f"unknown set {task!r}: expected one of {', '.join(envs.SETS)}, or a task as atari:Pong")
        envs.check_task(task)
    from mow.envs.contact_sheet import write_sheet

    write_sheet(tasks, out, num_steps=options.steps, seed=options.seed, say=_say)
    _say(f"{len(tasks)} tasks after {options.steps} random steps: {out}")


def listing() -> str:
    """All suites with their tasks, then the sets; loads no simulator."""
    names = envs.task_names()
    lines = []
    for suite in envs.SUITES:
        protocol, own = PROTOCOLS[suite], [name for name in names if name.startswith(f"{suite}:")]
        lines += [f"{suite}: {_installed(suite)}", f"  actions: {protocol.actions}", f"  horizon: {protocol.horizon}"]
        if suite == "tiny":
            lines += [f"  tiny:{name:<8}{_of_tiny(name)}" for name in TINY_TASKS]
        elif own:
            lines += _wrapped(f"{len(own)} tasks: ", own)
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


def _installed(suite: str) -> str:
    missing = [module for module in PROTOCOLS[suite].needs if find_spec(module) is None]
    return f"not installed, {', '.join(missing)} missing: {envs.remedy(suite)}" if missing else "installed"


def _of_tiny(name: str) -> str:
    task = TINY_TASKS[name]
    kind = "discrete" if task.DISCRETE else "continuous"
    return f"{task.NUM_ACTIONS} {kind} actions, at most {task.TIME_LIMIT} steps"


def _wrapped(title: str, names: Sequence[str]) -> list[str]:
    return textwrap.wrap(title + " ".join(names), _WIDTH, initial_indent="  ", subsequent_indent="    ",
                         break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())
