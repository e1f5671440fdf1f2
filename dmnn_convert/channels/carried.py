"""Channels carried from an operation's inputs to its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from ..graph import TracedModel
from .layout import Layout


@dataclass(frozen=True)
class Carried:
    """The origin of the channels of an operation's output.

    Attributes:
        inputs: values that hold them.
        parameters: tensors of the model with one entry per channel.
        units: the most parts whose channels stay apart (groups).
    """

    inputs: dict[fx.Node, Layout]
    parameters: tuple[fx.Node, ...] = ()
    units: int = 0


Carry = Callable[[TracedModel, fx.Node, Layout], Carried | None]
