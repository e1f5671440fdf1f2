"""Holders of values: their contents, what changes in them, and how to put it back."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

OWN = frozenset(vars(nn.Module())) - {"_buffers", "training"}


class Names:
    """Some names of a namespace."""

    def __init__(self, scope: dict[str, Any], names: tuple[str, ...]) -> None:
        self.scope, self.names = scope, names


class Buffer(NamedTuple):
    """The place of a buffer."""

    name: str


class Learns(NamedTuple):
    """The place of a parameter's `requires_grad`, which freezes it."""

    name: str


class Written(NamedTuple):
    """The place of the number of writes into a tensor."""

    place: Any


def marks_of(holder: Any) -> tuple[int, ...]:
    """Return numbers that are equal only if a holder holds the same, still living objects."""
    if isinstance(holder, nn.Module):
        values = (*vars(holder).values(), *holder._buffers.values())
        return (*map(id, values), *_versions(values), *_learning(holder).values())
    if isinstance(holder, type):
        values = tuple(vars(holder).values())
        return (*map(id, values), *_versions(values))
    state = contents(holder)
    return (*map(id, state), *map(id, state.values()), *_versions(state.values()))


def _learning(module: nn.Module) -> dict[Learns, bool]:
    named = module._parameters.items()
    return {Learns(k): p.requires_grad for k, p in named if p is not None}


def _versions(values: Iterable[Any]) -> tuple[int, ...]:
    # Not isinstance, which a trace replaces: this runs for all of a network, at each of its calls.
    return tuple([version_of(value) for value in values if issubclass(type(value), Tensor)])


def state_of(holder: Any) -> dict[Any, Any]:
    """Return the contents of a holder by place, and how often each tensor was written into."""
    held = contents(holder)
    written = {Written(k): version_of(v) for k, v in held.items() if isinstance(v, Tensor)}
    return held | written if written else held


def contents(holder: Any) -> dict[Any, Any]:
    """Return the contents of a holder by place."""
    if isinstance(holder, nn.Module):
        state = {k: v for k, v in vars(holder).items() if k not in OWN and k != "_buffers"}
        return state | {Buffer(k): b for k, b in holder._buffers.items()} | _learning(holder)
    if isinstance(holder, Names):
        return {name: _original(holder.scope.get(name, Names)) for name in holder.names}
    if isinstance(holder, types.CellType):
        try:
            return {"a variable": holder.cell_contents}
        except ValueError:  # not assigned yet
            return {}
    if isinstance(holder, dict):
        return dict(dict.items(holder))  # a subclass may create the item that it is asked for
    if isinstance(holder, list | deque):
        return dict(enumerate(holder))
    if isinstance(holder, set):
        return dict.fromkeys(holder)
    return dict(vars(holder))


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes that an object holds, those in slots too."""
    # A slot is a member of its class under the name that it really has: private ones are mangled.
    members = [(n, m) for base in type(value).__mro__ for n, m in vars(base).items()]
    slots = [name for name, m in members if type(m) is types.MemberDescriptorType]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return held | getattr(value, "__dict__", {})


def _original(value: Any) -> Any:
    """Return the original of a function that a trace has replaced for the time being."""
    if not isinstance(value, types.FunctionType):
        return value
    # torch.fx's own mark carries the name of its class.
    patched = any(name.endswith("__fx_already_patched") for name in vars(value))
    return getattr(value, "__wrapped__", value) if patched else value


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written into; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version


def same(state: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Return whether two states hold the same objects, or equal numbers."""
    return len(state) == len(before) and all(
        key in state and (state[key] is value or _equal_numbers(state[key], value))
        for key, value in before.items()
    )


def _equal_numbers(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, int | float | str) and a == b


def differing(holder: Any, before: dict[Any, Any], now: dict[Any, Any]) -> list[str]:
    """Return, in words, what differs between two states of a holder."""
    keys = {**before, **now}
    differing = [k for k in keys if not same({0: now.get(k, Names)}, {0: before.get(k, Names)})]
    differing = list(dict.fromkeys(k.place if isinstance(k, Written) else k for k in differing))
    if isinstance(holder, nn.Module):
        named = (k.name if isinstance(k, Buffer | Learns) else str(k) for k in differing)
        return [name for name in named if not _is_made(name)]
    if isinstance(holder, Names | types.CellType):
        return [str(key) for key in differing]
    name = holder.__name__ if isinstance(holder, type) else f"a {type(holder).__name__}"
    return [name if isinstance(holder, list | deque | set) else f"{name}: {differing[0]!r}"]


def _is_made(key: Any) -> bool:
    """Return whether a key names a tensor that a forward made, which torch.fx keeps itself."""
    return isinstance(key, str) and key.startswith("_tensor_constant")


def restore(holder: Any, state: dict[Any, Any]) -> None:
    """Put a holder back into a state; what tensors hold is not restored."""
    state = {place: value for place, value in state.items() if not isinstance(place, Written)}
    if isinstance(holder, nn.Module):
        _restore_names(
            vars(holder),
            {k: v for k, v in state.items() if isinstance(k, str)},
            lambda k: k not in OWN and k != "_buffers" and not _is_made(k),
        )
        buffers = {k.name: v for k, v in state.items() if isinstance(k, Buffer)}
        _restore_names(holder._buffers, buffers, lambda k: not _is_made(k))
        for name, parameter in holder._parameters.items():
            if parameter is not None and Learns(name) in state:
                parameter.requires_grad = state[Learns(name)]
    elif isinstance(holder, Names):
        for name, value in state.items():
            if value is not Names:
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
    for key, value in state.items():
        if dict.get(table, key, Names) is not value:
            table[key] = value


class Snapshot:
    """What tensors hold, to be put back.

    Args:
        tensors: which ones; those on the meta device, which hold nothing, are left out.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        found = {id(t): t for t in tensors if not t.is_meta and t.layout is torch.strided}
        with torch.no_grad():
            self._held = [(t, t.detach().clone()) for t in found.values()]

    def restore(self) -> None:
        """Put back what was there, whatever way it was overwritten."""
        for tensor, before in self._held:
            with torch.inference_mode(tensor.is_inference()):
                if tensor.shape != before.shape or tensor.dtype != before.dtype:
                    tensor.data = before
                elif not torch.equal(tensor, before):
                    tensor.data.copy_(before)
