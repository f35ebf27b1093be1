"""Settings of a run: frozen dataclasses, one per component, each checked where it is made."""

from mow.config.run import RUNTIME_FIELDS, EnvConfig, ReplayConfig, RunConfig

__all__ = ["RUNTIME_FIELDS", "EnvConfig", "ReplayConfig", "RunConfig"]
