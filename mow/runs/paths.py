"""The names of the files in a run folder, and the command that goes on with a run; nothing is opened here."""

import re
from pathlib import Path

from mow.system.shell import command

_CHECKPOINT = re.compile(r"step_(\d+)\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Path of the checkpoint of a step."""
    return folder / "checkpoints" / f"step_{step:08d}.pt"


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of the run in `folder`, oldest first; files with other names are left out."""
    found = (path for path in (folder / "checkpoints").glob("step_*.pt") if _CHECKPOINT.fullmatch(path.name))
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step of one of `checkpoints`."""
    return int(path.stem.removeprefix("step_"))


def best_path(folder: Path) -> Path:
    """Path of the best checkpoint of the run in `folder`; its score is in best.json beside it."""
    return folder / "checkpoints" / "best.pt"


def is_checkpoint(path: Path) -> bool:
    """True for the path of a checkpoint in a run folder, superseded ones included."""
    inside = path.parent.parent if path.parent.name == "superseded" else path.parent
    return path.suffix == ".pt" and inside.name == "checkpoints"


def folder_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in."""
    folder = checkpoint.parent.parent
    return folder.parent if checkpoint.parent.name == "superseded" else folder


def resume_command(where: Path) -> str:
    """Command that goes on from a run folder or a checkpoint."""
    return command("python", "-m", "mow.train", "--resume", where)


def resume_hint(folder: Path) -> str:
    """Sentence on how to go on with a run that broke."""
    found = checkpoints(folder)
    return f"{resume_command(folder)} goes on from {found[-1]}" if found else "no checkpoint was saved"
