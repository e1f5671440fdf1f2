"""The first few batches of a loader."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import summed
from ..errors import ArgumentError
from ..foreign import images_of
from ..progress import tracked


def image_batches(
    loader: Iterable[Any], batches: int, what: str, *, progress: bool = False
) -> Iterator[Tensor]:
    """Yield the images of at most `batches` batches, with a bar that says `what`."""
    given = itertools.islice(loader, batches)
    for batch in tracked(given, what, batches, shown=progress):
        yield images_of(batch, what)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU if it has none."""
    held = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if held is None else held.device


def batches_for(
    model: nn.Module, loader: Iterable[Any], batches: int, call: str, *, progress: bool = False
) -> Iterator[Tensor]:
    """Yield copies of the images of at most `batches` batches on the model's device.

    Raises:
        ArgumentError: after the last one, if no process of a distributed run was given any.
    """
    device, count = device_of(model), 0
    for images in image_batches(loader, batches, call, progress=progress):
        yield images.to(device, copy=True)  # which the model may write into
        count += 1
    if not summed(torch.tensor(float(count))):
        raise ArgumentError(f"{call}: the loader gave no batch; give some training images.")
