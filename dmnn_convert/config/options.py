"""Options in groups: their declaration, and the checks of their values."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import ArgumentError
from ..text import shown

UNSET = "none"
"""The word that unsets an option, in a command or a file."""


def option(default: Any, text: str, **checks: Any) -> Any:
    """Declare a field with the help text and the checks (choices, above, least, most) of it.

    For a list, the checks hold for each of its values.
    """
    return field(default=default, metadata={"help": text, **checks})


@dataclass(frozen=True)
class Options:
    """A group of options, each declared by `option`; a class of several groups inherits from them.

    A group that checks several of its options together does so in `__post_init__`, after this
    class's.

    Raises:
        ArgumentError: for a value of another kind or out of range.
    """

    def __post_init__(self) -> None:
        for entry in fields(self):
            call = f"{type(self).__name__}({entry.name}="
            value = checked(call, getattr(self, entry.name), str(entry.type), entry.metadata)
            object.__setattr__(self, entry.name, value)

    def call(self, *names: str) -> str:
        """Return the call that set these options, for an error: "Recipe(lr=0.1)"."""
        given = {name: getattr(self, name) for name in names}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in plain.items())})"


def kind_of(annotation: str) -> str:
    """Return "str", "int", "float", "bool" or "tuple" for a field's annotation."""
    return annotation.partition("[")[0].removesuffix(" | None")


def kind_inside(annotation: str) -> str:
    """Return the kind of the values of a list, or of the value itself."""
    inner = annotation.partition("[")[2].partition(",")[0]
    return inner or kind_of(annotation)


def may_be_none(annotation: str) -> bool:
    """Return whether a field may be unset; a list is then empty."""
    return annotation.endswith("| None") or kind_of(annotation) == "tuple"


def checked(begun: str, value: Any, annotation: str, checks: Mapping[str, Any]) -> Any:
    """Return a value as a group keeps it: lists as tuples, "none" as None or ().

    YAML reads 1e-4 as text, so text that is a number is accepted as a number.

    Args:
        begun: the beginning of the call that errors name: "Recipe(lr=".
        value: the given value.
        annotation: of the field.
        checks: its metadata.

    Raises:
        ArgumentError: for a value of another kind or out of range.
    """
    kind, call = kind_inside(annotation), f"{begun}{shown(value)})"
    if kind_of(annotation) != "tuple":
        if may_be_none(annotation) and value in (None, UNSET):
            return None
        return _checked(value, kind, checks, call, _ONE[kind])
    due = f"a list of {_MANY[kind]}"
    if value is None or value == UNSET:
        return ()
    if not isinstance(value, list | tuple):
        raise ArgumentError(f"{call}: give {due}.")
    if UNSET in value:
        if len(value) > 1:
            raise ArgumentError(f"{call}: {UNSET} must be alone; give it, or values.")
        return ()
    return tuple(_checked(each, kind, checks, call, due) for each in value)


_ONE = {"str": "a string", "int": "an int", "float": "a number", "bool": "true or false"}


_MANY = {"str": "strings", "int": "ints", "float": "numbers"}


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


_BOUNDS: tuple[tuple[str, str, Callable[[Any, Any], Any]], ...] = (
    ("above", "above", operator.gt),
    ("least", "at least", operator.ge),
    ("below", "below", operator.lt),
    ("most", "at most", operator.le),
)


def _checked(value: Any, kind: str, checks: Mapping[str, Any], call: str, due: str) -> Any:
    if kind == "float":
        value = _number(value)
    fits = isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
    if fits and kind == "float":
        fits = abs(value) <= sys.float_info.max  # no infinity, NaN, or whole number beyond these
    if kind == "str" and fits:
        fits = "\0" not in value  # no path or name contains it
    if not fits:
        raise ArgumentError(f"{call}: give {due}.")
    choices = checks.get("choices")
    if choices and value not in choices:
        raise ArgumentError(f"{call}: choose one of {', '.join(choices)}.")
    given = [(words, checks[key], test) for key, words, test in _BOUNDS if key in checks]
    if not all(test(value, bound) for _, bound, test in given):
        allowed = " and ".join(f"{words} {bound}" for words, bound, _ in given)
        raise ArgumentError(f"{call}: give {due.replace(_ONE['int'], _ONE['float'])} {allowed}.")
    return value


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
