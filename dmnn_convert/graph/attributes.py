"""Plain attributes that a forward reads: numbers, flags and words on modules.

A trace sees their values, not their names. Numbers that go straight into an operation keep their
name, and a new forward reads them again in each call (`live`). All others decide how the forward
runs, or are computed with first. These are built in, and setting one afterwards is an error
(`outer.built_in`).
"""

from __future__ import annotations

import enum
import functools
import inspect
import types
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from ..errors import ConversionError

Frozen = tuple[tuple[str, Any], ...]
"""Names and values of the attributes that are built into a forward."""


class LiveNumber:
    """A number that knows its attribute; its repr is the code that reads it."""

    attribute: str
    used: set[str]
    value: int | float

    def __repr__(self) -> str:
        code = "self"
        for name in self.attribute.split("."):
            code = f"{code}.{name}" if name.isidentifier() else f"getattr({code}, {name!r})"
        return code

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, how: str) -> str:
        return format(self.value, how)

    def __deepcopy__(self, memo: dict[int, Any]) -> LiveNumber:
        return self

    def __reduce__(self) -> Any:
        return type(self.value), (self.value,)


class LiveInt(LiveNumber, int):
    """A live whole number."""


class LiveFloat(LiveNumber, float):
    """A live number."""


def _noting(base: type, name: str) -> Any:
    operation = getattr(base, name)

    def noted(self: Any, *others: Any) -> Any:
        result = operation(self, *others)
        if result is not NotImplemented:  # passed on to a value of the trace, under its name
            self.used.add(self.attribute)
        return result

    return noted


_OPERATIONS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "and", "or", "xor"),
    *("lshift", "rshift", "neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne"),
    *("bool", "int", "float", "index", "hash", "round", "trunc", "floor", "ceil"),
)


for _cls, _base in ((LiveInt, int), (LiveFloat, float)):
    for _name in [f"__{prefix}{name}__" for name in _OPERATIONS for prefix in ("", "r")]:
        if _name in vars(_base):
            setattr(_cls, _name, _noting(_base, _name))


def plain(arguments: Any, only: Container[str] | None = None) -> Any:
    """Return arguments of a node with the present values of live numbers in their place.

    Args:
        arguments: a tree.
        only: the attributes whose numbers are meant; None for all.
    """

    def value(a: Any) -> Any:
        if isinstance(a, slice):
            return slice(*(plain(part, only) for part in (a.start, a.stop, a.step)))
        meant = isinstance(a, LiveNumber) and (only is None or a.attribute in only)
        return a.value if meant else a

    return fx.node.map_aggregate(arguments, value)


def with_plain_numbers(graph: fx.Graph) -> None:
    """Replace live numbers by their present values, for a module that lacks the attributes."""
    for node in graph.nodes:
        node.args, node.kwargs = plain(node.args), plain(node.kwargs)


def live_names(node: fx.Node) -> set[str]:
    """Return the attributes that a node reads by name."""
    found: set[str] = set()

    def note(a: Any) -> Any:
        if isinstance(a, slice):
            fx.node.map_aggregate((a.start, a.stop, a.step), note)
        elif isinstance(a, LiveNumber):
            found.add(a.attribute)
        return a

    fx.node.map_aggregate((node.args, node.kwargs), note)
    return found


@contextmanager
def live(modules: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Replace attributes by live numbers; afterwards the value holds those used up.

    Args:
        modules: the modules that are traced into, by path.
    """
    used: set[str] = set()
    saved: list[tuple[dict[str, Any], str, Any]] = []
    for path, module in modules.items():
        held = vars(module)
        for name, value in list(held.items()):
            if type(value) in (int, float) and not name.startswith("_"):
                saved.append((held, name, value))
                held[name] = _live_number(f"{path}.{name}" if path else name, value, used)
    try:
        yield used
    finally:
        for held, name, value in saved:
            if isinstance(held.get(name), LiveNumber):
                held[name] = value


def _live_number(attribute: str, value: int | float, used: set[str]) -> LiveNumber:
    made: Any = (LiveInt if isinstance(value, int) else LiveFloat)(value)
    made.attribute, made.used, made.value = attribute, used, value
    return made  # type: ignore[no-any-return]


# --- what is built in -------------------------------------------------------------------------


def own_value(module: nn.Module, name: str) -> Any:
    """Return a module's or its class's attribute without running a property."""
    own = vars(module).get(name, MISSING)
    return inspect.getattr_static(type(module), name, MISSING) if own is MISSING else own


class _Missing:
    """Stands for a value that is not there, also in a copy and after pickling."""

    def __repr__(self) -> str:
        return "<nothing>"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING = _Missing()


TAKEN = "a layer or tensor"
"""Stands for one that a block took: another in its place would not be read."""


_ATOMS = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.memory_format)


def is_plain_value(value: Any) -> bool:
    """Return whether a value is a number, a flag, a word or the like, or a tuple of such."""
    if type(value) is tuple:
        return all(map(is_plain_value, value))
    return type(value) in _ATOMS or isinstance(value, enum.Enum)


@functools.cache
def mentioned(cls: type) -> frozenset[str]:
    """Return every name in the code of a class's forward and of the methods that it mentions."""
    seen: set[str] = set()
    pending = {"forward"}
    while pending:
        name = pending.pop()
        seen.add(name)
        for method in methods(cls, name):
            pending |= names_in(method.__code__) - seen
    return frozenset(seen)


def methods(cls: type, name: str) -> Iterator[types.FunctionType]:
    """Yield the functions that stand under a name on a class of the user's and on its bases."""
    for base in cls.__mro__:
        if base not in (nn.Module, object) and name in vars(base):
            member: Any = vars(base)[name]
            member = getattr(member, "fget", None) or getattr(member, "__func__", member)
            function = inspect.unwrap(member) if callable(member) else None
            if isinstance(function, types.FunctionType):
                yield function


@functools.cache
def names_in(code: types.CodeType) -> frozenset[str]:
    """Return every name that code reads from globals or as an attribute."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset({*code.co_names, *(name for c in inner for name in names_in(c))})


def check_not_built_in(module: nn.Module, name: str, value: Any, frozen: Mapping[str, Any]) -> None:
    """Check that setting an attribute does not contradict what is built in.

    Raises:
        ConversionError: if it does.
    """
    if name not in frozen:
        return
    present = frozen[name]
    if type(value) is type(present) and value == present:
        return
    if isinstance(present, float) and isinstance(value, int | float) and value == present:
        return
    raise ConversionError(
        f"{type(module).__name__}.{name} = {_shown(value)}: {at_conversion(present)} is built into "
        "the converted forward, so this would change nothing. Set it on the source model, and "
        "convert that."
    )


def at_conversion(value: Any) -> str:
    """Return the words for a value that is built in, or for one that was not there."""
    if value is MISSING:
        return "it did not exist at conversion, and that"
    return "what it was at conversion" if value == TAKEN else f"its value at conversion, {value!r},"


def _shown(value: Any) -> str:
    return repr(value) if is_plain_value(value) else f"a {type(value).__name__}"
