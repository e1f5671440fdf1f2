"""Passes over a few batches in evaluation mode, which leave a model as it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


def image_batches(
    loader: Iterable[Any], batches: int, what: str, *, progress: bool = False
) -> Iterator[Tensor]:
    """Yield the images of at most `batches` batches, with a bar that says `what`."""
    given = itertools.islice(loader, batches)
    for batch in tqdm(given, what, batches, disable=not progress, leave=False):
        yield batch[0] if isinstance(batch, tuple | list) else batch


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter lies."""
    return next(model.parameters()).device
