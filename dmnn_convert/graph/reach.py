"""The functions that a module's forward runs in Python, and the values that these can read.

Methods, helpers, decorators and what stands in closures are followed by the names in their code.
Each function and each value has a place: the code by which a new forward finds it again.
"""

from __future__ import annotations

import dis
import functools
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from .attributes import names_in
from .libraries import is_library_name
from .side_effects import is_of_libraries


class Place(NamedTuple):
    """Where something is to be read from, and what a user calls it.

    Attributes:
        holder: name of the file's module whose globals hold it, or a class; "" if the nn.Module
            does.
        path: the code that follows: ".cfg.scale", ".factors['x']".
        told: its name in messages.
    """

    holder: str | type
    path: str
    told: str

    def at(self, code: str, told: str | None = None) -> Place:
        """Return the place that more code leads to from here."""
        return Place(self.holder, self.path + code, self.told + code if told is None else told)


class Reached:
    """What the forward of a module reaches.

    Args:
        module: the module.
        start: where that is.
        of_class: where its class is.

    Attributes:
        names: every name in the code that it runs.
        words: every string in that code.
        asked: the strings in code that reads attributes by name: attributes, perhaps.
        methods: the functions of its class, by place.
        values: what its functions read besides their arguments: place, value.
    """

    def __init__(self, module: nn.Module, start: Place, of_class: Place) -> None:
        self.names: set[str] = set()
        self.words: set[str] = set()
        self.asked: set[str] = set()
        self.methods: dict[Place, types.FunctionType] = {}
        self.values: list[tuple[Place, Any]] = []
        self._seen: set[types.FunctionType] = set()
        pending = ["forward"]
        while pending:
            name = pending.pop()
            if name in self.names:
                continue
            self.names.add(name)
            found = [*methods_of(type(module), name, of_class)]
            self.methods |= {place: function for function, place in found}
            own, at = underlying(vars(module).get(name), start.at(f".{name}"))
            if isinstance(own, types.FunctionType):
                found.append((own, at))
            for function, place in found:
                pending += self._follow(function, place) - self.names
        if self.asked:  # for names that are put together: f"scale_{i}"
            self.asked |= {n for n in vars(module) if n.startswith((*self.asked,))}

    def _follow(self, function: types.FunctionType, place: Place) -> set[str]:
        """Note what a function and those that it calls can read; return the names in all."""
        names: set[str] = set()
        functions = [(function, place)]
        for one, where in functions:
            if one in self._seen or is_of_libraries(one):
                continue
            self._seen.add(one)
            own = names_in(one.__code__)
            names |= own
            self.words |= _words(one.__code__)
            if not own.isdisjoint(_BY_NAME):
                self.asked |= {word for word in _words(one.__code__) if word.isidentifier()}
            for at, value in _read_by(one, where, own):
                self.values.append((at, value))
                function, at = underlying(value, at)
                if isinstance(function, types.FunctionType):
                    functions.append((function, at))
                functions += _called_of(value, own, at)
        return names


_BY_NAME = ("getattr", "hasattr", "vars", "__dict__", "__getattribute__", "attrgetter")
"""What reads an attribute that a string names."""


def _called_of(
    value: Any, names: frozenset[str], place: Place
) -> Iterator[tuple[types.FunctionType, Place]]:
    """Yield the methods, of an object or class of the user's, that code may call."""
    whole = isinstance(value, type)
    cls = value if whole else type(value)
    if is_library_name(cls.__module__ or "") or isinstance(value, nn.Module):
        return
    start = place if whole else place.at(".__class__")
    for name in sorted({*names, "__init__", "__call__", "__getitem__", "__getattr__"}):
        if isinstance(getattr(cls, name, None), _METHODS) or name in names:
            yield from methods_of(cls, name, start)


_METHODS = (types.FunctionType, types.MethodType)


def underlying(value: Any, place: Place) -> tuple[Any, Place]:
    """Return the function of a bound method, and its place; anything else as it is."""
    bound = isinstance(value, types.MethodType)
    return (value.__func__, place.at(".__func__", "")) if bound else (value, place)


