"""Published results on the 26 games of Atari-100k, each with one model per game.

Source: atari100k_scores.csv beside this file holds, per game, the mean return over 5 seeds after 100,000 environment
steps (400,000 frames), from the result files that the authors of each method publish. Its columns:

    storm           STORM, arXiv 2310.09615            diamond   DIAMOND, arXiv 2405.12399
    storm_rerun     STORM, run again for OC-STORM      simulus   Simulus, arXiv 2502.11537
    dreamerv3_2023  DreamerV3, arXiv 2301.04104 v1     twm       TWM, arXiv 2303.07109
    iris            IRIS, arXiv 2209.00588             oc_storm  OC-STORM, arXiv 2501.16443

`random` and `human` are those of mow.envs.references; `minimal_actions` counts the actions that do something.
"""

import csv
from functools import cache
from importlib import resources

PUBLISHED_STEPS = 100_000  # environment steps per game
_ASIDE = ("game", "minimal_actions", "random", "human")


@cache
def _rows() -> dict[str, dict[str, str]]:
    text = resources.files("mow.envs").joinpath("atari100k_scores.csv").read_text(encoding="utf-8")
    return {row["game"]: row for row in csv.DictReader(text.splitlines())}


def published_returns(task: str) -> dict[str, float] | None:
    """Method -> return of a task by name, units of the game; None where there is nothing to compare with."""
    suite, _, game = task.partition(":")
    row = _rows().get(game) if suite == "atari" else None
    return None if row is None else {name: float(value) for name, value in row.items() if name not in _ASIDE}
