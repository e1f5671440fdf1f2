"""Side effects of a forward: what it stores outside its return value.

A forward may store a value on its module, in a list or dict that it holds, on its class, in a
global, or on another object. A new forward, made from a graph, would not; and a trace would leave
its own values there. So whatever a forward can reach by such ways is looked at before and after.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

_OWN = frozenset(vars(nn.Module())) - {"_buffers"}


_LIBRARIES = frozenset({"torch", "numpy", *sys.stdlib_module_names})


_DEPTH = 4
"""Depth to which nested containers are looked into."""


class Watch:
    """All that the forwards of a model can reach, as it last was and as it was at first."""

    def __init__(self, root: nn.Module) -> None:
        self.holders: dict[int, list[Any]] = {}
        self.now: dict[int, dict[Any, Any]] = {}
        self.marks: dict[int, tuple[int, ...]] = {}
        self.kept: dict[int, Any] = {}
        for module in root.modules():
            self._add(module)
        self.first = dict(self.now)

    def changes(self, module: nn.Module) -> list[str]:
        """Return what has changed, since it was last looked at, in reach of a module."""
        found: dict[str, None] = {}
        for inner in module.modules():
            for holder in self.holders.get(id(inner)) or self._add(inner):
                key, marks = id(holder), _marks(holder)
                if marks == self.marks[key]:
                    continue
                before, self.now[key], self.marks[key] = self.now[key], _state(holder), marks
                if not _same(self.now[key], before):
                    found |= dict.fromkeys(_differing(holder, before, self.now[key]))
        return list(found)

    def restore(self) -> None:
        """Put everything back as it was at first."""
        for key, state in self.first.items():
            if self.marks[key] != _marks(self.kept[key]) or self.now[key] is not state:
                _restore(self.kept[key], state)

    def _add(self, module: nn.Module) -> list[Any]:
        holders = {id(holder): holder for holder in _holders(module)}
        self.holders[id(module)] = list(holders.values())
        for key, holder in holders.items():
            if key not in self.kept:
                self.kept[key] = holder
                self.now[key] = _state(holder)
                self.marks[key] = _marks(holder)
        return self.holders[id(module)]


@contextmanager
def undone(root: nn.Module) -> Iterator[None]:
    """Undo what the model's forward stores while the body runs it."""
    watch = Watch(root)
    try:
        yield
    finally:
        watch.restore()


class _Names:
    """Some names of a namespace."""

    def __init__(self, scope: dict[str, Any], names: tuple[str, ...]) -> None:
        self.scope, self.names = scope, names


def _holders(module: nn.Module) -> Iterator[Any]:
    """Yield what a module's forward can store values in."""
    yield module
    if _is_library(type(module)):
        return
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType):
            yield from _reached(value)
        elif name not in _OWN:
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
    return _is_library_name(getattr(cls, "__module__", None) or "builtins")


def _is_library_name(name: str) -> bool:
    return name.partition(".")[0] in _LIBRARIES


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
def _names_in(function: types.FunctionType, module: types.ModuleType | None) -> _Names:
    """Return what a function may mean by its names: globals, or what another module holds."""
    scope = function.__globals__ if module is None else vars(module)
    return _Names(scope, _names_of(function))


def _reached(function: types.FunctionType, depth: int = 2) -> Iterator[Any]:
    """Yield what a function can store values in besides its arguments."""
    if (function.__module__ or "").partition(".")[0] in _LIBRARIES:
        return
    yield vars(function)
    yield (names := _names_in(function, None))
    values = [names.scope.get(name) for name in names.names]
    for module in [
        v for v in values if isinstance(v, types.ModuleType) and not _is_library_name(v.__name__)
    ]:
        yield (names := _names_in(function, module))
        values += [names.scope.get(name) for name in names.names]
    for cell in function.__closure__ or ():
        yield cell
        values += _state(cell).values()
    for value in [
        *values,
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
    ]:
        if isinstance(value, types.FunctionType) and depth:
            yield from _reached(value, depth - 1)
        else:
            yield from _inside(value, _DEPTH)


