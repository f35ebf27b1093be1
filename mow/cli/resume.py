"""Going on with a run: which checkpoint, and with which flags changed."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow.cli.parse import override
from mow.config import RUNTIME_FIELDS, RunConfig
from mow.engine.device import process_peak
from mow.envs.base import EnvFailure
from mow.errors import UsageError
from mow.methods.registry import config_of, read_config
from mow.runs.paths import best_path, checkpoints, folder_of, resume_command, step_of
from mow.runs.provenance import resumed_versions
from mow.system.shell import command, typed_path
from mow.system.whole_file import write_json

if TYPE_CHECKING:
    from mow.engine.trainer import Trainer

# What may differ from the run so far.
FREE = RUNTIME_FIELDS | {"evaluation_episodes", "evaluation_copies", "data"}


@dataclass(frozen=True)
class Resumption:
    """A run to go on with."""

    folder: Path
    checkpoint: Path
    config: RunConfig
    changes: tuple[str, ...]  # "field: before -> now"


def find_resumption(arguments: Sequence[str]) -> Resumption:
    """Parse `--resume WHERE [--field VALUE ...]`; WHERE is a run folder, or one of its checkpoints.

    Raises: UsageError if there is no such run or checkpoint, or a field is changed that must not be.
    """
    words = list(arguments)
    at = words.index("--resume")
    if at + 1 == len(words) or words[at + 1].startswith("-"):
        raise UsageError("--resume needs a run folder: python -m mow.train --resume runs/NAME")
    where, rest = typed_path(words[at + 1]), words[:at] + words[at + 2 :]
    if rest and not rest[0].startswith("-"):
        raise UsageError(f"a run goes on with its own preset, got {rest[0]!r} beside --resume: leave it out")
    if os.path.isdir(where):  # Path.is_dir raises where a name is too long or a folder above cannot be entered
        folder, found = where, checkpoints(where)
        if not found:
            raise UsageError(f"{where} has no checkpoints/step_*.pt: it stopped before the first; start it again")
        checkpoint = found[-1]
    elif where.suffix == ".pt" and os.path.isfile(where):
        folder, checkpoint = folder_of(where), where
    else:
        raise UsageError(f"{where} is no run folder: name one that mow.train wrote, or a file in its checkpoints/")
    try:
        before = read_config(folder / "config.json")
    except ValueError as error:
        raise UsageError(str(error)) from error
    now = override(before, rest)
    changes = _differences(before, now)
    if refused := _forbidden(changes):
        raise UsageError(f"a run that goes on cannot change {'; '.join(refused)}: start a new one, or change only "
                         f"{', '.join(sorted(FREE))}")
    return Resumption(folder, checkpoint, now, tuple(changes))


def _differences(before: RunConfig, now: RunConfig) -> list[str]:
    """"field: before -> now" of all fields that differ, by dotted name."""
    old, new = _flat(asdict(before)), _flat(asdict(now))
    return [f"{name}: {old[name]} -> {value}" for name, value in sorted(new.items()) if old.get(name) != value]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _forbidden(changes: Sequence[str]) -> list[str]:
    return [change for change in changes if change.partition(":")[0] not in FREE]


def read_state(resumption: Resumption) -> dict[str, Any]:
    """The checkpoint's content, all on the CPU.

    Raises: UsageError if it is damaged, of another program or of another run, naming what to go on from.
    """
    import torch

    from mow.runs.checkpoint import load_checkpoint

    path = resumption.checkpoint
    try:
        state = load_checkpoint(path, torch.device("cpu"))
    except (ValueError, OSError, RuntimeError) as error:
        others = [other for other in checkpoints(resumption.folder) if other != path]
        remedy = f"; an earlier one: {resume_command(others[-1])}" if others else ""
        raise UsageError(f"{error}{remedy}") from error
    with _fitting(path):
        before = config_of(json.loads(state["config"]))  # with the defaults of fields that are younger than the run
    # config.json may have been edited since.
    if differing := _forbidden(_differences(before, resumption.config)):
        raise UsageError(f"{path} was written with another config ({'; '.join(differing)}): put config.json back as it "
                         "was")
    return state


def go_on(trainer: "Trainer", resumption: Resumption, state: dict[str, Any]) -> list[str]:
    """Put a fresh run where the checkpoint was; only then change what is in the folder.

    What was logged after the checkpoint is cut off, newer checkpoints are moved to checkpoints/superseded, the versions
    of this process are added to versions.json.

    Returns: lines on what is different now.
    Raises: UsageError if the replay that belongs to the checkpoint is not there, or if the checkpoint does not fit the
        run; the folder is as before then.
    """
    from mow.engine.recorded import RecordedEpisodes
    from mow.engine.state import load_run_state
    from mow.runs.checkpoint import read_best

    folder = resumption.folder
    lines = [f"changed: {change}" for change in resumption.changes]
    replay = trainer.collector.replay
    if isinstance(replay, RecordedEpisodes):
        replay.check_identity(state["data"])
    with _fitting(resumption.checkpoint):
        renewed = load_run_state(trainer, state)
        if (folder / "metrics.jsonl").stat().st_size < state["log"]["bytes"]:
            lines.append("metrics.jsonl ends before this checkpoint: what was logged between is missing")
        trainer.logger.load_state_dict(state["log"])
    lines += [f"{task}: its simulator cannot be put back where it was, a new episode begins" for task in renewed]
    best = read_best(folder)
    is_ahead = best is not None and best[0] > trainer.clock
    trainer.best_score = best[1] if best is not None and not is_ahead else None
    before, now = len(state.get("rank_rng", [None])), trainer.ranks.size
    lines += [f"changed: ranks {before} -> {now}; dropout draws other masks"] if before != now else []
    if trainer.ranks.rank > 0:
        return lines
    versions, changes = resumed_versions(folder, trainer.learner.device, trainer.step)
    write_json(folder / "versions.json", versions)
    ahead = [path for path in checkpoints(folder) if step_of(path) > trainer.clock]
    ahead += [best_path(folder), best_path(folder).with_suffix(".json")] if is_ahead else []
    lines += [*_set_aside(folder, ahead), *(f"versions: {change}" for change in changes)]
    return [*lines, f"going on from {resumption.checkpoint}"]


@contextlib.contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Inside, content of a file that a run cannot take is a UsageError."""
    import torch

    try:
        yield
    except (EnvFailure, torch.OutOfMemoryError):
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, ImportError, OSError) as error:
        said = " ".join(str(error).split())[:400]
        raise UsageError(f"{path} does not fit this run ({type(error).__name__}: {said}): go on from another "
                         "checkpoint, or use the mow that wrote it") from error


