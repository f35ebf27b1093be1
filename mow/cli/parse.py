"""The command line: a preset's name, then overrides; every mistake is answered in one line that names the remedy."""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mow import envs
from mow.config import RunConfig
from mow.config.checks import LARGEST_SEED, is_plain
from mow.errors import UsageError, nearest
from mow.methods.registry import MODULES, get_method, presets
from mow.system.console import say, tell


def usage() -> str:
    """The page of `--help` without a preset."""
    lines = [f"presets of {name}: {', '.join(get_method(name).presets)}" for name in MODULES]
    batchings = "|".join(dict.fromkeys(each for name in MODULES for each in get_method(name).batchings))
    return f"""usage: python -m mow.train [PRESET] [--field VALUE ...]

{chr(10).join(lines)} (none: quickstart)

python -m mow.train --resume RUN goes on with a run that was stopped, exactly as it would have.
python -m mow.train [PRESET] --dry-run prints what it would take (parameters, memory, FLOP, hours) and trains nothing;
  with --ranks N also on N GPUs.
torchrun --nproc-per-node=N -m mow.train PRESET trains on N GPUs (mow/engine/DISTRIBUTED.md).
python -m mow.train [PRESET] --batching {batchings} sets the batches of the paper's baseline, or cheaper ones.

Every field of the preset can be overridden; --help after a preset lists them all, for example
  python -m mow.train atari4 --total-steps 600
  python -m mow.train storm --tasks atari:Breakout --seed 1
  python -m mow.train mixed --tasks tiny5 metaworld:reach-v3

--tasks takes names like dmc:walker-walk and these sets: {", ".join(envs.SETS)}
"""


def check_words(arguments: Sequence[str]) -> None:
    """Raises: UsageError for an argument with a line break, NUL or bytes that are no UTF-8."""
    for argument in arguments:
        if not is_plain(argument):
            raise UsageError(f"control characters, or bytes that are no UTF-8, in {argument!r}: leave them out")


def check_range(options: argparse.Namespace, low: int, high: int, *names: str) -> None:
    """The named flags lie in [low, high]. Raises: UsageError."""
    for name in names:
        value = getattr(options, name)
        if not low <= value <= high:
            bound = f"{low} or more" if value < low else f"{low} to {high}"
            raise UsageError(f"--{name} must be {bound}, got {value}")


