"""Train one agent on many tasks: python -m mow.train [PRESET] [--field VALUE ...]

Nothing heavy is imported before the command line is understood, so that a mistake ends at once.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mow.cli.dry_run import dry_run
from mow.cli.live import watched
from mow.cli.parse import check_words, parse
from mow.cli.resume import Resumption, find_resumption, go_on, read_state
from mow.config import RunConfig
from mow.engine.device import num_workers, pick_device, process_peak
from mow.envs.base import EnvFailure
from mow.runs.disk import explain_disk_errors
from mow.runs.failures import exit_code, failure_kept
from mow.runs.paths import resume_command
from mow.runs.restore import check_specs, environments
from mow.system.console import log_to_console, program, say
from mow.system.shell import command

if TYPE_CHECKING:
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
    elif "--resume" in words:
        resumption = find_resumption(words)
        run(resumption.config, resumption)
    else:
        run(parse(words))


def run(
    config: RunConfig, resumption: Resumption | None = None, begin: Callable[["Trainer"], None] = lambda trainer: None
) -> "Trainer | None":
    """Make environments, replay, learner and logger, train, score and report.

    Args: resumption: where to go on; None starts from nothing. begin: called once with a new run before it trains.
    Returns: the trainer as it is in the end; None if the run was stopped.
    Raises: UsageError if the machine cannot run it. The traceback of any other error is in failure.txt of the folder.
    """
    import torch

    from mow.engine.assemble import assemble, free_folder
    from mow.engine.scoring import score_run
    from mow.estimate.memory import explain_out_of_memory
    from mow.runs.logger import duration
    from mow.runs.signals import Stopped, StopSwitch
    from mow.runs.wandb import wandb_package

    device = pick_device(config.device)
    if config.wandb:
        wandb_package()  # missing, it is an error before a folder is made
    folder = resumption.folder if resumption else free_folder(config)
    torch.manual_seed(config.seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_to_console())
        stack.enter_context(failure_kept(folder))
        stack.enter_context(explain_disk_errors(folder))
        stack.enter_context(explain_out_of_memory(folder, device))
        state = read_state(resumption) if resumption else None
        envs = stack.enter_context(environments(
            config, seed=config.seed, workers=num_workers(config), final_frames=config.final_frames
        ))  # fmt: skip
        switch = stack.enter_context(StopSwitch())
        if resumption and state is not None:
            check_specs(resumption.checkpoint, state, envs.specs)
        trainer = assemble(config, device, envs, folder, stack, switch.check, is_new=state is None)
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
            broken = isinstance(end, EnvFailure)
            why, when = (": a simulator fails for good", " once it is mended") if broken else ("", "")
            say(f"stopped at step {trainer.step:,}{why}; checkpoint: {trainer.save()}")
            say(f"to go on{when}: {resume_command(folder)}")
            if broken:
                raise
            return None
        if config.evaluation_episodes and not score_run(trainer, stack, switch.check):
            return None
        elapsed, peak = duration(trainer.logger.seconds), process_peak()
    say(f"done in {elapsed}, peak memory {peak / 1e9:.1f} GB; curves: {command('tensorboard', '--logdir', folder)}")
    if config.report:
        from mow.report.__main__ import report_of_a_finished_run

        say(report_of_a_finished_run(folder, str(device)))
    return trainer


if __name__ == "__main__":
    sys.exit(main())
