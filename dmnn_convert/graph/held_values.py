"""The plain values and functions that code finds in what it can read.

These are such values themselves, or containers, config objects and classes, down to some depth.
"""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import os
import threading
import types
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from .attributes import MISSING, is_plain_value
from .holders import attributes_of
from .libraries import is_library_name
from .reach import Place, methods_of

DEPTH = 3
"""Depth to which config objects within each other are looked into."""
LONGEST = 64
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
    short: str

    def __repr__(self) -> str:
        return f"{self.module}.{self.name}"


class Unguarded(str):
    """Stands for what is no plain value, and may change without a sign: why, in words."""


TENSOR = Unguarded("a tensor that is not a buffer; register it as one")
ITERATOR = Unguarded("an iterator, which goes on from call to call")
ARRAY = Unguarded("a NumPy array; register it as a buffer")
LOCAL = Unguarded("which differs between threads or tasks")


FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def name_of(value: Any) -> FunctionName:
    """Return what tells a function from another."""
    return FunctionName(str(value.__module__), value.__qualname__, value.__name__)


class Look:
    """A look into holders for what code mentions.

    Args:
        names: attributes that the code mentions.
        words: strings that it mentions, which may be keys.
        asked: those that may be attributes.
        inside: ids of the modules whose own attributes are known otherwise.
    """

    def __init__(
        self, names: frozenset[str], words: set[str], asked: set[str], inside: set[int]
    ) -> None:
        self.names, self.words, self.asked, self.inside = names, words, asked, inside

    def at(self, value: Any, place: Place, depth: int) -> Iterator[OuterValue]:
        """Yield the value at a place if it is plain, else those inside it."""
        if isinstance(value, FUNCTIONS):
            yield OuterValue(place, name_of(value))
            for name, part in getattr(value, "__dict__", {}).items():
                if name in self.names and not name.startswith("__") and depth > 1:
                    yield from self.at(part, place.at(f".{name}"), depth - 1)
        elif isinstance(value, Tensor):
            yield OuterValue(place, TENSOR)
        elif isinstance(value, Iterator):
            yield OuterValue(place, ITERATOR)
        elif isinstance(value, threading.local | ContextVar):
            yield OuterValue(place, LOCAL)
        elif is_plain_value(value):
            yield OuterValue(place, value)
        elif depth > 1 or self._is_meant(value):
            yield from self.into(value, place, depth - 1)

    def _is_meant(self, value: Any) -> bool:
        """Return whether code mentions something in a holder that lies too deep to look at all."""
        if isinstance(value, dict):
            return not self.words.isdisjoint(key for key in value if isinstance(key, str))
        return isinstance(value, type) and is_config(value)

    def into(self, value: Any, place: Place, depth: int) -> Iterator[OuterValue]:
        """Yield the plain values inside a holder."""
        if isinstance(value, LISTS) and len(value) <= LONGEST and all(map(is_plain_value, value)):
            yield OuterValue(place, as_plain(value))
        elif isinstance(value, list | tuple | collections.deque) and len(value) <= LONGEST:
            yield OuterValue(place.at(".__len__()", f"the length of {place.told}"), len(value))
            for i, part in enumerate(value):
                yield from self.at(part, place.at(f"[{i}]"), depth)
        elif isinstance(value, np.ndarray):
            yield OuterValue(place, ARRAY)
        elif isinstance(value, os._Environ):
            for key in sorted(self.words & value.keys()):
                yield OuterValue(place.at(f"[{key!r}]"), value[key])
            yield from self._absent(value, place)
        elif isinstance(value, dict) or (isinstance(value, Mapping) and not is_config(value)):
            yield from self._of_dict(value, place, depth)
        elif isinstance(value, types.MethodType):
            if id(value.__self__) not in self.inside:
                yield from self.at(value.__self__, place.at(".__self__"), depth)
        elif isinstance(value, functools.partial):
            for name in ("func", "args", "keywords"):
                yield from self.at(getattr(value, name), place.at(f".{name}"), depth)
        elif is_config(value):
            held = self._held_by(value)
            for name, part in held.items():
                yield from self.at(part, place.at(f".{name}"), depth)
            for name in sorted(self.asked - held.keys()):
                if not hasattr(value, name):
                    yield OuterValue(place.at(f".{name}"), MISSING)
        elif "value" in self.names and is_plain_value(getattr(value, "value", value)):
            yield OuterValue(place.at(".value"), value.value)  # of ctypes and multiprocessing

    def _of_dict(self, value: Mapping[Any, Any], place: Place, depth: int) -> Iterator[OuterValue]:
        # A subclass of dict may create the item that it is asked for.
        get: Any = dict.get if isinstance(value, dict) else type(value).get
        keys = dict.keys(value) if isinstance(value, dict) else value.keys()
        for key in [key for key in keys if type(key) in (str, int)]:
            if key in self.words or (len(value) <= LONGEST and depth > 0):
                yield from self.at(get(value, key), place.at(f"[{key!r}]"), depth)
        yield from self._absent(value, place)

    def _absent(self, value: Mapping[Any, Any], place: Place) -> Iterator[OuterValue]:
        """Yield the keys that code mentions and a dict has not."""
        if "get" in self.names or "getenv" in self.names:
            for key in sorted(self.words - {key for key in value if isinstance(key, str)}):
                if key.isidentifier():
                    yield OuterValue(place.at(f".get({key!r})", f"{place.told}[{key!r}]"), None)

    def _held_by(self, value: Any) -> dict[str, Any]:
        """Return the attributes of a config object that code, or its own methods, mention."""
        cls = value if isinstance(value, type) else type(value)
        bases = [base for base in reversed(cls.__mro__) if not is_library_name(base.__module__)]
        names = self.names | self.asked
        for name in {name for base in bases for name in vars(base)}:
            operator = name.startswith("__") and name not in ("__init__", "__new__")
            if (operator and cls is not value) or name in self.names:
                for function, _ in methods_of(cls, name, Place("", "", "")):
                    names |= {*function.__code__.co_names}
                    if operator:  # which may find an attribute, or an item, under another name
                        names |= {c for c in function.__code__.co_consts if isinstance(c, str)}
        held = {
            name: part
            for base in bases
            for name, part in vars(base).items()
            if not (name.startswith("__") or hasattr(part, "__get__"))
        }
        if cls is not value:
            held |= attributes_of(value)
        return {name: part for name, part in held.items() if name in names - {"training"}}


LISTS = (list, set, frozenset, collections.deque)
"""Containers whose plain values are compared as one."""


def as_plain(value: Any) -> Any:
    """Return an immutable value that tells whether a container still holds the same."""
    if isinstance(value, set):
        return frozenset(value)
    return tuple(value) if isinstance(value, list | collections.deque) else value


_STANDARD = (types.SimpleNamespace, argparse.Namespace)


def is_config(value: Any) -> bool:
    """Return whether a value is an object, or a class, that holds settings in attributes."""
    if isinstance(value, type):
        return not (is_library_name(value.__module__) or issubclass(value, enum.Enum | Tensor))
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, Tensor | types.FunctionType | types.ModuleType):
        return False
    ours = isinstance(value, _STANDARD) or not is_library_name(type(value).__module__ or "")
    return ours and (hasattr(value, "__dict__") or hasattr(value, "__slots__"))
