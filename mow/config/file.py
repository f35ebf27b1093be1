"""A dataclass from JSON, checked field by field."""

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints


def record_of(kind: Any, content: object) -> Any:
    """The dataclass `kind` from a JSON object. Raises: ValueError in one line, with field and remedy."""
    return _record(kind, content, "")


def _record(kind: Any, content: object, place: str) -> Any:
    """The dataclass `kind` from a JSON object; `place` is its own dotted name, empty at the top."""
    if not isinstance(content, dict):
        raise ValueError(f"{place or 'the file'} must be an object with named fields, got {content!r}: write {{...}}")
    kinds, prefix = get_type_hints(kind), f"{place}." if place else ""
    for name in content:
        if name not in kinds:
            raise ValueError(
                f"unknown field {prefix}{name}: delete it, or use the mow that wrote it (versions.json has its commit)"
            )
    for field in dataclasses.fields(kind):
        without_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if without_default and field.name not in content:
            raise ValueError(f"field {prefix}{field.name} is missing and has no default: write it")
    values = {name: _value(kinds[name], value, f"{prefix}{name}") for name, value in content.items()}
    try:
        return kind(**values)
    except ValueError as error:  # two fields that do not go together, or a number out of range
        raise ValueError(f"{place}: {error}" if place else str(error)) from error


def _value(kind: Any, value: object, place: str) -> Any:
    """A JSON value as the type that a field is annotated with: lists become tuples, whole numbers floats."""
    inner = get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, place)
    if get_origin(kind) is Literal:
        if value not in inner:
            raise ValueError(f"{place} must be one of {', '.join(map(str, inner))}, got {value!r}: write one of them")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{place} must be a list, got {value!r}: write [...]")
        return tuple(_value(inner[0], v, f"{place}[{i}]") for i, v in enumerate(value))
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{place} is too large for a number with a fraction: write a smaller one") from error
    if type(value) is not kind:  # exactly: a bool is no int here
        raise ValueError(f"{place} must be of type {kind.__name__}, got {value!r}: write one")
    return value
