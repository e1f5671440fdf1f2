"""Sums over images, class by class, that add up over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..distributed import gathered, summed

BINS = 60
"""Bars of the histogram of FLOPs."""


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass
class ImageSums:
    """Sums over images; those by class grow with the classes that are seen.

    Attributes:
        columns: number of sub-blocks, or of a cascade's networks.
        top: FLOPs ratio at the histogram's right end.
        histogram: (2, BINS) images that were answered wrongly, and rightly, by FLOPs ratio.
        by_class: (K, 3 + columns): images, right ones, FLOPs ratios, and those for which each
            sub-block ran, or that each network answered.
        by_column: (columns, 2): of the images of a column, the right ones and the FLOPs ratios.
    """

    columns: int
    top: float = 0.0
    histogram: Tensor = field(default_factory=lambda: torch.zeros(2, BINS, dtype=torch.float64))
    by_class: Tensor = field(default_factory=_none)
    by_column: Tensor = field(default_factory=_none)

    def add(self, labels: Tensor, right: Tensor, ratio: Tensor, on: Tensor, classes: int) -> None:
        """Take a batch: labels, right and FLOPs ratios (B,), and what ran (B, columns)."""
        self._grow(classes)
        values = torch.stack([torch.ones_like(ratio), right.double(), ratio], 1)
        self.by_class.index_add_(0, labels, torch.cat([values, on.double()], 1))
        self.by_column += on.double().T @ values[:, 1:]
        place = (ratio / self.top * BINS).long().clamp(0, BINS - 1)
        one = torch.ones_like(ratio)
        self.histogram.index_put_((right.long(), place), one, accumulate=True)

    def everywhere(self, classes: int, at: torch.device) -> ImageSums:
        """Return the sums of all processes; all of them must call it."""
        self._grow(classes)
        parts = [self.histogram, self.by_class, self.by_column]
        whole = summed(torch.cat([part.flatten() for part in parts]))
        sums = whole.split([part.numel() for part in parts])
        shaped = [own.view_as(part) for own, part in zip(sums, parts, strict=True)]
        tops = gathered([torch.tensor([self.top], dtype=torch.float64)], _none(), at)
        return ImageSums(self.columns, float(tops.max()), *shaped)

    def _grow(self, classes: int) -> None:
        if not self.by_class.numel():
            self.by_class = torch.zeros(classes, 3 + self.columns, dtype=torch.float64)
            self.by_column = torch.zeros(self.columns, 2, dtype=torch.float64)

    def grouped(self, labels: Sequence[int], count: int) -> Tensor:
        """Return `by_class` of groups of classes, (count, 3 + columns)."""
        groups = torch.zeros(count, self.by_class.shape[1], dtype=torch.float64)
        return groups.index_add_(0, torch.tensor(labels), self.by_class)
