"""Plain values that a forward reads outside its own module's attributes.

Numbers, flags and words may be in dicts, lists and config objects that a module holds, on classes,
and in globals. A trace sees them once. Setting one raises no alarm, so a new forward checks in each
call that the values mentioned in its code are unchanged.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import ConversionError
from .attributes import is_plain_value, mentioned, methods, names_in, own_value
from .side_effects import is_library_name

_DEPTH = 3
"""Depth to which config objects within each other are looked into."""
_LONGEST = 64
"""Longest list whose numbers are read as a whole."""


class OuterValue(NamedTuple):
    """A value, and the code that reads it.

    Attributes:
        holder: name of the module (a file's) whose globals hold it, "" if the nn.Module does.
        path: the code that follows: ".cfg.scale", ".factors['x']".
        value: the value at conversion.
    """

    holder: str
    path: str
    value: Any


def outer_values(module: nn.Module, inner: str = "") -> Iterator[OuterValue]:
    """Yield the values that a module's forward mentions and that the module does not hold itself.

    Args:
        module: the module.
        inner: its path, as seen from the one whose forward is to read the values.
    """
    cls: Any = type(module)
    if is_library_name(cls.__module__):
        return
    names = mentioned(cls)
    start = "".join(f"._modules[{part!r}]" for part in inner.split(".")) if inner else ""
    for name in sorted(names):
        value = own_value(module, name)
        if not name.startswith("__") and name not in vars(module) and is_plain_value(value):
            yield OuterValue("", f"{start}.{name}", value)
        for path, part in _parts(value, names, _DEPTH):
            yield OuterValue("", f"{start}.{name}{path}", part)
    functions = [function for name in sorted(names) for function in methods(cls, name)]
    yield from _globals_of(functions)


def _parts(value: Any, names: frozenset[str], depth: int) -> Iterator[tuple[str, Any]]:
    """Yield paths to the plain values that a holder has under names that code mentions."""
    if type(value) is list:
        if 0 < len(value) <= _LONGEST and all(map(is_plain_value, value)):
            yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, dict):
        for key, part in value.items():
            if type(key) in (str, int):
                yield from _part(f"[{key!r}]", part, names, depth)
    elif _is_config(value):
        for name, part in vars(value).items():
            if name in names:
                yield from _part(f".{name}", part, names, depth)


def _part(path: str, value: Any, names: frozenset[str], depth: int) -> Iterator[tuple[str, Any]]:
    if is_plain_value(value):
        yield path, value
    elif depth > 1:
        yield from ((f"{path}{more}", part) for more, part in _parts(value, names, depth - 1))


_STANDARD = (types.SimpleNamespace,)


def _is_config(value: Any) -> bool:
    if isinstance(value, nn.Module | Tensor | type | types.FunctionType | types.ModuleType):
        return False
    ours = isinstance(value, _STANDARD) or not is_library_name(type(value).__module__ or "")
    return ours and hasattr(value, "__dict__")


def _globals_of(functions: list[types.FunctionType]) -> Iterator[OuterValue]:
    """Yield the globals that functions, and those that they call, mention."""
    seen = set(functions)
    for function in functions:
        scope, home = function.__globals__, function.__module__ or ""
        if is_library_name(home) or vars(sys.modules.get(home, types)) is not scope:
            continue
        names = names_in(function.__code__)
        for name in sorted(names & scope.keys()):
            value = scope[name]
            if isinstance(value, types.FunctionType) and value not in seen:
                seen.add(value)
                functions.append(value)
            if is_plain_value(value) and not name.startswith("__"):
                yield OuterValue(home, f".{name}", value)
            for path, part in _parts(value, names, _DEPTH):
                yield OuterValue(home, f".{name}{path}", part)


def check_as_they_were(values: tuple[OuterValue, ...], *now: Any) -> None:
    """Check that values built into a forward are unchanged.

    Raises:
        ConversionError: if one has changed.
    """
    for was, value in zip(values, now, strict=True):
        if type(value) is not type(was.value) or (value != was.value and value == value):
            name = f"{was.holder}{was.path}" if was.holder else f"self{was.path}"
            raise ConversionError(
                f"{name} is {value!r} now: its value at conversion, {was.value!r}, is built into "
                "the converted forward. Put it back; or set it before, and convert the source."
            )
