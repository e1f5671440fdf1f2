"""Side effects of a forward: what it stores outside its return value.

A forward may store a value on its module, in a list or dict that it holds, on its class, in a
global, or on another object. A new forward, made from a graph, would not, and a trace would leave
its own values there. So everything that a forward can reach in these ways is compared before and
after.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from .holders import OWN, Names, Snapshot, contents, differing, marks_of, restore, same, state_of
from .libraries import is_library_name
from .writes import is_of_library

_DEPTH = 4
"""Depth to which nested containers are searched."""


class Watch:
    """Everything that the forwards of a model can reach: its last state, and its first.

    Args:
        root: the model.
        whole: keep what the model's own tensors hold, too, not only those that others share.
    """

    def __init__(self, root: nn.Module, *, whole: bool = False) -> None:
        self.holders: dict[int, list[Any]] = {}
        self.now: dict[int, dict[Any, Any]] = {}
        self.marks: dict[int, tuple[int, ...]] = {}
        self.kept: dict[int, Any] = {}
        for module in root.modules():
            self._add(module)
        self.first = dict(self.now)
        own = _tensors_of(root) if whole else ()
        shared = (
            value
            for key, state in self.first.items()
            if not isinstance(self.kept[key], nn.Module)
            for value in state.values()
            if isinstance(value, Tensor)
        )
        self.snapshot = Snapshot((*own, *shared))

    def changes(self, module: nn.Module) -> list[str]:
        """Return the changes within reach of a module since the last look."""
        found: dict[str, None] = {}
        # Modules of a class reach the same functions and globals: each is looked at once.
        reached = {
            id(holder): holder
            for inner in module.modules()
            for holder in self.holders.get(id(inner)) or self._add(inner)
        }
        for key, holder in reached.items():
            marks = marks_of(holder)
            if marks == self.marks[key]:
                continue
            before, self.now[key], self.marks[key] = self.now[key], state_of(holder), marks
            if not same(self.now[key], before):
                found |= dict.fromkeys(differing(holder, before, self.now[key]))
        return list(found)

    def restore(self) -> None:
        """Restore everything to its first state."""
        for key, state in self.first.items():
            if self.marks[key] != marks_of(self.kept[key]) or self.now[key] is not state:
                restore(self.kept[key], state)
        self.snapshot.restore()

    def _add(self, module: nn.Module) -> list[Any]:
        holders = {id(holder): holder for holder in _holders(module)}
        self.holders[id(module)] = list(holders.values())
        for key, holder in holders.items():
            if key not in self.kept:
                self.kept[key] = holder
                self.now[key] = state_of(holder)
                self.marks[key] = marks_of(holder)
        return self.holders[id(module)]


def runs_own_code(root: nn.Module) -> bool:
    """Return whether code of the user's runs in a model, which may do whatever it likes."""
    return not all(is_of_library(type(module)) for module in root.modules())


def _tensors_of(root: nn.Module) -> Iterator[Tensor]:
    """Yield what a model holds itself, if code of the user's runs in it."""
    if not runs_own_code(root):
        return
    yield from root.parameters()
    yield from root.buffers()
    for module in root.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


@contextmanager
def undone(root: nn.Module, *, whole: bool = False) -> Iterator[None]:
    """Undo everything that the model's forward stores while the body runs it.

    Args:
        root: the model, or what a copy of it was made from.
        whole: the body runs the model itself: undo what it writes into its tensors, too.
    """
    watch = Watch(root, whole=whole)
    try:
        yield
    finally:
        watch.restore()


def _holders(module: nn.Module) -> Iterator[Any]:
    """Yield the objects that a module's forward can store values in."""
    yield module
    if _is_library(type(module)):
        return
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType):
            yield from _reached(value)
        elif name not in OWN:
            yield from _inside(getattr(value, "__self__", value), _DEPTH)
    for cls in _users_classes(type(module)):  # type: ignore[arg-type]  # a class is hashable
        yield cls
        for value in vars(cls).values():
            value = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(value, types.FunctionType):
                yield from _reached(value)
            else:
                yield from _inside(value, _DEPTH)


@functools.cache
def _users_classes(cls: type) -> tuple[type, ...]:
    return tuple(c for c in cls.__mro__ if not _is_library(c) and "_source_class" not in vars(c))


def _is_library(cls: type) -> bool:
    return is_library_name(getattr(cls, "__module__", None) or "builtins")


def is_of_libraries(function: types.FunctionType) -> bool:
    """Return whether both a function's code and what it is called by are a library's.

    A decorator's function has the name of what it decorates.
    """
    homes = (function.__module__, function.__globals__.get("__name__"))
    return all(is_library_name(home or "") for home in homes)


_HOLD_NOTHING = (
    *(Tensor, types.ModuleType, types.FunctionType, fx.Proxy),
    *(int, float, str),  # also those of a subclass, which a trace puts in their place
)


def _inside(value: Any, depth: int) -> Iterator[Any]:
    """Yield a container or an object of the user's, and those inside it."""
    if not depth or isinstance(value, _HOLD_NOTHING):
        return
    if isinstance(value, list | dict | set | deque):
        yield value
    elif isinstance(value, type | nn.Module):
        if isinstance(value, nn.Module) or not _is_library(value):
            yield value
        return
    elif not isinstance(value, tuple):
        if _is_library(type(value)) or not hasattr(value, "__dict__"):
            return
        yield value
        value = vars(value)
    for part in list(value.values() if isinstance(value, dict) else value):
        yield from _inside(part, depth - 1)


@functools.cache
def _names_of(function: types.FunctionType) -> tuple[str, ...]:
    codes, names = [function.__code__], set()
    for code in codes:
        names |= set(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(sorted(names))


@functools.cache
def _names_in(function: types.FunctionType, module: types.ModuleType | None) -> Names:
    """Return the objects behind a function's names: globals, or attributes of another module."""
    scope = function.__globals__ if module is None else vars(module)
    return Names(scope, _names_of(function))


def _reached(function: types.FunctionType, depth: int = 2) -> Iterator[Any]:
    """Yield the objects that a function can store values in besides its arguments."""
    if is_of_libraries(function):
        return
    yield vars(function)
    yield (names := _names_in(function, None))
    values = [names.scope.get(name) for name in names.names]
    for module in [
        v for v in values if isinstance(v, types.ModuleType) and not is_library_name(v.__name__)
    ]:
        yield (names := _names_in(function, module))
        values += [names.scope.get(name) for name in names.names]
    for cell in function.__closure__ or ():
        yield cell
        values += contents(cell).values()
    for value in [
        *values,
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
    ]:
        if isinstance(value, types.FunctionType) and depth:
            yield from _reached(value, depth - 1)
        else:
            yield from _inside(value, _DEPTH)
