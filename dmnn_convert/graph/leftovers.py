"""Values of a trace that something else still holds after it.

`side_effects` looks where a forward can store values. Whatever it misses (another module's globals,
a callback's list, a slot) keeps the values alive.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.utils._pytree import tree_leaves

from .lines import at_line


class Leftovers:
    """The values that a trace has passed to forwards."""

    def __init__(self) -> None:
        self._values: list[weakref.ref[fx.Proxy]] = []

    def note(self, value: fx.Proxy) -> None:
        """Note a new value."""
        self._values.append(weakref.ref(value))

    def reasons(self, ours: Any) -> Iterator[tuple[str, str]]:
        """Yield the path of each module that may keep a value for itself, and why.

        Args:
            ours: the values that the trace itself still holds, a tree.
        """
        known = {id(leaf) for leaf in tree_leaves(ours)}
        for generation in range(3):  # the oldest last, which takes long in a large process
            if self._alive(known):
                gc.collect(generation)  # a cycle, such as an error and its frames, holds nothing
        for value in self._alive(known):
            node = value.node
            reason = f"its forward keeps a value ({at_line(node)}), which a new forward would not"
            for made in (node, *node.users):
                parts = str(made.meta["key"][0]).split(".") if "key" in made.meta else []
                for i in range(len(parts) + 1):
                    yield ".".join(parts[:i]), reason

    def _alive(self, known: set[int]) -> list[fx.Proxy]:
        values = (reference() for reference in self._values)
        return [value for value in values if value is not None and id(value) not in known]
