"""Values of a graph that share memory, and the readers that see a write into it.

A graph names values, and memory may have several names: the result of an in-place operation, views,
the result of an identity. In its own order, a graph does what the forward does. Aliases matter for
a block that is taken out of it, because the block reads later and returns a new tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from .dims import is_size
from .proxies import IN_PLACE
from .writes import Effects, part_taken


@dataclass(frozen=True)
class Place:
    """Memory: where it was made, and which of its parts, if it was split.

    Attributes:
        root: the node that made it, or by which it came in.
        parts: the splits that it went through, with its index in each.
    """

    root: fx.Node
    parts: tuple[tuple[fx.Node, int], ...] = ()

    def overlaps(self, other: Place) -> bool:
        """Return whether two places may be the same memory."""
        if self.root is not other.root:
            return False
        mine, theirs = dict(self.parts), dict(other.parts)
        return all(mine[split] == theirs[split] for split in mine.keys() & theirs.keys())


class Memory:
    """The places of a graph's values, as the graph is now."""

    def __init__(self, graph: fx.Graph, effects: Effects) -> None:
        self.effects = effects
        self.positions = {node: i for i, node in enumerate(graph.nodes)}
        self.places: dict[fx.Node, frozenset[Place]] = {}
        self.read: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {}
        self.writes: list[fx.Node] = []
        tensors: dict[str, fx.Node] = {}
        for node in graph.nodes:
            first = tensors.setdefault(str(node.target), node) if node.op == "get_attr" else node
            written = effects.written(node)
            if written:
                self.writes.append(node)
            self.places[node] = self._places(node, first, written)
            for value in node.all_input_nodes:
                for place in self.places[value]:
                    self.read.setdefault(place.root, []).append((node, value))

    def _places(
        self, node: fx.Node, first: fx.Node, written: tuple[fx.Node, ...]
    ) -> frozenset[Place]:
        if is_size(node):
            return frozenset()
        shared = written or self.effects.shared(node)
        if not shared:
            return frozenset({Place(first)})
        found = frozenset(itertools.chain.from_iterable(self.places[n] for n in shared))
        part = part_taken(node)
        return found if part is None else frozenset(Place(p.root, (*p.parts, part)) for p in found)

    def written(self, write: fx.Node) -> frozenset[Place]:
        """Return the places that a node writes into."""
        values = self.effects.written(write)
        return frozenset(itertools.chain.from_iterable(self.places[n] for n in values))

    def overlap(self, some: frozenset[Place], others: frozenset[Place]) -> bool:
        """Return whether some of the places may be the same memory as some of the others."""
        return any(a.overlaps(b) for a in some for b in others)

    def observers(self, write: fx.Node) -> Iterator[fx.Node]:
        """Yield the nodes that, after a write, read the written memory under an older name."""
        places = self.written(write)
        now = self.positions[write]
        for root in sorted({place.root for place in places}, key=self.positions.__getitem__):
            for reader, value in self.read[root]:
                old = self.positions[value] < now < self.positions[reader]
                if old and not is_size(reader) and self.overlap(places, self.places[value]):
                    yield reader


def hand_on(graph: fx.Graph, effects: Effects) -> None:
    """Let nodes that read x after an in-place operation, such as ``x += y``, read its result.

    Both are the same tensor. Each write notes in its meta, as "renamed", whose forward read the old
    name, because that forward still uses it.
    """
    positions = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        value = effects.written_and_returned(node)
        if value is None:
            continue
        later = [n for n in value.users if positions[n] > positions[node] and not is_size(n)]
        for user in later:
            user.replace_input_with(value, node)
        node.meta["renamed"] = tuple(
            str(user.meta["key"][0]) for user in later if "key" in user.meta
        )


def without_unseen_writes(memory: Memory) -> None:
    """Let ``x += y`` make a new tensor if x is made here and nothing else reads it.

    Its meta says "unseen": another forward, made from a part of the graph, may still write.
    """
    for node in memory.writes:
        if node.target not in IN_PLACE or next(memory.observers(node), None) is not None:
            continue
        roots = [place.root for place in memory.written(node)]
        if all(root.op in ("call_function", "call_method", "call_module") for root in roots):
            node.meta["unseen"] = True
            node.target = IN_PLACE[node.target]
