"""Writes of a graph into its own values, and the same graph without them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from ..graph import Effects, Memory, TracedModel
from ..nn import MultiPathBlock
from .layer import does_nothing, has_activation

_PURE: dict[Any, Any] = {torch.relu_: torch.relu, "add_": "add", "mul_": "mul", "relu_": "relu"}
"""Operations that write -> the same operations with a new tensor as the result.

Operators such as ``+=`` are pure already if nothing else reads what they write.
"""


def without_writes(trace: TracedModel) -> bool:
    """Let every operation that writes return a new tensor instead; return whether all do.

    The result is the same if the graph makes the written tensor, and does not read it under another
    name afterwards. If anything else is written, nothing is changed.
    """
    memory = trace.memory
    if any(_may_write(memory.effects, node) for node in trace.graph.nodes):
        return False
    writes = [node for node in memory.writes if _writes(memory.effects, node)]
    if not all(_is_private(memory, node) and _has_pure(node) for node in writes):
        return False
    for node in writes:
        _purify(trace, node)
    return True


def leave_alone(effects: Effects, readers: Iterable[fx.Node]) -> bool:
    """Return whether no reader of a value writes into it or passes it on."""
    return all(
        reader.op.startswith("call")
        and effects.known(reader)
        and not effects.shared(reader)
        and not _writes(effects, reader)
        for reader in readers
    )


def _writes(effects: Effects, node: fx.Node) -> bool:
    """Return whether a node writes in evaluation, and was not made pure by the trace."""
    idle = node.op == "call_module" and does_nothing(effects.module(node))
    return bool(effects.written(node)) and not idle and "unseen" not in node.meta


def _is_clean(module: nn.Module) -> bool:
    """Return whether a module leaves its inputs alone, though a layer inside may write.

    A block that overwrites its input is never converted; the activation of a norm overwrites the
    norm's output.
    """
    return isinstance(module, MultiPathBlock) or has_activation(module)


def _may_write(effects: Effects, node: fx.Node) -> bool:
    """Return whether a module may write into its inputs, and does not say so."""
    module = effects.module(node)
    if module is None or does_nothing(module) or _is_clean(module):
        return False
    inside = list(module.modules())[1:]
    return not effects.known(node) or any(getattr(inner, "inplace", False) for inner in inside)


def _is_private(memory: Memory, write: fx.Node) -> bool:
    """Return whether only the readers of its result see a write."""
    made = all(place.root.op.startswith("call") for place in memory.written(write))
    return made and bool(write.users) and next(memory.observers(write), None) is None


def _has_pure(node: fx.Node) -> bool:
    return node.op == "call_module" or node.target in _PURE or bool(node.kwargs.get("inplace"))


def _purify(trace: TracedModel, node: fx.Node) -> None:
    if node.op == "call_module":
        # A node that calls a module has one.
        trace.module(node).inplace = False  # type: ignore[union-attr]
    elif node.target in _PURE:
        node.target = _PURE[node.target]
    else:
        node.kwargs = {**node.kwargs, "inplace": False}
