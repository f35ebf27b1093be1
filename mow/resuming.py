"""Going on with a run: which checkpoint, and with which flags changed."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow.command_line import UsageError, override
from mow.config import ASIDE, Config
from mow.config_file import config_of, read_config
from mow.shell import command, expanded

if TYPE_CHECKING:
    import torch

# What may differ from the run so far.
FREE = ASIDE | {"evaluation_episodes", "evaluation_copies"}


@dataclass(frozen=True)
class Resumption:
    """A run to go on with."""

    folder: Path
    checkpoint: Path
    config: Config
    changes: tuple[str, ...]  # "field: before -> now"


def find_resumption(arguments: Sequence[str]) -> Resumption:
    """What `--resume WHERE [--field VALUE ...]` asks for; WHERE is a run folder, or one of its checkpoints.

    Raises: UsageError if there is no such run or checkpoint, or a field is changed that must not be.
    """
    words = list(arguments)
    at = words.index("--resume")
    if at + 1 == len(words) or words[at + 1].startswith("-"):
        raise UsageError("--resume needs a run folder: python -m mow.train --resume runs/NAME")
    try:
        where = Path(expanded(words[at + 1]))
    except ValueError as error:
        raise UsageError(str(error)) from error
    rest = words[:at] + words[at + 2 :]
    if rest and not rest[0].startswith("-"):
        raise UsageError(f"a run goes on with its own preset, got {rest[0]!r} beside --resume: leave it out")
    folder, checkpoint = _located(where)
    try:
        before = read_config(folder / "config.json")
    except ValueError as error:
        raise UsageError(str(error)) from error
    now = override(before, rest)
    changes = tuple(_differences(_plain(before), _plain(now)))
    if refused := _forbidden(changes):
        raise UsageError(f"a run that goes on cannot change {'; '.join(refused)}: start a new one, or change only "
                         f"{', '.join(sorted(FREE))}")
    return Resumption(folder, checkpoint, now, changes)


def _located(where: Path) -> tuple[Path, Path]:
    """Run folder and checkpoint."""
    if where.suffix == ".pt":
        if not where.is_file():
            raise UsageError(f"{where} does not exist: name a run folder, or a file in its checkpoints/")
        return where.parent.parent, where
    if not where.is_dir():
        raise UsageError(f"{where} is no run folder: name one that mow.train wrote")
    found = sorted((where / "checkpoints").glob("step_*.pt"))
    if not found:
        raise UsageError(f"{where} has no checkpoints/step_*.pt: it stopped before the first; start it again")
    return where, found[-1]


def resume_command(where: Path) -> str:
    """What to type to go on from a run folder or a checkpoint."""
    return command("python", "-m", "mow.train", "--resume", where)


def way_on(folder: Path) -> str:
    """What is left of a run that broke, in words."""
    found = sorted((folder / "checkpoints").glob("step_*.pt"))
    return f"{resume_command(folder)} goes on from {found[-1]}" if found else "no checkpoint was saved"


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """"field: before -> now" of all fields that differ, by dotted name."""
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}: {old} -> {new}"


def _plain(config: Config) -> dict[str, Any]:
    """As config.json has it, where tuples are lists."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _forbidden(changes: Iterable[str]) -> list[str]:
    return [change for change in changes if change.partition(":")[0] not in FREE]


def read_state(resumption: Resumption, device: "torch.device") -> dict[str, Any]:
    """The checkpoint's content. Raises: UsageError if it is damaged or of another run, naming what to go on from."""
    from mow.training.checkpoint import checkpoints, load_checkpoint

    path = resumption.checkpoint
    try:
        state = load_checkpoint(path, device)
    except (ValueError, OSError, RuntimeError) as error:
        others = [other for other in checkpoints(resumption.folder) if other != path]
        remedy = f"; an earlier one: {resume_command(others[-1])}" if others else ""
        raise UsageError(f"{error}{remedy}") from error
    try:
        before = config_of(json.loads(state["config"]))  # with the defaults of fields that are younger than the run
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    # config.json may have been edited since.
    if differing := _forbidden(_differences(_plain(before), _plain(resumption.config))):
        raise UsageError(f"{path} was written with another config ({'; '.join(differing)}): put config.json back as it "
                         "was")
    return state