class Parser(argparse.ArgumentParser):
    """For the commands that take no config: what is wrong is a UsageError and not argparse's page of usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. Raises: UsageError for words that fit into no line."""
        check_words(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the arguments")


def parse(arguments: Sequence[str]) -> RunConfig:
    """The config of the arguments.

    Raises: UsageError with one line for an unknown preset, method, field or task and for a value that does not fit;
        SystemExit(0) after printing help.
    """
    arguments = list(arguments)
    if arguments[:1] in (["--help"], ["-h"]):
        tell(sys.stdout, usage())
        raise SystemExit(0)
    known = presets()
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    if (wanted := taken(arguments, "--method")) is not None:
        try:
            known = dict(get_method(wanted).presets)
        except ValueError as error:
            raise UsageError(f"--method: {error}") from error
        name = name or next(iter(known))
    name = name or "quickstart"
    if name not in known and wanted is not None and name in presets():
        raise UsageError(f"{name} is a preset of {presets()[name]().method}, not of {wanted}: leave --method out, or "
                         f"take one of {', '.join(known)}")
    if name not in known:
        raise UsageError(f"unknown preset {name!r}: {nearest(name, known)}")
    preset = known[name]()
    config = override(_shorter(_with_batching(preset, arguments), arguments), arguments)
    if config.seed > LARGEST_SEED:
        raise UsageError(f"--seed must be 0 to {LARGEST_SEED}, got {config.seed}")
    return config


def taken(arguments: list[str], flag: str) -> str | None:
    """The word after `flag`, or after `flag=`, and both out of the arguments; None if it is not there."""
    for at, argument in enumerate(arguments):
        if argument == flag or argument.startswith(f"{flag}="):
            words = arguments[at : at + (1 if "=" in argument else 2)]
            del arguments[at : at + len(words)]
            return " ".join(words).removeprefix(flag).lstrip("= ")
    return None


def _with_batching(config: RunConfig, arguments: list[str]) -> RunConfig:
    """`--batching NAME`, taken out of the arguments; flags that set batches one by one come after it and win."""
    name = taken(arguments, "--batching")
    if name is None:
        return config
    known = get_method(config.method).batchings
    if name not in known:
        raise UsageError(f"--batching must be one of {', '.join(known) or 'none'}, got {name!r}: name one of them")
    changed: RunConfig = known[name](config)
    return changed


def _shorter(preset: RunConfig, arguments: Sequence[str]) -> RunConfig:
    """The preset's phases in proportion, and a line with them, where `--total-steps` is less than the preset's."""
    given = re.search(r"(?:^| )--total[-_]steps[= ](\d+)(?: |$)", " ".join(arguments))
    shortened = get_method(preset.method).shortened
    if given is None or shortened is None or {"--help", "-h"} & set(arguments):
        return preset
    if not 0 < int(given[1]) < preset.total_steps:
        return preset
    config, fields = shortened(preset, int(given[1]))
    say(f"{int(given[1]):,} steps, where {preset.preset} has {preset.total_steps:,}: unless given, its phases are in "
        f"proportion ({fields})")
    changed: RunConfig = config
    return changed


def override(default: RunConfig, arguments: list[str]) -> RunConfig:
    """`default` with the fields that the arguments name. Raises: UsageError as parse."""
    _check_fields(default, arguments)
    config = _parse_overrides(default, arguments)
    try:
        replay = dataclasses.replace(config.replay, disk=os.path.expanduser(config.replay.disk))
        folder = os.path.expanduser(config.folder)
        config = dataclasses.replace(config, tasks=envs.expand(config.tasks), folder=folder, replay=replay)
        for task in config.tasks:
            envs.check_task(task, config.env.obs)
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error
    return config


def _parse_overrides(default: RunConfig, arguments: list[str]) -> RunConfig:
    """Read the values with tyro; its message on a bad one is folded into one line."""
    import tyro

    if "--help" in arguments or "-h" in arguments:
        return tyro.cli(type(default), default=default, args=arguments, prog="python -m mow.train")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(type(default), default=default, args=arguments, prog="python -m mow.train")
    except ValueError as error:  # from a __post_init__ of the config
        raise UsageError(str(error)) from error
    except SystemExit as error:
        raise UsageError(_one_line(said.getvalue())) from error


def _one_line(box: str) -> str:
    """tyro's framed message without frame, advice and line breaks."""
    rows = [re.sub(r"[^\x20-\x7e]", " ", row).strip() for row in box.splitlines()]
    rows = [row for row in rows if row and not set(row) <= {"-", " "} and "--help" not in row]
    said = re.sub(r"\s+", " ", " ".join(rows)).split(" Argument helptext")[0]
    if said.startswith("Unrecognized"):
        return f"{said}: write --field VALUE; --help lists the fields"
    return re.sub(r"^(\w+ (error|choice|argument|options) )?(Error parsing \w+: )?", "", said)


def flags(config: object, prefix: str = "") -> list[str]:
    """All flags of a config, as typed: `--total-steps`, `--model.width`, `--model.no-task-head`."""
    found = []
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            found += flags(value, f"{prefix}{name}.")
        else:
            found.append(f"--{prefix}{name}")
        if isinstance(value, bool):
            found.append(f"--{prefix}no-{name}")
    return found


def _check_fields(default: RunConfig, arguments: Sequence[str]) -> None:
    known = flags(default)
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if flag in ("--preset", "--batching", "--method"):
            raise UsageError(f"{flag} cannot be given here: the preset is the first word, without a flag, and a run "
                             "keeps its preset, batching and method")
        if argument.startswith("--") and flag not in (*known, "--help"):
            raise UsageError(f"unknown field {flag}: {nearest(flag, known)}")
