"""Keys that identify nodes across traces, and names of modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

Key = tuple[str, str, str, int]
"""(owner, op, target, how many of its like came before): names a node across traces."""


def key_within(path: str, key: Key) -> Key:
    """Return the key that a node of the module at `path` has in the whole model."""
    owned_by, op, target, count = key
    named = op in ("call_module", "get_attr") and not names_constant(target)
    return (joined(path, owned_by), op, joined(path, target) if named else target, count)


def joined(*path: str) -> str:
    """Join the parts of a path, of which some may be empty (the root)."""
    return ".".join(filter(None, path))


def below(path: str, outer: str) -> bool:
    """Return whether a path names something inside a module, which may be the root ("")."""
    return path != outer and (not outer or path.startswith(f"{outer}."))


def within(path: str, outer: str) -> bool:
    """Return whether a path names a module, which may be the root (""), or something inside it."""
    return path == outer or below(path, outer)


CONSTANT = "_tensor_constant"
"""Prefix that torch.fx gives the names of tensors that a forward makes."""


def names_constant(name: str) -> bool:
    """Return whether torch.fx gave this name to a tensor that a forward made."""
    return name.startswith(CONSTANT)


def target_name(target: Any) -> str:
    """Return the part of a key that says what a node calls or reads."""
    if isinstance(target, str):
        # The number depends on what else was traced, and says nothing.
        return CONSTANT if names_constant(target) else target
    return str(getattr(target, "__name__", repr(target)))


def names_of(root: nn.Module) -> dict[int, list[str]]:
    """Return all names of each module of `root`, by its id."""
    names: dict[int, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def is_made_here(module: nn.Module, names: Mapping[int, list[str]]) -> bool:
    """Return whether a forward has made a module to call it once, as in ``nn.Softmax(1)(x)``.

    What such a module does is the forward's own, if it holds no tensors but those of the model's
    modules that it calls one after another, as in ``self.layers[1:](x)``.

    Args:
        module: which is called.
        names: of the model's modules, by id.
    """
    if id(module) in names:
        return False
    if (
        type(module) is nn.Sequential
        and not module._forward_hooks
        and not module._forward_pre_hooks
    ):
        return all(id(child) in names or is_made_here(child, names) for child in module)
    return not [*module.parameters(), *module.buffers()]
