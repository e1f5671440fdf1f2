"""Exits of a cascade: which of its networks answered each image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, RecordingError


class Exits:
    """The networks that answered, batches one after another."""

    def __init__(self) -> None:
        self._levels: list[Tensor] = []

    def add(self, levels: Tensor) -> None:
        """Take the number of the network that answered each image, (B,)."""
        self._levels.append(levels)

    @property
    def levels(self) -> Tensor:
        """Number of the network that answered each image, (B,) int64; 0 is the cheapest one.

        Raises:
            RecordingError: if no forward pass ran.
        """
        if not self._levels:
            raise RecordingError(
                "Exits: nothing was recorded; run the cascade inside `with record_exits(cascade)`."
            )
        return torch.cat(self._levels)


_recording: ContextVar[tuple[tuple[int, Exits], ...]] = ContextVar("recording", default=())


@contextmanager
def record_exits(cascade: nn.Module) -> Iterator[Exits]:
    """Record which network answers each image in the passes inside the block.

    Threads and tasks record only their own passes.

    Raises:
        ArgumentError: if it is not a cascade.

    Example:
        >>> cascade = Cascade([freeze(model, 0.25), freeze(model, 1.0)], thresholds=[0.3])
        >>> with record_exits(cascade) as exits:
        ...     logits = cascade(images)
        >>> share = (exits.levels == 0).float().mean()  # of the images, answered by the cheapest
    """
    from .cascade import Cascade

    if not isinstance(cascade, Cascade):
        raise ArgumentError(
            f"record_exits: got a {type(cascade).__name__}; give what Cascade.fit returned."
        )
    exits = Exits()
    token = _recording.set((*_recording.get(), (id(cascade), exits)))
    try:
        yield exits
    finally:
        _recording.reset(token)


def tell(cascade: nn.Module, levels: Tensor) -> None:
    """Tell the recorders of a cascade which network answered each image, (B,)."""
    for wanted, exits in _recording.get():
        if wanted == id(cascade):
            exits.add(levels)
