"""Prepared cascades: every level as a static network in the form that runs fastest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import Cascade
from ..convert import undisturbed
from ..errors import ArgumentError
from ..graph import copied, undone
from ..nn import tensors_in
from .alone import ENGINES
from .careful import careful, is_extraordinary
from .engine import check_engine, engine_network, fastest_engine
from .exported import PreparedFor
from .forms import same_outputs
from .network import packed_graph
from .prepared_model import with_threads

_log = logging.getLogger(__name__)


class StaticNetwork(PreparedFor):
    """A network without gates, for inference.

    Attributes:
        network: the network that runs.
        layout: memory format of its images.
    """

    def __init__(self, network: nn.Module, layout: torch.memory_format, image: Tensor) -> None:
        super().__init__()
        self.network, self.layout, self._like = network, layout, image[:0]
        self.eval()

    def forward(self, images: Tensor) -> Any:
        """Return the outputs of the original network for images (B, C, H, W)."""
        self.check_not_exported()
        self.check_images(images)
        laid_out = images.contiguous(memory_format=self.layout)
        if not is_extraordinary(laid_out):
            return self.network(laid_out)
        with careful():
            return self.network(laid_out)


class PreparedCascade(PreparedFor, Cascade):
    """A cascade for inference; `record_exits` works on it.

    Attributes:
        threads: with how many threads it runs; None for as many as PyTorch is set to.
    """

    def __init__(
        self, cascade: Cascade, networks: list[nn.Module], threads: int | None, example: Tensor
    ) -> None:
        super().__init__(
            networks,
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
        fast = [] if engine in ENGINES else [static_network(each, image) for each in networks]
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


def static_network(network: nn.Module, image: Tensor) -> nn.Module:
    """Return a network without gates in the form that runs fastest on images (1, C, H, W).

    A network that cannot be traced, or whose outputs would differ, runs as it is.
    """
    laid_out = image.contiguous(memory_format=torch.channels_last)
    graph = packed_graph(network, laid_out)
    if graph is not None and _agrees(graph, laid_out, network, image):
        return StaticNetwork(graph, torch.channels_last, image)
    _log.warning(
        "prepare: no faster form of %s gives the same results; it runs as it is.",
        type(network).__name__,
    )
    own = copied(network).eval().requires_grad_(False)
    return StaticNetwork(own, torch.contiguous_format, image)


def _agrees(fast: nn.Module, laid_out: Tensor, network: nn.Module, image: Tensor) -> bool:
    expected = _of_two_calls(network, image)
    try:
        got = _of_two_calls(fast, laid_out)
    except Exception:  # whatever a network raises when it is rewritten
        return False
    return same_outputs(got, expected, image)


def _of_two_calls(network: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the outputs of two calls: a network may keep something from one to the next."""
    with undone(network, whole=True), undisturbed(network, image.device):
        images = (image.clone(memory_format=torch.preserve_format) for _ in range(2))
        return [output for each in images for output in tensors_in(network(each))]
