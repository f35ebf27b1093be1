"""A smaller world model that learns from a trained one of pwm: mow distill RUN --model.size SIZE [--field VALUE ...]"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mow.cli.parse import check_words, override
from mow.extract import find_trained, world_model_of
from mow.methods.pwm.config import DistillConfig
from mow.runs.failures import exit_code
from mow.system.console import program, tell

if TYPE_CHECKING:
    from mow.engine.trainer import Trainer

_USAGE = """usage: mow distill RUN --model.size SIZE [--distill.alpha 0.4] [--data FOLDER] [--field VALUE ...]

Trains a world model of another size on the recorded episodes of RUN, a run of pwm, or on those of FOLDER: on its own
losses and, by alpha, toward the rewards that the world model of RUN predicts; then policies on it. Other fields are
those of mow train.
"""
ALPHA = 0.4  # the best of those that TD-MPC-Opt (arXiv 2507.01823) compares


@program("mow distill")
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: as mow train. Mistakes of the user end with 2, in one line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in ([], ["-h"], ["--help"]):
        tell(sys.stdout, _USAGE)
        return 0 if words else 2
    return exit_code("mow distill", lambda: _command(words))


def _command(words: list[str]) -> None:
    from mow.train import run

    check_words(words)
    saved, before = find_trained(words)
    distill = DistillConfig(alpha=ALPHA, run=str(saved.checkpoint), teacher=before.model)
    config = override(dataclasses.replace(before, distill=distill), words[1:])

    def give_teacher(trainer: "Trainer") -> None:
        learner: Any = trainer.learner
        if learner.teacher is not None:  # alpha 0
            learner.teacher.load_state_dict(world_model_of(saved))

    run(config, begin=give_teacher)


if __name__ == "__main__":
    sys.exit(main())
