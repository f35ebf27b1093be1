"""The command `mow`: one subcommand for each thing that can be done with a run; `mow COMMAND --help` explains one."""

import importlib
import sys
from collections.abc import Sequence

from mow.errors import nearest
from mow.system.console import complain, program, tell

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("mow.train", "train one agent on many tasks, or go on with a run"),
    "collect": ("mow.collect", "record episodes to train from, or convert those of others"),
    "extract": ("mow.extract", "new policies from the world model of a run of pwm"),
    "distill": ("mow.distill", "a smaller world model that learns from that of a run of pwm"),
    "evaluate": ("mow.evaluate.__main__", "score trained runs in fresh episodes, with intervals over seeds"),
    "report": ("mow.report.__main__", "one HTML page about a run: curves, films, clusters"),
    "film": ("mow.evaluate.film", "real and imagined frames of a trained world model, side by side"),
    "ablate": ("mow.evaluate.ablate", "compare a preset with baselines and with itself less one part"),
    "export": ("mow.inference.export", "weights as safetensors, with their config and a model card"),
    "envs": ("mow.envs.__main__", "list, draw and explain the tasks that can be played"),
    "doctor": ("mow.cli.doctor", "check what this machine has and lacks"),
}


def usage() -> str:
    lines = [f"  {name:<10}{line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(["usage: mow COMMAND [...]", "", *lines, "", "mow COMMAND --help explains a command.", ""])


@program("mow")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: that of the command; 2 for an unknown one, in one line; 0 for --help."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        tell(sys.stdout, usage())
        return 0
    if words[0] == "--version":
        from mow import __version__

        tell(sys.stdout, f"mow {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        complain(f"mow: unknown command {words[0]!r}: {nearest(words[0], COMMANDS)}")
        return 2
    module = importlib.import_module(COMMANDS[words[0]][0])
    result: int = module.main(words[1:])
    return result
