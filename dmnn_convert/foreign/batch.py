"""Batches of images as loaders yield them: tensors, tuples that begin with images, or dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ArgumentError

IMAGES = ("pixel_values", "images", "image", "inputs", "input", "x")
"""Keys under which dicts hold images: those of transformers, datasets and common loops."""

LABELS = ("labels", "label", "targets", "target", "y")
"""Keys under which they hold labels."""


def images_of(batch: Any, call: str) -> Any:
    """Return the images of a batch, which need no labels.

    Args:
        batch: what a loader yielded: images, a tuple or list that begins with them, or a dict.
        call: named in errors.

    Raises:
        ArgumentError: for a dict without images, or an empty tuple.
    """
    if isinstance(batch, Mapping):
        return _under(batch, IMAGES, "images", call)
    if isinstance(batch, tuple | list):
        if not batch:
            raise ArgumentError(f"{call}: the loader yields an empty {type(batch).__name__}.")
        return batch[0]
    return batch


def images_and_labels(batch: Any, call: str) -> tuple[Tensor, Tensor]:
    """Return the images (B, C, H, W) and the int64 labels (B,) of a batch.

    Args:
        batch: what a loader yielded: a tuple or list that begins with both, or a dict.
        call: named in errors.

    Raises:
        ArgumentError: if it is not two tensors, or the labels are not one integer per image.
    """
    if isinstance(batch, Mapping):
        parts = (_under(batch, IMAGES, "images", call), _under(batch, LABELS, "labels", call))
    else:
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


def _under(batch: Mapping[str, Any], keys: tuple[str, ...], what: str, call: str) -> Tensor:
    found = [key for key in keys if isinstance(batch.get(key), Tensor)]
    if len(found) != 1:
        held = ", ".join(map(str, batch)) or "nothing"
        which = " and ".join(found)
        why = f"more than one tensor of {what}: {which}" if found else f"no tensor of {what}"
        raise ArgumentError(
            f"{call}: the loader yields a dict of {held}, with {why}. Give one under "
            f"{' or '.join(map(repr, keys))}, or a tuple (images, labels)."
        )
    own: Tensor = batch[found[0]]
    return own
