"""Batches of images with labels, checked as they come from a loader."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import ArgumentError


def images_and_labels(batch: Any, call: str) -> tuple[Tensor, Tensor]:
    """Return the images (B, C, H, W) and the int64 labels (B,) of a batch.

    Args:
        batch: what a loader yielded.
        call: named in errors.

    Raises:
        ArgumentError: if it is not two tensors, or the labels are not one integer per image.
    """
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts[:2]):
        raise ArgumentError(
            f"{call}: the loader yields {type(batch).__name__}; give images (B, C, H, W) "
            "with labels (B,), two tensors."
        )
    images, labels = parts[:2]
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ArgumentError(
            f"{call}: labels {tuple(labels.shape)} of {labels.dtype} for images "
            f"{tuple(images.shape)}; give one integer class for each image."
        )
    return images, labels.long()
