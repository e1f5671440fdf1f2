"""Passes that preserve NaN, which oneDNN's own activations turn into zero."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

LARGE = 1e8
"""Norm of all images together from which values may overflow inside a network."""


class _Careful(threading.local):
    """Whether this thread's pass keeps NaN, with PyTorch's own operations instead of fast ones."""

    on = False


CAREFUL = _Careful()


def is_extraordinary(images: Tensor) -> bool:
    """Return whether images may lead to NaN, which fast activations on the CPU would swallow."""
    if images.device.type != "cpu":
        return False
    return not float(torch.linalg.vector_norm(images, dtype=torch.float32)) < LARGE


@contextmanager
def careful() -> Iterator[None]:
    """Keep NaN in the passes that this thread runs inside."""
    before, CAREFUL.on = CAREFUL.on, True
    try:
        yield
    finally:
        CAREFUL.on = before
