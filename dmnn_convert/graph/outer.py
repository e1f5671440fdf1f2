"""Plain values that a forward reads outside its own module's attributes.

Numbers, flags, words and functions may be in dicts, lists and config objects that a module holds,
on classes, in globals, closures, default arguments and the environment. A trace sees them once.
Setting one raises no alarm, so a new forward checks in each call that the values mentioned in its
code are unchanged.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConversionError
from .attributes import Frozen, is_plain_value, mentioned, own_value
from .reach import Place, Reached, methods_of
from .side_effects import is_library_name

_DEPTH = 3
"""Depth to which config objects within each other are looked into."""
_LONGEST = 64
"""Longest list, and largest dict, of which each value is read."""


class OuterValue(NamedTuple):
    """A value that is built into a forward, and its place.

    Attributes:
        place: where it is to be read from.
        value: what was found there: a plain value, a tuple of a list's, or a `FunctionName`.
    """

    place: Place
    value: Any


class FunctionName(NamedTuple):
    """What tells one function from another, in any process."""

    module: str
    name: str


MISSING = "<nothing>"
"""Stands for a value that is not there."""


class Unguarded(str):
    """Stands for what is no plain value, and may change without a sign: why, in words."""


TENSOR = Unguarded("a tensor that is not a buffer; register it as one")
ITERATOR = Unguarded("an iterator, which goes on from call to call")


def outer_values(
    module: nn.Module, inner: str = "", left: Mapping[str, nn.Module] | None = None
) -> Iterator[OuterValue]:
    """Yield what the forward of a module mentions, and something other than the module holds.

    Args:
        module: the module.
        inner: its path, as seen from the one whose forward is to read the values.
        left: where that module is not there any more, those that are, by path. What it holds can
            only be asked of its class, and of others that hold it, too.
    """
    cls = type(module)
    if is_library_name(cls.__module__):
        return
    start = _place_of(inner)
    source = getattr(cls, "_source_class", cls)
    of_class = start.at(".__class__") if left is None else Place(source, "", cls.__name__)
    reached = Reached(module, start, of_class)
    for at, function in reached.methods.items():
        yield OuterValue(at, _name_of(function))
    look = _Look(frozenset(reached.names), reached.words)
    for name in sorted(name for name in reached.names if not name.startswith("__")):
        place: Place | None = start.at(f".{name}")
        if left is not None:
            own = name in vars(module) or name in module._modules
            place = _elsewhere(vars(module).get(name), left) if own else of_class.at(f".{name}")
        found = _of_module(module, name, place or start.at(f".{name}"), look)
        yield from (v for v in found if place is not None or isinstance(v.value, Unguarded))
    for at, value in reached.values:
        # A function that only a module which is gone has held cannot be asked any more.
        there = left is None or at.holder
        found = look.at(value, at, _DEPTH + 1)
        yield from (v for v in found if there or isinstance(v.value, Unguarded))


def _place_of(inner: str) -> Place:
    code = "".join(f"._modules[{part!r}]" for part in inner.split(".")) if inner else ""
    return Place("", code, f"self.{inner}" if inner else "self")


def _elsewhere(value: Any, left: Mapping[str, nn.Module]) -> Place | None:
    """Return where another module holds the same object, if one does."""
    if is_plain_value(value):
        return None
    places = (
        _place_of(p).at(f".{n}") for p, m in left.items() for n, v in vars(m).items() if v is value
    )
    return next(places, None)


def _of_module(module: nn.Module, name: str, place: Place, look: _Look) -> Iterator[OuterValue]:
    """Yield the values under an attribute, but for plain ones of the module's own."""
    value, own = own_value(module, name), name in vars(module)
    child = module._modules.get(name)
    if isinstance(child, nn.ModuleList | nn.ModuleDict):
        yield OuterValue(place.at(".__len__()", f"the length of {place.told}"), len(child))
    elif own and isinstance(value, _FUNCTIONS):
        yield OuterValue(place, _name_of(value))
    elif isinstance(value, Iterator) or (not own and isinstance(value, Tensor)):
        yield from look.at(value, place, 1)
    elif not own and is_plain_value(value):
        yield OuterValue(place, value)
    elif not is_plain_value(value):
        yield from look.into(value, place, _DEPTH)


def built_in(module: nn.Module, live_ones: Iterable[str]) -> Frozen:
    """Return the plain attributes that a module's forward mentions, but for those read live."""
    cls: Any = type(module)
    reached = Reached(module, _place_of(""), _place_of("")).names
    names = (mentioned(cls) | reached) - {"training", *live_ones}
    values = ((name, own_value(module, name)) for name in sorted(names))
    return tuple((name, value) for name, value in values if is_plain_value(value))


def tensors_mentioned(module: nn.Module) -> Iterator[str]:
    """Yield the attributes, mentioned in a module's forward, that are tensors but not buffers."""
    names = Reached(module, _place_of(""), _place_of("")).names
    yield from (n for n in sorted(names) if isinstance(vars(module).get(n), Tensor))


