"""What lies between a fork and a sum: the branch's nodes, and what the shortcut is."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from .ops import tensor_inputs
from .trace import Trace


def region_between(
    end: fx.Node, add: fx.Node, shortcut: fx.Node, positions: dict[fx.Node, int]
) -> tuple[fx.Node, list[fx.Node]] | str:
    """Return the fork and the nodes between it and `end`, or why there are none."""
    before_shortcut = set(_upstream(shortcut))
    if end in before_shortcut:
        return "a sum of two different inputs"
    inside: set[fx.Node] = set()
    pending = end
    while True:
        strangers = [u for u in pending.users if u not in inside and u is not add]
        if strangers:
            where = strangers[0].name
            return f"the branch is also read elsewhere ({pending.name} by {where})"
        if pending.op == "placeholder":
            return "a sum of two different inputs"
        inside.add(pending)
        inputs = {i for n in inside for i in tensor_inputs(n) if i not in inside}
        if not inputs:
            return "a branch that starts at no input"
        pending = max(inputs, key=positions.__getitem__)
        if len(inputs) == 1 and pending in before_shortcut:
            if not _hangs_on(shortcut, pending):
                return "a sum of two different inputs"
            return pending, sorted(inside, key=positions.__getitem__)


def _hangs_on(shortcut: fx.Node, fork: fx.Node) -> bool:
    """Return whether the shortcut is computed from the fork alone."""
    return all(
        node.op == "get_attr" or (node.op != "placeholder" and tensor_inputs(node))
        for node in _upstream(shortcut, fork)
    )


def shortcut_kind(traced: Trace, fork: fx.Node, shortcut: fx.Node) -> str:
    """Return "identity", "projection" (has parameters) or "parameter-free"."""
    if shortcut is fork:
        return "identity"
    learned = any(_reads_parameters(traced, node) for node in _upstream(shortcut, fork))
    return "projection" if learned else "parameter-free"


def _reads_parameters(traced: Trace, node: fx.Node) -> bool:
    module = traced.module(node)
    own = module is not None and any(True for _ in module.parameters())
    return own or node.op == "get_attr"


def _upstream(node: fx.Node, fork: fx.Node | None = None) -> Iterator[fx.Node]:
    """Yield the node and all that it is computed from, as far as the fork, which is left out."""
    stack, seen = [node], {fork}
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            yield current
            stack += current.all_input_nodes
