"""Mirror of metrics.jsonl in Weights & Biases; nothing is sent unless WANDB_MODE is online."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mow.errors import UsageError


def wandb_package() -> Any:
    """The module wandb. Raises: UsageError if it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UsageError(f'--wandb needs Weights & Biases ({error}): pip install -e ".[wandb]"') from error


class WandbMirror:
    """One run of Weights & Biases, in `folder`/wandb; a run that goes on adds to the same one."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = wandb_package()
        self._goes_on, self._skip = (folder / "wandb").exists(), 0
        mode = "online" if os.environ.get("WANDB_MODE") == "online" else "offline"
        self._run = wandb.init(
            project="mow", name=folder.name, id=folder.name, dir=str(folder), config=dict(config),
            mode=mode, resume="allow", settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self.notice = f"wandb: {mode}, in {folder / 'wandb'}" + (
            "; `wandb sync` of its folders uploads them" if mode == "offline" else ""
        )

    def skip(self, num_lines: int) -> None:
        """Leave out so many lines, where the run was mirrored before: a resumed run writes them again."""
        self._skip = num_lines if self._goes_on else 0

    def write(self, record: Mapping[str, object]) -> None:
        """A line of metrics.jsonl: numbers become curves over environment steps; of an episode, one curve per task."""
        if self._skip > 0:
            self._skip -= 1
            return
        prefix = f"{record['task']}/" if "task" in record else ""
        numbers = {f"{prefix}{name}": value for name, value in record.items() if isinstance(value, int | float)}
        self._run.log({**numbers, "step": record["step"]})

    def close(self) -> None:
        self._run.finish()
