"""Going on with a run: which checkpoint, and with which flags changed."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow.cli.parse import override
from mow.config import RUNTIME_FIELDS, RunConfig
from mow.envs.base import EnvFailure
from mow.errors import UsageError
from mow.methods.registry import config_of, read_config
from mow.runs.paths import best_path, best_score_path, checkpoints, folder_of, step_of, superseded_folder
from mow.runs.provenance import resumed_versions
from mow.runs.resume_hint import resume_command
from mow.system.shell import typed_path
from mow.system.whole_file import write_json

if TYPE_CHECKING:
    from mow.engine.trainer import Trainer

# What may differ from the run so far.
FREE = RUNTIME_FIELDS | {"evaluation_episodes", "evaluation_copies"}


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
    where = typed_path(words[at + 1])
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
    is_folder = os.path.isdir(where)
    if where.suffix == ".pt" and not is_folder:
        if not os.path.isfile(where):
            raise UsageError(f"{where} does not exist: name a run folder, or a file in its checkpoints/")
        return folder_of(where), where
    if not is_folder:
        raise UsageError(f"{where} is no run folder: name one that mow.train wrote")
    found = checkpoints(where)
    if not found:
        raise UsageError(f"{where} has no checkpoints/step_*.pt: it stopped before the first; start it again")
    return where, found[-1]


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """"field: before -> now" of all fields that differ, by dotted name."""
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}: {old} -> {new}"


def _plain(config: RunConfig) -> dict[str, Any]:
    """As config.json has it, where tuples are lists."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _forbidden(changes: Iterable[str]) -> list[str]:
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
    try:
        before = config_of(json.loads(state["config"]))  # with the defaults of fields that are younger than the run
    except (KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is no checkpoint of mow.train (no config in it): go on from another one") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    # config.json may have been edited since.
    if differing := _forbidden(_differences(_plain(before), _plain(resumption.config))):
        raise UsageError(f"{path} was written with another config ({'; '.join(differing)}): put config.json back as it "
                         "was")
    return state


def go_on(session: "Trainer", resumption: Resumption, state: dict[str, Any]) -> list[str]:
    """Put a fresh run where the checkpoint was; only then change what is in the folder.

    What was logged after the checkpoint is cut off, newer checkpoints are moved to checkpoints/superseded, the versions
    of this process are added to versions.json.

    Returns: lines on what is different now.
    Raises: UsageError if the replay that belongs to the checkpoint is not there, or if the checkpoint does not fit the
        run; the folder is as before then.
    """
    from mow.engine.state import load_run_state

    folder = resumption.folder
    lines = [f"changed: {change}" for change in resumption.changes]
    _load_replay(session, folder, state)
    with _fitting(resumption.checkpoint):
        renewed = load_run_state(session, state)
    lines += [f"{task}: its simulator cannot be put back where it was, a new episode begins" for task in renewed]
    best, remarks = _best(folder)
    kept = best is None or best[0] <= session.step
    session.best_score = best[1] if best is not None and kept else None
    try:
        versions, changes = resumed_versions(folder, session.learner.device, session.step)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with _fitting(resumption.checkpoint):
        if (folder / "metrics.jsonl").stat().st_size < state["log"]["bytes"]:
            lines.append("metrics.jsonl ends before this checkpoint: what was logged between is missing")
        session.logger.load_state_dict(state["log"])
    if "specs" not in state:
        lines.append("this checkpoint is of an earlier version: whether its tasks have changed is not known, and "
                     "TensorBoard shows twice what is logged again")
    write_json(folder / "versions.json", versions)
    ahead = [path for path in checkpoints(folder) if step_of(path) > session.step]
    ahead += [] if kept else [path for path in (best_path(folder), best_score_path(folder)) if path.exists()]
    lines += [*remarks, *_set_aside(folder, ahead), *(f"versions: {change}" for change in changes)]
    return [*lines, f"going on from {resumption.checkpoint}"]


def _load_replay(session: "Trainer", folder: Path, state: dict[str, Any]) -> None:
    """Load the replay as of the checkpoint. Raises: UsageError if it is missing or damaged."""
    from mow.replay import load

    if not isinstance(state.get("step"), int):
        raise UsageError("the checkpoint is not one of mow.train (it holds no step): go on from another one")
    try:
        load(folder / "replay", session.collector.replay, num_steps=state["step"])
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}): put it back as it was") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder / 'replay'} is no replay of mow.train ({type(error).__name__} in a manifest): put "
                         "it back as it was") from error


@contextlib.contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Inside, content of a checkpoint that a run cannot take is a UsageError."""
    import torch

    try:
        yield
    except (EnvFailure, torch.OutOfMemoryError):
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} does not fit this run ({type(error).__name__}: {said}): go on from another "
                         "checkpoint, or use the mow that wrote it") from error


def _best(folder: Path) -> tuple[tuple[int, float | None] | None, list[str]]:
    """Step and score of the best checkpoint, None if there is none that can be read; and a line if it cannot."""
    from mow.runs.checkpoint import read_best

    try:
        return read_best(folder), []
    except (ValueError, OSError, RuntimeError) as error:
        return None, [f"the next checkpoint takes its place: {error}"]


def _set_aside(folder: Path, ahead: Sequence[Path]) -> list[str]:
    """Move checkpoints that are ahead of the one to go on from to checkpoints/superseded. Returns: lines to print."""
    if not ahead:
        return []
    target = superseded_folder(folder)
    target.mkdir(exist_ok=True)
    number = 1
    while any((target / _numbered(path, number)).exists() for path in ahead):
        number += 1
    lines = []
    for path in ahead:
        path.rename(target / _numbered(path, number))
        if path.suffix == ".pt":
            lines.append(f"moved: {path} to {target / _numbered(path, number)}, it is ahead of this one")
    return [*lines, "their replay stays until the next checkpoint is written; after that they can be evaluated and "
            "exported, but not resumed"]


def _numbered(path: Path, number: int) -> str:
    """step_00000032.pt, step_00000032-2.pt, ..."""
    return path.name if number == 1 else f"{path.stem}-{number}{path.suffix}"
