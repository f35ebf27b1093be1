"""The command line: a preset's name, then overrides; every mistake is answered in one line that names the remedy."""

import argparse
import contextlib
import dataclasses
import io
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from mow import envs
from mow.config import Config
from mow.config.checks import LARGEST_SEED, is_plain, shortened
from mow.errors import UsageError, nearest
from mow.methods.mow.presets import BATCHINGS, PRESETS, in_proportion, with_batching
from mow.system.console import tell
from mow.system.shell import expanded

USAGE = f"""usage: python -m mow.train [PRESET] [--field VALUE ...]

presets: {", ".join(PRESETS)} (none: quickstart)

python -m mow.train --resume RUN goes on with a run that was stopped, exactly as it would have.
python -m mow.train [PRESET] --dry-run says what it would take (parameters, memory, FLOP, hours) and trains nothing.
python -m mow.train [PRESET] --batching {"|".join(BATCHINGS)} sets the batches of the paper's baseline, or cheaper ones.

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


def check_range(asked: argparse.Namespace, low: int, high: int, *names: str) -> None:
    """The named flags lie in [low, high]. Raises: UsageError."""
    for name in names:
        value = getattr(asked, name)
        if not low <= value <= high:
            bound = f"{low} or more" if value < low else f"{low} to {high}"
            raise UsageError(f"--{name} must be {bound}, got {shortened(value)}")


class Parser(argparse.ArgumentParser):
    """For the commands that take no config: what is wrong is a UsageError and not argparse's page of usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. Raises: UsageError for words that fit into no line."""
        check_words(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the arguments")


def say(line: str) -> None:
    """One line to the console, at once even when it goes to a file."""
    tell(sys.stdout, line + "\n")


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextlib.contextmanager
def chatty() -> Iterator[None]:
    """Inside, what the package logs of its choices (which store, which kernels) goes to the console too."""
    logger, console = logging.getLogger("mow"), _Console()
    level = logger.level
    logger.addHandler(console)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(console)
        logger.setLevel(level)


def parse(arguments: Sequence[str]) -> Config:
    """The config that the arguments ask for.

    Raises: UsageError with one line for an unknown preset, field or task and for a value that does not fit;
        SystemExit(0) after printing help.
    """
    arguments = list(arguments)
    if arguments[:1] in (["--help"], ["-h"]):
        tell(sys.stdout, USAGE)
        raise SystemExit(0)
    name = "quickstart"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}: {nearest(name, PRESETS)}")
    config = override(_shorter(_with_batching(PRESETS[name](), arguments), arguments), arguments)
    if config.seed > LARGEST_SEED:
        raise UsageError(f"--seed must be 0 to {LARGEST_SEED}, got {config.seed}")
    return config


def _with_batching(config: Config, arguments: list[str]) -> Config:
    """Takes `--batching NAME` out of the arguments; what other flags say of batches comes after it and wins."""
    for at, argument in enumerate(arguments):
        if argument == "--batching" or argument.startswith("--batching="):
            words = arguments[at : at + (1 if "=" in argument else 2)]
            del arguments[at : at + len(words)]
            name = " ".join(words).removeprefix("--batching").lstrip("= ")
            if name not in BATCHINGS:
                raise UsageError(f"--batching must be one of {', '.join(BATCHINGS)}, got {name!r}: name one of them")
            try:
                return with_batching(config, name)
            except ValueError as error:
                raise UsageError(f"--batching {name}: {error}") from error
    return config


def _shorter(preset: Config, arguments: Sequence[str]) -> Config:
    """The preset's phases in proportion, and a line that says so, where `--total-steps` is less than the preset's."""
    given = re.search(r"(?:^| )--total[-_]steps[= ](\d+)(?: |$)", " ".join(arguments))
    if given is None or not 0 < int(given[1]) < preset.total_steps or {"--help", "-h"} & set(arguments):
        return preset
    config = in_proportion(preset, int(given[1]))
    schedule, routing = config.schedule, config.model.routing
    say(
        f"{int(given[1]):,} steps, where {preset.preset} has {preset.total_steps:,}: unless given, its phases are in "
        f"proportion (schedule.prefill_steps {schedule.prefill_steps:,}, schedule.warmup_updates "
        f"{schedule.warmup_updates:,}, model.routing.anneal_updates {routing.anneal_updates:,}, "
        f"actor_critic.entropy_updates {config.actor_critic.entropy_updates:,})"
    )
    return config


def override(default: Config, arguments: list[str]) -> Config:
    """`default` with the fields that the arguments name. Raises: UsageError as parse."""
    _check_fields(default, arguments)
    config = _parse_overrides(default, arguments)
    try:
        replay = dataclasses.replace(config.replay, disk=expanded(config.replay.disk))
        folder = expanded(config.folder)
        config = dataclasses.replace(config, tasks=envs.expand(config.tasks), folder=folder, replay=replay)
        for task in config.tasks:
            envs.check_task(task)
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error
    return config


def _parse_overrides(default: Config, arguments: list[str]) -> Config:
    """tyro reads the values; what it says of a bad one is folded into one line."""
    import tyro

    if "--help" in arguments or "-h" in arguments:
        return tyro.cli(Config, default=default, args=arguments, prog="python -m mow.train")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(Config, default=default, args=arguments, prog="python -m mow.train")
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
    return re.sub(r"^(\w+ (error|choice|argument|options) )?(Error parsing Config: )?", "", said)


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


def _check_fields(default: Config, arguments: Sequence[str]) -> None:
    known = flags(default)
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if flag == "--preset":
            raise UsageError("the preset is the first word, without a flag: python -m mow.train atari4")
        if flag == "--batching":
            raise UsageError("--batching is given once, and to a new run: leave it out here")
        if argument.startswith("--") and flag not in (*known, "--help"):
            raise UsageError(f"unknown field {flag}: {nearest(flag, known)}")
