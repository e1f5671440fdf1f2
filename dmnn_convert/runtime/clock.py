"""The time per image under any policy: static networks, cascades and gates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..budget import Cascade
from ..nn import GateController
from .costs import wait_for
from .prepare import prepare
from .prepared_cascade import static_network

ROUNDS = 10
"""Fewest timings of each batch."""


def image_time(network: nn.Module, batches: Sequence[Tensor]) -> float:
    """Return the median time of an image, in milliseconds, in the form that runs fastest here.

    Args:
        network: converted, a cascade, or without gates, in evaluation; it stays as it is.
        batches: images (B, C, H, W), passed as they are: the time of cascades and gates depends
            on them.
    """
    first = batches[0]
    fast: nn.Module
    if isinstance(network, Cascade) or any(
        isinstance(m, GateController) for m in network.modules()
    ):
        fast = prepare(network, first[:1], engine="torch", batch_sizes=(len(first),))
    else:
        fast = static_network(network, first[:1])
    taken = []
    with torch.no_grad():
        for i in range(-2, max(ROUNDS, len(batches))):
            images = batches[i % len(batches)]
            wait_for(images.device)
            begun = time.perf_counter()
            fast(images)
            wait_for(images.device)
            if i >= 0:  # the first ones find nothing in the caches
                taken.append((time.perf_counter() - begun) / len(images))
    return 1e3 * statistics.median(taken)