def _set_aside(folder: Path, ahead: Sequence[Path]) -> list[str]:
    """Move checkpoints that are ahead of the one to go on from to checkpoints/superseded. Returns: lines to print."""
    if not ahead:
        return []
    target, number, lines = folder / "checkpoints" / "superseded", 1, []
    target.mkdir(exist_ok=True)

    def place(path: Path) -> Path:
        """step_00000032.pt, step_00000032-2.pt, ..."""
        return target / (path.name if number == 1 else f"{path.stem}-{number}{path.suffix}")

    while any(place(path).exists() for path in ahead):
        number += 1
    for path in ahead:
        lines.append(f"moved: {path} to {place(path)}, it is ahead of this one")
        path.rename(place(path))
    return [*lines, "their replay stays until the next checkpoint is written; after that they can be evaluated and "
            "exported, but not resumed"]


def stopped(trainer: "Trainer", *, broken: bool) -> tuple[str, str]:
    """Save a run that ends early. Args: broken: by a simulator. Returns: the lines about how to go on."""
    why, when = (": a simulator fails for good", " once it is mended") if broken else ("", "")
    step = f"stopped at step {trainer.step:,}{why}; checkpoint: {trainer.save()}"
    return step, f"to go on{when}: {resume_command(trainer.logger.folder)}"


def finished(trainer: "Trainer") -> str:
    """The line about a run that has ended."""
    from mow.runs.logger import duration

    curves = command("tensorboard", "--logdir", trainer.logger.folder)
    return f"done in {duration(trainer.logger.seconds)}, peak memory {process_peak() / 1e9:.1f} GB; curves: {curves}"
