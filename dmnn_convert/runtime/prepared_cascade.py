"""Prepared cascades: every level as a static network in the form that runs fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import Cascade
from ..errors import ArgumentError
from .alone import ENGINES
from .engine import check_engine, engine_network, fastest_engine
from .exported import PreparedFor
from .prepared_model import with_threads
from .static_network import Padded, StaticNetwork, static_network


class PreparedCascade(PreparedFor, Cascade):
    """A cascade for inference; `record_exits` works on it.

    Attributes:
        threads: with how many threads it runs; None for as many as PyTorch is set to.
    """

    def __init__(
        self, cascade: Cascade, networks: list[nn.Module], threads: int | None, example: Tensor
    ) -> None:
        super().__init__(
            [networks[0], *map(_padded, networks[1:])],
            cascade.thresholds.tolist(),
            confidence=cascade.confidence,
            mean=cascade.mean,
        )
        self.fitted, self.threads = cascade.fitted, threads
        self._like = example[:0]

    def forward(self, images: Any) -> Any:
        """Return the answers to images (B, C, H, W).

        Raises:
            ArgumentError: if they are not such images, or of another device or dtype.
        """
        self.check_not_exported()
        self.check_images(images)
        with torch.no_grad(), with_threads(self.threads):
            return super().forward(images)


def prepared_cascade(
    cascade: Cascade, image: Tensor, threads: int | None, engine: str, sizes: Sequence[int]
) -> PreparedCascade:
    """Return a cascade whose networks all run in their fastest form on images (1, C, H, W)."""
    networks = prepared_networks(list(cascade.networks), image, threads, engine, sizes)
    return PreparedCascade(cascade, networks, threads, image)


def _padded(network: nn.Module) -> nn.Module:
    """Return a network that runs batches of any size by the CUDA graphs that it has."""
    graphed = network.graphed if isinstance(network, StaticNetwork) else ()
    return Padded(network, graphed) if graphed else network


def prepared_networks(
    networks: Sequence[nn.Module],
    image: Tensor,
    threads: int | None,
    engine: str,
    sizes: Sequence[int],
) -> list[nn.Module]:
    """Return networks without gates in their fastest forms, all in one engine.

    One, because the threads of an engine spin for a while after a call and slow another engine.

    Raises:
        ArgumentError: if the engine is not installed, or does not run one of the networks.
    """
    if engine not in ("auto", "torch"):
        check_engine(engine, image)
    with with_threads(threads):
        fast: list[nn.Module] = []
        if engine not in ENGINES:
            fast = [static_network(each, image, sizes) for each in networks]
        asked = engine
        if engine == "auto":  # the largest one takes most of the time
            engine = fastest_engine(networks[-1], fast[-1], image, threads, sizes)
        if engine == "torch":
            return fast
        alone = len(networks) == 1
        found = [
            engine_network(each, image, engine, threads, sizes, alone=alone) for each in networks
        ]
    if all(each is not None for each in found):
        return [each for each in found if each is not None]
    if asked == "auto":
        return fast
    raise ArgumentError(
        f"prepare(engine={engine!r}): a network does not run there, or gives other results (see "
        'the warning above); take engine="torch".'
    )
