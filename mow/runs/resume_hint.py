"""The command that goes on with a run, as it is printed where one ends early."""

from pathlib import Path

from mow.runs.paths import checkpoints
from mow.system.shell import command


def resume_command(where: Path) -> str:
    """Command that goes on from a run folder or a checkpoint."""
    return command("python", "-m", "mow.train", "--resume", where)


def resume_hint(folder: Path) -> str:
    """Sentence on how to go on with a run that broke."""
    found = checkpoints(folder)
    return f"{resume_command(folder)} goes on from {found[-1]}" if found else "no checkpoint was saved"
