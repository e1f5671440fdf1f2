"""A batch with its results, for reports on single images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class SeenBatch(NamedTuple):
    """Images of one process, and the model's results.

    Attributes:
        images: (B, C, H, W), as the loader gave them.
        labels: (B,) int64, on the CPU.
        logits: (B, K) float32, on the CPU.
        gates: (B, total sub-blocks) zeros and ones, on the CPU; None for a model without gates.
        macs: of the whole network, (B,) int64; None for a model without gates.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    gates: Tensor | None = None
    macs: Tensor | None = None


OnImages = Callable[[SeenBatch], None]
