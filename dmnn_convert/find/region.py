"""The region between a fork and a sum: the branch's nodes, and the shortcut."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from torch import fx

from ..channels import tensor_inputs
from ..graph import TracedModel, at_line, is_size, is_unread_part, measured


class Rank(enum.IntEnum):
    """The kinds of reasons why a path is no branch, the most telling first."""

    HEADS = enum.auto()
    OTHER_INPUT = enum.auto()
    READ_ELSEWHERE = enum.auto()
    COMPUTED_WEIGHT = enum.auto()
    REST = enum.auto()


class Miss(NamedTuple):
    """Why a path is no branch."""

    reason: str
    rank: Rank = Rank.REST


def region_between(
    traced: TracedModel, end: fx.Node, add: fx.Node, shortcut: fx.Node
) -> tuple[fx.Node, list[fx.Node]] | Miss:
    """Return the fork and the nodes between it and `end`, or why there are none."""
    positions = traced.positions
    inside: set[fx.Node] = set()
    waiting: set[fx.Node] = set()
    pending = end
    while True:
        # Only the branch's end goes into the sum; the other operand is the shortcut.
        inside_or_sum = inside | {add} if pending is end else inside
        strangers = [r for r in readers(pending) if r not in inside_or_sum]
        others = sorted(waiting - {pending}, key=positions.__getitem__)
        if strangers and others and computed_from(traced, shortcut, pending):
            said = f"its branch reads {at_line(others[-1])} besides the block's input"
            return Miss(said, Rank.OTHER_INPUT)
        if strangers:
            way, where = at_line(pending), at_line(strangers[0])
            said = f"{way}, on the way to the sum, is also read elsewhere (by {where})"
            return Miss(said, Rank.READ_ELSEWHERE)
        if pending.op == "placeholder":
            if any(computed_from(traced, shortcut, other) for other in others):
                said = f"its branch reads {at_line(pending)} besides the block's input"
                return Miss(said, Rank.OTHER_INPUT)
            return Miss("a sum of two different inputs")
        inside.add(pending)
        waiting.discard(pending)
        waiting |= {i for i in tensor_inputs(pending) if i not in inside and not is_size(i)}
        if not waiting:
            return Miss("a branch that starts at no input")
        pending = max(waiting, key=positions.__getitem__)
        if len(waiting) == 1 and computed_from(traced, shortcut, pending):
            inside |= own_sizes(inside, pending)
            return pending, sorted(inside, key=positions.__getitem__)


def readers(node: fx.Node) -> list[fx.Node]:
    """Return the readers of a value, also by its size; taking a part does not count as reading."""
    seen = [r for user in node.users for r in (readers(user) if is_size(user) else [user])]
    return [reader for reader in seen if not is_unread_part(reader)]


def own_sizes(inside: set[fx.Node], fork: fx.Node) -> set[fx.Node]:
    """Return sizes of values that only nodes inside read, if any, and unread parts."""
    near = [n for node in inside for n in (*node.users, *node.all_input_nodes)]
    own = {n for n in near if is_unread_part(n) and set(n.all_input_nodes) <= inside}
    stack = [n for n in near if is_size(n)]
    while stack:
        size = stack.pop()
        here = set(measured(size)) <= inside | {fork} and set(readers(size)) <= inside
        if here and size not in own:
            own.add(size)
            stack += [n for n in (*size.users, *size.all_input_nodes) if is_size(n)]
    return own


def computed_from(traced: TracedModel, shortcut: fx.Node, fork: fx.Node) -> bool:
    """Return whether the shortcut is computed from the fork and the model's tensors alone."""
    if shortcut is fork:
        return True
    positions = traced.positions
    found = False
    for node in upstream(shortcut, fork):
        if node.op == "placeholder" or (
            positions[node] < positions[fork] and node.op != "get_attr"
        ):
            return False
        found = found or fork in node.all_input_nodes
    return found


def shortcut_kind(traced: TracedModel, fork: fx.Node, shortcut: fx.Node) -> str:
    """Return "identity", "projection" (has parameters) or "parameter-free"."""
    if shortcut is fork:
        return "identity"
    learned = any(_reads_parameters(traced, node) for node in upstream(shortcut, fork))
    return "projection" if learned else "parameter-free"


def _reads_parameters(traced: TracedModel, node: fx.Node) -> bool:
    module = traced.module(node)
    own = module is not None and any(True for _ in module.parameters())
    return own or node.op == "get_attr"


def upstream(node: fx.Node, fork: fx.Node | None = None) -> Iterator[fx.Node]:
    """Yield the node and all that it is computed from, as far as the fork, which is left out."""
    stack, seen = [node], {fork}
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            yield current
            stack += current.all_input_nodes
