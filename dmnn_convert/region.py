"""What lies between a fork and a sum: the branch's nodes, and what the shortcut is."""

from __future__ import annotations

from torch import fx

from .ops import tensor_inputs
from .trace import Trace


def region_between(
    end: fx.Node, add: fx.Node, shortcut: fx.Node, positions: dict[fx.Node, int]
) -> tuple[fx.Node, list[fx.Node]] | str:
    """Return the fork and the nodes between it and `end`, or why there are none."""
    before_shortcut = _ancestors(shortcut)
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
    stack, seen = [shortcut], {fork}
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        inputs = tensor_inputs(node)
        if node.op == "placeholder" or not inputs:
            return False
        stack += inputs
    return True


def shortcut_kind(traced: Trace, fork: fx.Node, shortcut: fx.Node) -> str:
    """Return "identity", "projection" (has parameters) or "parameter-free"."""
    if shortcut is fork:
        return "identity"
    stack, seen = [shortcut], {fork}
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        module = traced.module(node)
        learned = node.op == "get_attr" or (module and any(True for _ in module.parameters()))
        if learned:
            return "projection"
        stack += node.all_input_nodes
    return "parameter-free"


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen, stack = {node}, [node]
    while stack:
        for parent in stack.pop().all_input_nodes:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return seen
