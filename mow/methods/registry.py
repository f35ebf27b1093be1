"""The methods there are. A new one is a folder and a line here."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mow.config import RunConfig
from mow.config.file import record_of
from mow.errors import nearest
from mow.methods.base import Method
from mow.system.whole_file import read_json

MODULES = {"mow": "mow.methods.mow", "pwm": "mow.methods.pwm", "bc": "mow.methods.bc"}


def get_method(name: str) -> Method:
    """Raises: ValueError for an unknown one, with the nearest name."""
    if name not in MODULES:
        raise ValueError(f"unknown method {name!r}: {nearest(name, MODULES)}")
    found: Method = importlib.import_module(MODULES[name]).METHOD
    return found


def presets() -> dict[str, Callable[[], RunConfig]]:
    """Presets of all methods, by name. Raises: ValueError if two methods have one of the same name."""
    found: dict[str, Callable[[], RunConfig]] = {}
    for name in MODULES:
        for preset, recipe in get_method(name).presets.items():
            if preset in found:
                raise ValueError(f"two methods have a preset {preset!r}: rename one")
            found[preset] = recipe
    return found


def methods_that_take(obs: str) -> str:
    """Names of the methods that learn from these observations, "frame" or "state", for a message."""
    return ", ".join(name for name in MODULES if obs in get_method(name).observations) or "none yet"


def read_config(path: Path) -> RunConfig:
    """The config that a run was started with.

    A field that the file lacks takes its default: it is younger than the run, and its default is what runs did before.
    Raises: ValueError in one line, with file, field and remedy, if the file cannot be read, or a field is unknown,
        missing without a default, or has a value that does not fit.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}: name a folder that mow.train wrote") from error
    try:
        return config_of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_of(content: Any) -> RunConfig:
    """The config in a JSON object. Raises: ValueError in one line."""
    name = content.get("method", "mow") if isinstance(content, dict) else "mow"
    config: RunConfig = record_of(get_method(str(name)).config, content)
    return config
