"""The blocks that a human counts, who reads a network's source: what a conversion is held against.

A block is a residual branch of convolutions (one is enough) or of an MLP, whose shortcut may resize
or project; an inverted residual with or without a shortcut; or a depthwise convolution with the
pointwise one that follows and alone reads it. Not counted: attention, whose heads are not split;
sums of parallel layers, of levels of a pyramid and of skips around other blocks; and what is only
a part of a block, such as the depthwise pairs of a longer branch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Size = tuple[int, ...]


class Config(NamedTuple):
    """A configuration of transformers.

    Attributes:
        kind: its class, without "Config" at the end.
        settings: what it is given; configurations, too.
    """

    kind: str
    settings: dict[str, Any]


class Network(NamedTuple):
    """A network of transformers from a small configuration.

    Attributes:
        kind: the class of its configuration, without "Config" at the end.
        settings: what this is given; configurations, too.
        human: how many blocks a human counts.
        size: shape of one input; None for an image as the configuration tells, or a small one.
    """

    kind: str
    settings: dict[str, Any]
    human: int
    size: Size | None = None
