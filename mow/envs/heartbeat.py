"""Signs of progress within one long call of a simulator, from which the time limit of a worker counts anew."""

from collections.abc import Callable
from contextvars import ContextVar

ON_BEAT: ContextVar[Callable[[], None] | None] = ContextVar("ON_BEAT", default=None)


def beat() -> None:
    """To be called at each step of a long `load_state_dict`; does nothing where no time is limited."""
    if on_beat := ON_BEAT.get():
        on_beat()