_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def _name_of(value: Any) -> FunctionName:
    return FunctionName(str(value.__module__), value.__qualname__)


class _Look:
    """A look into holders for what code mentions.

    Args:
        names: attributes that the code mentions.
        words: strings that it mentions, which may be keys.
    """

    def __init__(self, names: frozenset[str], words: set[str]) -> None:
        self.names, self.words = names, words

    def at(self, value: Any, place: Place, depth: int) -> Iterator[OuterValue]:
        """Yield the value at a place if it is plain, else those inside it."""
        if isinstance(value, _FUNCTIONS):
            yield OuterValue(place, _name_of(value))
        elif isinstance(value, Tensor):
            yield OuterValue(place, TENSOR)
        elif isinstance(value, Iterator):
            yield OuterValue(place, ITERATOR)
        elif is_plain_value(value):
            yield OuterValue(place, value)
        elif depth > 1:
            yield from self.into(value, place, depth - 1)

    def into(self, value: Any, place: Place, depth: int) -> Iterator[OuterValue]:
        """Yield the plain values inside a holder."""
        if type(value) is list and len(value) <= _LONGEST and all(map(is_plain_value, value)):
            yield OuterValue(place, tuple(value))
        elif type(value) in (list, tuple) and len(value) <= _LONGEST:
            yield OuterValue(place.at(".__len__()", f"the length of {place.told}"), len(value))
            for i, part in enumerate(value):
                yield from self.at(part, place.at(f"[{i}]"), depth)
        elif isinstance(value, os._Environ):
            for key in sorted(self.words & value.keys()):
                yield OuterValue(place.at(f"[{key!r}]"), value[key])
            yield from self._absent(value, place)
        elif isinstance(value, dict):
            for key in [key for key in dict.keys(value) if type(key) in (str, int)]:
                if len(value) <= _LONGEST or key in self.words:
                    yield from self.at(dict.get(value, key), place.at(f"[{key!r}]"), depth)
            yield from self._absent(value, place)
        elif isinstance(value, functools.partial):
            for name in ("func", "args", "keywords"):
                yield from self.at(getattr(value, name), place.at(f".{name}"), depth)
        elif _is_config(value):
            for name, part in self._held_by(value).items():
                yield from self.at(part, place.at(f".{name}"), depth)

    def _absent(self, value: Mapping[Any, Any], place: Place) -> Iterator[OuterValue]:
        """Yield the keys that code mentions and a dict has not."""
        if "get" in self.names or "getenv" in self.names:
            for key in sorted(self.words - {key for key in value if isinstance(key, str)}):
                if key.isidentifier():
                    yield OuterValue(place.at(f".get({key!r})", f"{place.told}[{key!r}]"), None)

    def _held_by(self, value: Any) -> dict[str, Any]:
        """Return the attributes of a config object that code, or its own methods, mention."""
        names = set(self.names)
        for name in {name for cls in type(value).__mro__ for name in vars(cls)}:
            operator = name.startswith("__") and name not in ("__init__", "__new__")
            if operator or name in self.names:
                for function, _ in methods_of(type(value), name, _place_of("")):
                    names |= {*function.__code__.co_names}
        slots = [name for cls in type(value).__mro__ for name in vars(cls).get("__slots__", ())]
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        held |= getattr(value, "__dict__", {})
        return {name: part for name, part in held.items() if name in names - {"training"}}


_STANDARD = (types.SimpleNamespace,)


def _is_config(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, Tensor | type | types.FunctionType | types.ModuleType):
        return False
    ours = isinstance(value, _STANDARD) or not is_library_name(type(value).__module__ or "")
    return ours and (hasattr(value, "__dict__") or hasattr(value, "__slots__"))


# --- checking -----------------------------------------------------------------------------------


def check_as_they_were(values: tuple[OuterValue, ...], *reads: Callable[[], Any]) -> None:
    """Check that values built into a forward are unchanged.

    Raises:
        ConversionError: if one has changed.
    """
    compiling = torch.compiler.is_compiling()
    for was, read in zip(values, reads, strict=True):
        is_function = isinstance(was.value, FunctionName)
        if is_function and compiling:  # which does not know functions by their names
            continue
        try:
            now = read()
        except (AttributeError, LookupError, TypeError):
            now = MISSING
        if is_function:
            now = _name_of(now) if isinstance(now, _FUNCTIONS) else MISSING
        elif isinstance(now, list):
            now = tuple(now)
        if type(now) is not type(was.value) or (now != was.value and now == now):
            raise ConversionError(
                f"{was.place.told} is {_shown(now)} now: its value at conversion, "
                f"{_shown(was.value)}, is built into the converted forward. Put it back; or set it "
                "before, and convert the source."
            )


def _shown(value: Any) -> str:
    if isinstance(value, FunctionName):
        return f"{value.module}.{value.name}"
    return value if value is MISSING else repr(value)
