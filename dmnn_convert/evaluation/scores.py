"""Accuracy and loss, accumulated over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import gathered
from ..errors import ArgumentError
from .figures import DenseEvaluation


class Scores:
    """Takes logits batch by batch, then adds up over all of them and all processes.

    Attributes:
        everywhere: labels (B,) of all processes' images, once `figures` was called.
    """

    def __init__(self, call: str, classes: Sequence[str] | None) -> None:
        self.call = call
        self.names = None if classes is None else tuple(classes)
        self.logits = 0
        self.everywhere = torch.zeros(0, dtype=torch.long)
        self._labels: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._right: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take logits (B, K) and labels (B,)."""
        self._check(logits, labels)
        loss = F.cross_entropy(logits, labels, reduction="none")
        first = logits.argmax(1) == labels
        five = (logits.topk(min(5, self.logits)).indices == labels[:, None]).any(1)
        # Where two logits are equal, argmax and topk need not choose alike.
        right = torch.stack([first, first | five], 1) & loss.isfinite()[:, None]
        self._labels.append(labels)
        self._losses.append(loss)
        self._right.append(right.to(torch.uint8))

    def figures(self, seconds: float, at: torch.device) -> DenseEvaluation:
        """Return the figures of all processes' images; all of them must call it.

        Args:
            seconds: how long this process's forward passes took.
            at: the process's accelerator.

        Raises:
            ArgumentError: if there are no images.
        """
        labels = self.everywhere = gathered(self._labels, torch.zeros(0, dtype=torch.long), at)
        loss = gathered(self._losses, torch.zeros(0), at).double()
        right = gathered(self._right, torch.zeros(0, 2, dtype=torch.uint8), at).long()
        logits = int(gathered([], torch.tensor([self.logits]), at).max())
        seconds = float(gathered([], torch.tensor([seconds]), at).max())
        images = len(labels)
        if not images:
            raise ArgumentError(f"{self.call}: the loader gave no images; give some to evaluate.")
        finite = loss[loss.isfinite()].sort().values
        counts = labels.bincount(minlength=logits)
        right_by_class = torch.zeros_like(counts).index_add_(0, labels, right[:, 0])
        return DenseEvaluation(
            images=images,
            top1=100 * int(right[:, 0].sum()) / images,
            top5=100 * int(right[:, 1].sum()) / images if logits > 5 else None,
            loss=float(finite.mean()) if len(finite) else None,
            nan_images=images - len(finite),
            classes=self.names or tuple(map(str, range(logits))),
            class_images=tuple(counts.tolist()),
            class_top1=shares(100 * right_by_class.double(), counts),
            images_per_second=images / max(seconds, 1e-9),
        )

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        self.logits = logits.shape[1]
        if self.names is not None and len(self.names) != self.logits:
            raise ArgumentError(
                f"{self.call}(classes=...): {len(self.names)} names, but the model returns "
                f"{self.logits} logits; give one name for each, in their order."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.logits:
            raise ArgumentError(
                f"{self.call}: labels from {int(labels.min())} to {int(labels.max())}, but the "
                f"model returns {self.logits} logits, numbered from 0. Give the images of its own "
                "classes, or a model with a logit for each class."
            )


def shares(sums: Tensor, counts: Tensor) -> tuple[float | None, ...]:
    """Return sums (K,) over counts (K,), and None where there is nothing to count."""
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return tuple(total / count if count else None for total, count in pairs)
