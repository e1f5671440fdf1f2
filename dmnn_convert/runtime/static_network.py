"""Networks without gates in the form that runs fastest in PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import undisturbed
from ..graph import copied, undone
from ..nn import tensors_in
from .careful import careful, is_extraordinary
from .exported import PreparedFor
from .forms import same_outputs
from .graphs import Graphs, can_be_graphed
from .network import packed_graph
from .prepared_model import under_autocast

_log = logging.getLogger(__name__)


class StaticNetwork(PreparedFor):
    """A network without gates, for inference.

    Attributes:
        network: the network that runs.
        layout: memory format of its images.
        graphed: batch sizes that run as CUDA graphs, each captured when it first comes; ascending.
    """

    def __init__(
        self,
        network: nn.Module,
        layout: torch.memory_format,
        image: Tensor,
        graphed: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.network, self.layout, self._like = network, layout, image[:0]
        self.graphed, self.graphs = tuple(graphed), Graphs()
        self.eval()

    def forward(self, images: Tensor) -> Any:
        """Return the outputs of the original network for images (B, C, H, W)."""
        self.check_not_exported()
        self.check_images(images)
        laid_out = images.contiguous(memory_format=self.layout)
        if self._has_graph_for(laid_out):
            with torch.no_grad():
                return self.graphs.run(tuple(laid_out.shape), self.network, laid_out)
        if not is_extraordinary(laid_out):
            return self.network(laid_out)
        with careful():
            return self.network(laid_out)

    def _has_graph_for(self, images: Tensor) -> bool:
        known = len(images) in self.graphed and images.shape[1:] == self._like.shape[1:]
        return known and not under_autocast(images.device.type)


class Padded(nn.Module):
    """A network that sees batches of few sizes, for each of which it can hold a CUDA graph.

    The larger networks of a cascade get another number of images in each batch. Copies of the last
    image fill a batch up; their answers are dropped.

    Attributes:
        network: answers with a tensor (B, ...), for each image alone.
        sizes: of batches, ascending; larger ones pass as they are.
    """

    def __init__(self, network: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.network, self.sizes = network, tuple(sizes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's answers to images (B, C, H, W)."""
        count = len(images)
        missing = next((size - count for size in self.sizes if size >= count), 0)
        if missing:
            images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        answers: Tensor = self.network(images)
        return answers[:count]


def graph_sizes(sizes: Sequence[int]) -> list[int]:
    """Return batch sizes, and smaller ones in steps of at most a half: 1, 2, 3, 4, 6, 8, 12, ..."""
    largest = max(sizes)
    powers = [2**i for i in range(largest.bit_length())]
    steps = {step for power in powers for step in (power, power * 3 // 2)}
    return sorted({*sizes, *(step for step in steps if step <= largest)})


def static_network(network: nn.Module, image: Tensor, sizes: Sequence[int] = (1,)) -> StaticNetwork:
    """Return a network without gates in the form that runs fastest on images (1, C, H, W).

    A network that cannot be traced, or whose outputs would differ, runs as it is. On a GPU, batches
    of these sizes, and of `graph_sizes` below them, run as CUDA graphs if the network can be one.
    """
    laid_out = image.contiguous(memory_format=torch.channels_last)
    graph = packed_graph(network, laid_out)
    if graph is not None and _agrees(graph, laid_out, network, image):
        on_gpu = image.device.type == "cuda"
        graphed = graph_sizes(sizes) if on_gpu and can_be_graphed(graph, laid_out) else ()
        return StaticNetwork(graph, torch.channels_last, image, graphed)
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
