"""What configs ask of their fields; each failure is one line that names field, bound and value."""


def require(ok: bool, message: str) -> None:
    """Raises: ValueError with the message unless ok."""
    if not ok:
        raise ValueError(message)


def positive(config: object, *names: str) -> None:
    """The named fields are above 0. Raises: ValueError."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be above 0, got {value}")


def not_negative(config: object, *names: str) -> None:
    """The named fields are 0 or more. Raises: ValueError."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{name} must be 0 or more, got {value}")


def fraction(config: object, *names: str) -> None:
    """The named fields lie in [0, 1]. Raises: ValueError."""
    for name in names:
        value = getattr(config, name)
        require(0.0 <= value <= 1.0, f"{name} must lie in [0, 1], got {value}")
