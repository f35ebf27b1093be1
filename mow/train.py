"""Train one agent on many tasks: python -m mow.train [PRESET] [--field VALUE ...]

Nothing heavy is imported before the command line is understood, so that a mistake ends at once.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mow.cli.dry_run import dry_run
from mow.cli.live import watched
from mow.cli.parse import check_words, parse
from mow.cli.ranks import run_on_ranks
from mow.cli.resume import Resumption, find_resumption, finished, go_on, read_state, stopped
from mow.config import RunConfig
from mow.engine.device import num_workers, pick_device
from mow.envs.base import EnvFailure
from mow.runs.disk import explain_disk_errors
from mow.runs.failures import exit_code, failure_kept
from mow.runs.restore import check_specs, environments
from mow.system.console import log_to_console, program, say
from mow.system.ranks import size

if TYPE_CHECKING:
    from mow.engine.parallel import Ranks
    from mow.engine.trainer import Trainer


@program("mow.train")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or stopped in order, 1 numbers, disk, a simulator or mow itself broke, 130 killed.

    Raises: SystemExit(2) if the run cannot start, after one line with the reason.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    code = exit_code("mow.train", lambda: _command(words))
    if code == 2:
        raise SystemExit(2)
    return code


def _command(words: list[str]) -> None:
    check_words(words)
    if "--dry-run" in words:
        dry_run(words)
        return
    resumption = find_resumption(words) if "--resume" in words else None
    config = resumption.config if resumption else parse(words)
    run_on_ranks(config, resumption, run) if size() > 1 else run(config, resumption)


def run(
    config: RunConfig, resumption: Resumption | None = None, begin: Callable[["Trainer"], None] = lambda trainer: None,
    ranks: "Ranks | None" = None,
) -> "Trainer | None":  # fmt: skip
    """Make environments, replay, learner and logger, train, score and report.

    Args: resumption: where to go on. begin: called once with a new run before it trains. ranks: of several processes.
    Returns: the trainer as it is in the end; None if the run was stopped.
    Raises: UsageError if the machine cannot run it. The traceback of any other error is in failure.txt of the folder.
    """
    import torch

    from mow.engine.assemble import all_specs, assemble, free_folder
    from mow.engine.scoring import score_run
    from mow.estimate.memory import explain_out_of_memory
    from mow.runs.signals import Stopped, StopSwitch
    from mow.runs.wandb import wandb_package

    device = pick_device(config.device)
    if config.wandb:
        wandb_package()  # missing, it is an error before a folder is made
    folder = resumption.folder if resumption else Path(config.folder) if ranks else free_folder(config)
    torch.manual_seed(config.seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_to_console())
        stack.enter_context(failure_kept(folder))
        stack.enter_context(explain_disk_errors(folder))
        stack.enter_context(explain_out_of_memory(folder, device))
        state = read_state(resumption) if resumption else None
        envs = stack.enter_context(environments(
            config, seed=config.seed, workers=num_workers(config), final_frames=config.final_frames,
            places=range(len(config.tasks))[ranks.own] if ranks else None,
        ))  # fmt: skip
        switch = stack.enter_context(StopSwitch())
        check_stop = partial(ranks.check_stop, switch) if ranks else switch.check
        if resumption and state is not None:
            check_specs(resumption.checkpoint, state, all_specs(envs, ranks))
        trainer = assemble(config, device, envs, folder, stack, check_stop, is_new=state is None, ranks=ranks)
        if resumption and state is not None:
            for line in go_on(trainer, resumption, state):
                say(line)
            state = None  # as large as the model and its optimisers
        else:
            begin(trainer)
        try:
            with watched(trainer):
                trainer.train()
        except (Stopped, EnvFailure) as end:
            for line in stopped(trainer, broken=isinstance(end, EnvFailure)):
                say(line)
            if isinstance(end, EnvFailure):
                raise
            return None
        if config.evaluation_episodes and not score_run(trainer, stack, switch.check):
            return None
        last = finished(trainer)
    say(last)
    if config.report and (ranks is None or ranks.rank == 0):
        from mow.report.__main__ import report_of_a_finished_run

        say(report_of_a_finished_run(folder, str(device)))
    return trainer


if __name__ == "__main__":
    sys.exit(main())
