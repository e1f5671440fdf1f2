"""The paths that images took: their costs, and what they tell about the class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import gathered
from ..errors import ArgumentError
from ..flops import FlopsTable
from ..nn import record_paths
from .figures import BINS, DenseEvaluation, Evaluation, Spread
from .information import chance_information, entropy, mutual_information
from .scores import shares


class PathRecords:
    """The gates of each image, eight to a byte, and the gated MACs."""

    def __init__(self, table: FlopsTable) -> None:
        self.table = table
        self.total = len(table.rows)
        self._latest = torch.zeros(0, self.total)
        self._packed: list[Tensor] = []
        self._macs: list[Tensor] = []

    def watching(self, model: nn.Module) -> Callable[[Tensor], Any]:
        """Return the model's forward pass, whose gates are kept for `add_latest`."""

        def forward(images: Tensor) -> Any:
            self._check(images)
            with record_paths(model) as paths:
                logits = model(images)
            self._latest = paths.gates
            return logits

        return forward

    def add_latest(self) -> tuple[Tensor, Tensor]:
        """Take the gates of the last forward pass; return them, and their gated MACs (B,)."""
        gates = self._latest.cpu()
        macs = self.table.flops(gates).round().long()
        self._packed.append(packed(gates))
        self._macs.append(macs)
        return gates, macs

    def figures(self, dense: DenseEvaluation, labels: Tensor, at: torch.device) -> Evaluation:
        """Return the figures of all processes' images; all of them must call it.

        Args:
            dense: accuracy and loss of the logits.
            labels: of all processes' images, (B,), in order of rank.
            at: the process's accelerator.
        """
        gates = gathered(self._packed, packed(torch.zeros(0, self.total)), at)
        macs = gathered(self._macs, torch.zeros(0, dtype=torch.long), at)
        found = {**self._costs(macs), **self._by_path(gates, labels)}
        by_class = torch.zeros(len(dense.classes), dtype=torch.long).index_add_(0, labels, macs)
        return Evaluation(
            **vars(dense),
            **found,
            class_flops_ratio=shares(
                by_class.double() / self.table.gated, torch.tensor(dense.class_images)
            ),
            blocks=self.table.blocks,
            sizes=self.table.sizes,
        )

    def _costs(self, macs: Tensor) -> dict[str, Any]:
        """Return the figures of gated MACs (B,)."""
        gated, network = Spread.of(macs), Spread.of(macs + self.table.fixed)
        parts = (macs.double() / self.table.gated * BINS).long().clamp_max(BINS - 1)
        return {
            "macs": network,
            "gated_macs": gated,
            "network_flops_ratio": network.over(self.table.dense_total),
            "flops_ratio": gated.over(self.table.gated),
            "flops_histogram": tuple(parts.bincount(minlength=BINS).tolist()),
        }

    def _by_path(self, gates: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return the figures of packed gates (B, bytes) and labels (B,)."""
        paths, path, counts = gates.unique(dim=0, return_inverse=True, return_counts=True)
        most = int((counts == counts.max()).nonzero()[0])
        return {
            "sub_block_rates": tuple((ones(gates, self.total).double() / len(gates)).tolist()),
            "distinct_paths": len(paths),
            "path_entropy": entropy(counts),
            "class_entropy": entropy(labels.bincount()),
            "mutual_information": mutual_information(path, labels),
            "chance_information": chance_information(path, labels),
            "frequent_path": tuple(ones(paths[most : most + 1], self.total).tolist()),
            "frequent_path_share": int(counts[most]) / len(gates),
        }

    def _check(self, images: Tensor) -> None:
        size = tuple(images.shape[1:])
        if size != self.table.input_size:
            raise ArgumentError(
                f"evaluate: images of shape {size}, but the table counts the MACs of images of "
                f"shape {self.table.input_size}; give table.recomputed(model, {size})."
            )


def packed(gates: Tensor) -> Tensor:
    """Return gates (B, n) as bits, (B, ⌈n / 8⌉) uint8, the first gate the highest bit."""
    bits = F.pad(gates.to(torch.uint8), (0, -gates.shape[1] % 8)).unflatten(1, (-1, 8))
    places: Tensor = bits << torch.arange(7, -1, -1, dtype=torch.uint8)
    return places.sum(-1, dtype=torch.uint8)


def ones(bits: Tensor, n: int) -> Tensor:
    """Return how many rows of packed gates (B, bytes) have each of the n gates on, (n,)."""
    counts = [((bits >> place) & 1).sum(0, dtype=torch.long) for place in range(7, -1, -1)]
    return torch.stack(counts, 1).flatten()[:n]