def _marks(holder: Any) -> tuple[int, ...]:
    """Return numbers that are the same only if a holder holds the same, which is still alive."""
    if isinstance(holder, nn.Module):
        own = tuple(map(id, vars(holder).values()))
        buffers = holder._buffers.values()
        versions = (n for b in buffers if b is not None for n in (id(b), version_of(b)))
        return (*own, *versions) if buffers else own
    if isinstance(holder, type):
        return tuple(map(id, vars(holder).values()))
    state = _state(holder)
    return (*map(id, state), *map(id, state.values()))


def _state(holder: Any) -> dict[Any, Any]:
    """Return what a holder holds, by where."""
    if isinstance(holder, nn.Module):
        buffers = holder._buffers.items()
        state = {k: v for k, v in vars(holder).items() if k not in _OWN and k != "_buffers"}
        state |= {("buffer", k): b for k, b in buffers}
        return state | {("version", k): version_of(b) for k, b in buffers if b is not None}
    if isinstance(holder, _Names):
        return {name: _original(holder.scope.get(name, _Names)) for name in holder.names}
    if isinstance(holder, types.CellType):
        try:
            return {"a variable": holder.cell_contents}
        except ValueError:  # not assigned yet
            return {}
    if isinstance(holder, dict):
        return dict(holder)
    if isinstance(holder, list | deque):
        return dict(enumerate(holder))
    if isinstance(holder, set):
        return dict.fromkeys(holder)
    return dict(vars(holder))


def _original(value: Any) -> Any:
    """Return a function that a trace has put another one in the place of, meanwhile."""
    if not isinstance(value, types.FunctionType):
        return value
    # torch.fx's own mark carries the name of its class.
    patched = any(name.endswith("__fx_already_patched") for name in vars(value))
    return getattr(value, "__wrapped__", value) if patched else value


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written into; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _same(state: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return len(state) == len(before) and all(
        key in state and (state[key] is value or _equal_numbers(state[key], value))
        for key, value in before.items()
    )


def _equal_numbers(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, int | float | str) and a == b


def _differing(holder: Any, before: dict[Any, Any], now: dict[Any, Any]) -> list[str]:
    keys = {**before, **now}
    differing = [k for k in keys if not _same({0: now.get(k, _Names)}, {0: before.get(k, _Names)})]
    if isinstance(holder, nn.Module):
        return [k[1] if isinstance(k, tuple) else str(k) for k in differing if not _is_made(k)]
    if isinstance(holder, _Names | types.CellType):
        return [str(key) for key in differing]
    name = holder.__name__ if isinstance(holder, type) else f"a {type(holder).__name__}"
    return [name if isinstance(holder, list | deque | set) else f"{name}: {differing[0]!r}"]


def _is_made(key: Any) -> bool:
    """Return whether a key names a tensor that a forward made, which torch.fx keeps itself."""
    return isinstance(key, str) and key.startswith("_tensor_constant")


def _restore(holder: Any, state: dict[Any, Any]) -> None:
    if isinstance(holder, nn.Module):
        _restore_names(
            vars(holder),
            {k: v for k, v in state.items() if isinstance(k, str)},
            lambda k: k not in _OWN and k != "_buffers" and not _is_made(k),
        )
        buffers = {k[1]: v for k, v in state.items() if isinstance(k, tuple) and k[0] == "buffer"}
        _restore_names(holder._buffers, buffers, lambda k: not _is_made(k))
    elif isinstance(holder, _Names):
        for name, value in state.items():
            if value is not _Names:
                holder.scope[name] = value
            elif name in holder.scope:
                del holder.scope[name]
    elif isinstance(holder, types.CellType):
        if state:
            holder.cell_contents = state["a variable"]
    elif isinstance(holder, dict):
        _restore_names(holder, state, lambda k: True)
    elif isinstance(holder, list):
        holder[:] = state.values()
    elif isinstance(holder, set | deque):
        holder.clear()
        holder.update(state) if isinstance(holder, set) else holder.extend(state.values())
    elif isinstance(holder, type):
        for name in vars(holder).keys() - state.keys():
            delattr(holder, name)
        for name, value in state.items():
            if vars(holder)[name] is not value:
                setattr(holder, name, value)
    else:
        _restore_names(vars(holder), state, lambda k: True)


def _restore_names(
    table: dict[Any, Any], state: dict[Any, Any], mine: Callable[[Any], bool]
) -> None:
    for key in [key for key in table if mine(key) and key not in state]:
        del table[key]
    table.update(state)