def methods_of(cls: type, name: str, start: Place) -> Iterator[tuple[types.FunctionType, Place]]:
    """Yield the functions under a name on a class of the user's and its bases, decorators too."""
    source: Any = getattr(cls, "_source_class", cls)
    inherited = getattr(source, name, None)
    if isinstance(inherited, types.FunctionType) and name not in vars(source):
        # A class may be given a method of its own, which then hides the one that is known.
        told = f"{source.__name__}.{name}"
        yield inherited, start.at(f".__mro__[{-len(source.__mro__)}].{name}", told)
    for i, base in enumerate(cls.__mro__, -len(cls.__mro__)):
        member: Any = vars(base).get(name)
        if member is None or base in (nn.Module, object) or "_source_class" in vars(base):
            continue
        # Counted from the end, where a generated class in front changes nothing.
        place = start.at(f".__mro__[{i}].__dict__[{name!r}]", f"{base.__name__}.{name}")
        for step in ("fget", "__func__"):
            if hasattr(member, step):
                member, place = getattr(member, step), place.at(f".{step}", "")
        while isinstance(member, types.FunctionType):
            yield member, place._replace(told=f"{base.__name__}.{name}")
            member, place = getattr(member, "__wrapped__", None), place.at(".__wrapped__")


def _read_by(
    function: types.FunctionType, place: Place, names: frozenset[str]
) -> Iterator[tuple[Place, Any]]:
    """Yield what a function can read besides its arguments, by place."""
    scope, home = function.__globals__, function.__module__ or ""
    by_name = vars(sys.modules.get(home, types)) is scope
    read, imported = _globals_in(function.__code__)
    for name in sorted(read & scope.keys()):
        told = f"{home}.{name}"
        if isinstance(scope[name], types.ModuleType):
            yield from _of_file(scope[name], names)
        elif not name.startswith("__"):
            code = place.at(f".__globals__[{name!r}]", told)
            yield Place(home, f".{name}", told) if by_name else code, scope[name]
    for name in sorted(imported & sys.modules.keys()):
        yield from _of_file(sys.modules[name], names)
    of = f" of {function.__qualname__}"
    for i, (name, cell) in enumerate(
        zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    ):
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if isinstance(value, types.ModuleType):
            yield from _of_file(value, names)
        elif name != "__class__":
            yield place.at(f".__closure__[{i}].cell_contents", f"the variable {name}{of}"), value
    given = function.__defaults__ or ()
    optional = function.__code__.co_varnames[: function.__code__.co_argcount][-len(given) :]
    for i, (name, value) in enumerate(zip(optional if given else (), given, strict=True)):
        yield place.at(f".__defaults__[{i}]", f"the default {name}={of}"), value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield place.at(f".__kwdefaults__[{name!r}]", f"the default {name}={of}"), value


def _of_file(module: types.ModuleType, names: frozenset[str]) -> Iterator[tuple[Place, Any]]:
    """Yield what a user's module holds under some names; of libraries, the environment."""
    name = module.__name__
    if module is os and not names.isdisjoint(("environ", "getenv")):
        yield Place("os", ".environ", "os.environ"), os.environ
    if is_library_name(name) or sys.modules.get(name) is not module:
        return
    for held in sorted(names & vars(module).keys()):
        if not held.startswith("__") and not isinstance(vars(module)[held], types.ModuleType):
            yield Place(name, f".{held}", f"{name}.{held}"), vars(module)[held]


@functools.cache
def _globals_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the globals that code reads, and the modules that it imports itself."""
    codes, read, imported = [code], set[str](), set[str]()
    for one in codes:
        codes += [c for c in one.co_consts if isinstance(c, types.CodeType)]
        for step in dis.get_instructions(one):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(step.argval)
            elif step.opname == "IMPORT_NAME":
                imported.add(step.argval)
    return frozenset(read), frozenset(imported)


def _words(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    own = {c for c in code.co_consts if isinstance(c, str)}
    return own.union(*map(_words, inner))
