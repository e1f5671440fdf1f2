"""The reason why no split fits a branch."""

from __future__ import annotations

from torch import fx

from ..graph import at_line


class NotSplittable(Exception):
    """No split fits a branch; the message becomes the block's `reason`."""


HEADS = "self-attention, whose heads are not split"


class Mismatch(NotSplittable):
    """A value in which different sub-blocks would hold the same channels."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(f"{at_line(node)} {reason}")
        self.node = node
