"""Environments by name. Importing this, `base`, `dummy` or `vector` needs numpy alone; a suite is loaded when used."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from mow.envs.base import Env
from mow.envs.dummy import VARIANTS
from mow.envs.tiny_tasks import TASKS as _TINY_TASKS
from mow.task_sets import DMC, DMC18, MT10, MT50

# A suite is a module with `make(name, *, seed, **its options) -> Env`. Paths, so that a missing simulator hurts only
# those who use it.
SUITES: dict[str, str] = {
    "atari": "mow.envs.atari",
    "dmc": "mow.envs.dmc",
    "dummy": "mow.envs.dummy",
    "gym": "mow.envs.gymnasium_envs",
    "metaworld": "mow.envs.metaworld",
    "tiny": "mow.envs.tiny",
}

# Suites whose names are not known before they are loaded: their modules have `check(name)`.
_OPEN = ("gym",)

# The options of each suite; see the class that takes them.
OPTIONS: dict[str, tuple[str, ...]] = {
    "atari": ("protocol", "action_set", "time_limit"),
    "dmc": ("render", "dmc_repeat", "time_limit"),
    "dummy": ("fail_at", "hang_at"),
    "gym": ("render",),
    "metaworld": ("render", "metaworld_repeat", "time_limit"),
    "tiny": (),
}

# What to install where a suite does not load.
_REMEDIES: dict[str, str] = {
    "atari": "pip install gymnasium ale-py opencv-python-headless",
    "dmc": "pip install -e '.[dmc]'",
    "dummy": "pip install numpy",
    "gym": "pip install gymnasium opencv-python-headless",
    "metaworld": "pip install -e '.[metaworld]'",
    "tiny": "pip install numpy",
}

# The games of the Atari-100k benchmark. Source: SimPLe (Kaiser et al. 2020), table of games.
ATARI26: tuple[str, ...] = tuple(
    f"atari:{game}"
    for game in (
        "Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout", "ChopperCommand",
        "CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero", "Jamesbond", "Kangaroo", "Krull",
        "KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest", "UpNDown",
    )
)

# The five tasks that an agent learns in minutes.
TINY5: tuple[str, ...] = tuple(f"tiny:{name}" for name in _TINY_TASKS)

# Tasks by the name of a set, which stands for all of them on a command line.
SETS: dict[str, tuple[str, ...]] = {"atari26": ATARI26, "tiny5": TINY5, "mt10": MT10, "mt50": MT50, "dmc18": DMC18}

# The games that ale-py 0.12 registers as ALE/<Game>-v5.
_ATARI_GAMES = (
    "Adventure", "AirRaid", "Alien", "Amidar", "Assault", "Asterix", "Asteroids", "Atlantis", "Atlantis2",
    "Backgammon", "BankHeist", "BasicMath", "BattleZone", "BeamRider", "Berzerk", "Blackjack", "Bowling", "Boxing",
    "Breakout", "Carnival", "Casino", "Centipede", "ChopperCommand", "CrazyClimber", "Crossbow", "Darkchambers",
    "Defender", "DemonAttack", "DonkeyKong", "DoubleDunk", "Earthworld", "ElevatorAction", "Enduro", "Entombed", "Et",
    "FishingDerby", "FlagCapture", "Freeway", "Frogger", "Frostbite", "Galaxian", "Gopher", "Gravitar", "Hangman",
    "HauntedHouse", "Hero", "HumanCannonball", "IceHockey", "Jamesbond", "JourneyEscape", "Kaboom", "Kangaroo",
    "KeystoneKapers", "KingKong", "Klax", "Koolaid", "Krull", "KungFuMaster", "LaserGates", "LostLuggage",
    "MarioBros", "MiniatureGolf", "MontezumaRevenge", "MrDo", "MsPacman", "NameThisGame", "Othello", "Pacman",
    "Phoenix", "Pitfall", "Pitfall2", "Pong", "Pooyan", "PrivateEye", "Qbert", "Riverraid", "RoadRunner", "Robotank",
    "Seaquest", "SirLancelot", "Skiing", "Solaris", "SpaceInvaders", "SpaceWar", "StarGunner", "Superman", "Surround",
    "Tennis", "Tetris", "TicTacToe3D", "TimePilot", "Trondead", "Turmoil", "Tutankham", "UpNDown", "Venture",
    "VideoCheckers", "VideoChess", "VideoCube", "VideoPinball", "WizardOfWor", "WordZapper", "YarsRevenge", "Zaxxon",
)


def task_names() -> tuple[str, ...]:
    """All known tasks, "suite:Task", but those of gymnasium; loads no simulator."""
    games, counters = (f"atari:{game}" for game in _ATARI_GAMES), (f"dummy:{variant}" for variant in VARIANTS)
    return (*games, *DMC, *counters, *MT50, *TINY5)


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """`names` with the sets among them replaced by their tasks; a task that is named twice stays where it was first."""
    return tuple(dict.fromkeys(task for name in names for task in SETS.get(name, (name,))))


def check_task(name: str) -> None:
    """Raise ValueError, naming what is nearest, unless `name` is a known task; of "gym:..." asks gymnasium."""
    known = task_names()
    suite, _, task = name.partition(":")
    if suite in _OPEN:
        _loaded(suite, name).check(task)
    elif name not in known:
        candidates = known if ":" in name else (*known, *SETS)
        nearest = ", ".join(get_close_matches(name, candidates, n=3, cutoff=0.0))
        known_sets = f"suites: {', '.join(SUITES)}; sets: {', '.join(SETS)}"
        raise ValueError(f"unknown task {name!r} ({known_sets}): did you mean {nearest}?")


def make(name: str, *, seed: int, options: Mapping[str, object]) -> Env:
    """The environment of task `name`.

    Args:
        name: "suite:Task", one of task_names().
        seed: of everything random in it, until a reset brings another.
        options: for all suites together; each takes those that OPTIONS lists for it, so that one mapping serves a
            run with tasks of several suites.
    Raises: ValueError if the task is unknown or an option belongs to no suite; ImportError if the simulator is not
        installed.
    """
    check_task(name)
    known = sorted(option for names in OPTIONS.values() for option in names)
    for option in options:
        if option not in known:
            raise ValueError(f"unknown option {option!r}: expected some of {', '.join(known)}")
    suite, _, task = name.partition(":")
    taken = {key: options[key] for key in OPTIONS[suite] if key in options}
    env: Env = _loaded(suite, name).make(task, seed=seed, **taken)
    return env


def remedy(suite: str) -> str:
    """What to install where a suite does not load."""
    return _REMEDIES[suite]


def _loaded(suite: str, name: str) -> Any:
    """The module of a suite. Raises: ImportError, naming the task and the remedy."""
    try:
        return import_module(SUITES[suite])
    except ImportError as error:
        raise ImportError(f"task {name!r} cannot load its simulator ({error}): {_REMEDIES[suite]}") from error
