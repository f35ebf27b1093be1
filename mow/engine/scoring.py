"""The scores of a trained run: fresh environments, a table, and scores.json."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack

from mow.engine.device import num_workers
from mow.engine.evaluator import ScoringProgress, TaskEvaluation, evaluate
from mow.engine.scores import Cost, write_scores
from mow.engine.trainer import Trainer
from mow.envs.base import EnvFailure
from mow.errors import UsageError
from mow.methods.base import num_parameters
from mow.runs.paths import checkpoint_path
from mow.runs.restore import environments
from mow.runs.signals import Stopped
from mow.system.console import say
from mow.system.shell import command

# Agent steps per task: a full Atari episode may last 27,000.
_LONGEST_EVALUATION = 200_000


def score_run(trainer: Trainer, stack: ExitStack, check_stop: Callable[[], None]) -> bool:
    """Play in fresh environments, print the table and write scores.json; the run is saved already.

    Args: stack: closes the environments. check_stop: called before every step of all tasks.
    Returns: False if `check_stop` raised Stopped.
    Raises: EnvFailure if the environments cannot be made or fail for good.
    """
    config, folder = trainer.config, trainer.logger.folder
    saved, episodes = checkpoint_path(folder, trainer.clock), config.evaluation_episodes
    done = f"training is complete: {saved}\nto score it later: {command('mow', 'evaluate', folder)}"
    say(f"scoring {episodes} episodes per task")
    ranks, own = trainer.ranks, trainer.ranks.own
    progress = ScoringProgress(len(trainer.tasks[own]), episodes, say, check_stop)
    try:
        if ranks.most(not saved.exists()):  # the disk was full at the last step
            say(f"checkpoint: {trainer.save()}")
        fresh = stack.enter_context(environments(
            dataclasses.replace(config, tasks=tuple(trainer.tasks)), seed=config.seed + 1,
            workers=num_workers(config), copies=config.evaluation_copies, places=range(len(trainer.tasks))[own],
        ))  # fmt: skip
        if ranks.size > 1:
            fresh.layout = trainer.collector.envs.layout.rows([
                k for k in range(len(trainer.tasks[own])) for _ in range(config.evaluation_copies)
            ])  # fmt: skip
        results = evaluate(
            trainer.learner, fresh, episodes=episodes, max_steps=_LONGEST_EVALUATION, on_episode=progress.episode,
            check_stop=progress.step, own=own,
        )  # fmt: skip
        if ranks.size > 1:
            texts = ranks.collect("scored", json.dumps([dataclasses.asdict(result) for result in results]), check_stop)
            if ranks.rank > 0:
                return True
            results = [TaskEvaluation(**result) for text in texts for result in json.loads(text)]
    except Stopped:
        say(f"stopped while scoring ({progress.line}); {done}")
        return False
    except (UsageError, EnvFailure) as error:
        say(f"not scored; {done}")
        raise error if isinstance(error, EnvFailure) else EnvFailure(str(error)) from error
    clocks = trainer.logger.seconds, trainer.logger.cpu_seconds
    cost = Cost(num_parameters(trainer.learner), trainer.step, next(iter(trainer.counts.values())), *clocks)
    say(write_scores(folder / "scores.json", results, cost))
    return True
