"""Rows of a batch in tensors, lists with one item per image, tuples or dicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError


def count(batch: Any) -> int:
    """Return the number of images of a batch: a tensor (B, ...), or a list of one item per image.

    Raises:
        ArgumentError: if it is neither.
    """
    if isinstance(batch, Tensor | list) and (isinstance(batch, list) or batch.dim()):
        return len(batch)
    raise ArgumentError(
        f"Cascade: got {type(batch).__name__}; give images (B, C, H, W), or a list of images."
    )


def copied(batch: Any) -> Any:
    """Return a copy of a batch, for a network that may write into it."""
    if isinstance(batch, list):
        return [copied(item) for item in batch]
    return batch.clone() if isinstance(batch, Tensor) else batch


def taken(batch: Any, rows: Sequence[int]) -> Any:
    """Return a copy of some rows of a batch."""
    if isinstance(batch, Tensor):
        return batch[torch.tensor(rows, device=batch.device)]
    if isinstance(batch, list):
        return [copied(batch[i]) for i in rows]
    if isinstance(batch, dict):
        return type(batch)((key, taken(part, rows)) for key, part in batch.items())
    if isinstance(batch, tuple):
        return tuple(taken(part, rows) for part in batch)
    return batch


def put(batch: Any, rows: Sequence[int], new: Any) -> Any:
    """Return a batch with some of its rows replaced."""
    if isinstance(batch, Tensor):
        return batch.index_copy(0, torch.tensor(rows, device=batch.device), new.to(batch.dtype))
    if isinstance(batch, list):
        changed = dict(zip(rows, new, strict=True))
        return [changed.get(i, item) for i, item in enumerate(batch)]
    if isinstance(batch, dict):
        return type(batch)((key, put(part, rows, new[key])) for key, part in batch.items())
    if isinstance(batch, tuple):
        return tuple(put(a, rows, b) for a, b in zip(batch, new, strict=True))
    return batch
