"""The time per image under any policy: static networks, cascades and gates."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..budget import Cascade
from ..nn import GateController
from .prepare import prepare
from .prepared_cascade import PreparedCascade
from .static_network import static_network
from .stopwatch import seconds_of

ROUNDS = 10
"""Fewest timings of each batch."""


class ImageClock:
    """Times of an image in policies that may share networks, each of which is prepared once.

    Args:
        batches: images (B, C, H, W), which a pass takes as they come: what cascades and gates take
            depends on them.
    """

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = batches
        self._static: dict[nn.Module, nn.Module] = {}

    def milliseconds(self, network: nn.Module) -> float:
        """Return the median time of an image in the form that runs fastest in PyTorch.

        Args:
            network: converted, a cascade, or without gates, in evaluation; it stays as it is.
        """
        fast, taken = self._fastest(network), []
        with torch.no_grad():
            for i in range(-2, max(ROUNDS, len(self.batches))):
                images = self.batches[i % len(self.batches)].clone()  # it may write into them
                seconds = seconds_of(partial(fast, images), images.device)
                if i >= 0:  # the first ones find nothing in the caches
                    taken.append(seconds / len(images))
        return 1e3 * statistics.median(taken)

    def _fastest(self, network: nn.Module) -> nn.Module:
        first = self.batches[0]
        if isinstance(network, Cascade):
            parts = [self._fastest(part) for part in network.networks]
            return PreparedCascade(network, parts, None, first[:1])
        if any(isinstance(module, GateController) for module in network.modules()):
            return prepare(network, first[:1], engine="torch", batch_sizes=(len(first),))
        if network not in self._static:
            self._static[network] = static_network(network, first[:1], (len(first),))
        return self._static[network]
