"""The category loss, and the paper's weights of blocks in it (eq. 9, 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError
from ..flops import FlopsTable
from ..nn import Paths


def stage_weights(table: FlopsTable, first: float = 1e-4, factor: float = 10.0) -> list[float]:
    """Return the paper's category-loss weight of each block: `first` × `factor` ^ stage.

    The paper has four stages, of which the last has 1e-1; further ones have that, too.

    Example:
        >>> stage_weights(table)  # two blocks of the first stage
        [0.0001, 0.0001]
    """
    return [first * factor ** min(stage, _LAST_STAGE) for stage in table.stages]


_LAST_STAGE = 3


def category_loss(paths: Paths, labels: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of the controllers' cross-entropies, a scalar (eq. 9, 10).

    Args:
        paths: the record by `record_paths` in training, of a model with category heads.
        labels: big-category label of each image, (B,); or its share of each category, (B, K).
        weights: weight of each block; `stage_weights` gives the paper's.

    Raises:
        ArgumentError: if the weights do not fit the blocks, or labels the heads' classes.
        RecordingError: if no category logits were recorded.

    Example:
        >>> net, table = dynamize(Net(), input_size=(3, 16, 16), num_categories=2)
        >>> with record_paths(net.train()) as paths:
        ...     logits = net(images)
        >>> loss = category_loss(paths, labels % 2, stage_weights(table))
    """
    logits = paths.category_logits
    if len(weights) != len(logits):
        raise ArgumentError(
            f"category_loss: {len(weights)} weights for {len(logits)} blocks; give one for each."
        )
    check_labels(labels, logits[0].shape[-1], "category_loss")
    return category_terms(paths, labels, weights)


def category_terms(paths: Paths, labels: Tensor, weights: Sequence[float]) -> Tensor:
    """Return `category_loss` of checked arguments, without waiting for the device."""
    logits = paths.category_logits
    losses = [w * F.cross_entropy(x, labels) for w, x in zip(weights, logits, strict=True)]
    return torch.stack(losses).sum()


def check_labels(labels: Tensor, classes: int, call: str) -> None:
    """Check that labels are classes, or shares of all of them.

    Raises:
        ArgumentError: if they are not.
    """
    if labels.is_floating_point():
        if labels.dim() != 2 or labels.shape[1] != classes:
            raise ArgumentError(
                f"{call}: soft labels {tuple(labels.shape)}, but there are {classes} categories; "
                f"give shares (B, {classes}), or integers (B,)."
            )
        return
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ArgumentError(
            f"{call}: labels from {int(labels.min())} to {int(labels.max())}, but there are "
            f"{classes} categories, numbered from 0."
        )
