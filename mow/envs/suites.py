"""One record per suite: its tasks, options, needs, protocol and reference returns. Loads no simulator."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from mow.envs.task_sets import ATARI, DMC, MT50, TINY7, VEC4

PUBLISHED_STEPS = 100_000  # environment steps per game, 400,000 frames

# Per game, from atari100k_scores.csv beside this file: `random` and `human`, the standard table of Mnih et al. (2015),
# and the mean return over 5 seeds of each method after PUBLISHED_STEPS, from the result files that its authors publish,
# each with one model per game. Columns:
#     storm           STORM, arXiv 2310.09615            diamond   DIAMOND, arXiv 2405.12399
#     storm_rerun     STORM, run again for OC-STORM      simulus   Simulus, arXiv 2502.11537
#     dreamerv3_2023  DreamerV3, arXiv 2301.04104 v1     twm       TWM, arXiv 2303.07109
#     iris            IRIS, arXiv 2209.00588             oc_storm  OC-STORM, arXiv 2501.16443
_SCORES = resources.files("mow.envs").joinpath("atari100k_scores.csv").read_text(encoding="utf-8").splitlines()
ATARI100K: dict[str, dict[str, float]] = {
    f"atari:{row.pop('game')}": {name: float(value) for name, value in row.items()} for row in csv.DictReader(_SCORES)
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Episodes of a suite in words. A value in brackets is changed by the flag or option named with it."""

    actions: str
    action_repeat: str = "1"
    starts: str = "another seed per episode"
    sticky: str = "none"
    life_loss: str = "-"
    horizon: str  # a limit truncates, whatever the suite
    reward: str
    success: str = "-"
    source: str


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite, whose module has `make(task, *, seed, **options) -> Env`.

    One without tasks is open: its module also has `check(task)`, which raises ValueError for an unknown task.
    """

    name: str
    module: str
    tasks: tuple[str, ...]  # "suite:Task"
    options: tuple[str, ...] = ()  # keyword arguments of `make`; "obs" where there are two kinds of observations
    observations: tuple[str, ...] = ("frame",)  # the kinds that there are: "frame", "state"
    needs: tuple[str, ...] = ("numpy",)  # modules
    remedy: str = "pip install numpy"  # command that installs them
    protocol: Protocol
    references: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # task -> (random, expert or human)


SUITES: dict[str, Suite] = {suite.name: suite for suite in (
    Suite(
        name="atari",
        module="mow.envs.atari",
        tasks=ATARI,
        options=("protocol", "action_set", "time_limit"),
        needs=("gymnasium", "ale_py", "cv2"),
        remedy="pip install gymnasium ale-py opencv-python-headless",
        protocol=Protocol(
            actions="18 discrete, those without use in a game masked (`--env.action-set full`: all)",
            action_repeat="4 frames, maximum of the last 2",
            starts="1 to 30 no-ops, another seed per episode (`--env.protocol storm`: no no-ops, always the same seed)",
            sticky="none (`--env.protocol storm`: 0.25 per frame)",
            life_loss="marks a termination in replay, the episode goes on",
            horizon="27,000 steps = 108,000 frames (option time_limit)",
            reward="as the game's score, not clipped",
            source="SimPLe (Kaiser et al. 2020); storm: STORM (Zhang et al. 2023), released code",
        ),
        references={task: (row["random"], row["human"]) for task, row in ATARI100K.items()},
    ),
    Suite(
        name="dmc",
        module="mow.envs.dmc",
        tasks=DMC,
        options=("obs", "render", "dmc_repeat", "time_limit"),
        observations=("frame", "state"),
        needs=("dm_control", "mujoco"),
        remedy="pip install -e '.[dmc]'",
        protocol=Protocol(
            actions="continuous, [-1, 1] each",
            action_repeat="2 (`--env.dmc-repeat`)",
            horizon="1,000 steps of the simulator = 500 steps (option time_limit)",
            reward="0 to 1 per step of the simulator, summed over the repeat",
            source="Tunyasuvunakool et al. 2020; repeat and cameras of DreamerV3 (Hafner et al. 2023)",
        ),
    ),
    Suite(
        name="dummy",
        module="mow.envs.dummy",
        tasks=(*(f"dummy:count-{variant}" for variant in range(8)), "dummy:count", "dummy:slide"),
        options=("fail_at", "hang_at"),
        protocol=Protocol(
            actions="3 to 5 discrete, some masked; slide: 2 continuous",
            life_loss="even variants, at step 4; marks a termination in replay",
            horizon="7 to 13 steps, drawn; odd variants end by it",
            reward="1 for the right action, else 0",
            success="slide: the action was right",
            source="for tests of this package",
        ),
    ),
    Suite(
        name="gym",
        module="mow.envs.gymnasium_envs",
        tasks=(),
        options=("obs", "render"),
        observations=("frame", "state"),
        needs=("gymnasium", "cv2"),
        remedy="pip install gymnasium opencv-python-headless",
        protocol=Protocol(
            actions="Discrete, or a bounded Box scaled from [-1, 1]",
            sticky="as registered (ALE/...-v5: 0.25)",
            horizon="as registered (CartPole-v1: 500 steps)",
            reward="as registered",
            success="info['success'] or info['is_success'] where there is one",
            source="the registration; the picture is what render draws, MuJoCo's from the camera that follows the body",
        ),
    ),
    Suite(
        name="metaworld",
        module="mow.envs.metaworld",
        tasks=MT50,
        options=("obs", "render", "metaworld_repeat", "time_limit"),
        observations=("frame", "state"),
        needs=("metaworld", "mujoco"),
        remedy="pip install -e '.[metaworld]'",
        protocol=Protocol(
            actions="4 continuous: hand x, y, z and fingers",
            action_repeat="1 (`--env.metaworld-repeat`)",
            starts="goal and objects placed anew, another seed per episode",
            horizon="500 steps of the simulator (option time_limit)",
            reward="Meta-World's version 2, 0 to 10 per step of the simulator, summed over the repeat",
            success="at any step",
            source="Yu et al. 2020; camera and rule of success of TD-MPC2 (Hansen et al. 2024); the arm is drawn with "
            "a third of its faces (`--env.render full`: all)",
        ),
    ),
    Suite(
        name="tiny",
        module="mow.envs.tiny",
        tasks=TINY7,
        protocol=Protocol(
            actions="2 to 5 discrete; slide: 1 continuous",
            horizon="7 (catch) to 100 (pole) steps",
            reward="of the order of 1 per event, see `python -m mow.envs.tiny`",
            success="goal: it is reached",
            source="of this package",
        ),
        # Means over 1,000 episodes of uniformly random actions and of the scripted expert; `python -m mow.envs.tiny`
        # measures them again.
        references={
            "tiny:catch": (-0.778, 1.0),
            "tiny:goal": (-0.101, 0.919),
            "tiny:dodge": (1.199, 4.0),
            "tiny:pole": (0.948, 10.0),
            "tiny:slide": (3.359, 13.759),
            "tiny:bounce": (-2.968, 3.78),
            "tiny:chase": (0.543, 3.886),
        },
    ),
    Suite(
        name="vec",
        module="mow.envs.vec",
        tasks=VEC4,
        observations=("state",),
        protocol=Protocol(
            actions="1 or 2 continuous",
            horizon="50 (button, reach), 100 (lq) or 200 (pendulum) steps",
            reward="of the order of 1 per step, see `python -m mow.envs.vec`",
            success="reach: within 0.05 of the goal",
            source="of this package; pendulum: gymnasium, Pendulum-v1, with a reward of 0 to 1",
        ),
        # As those of tiny; `python -m mow.envs.vec` measures them again.
        references={
            "vec:lq": (1.115, 97.131),
            "vec:button": (13.235, 45.054),
            "vec:reach": (-2.248, 44.806),
            "vec:pendulum": (63.352, 184.763),
        },
    ),
)}  # fmt: skip


def reference_returns(task: str) -> tuple[float, float] | None:
    """Mean returns of a random policy and of an expert or a human, in units of the task; None if not measured."""
    suite = SUITES.get(task.partition(":")[0])
    return None if suite is None else suite.references.get(task)


def normalised_return(task: str, value: float) -> float | None:
    """(return - random) / (reference - random): 0 for random, 1 for the reference; None where there is none."""
    known = reference_returns(task)
    return None if known is None else (value - known[0]) / (known[1] - known[0])


def published_returns(task: str) -> dict[str, float] | None:
    """Method -> published return of an Atari-100k game, in units of the game; None for any other task."""
    row = ATARI100K.get(task)
    aside = ("minimal_actions", "random", "human")
    return None if row is None else {name: value for name, value in row.items() if name not in aside}
