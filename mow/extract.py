"""New policies from the world model of a trained run of pwm: mow extract RUN [--minutes M] [--field VALUE ...]"""

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mow.cli.parse import check_words, override
from mow.errors import UsageError
from mow.methods.pwm.config import PwmConfig
from mow.runs.failures import exit_code
from mow.runs.restore import WEIGHTS, SavedRun, find_run
from mow.system.console import program, say, tell
from mow.system.shell import typed_path
from mow.system.whole_file import write_json

if TYPE_CHECKING:
    from mow.engine.trainer import Trainer

_USAGE = """usage: mow extract RUN [--minutes M] [--data FOLDER] [--field VALUE ...]

Trains new policies on the frozen world model of RUN, a run of pwm or one of its checkpoints, from its recorded episodes
or those of FOLDER. --minutes sets --schedule.policy-updates from a timed start. Other fields are those of mow train,
like --policy.lam 0.
"""
_TIMED = 3.0  # seconds of updates that --minutes is reckoned from


@program("mow extract")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: as mow train. Mistakes of the user end with 2, in one line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in ([], ["-h"], ["--help"]):
        tell(sys.stdout, _USAGE)
        return 0 if words else 2
    return exit_code("mow extract", lambda: _command(words))


def _command(words: list[str]) -> None:
    from mow.train import run

    check_words(words)
    saved, config, minutes = read_arguments(words)
    if minutes is not None:
        config = _with_updates(config, saved, minutes)
    run(config, begin=lambda trainer: take_world_model(trainer, saved))


def read_arguments(words: list[str]) -> tuple[SavedRun, PwmConfig, float | None]:
    """The run, the config of the new one, and its minutes if they are given. Raises: UsageError in one line."""
    (saved, before), rest, minutes = find_trained(words), words[1:], None
    if "--minutes" in rest:
        at = rest.index("--minutes")
        try:
            minutes = float(rest[at + 1])
        except (IndexError, ValueError) as error:
            raise UsageError("--minutes needs a number, like --minutes 1") from error
        if not 0.0 < minutes < 1e6:
            raise UsageError(f"--minutes must be above 0, got {minutes:g}")
        del rest[at : at + 2]
    before = dataclasses.replace(before, schedule=dataclasses.replace(before.schedule, pretrain_updates=0))
    config = override(before, rest)
    for part in ("tasks", "model"):
        if getattr(config, part) != getattr(before, part):
            raise UsageError(f"the {part} of a world model cannot be changed: leave --{part} out, or train a new run")
    assert isinstance(config, PwmConfig)
    return saved, config, minutes


def find_trained(words: list[str]) -> tuple[SavedRun, PwmConfig]:
    """The run that is named first, and its config for another run on its recorded episodes. Raises: UsageError."""
    saved = find_run(typed_path(words[0]))
    if not isinstance(saved.config, PwmConfig):
        raise UsageError(f"{saved.folder} is a run of the method {saved.config.method}: name one of pwm")
    own = saved.folder / "data"
    data = saved.config.data or (str(own) if os.path.isdir(own) else "")
    if not data and not any(word.startswith("--data") for word in words):
        raise UsageError(f"{saved.folder} acted and holds no recorded episodes: add --data FOLDER of mow collect")
    return saved, dataclasses.replace(saved.config, folder="", data=data or ".", collect_episodes=0)


def take_world_model(trainer: "Trainer", saved: SavedRun) -> None:
    """Give the weights of a run's world model to a new one, whose folder keeps where they are from."""
    learner: Any = trainer.learner
    learner.world_model.load_state_dict(world_model_of(saved))
    source = {"world_model": str(saved.checkpoint), "data": trainer.config.data}  # type: ignore[attr-defined]
    write_json(Path(trainer.logger.folder) / "source.json", source)
    say(f"world model of {saved.checkpoint}")


def world_model_of(saved: SavedRun) -> Any:
    """Its weights, as WorldModel.state_dict. Raises: UsageError for an export that is damaged."""
    import torch

    from mow.runs.checkpoint import load_checkpoint
    from mow.runs.weights import part_of, read_weights

    if saved.checkpoint.name == WEIGHTS:
        try:
            return part_of(read_weights(saved.checkpoint)[0], "world model")
        except ValueError as error:
            raise UsageError(str(error)) from error
    return load_checkpoint(saved.checkpoint, torch.device("cpu"))["learner"]["world_model"]


def _with_updates(config: PwmConfig, saved: SavedRun, minutes: float) -> PwmConfig:
    """The config with as many updates of the policies as take so many minutes here."""
    from mow.engine.device import pick_device
    from mow.methods.base import TaskSet
    from mow.methods.pwm.learner import Learner
    from mow.offline.store import OfflineStore
    from mow.runs.restore import environments

    with environments(config, seed=config.seed, workers=0) as envs:
        learner = Learner(config, TaskSet.of(envs.specs), pick_device(config.device))
    learner.world_model.load_state_dict(world_model_of(saved))
    batch = OfflineStore.open(Path(config.data), config.tasks).sample(config.policy.starts, 1, counter=0, stream=0)
    learner.update("policy", batch)  # the first allocates
    started, count = time.monotonic(), 0
    while time.monotonic() - started < _TIMED or count < 2:
        float(learner.update("policy", batch)["policy/reward"].sum())  # waits for the device
        count += 1
    seconds = (time.monotonic() - started) / count
    updates = max(1, round(60.0 * minutes / seconds))
    say(f"{minutes:g} minutes: {updates:,} updates of {seconds:.3f} s")
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, policy_updates=updates))


if __name__ == "__main__":
    sys.exit(main())
