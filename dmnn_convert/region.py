"""What lies between a fork and a sum: the branch's nodes, and what the shortcut is."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from .dims import is_size, measured
from .ops import tensor_inputs
from .trace import Trace


def live_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the model's output depends on."""
    live: set[fx.Node] = set()
    stack = [node for node in graph.nodes if node.op == "output"]
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack += node.all_input_nodes
    return live


def region_between(
    end: fx.Node,
    add: fx.Node,
    shortcut: fx.Node,
    positions: dict[fx.Node, int],
    live: set[fx.Node],
) -> tuple[fx.Node, list[fx.Node]] | str:
    """Return the fork and the nodes between it and `end`, or why there are none."""
    inside: set[fx.Node] = set()
    waiting: set[fx.Node] = set()
    pending = end
    while True:
        readers = [r for u in pending.users for r in _readers(u)]
        # Only the branch's end goes into the sum; what else does is the shortcut.
        inside_or_sum = inside | {add} if pending is end else inside
        strangers = [r for r in readers if r not in inside_or_sum and r in live]
        if strangers:
            where = strangers[0].name
            return f"the branch is also read elsewhere ({pending.name} by {where})"
        if pending.op == "placeholder":
            return "a sum of two different inputs"
        inside.add(pending)
        waiting.discard(pending)
        waiting |= {i for i in tensor_inputs(pending) if i not in inside and not is_size(i)}
        if not waiting:
            return "a branch that starts at no input"
        pending = max(waiting, key=positions.__getitem__)
        if len(waiting) == 1 and hangs_on(shortcut, pending, positions):
            inside |= _own_sizes(inside, pending)
            inside |= dead_ends(inside, live)
            return pending, sorted(inside, key=positions.__getitem__)


def _readers(user: fx.Node) -> list[fx.Node]:
    """Return who reads a value by way of `user`; a size passes it on."""
    return [r for u in user.users for r in _readers(u)] if is_size(user) else [user]


def _own_sizes(inside: set[fx.Node], fork: fx.Node) -> set[fx.Node]:
    """Return the sizes of values here that nodes inside read and nobody else does."""
    read = [i for node in inside for i in node.all_input_nodes if is_size(i)]
    own: set[fx.Node] = set()
    while read:
        size = read.pop()
        here = set(measured(size)) <= inside | {fork}
        if here and size not in own and set(_readers(size)) <= inside:
            own.add(size)
            read += [i for i in size.all_input_nodes if is_size(i)]
    return own


def dead_ends(inside: set[fx.Node], live: set[fx.Node]) -> set[fx.Node]:
    """Return what reads the region and is read by nothing (sizes unpacked and not used)."""
    dead: set[fx.Node] = set()
    stack = [user for node in inside for user in node.users]
    while stack:
        node = stack.pop()
        if node not in live and node not in dead:
            dead.add(node)
            stack += node.users
    return dead


def hangs_on(shortcut: fx.Node, fork: fx.Node, positions: dict[fx.Node, int]) -> bool:
    """Return whether the shortcut is computed from the fork and the model's tensors alone."""
    if shortcut is fork:
        return True
    found = False
    for node in _upstream(shortcut, fork):
        if node.op == "placeholder" or (
            positions[node] < positions[fork] and node.op != "get_attr"
        ):
            return False
        found = found or fork in node.all_input_nodes
    return found


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
