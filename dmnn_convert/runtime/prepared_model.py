"""A prepared model: a network in its fast form, and how each size of batch runs through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..nn import GivenGates, controllers, given_gates
from .careful import careful, is_extraordinary
from .decision import forget_means
from .exported import PreparedFor
from .graphs import Graphs
from .workers import Workers


class PreparedModel(PreparedFor):
    """A converted model for inference; `record_paths` and `force_gates` work on it.

    Attributes:
        network: the network that runs; convolutions are packed, and blocks skip.
        threads: with how many threads it runs; None for as many as PyTorch is set to.
        ways: by input size (B, C, H, W), the way that it takes: "together", "apart" (image by
            image), "masked", "graphed" or "branched". Other sizes run together on a CPU, and masked
            elsewhere, where reading gates may cost more than guesses promise.
        fixed: arguments besides the images that the network takes at their defaults only.
    """

    def __init__(
        self,
        network: nn.Module,
        threads: int | None,
        example: Tensor,
        fixed: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.network, self.threads, self.fixed = network, threads, dict(fixed)
        self.ways: dict[tuple[int, ...], str] = {}
        self.default = "together" if example.device.type == "cpu" else "masked"
        self.layout = layout_of(example)
        self.workers = Workers(threads or torch.get_num_threads())
        self.graphs = Graphs()
        self.chain = controllers(network)[0].chain
        self._like = example[:0]
        self.eval()

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the original model for images (B, C, H, W).

        Raises:
            ArgumentError: if they are not such images, or of another device or dtype, or if an
                argument is not the default that the network was prepared with.
        """
        self.check_not_exported()
        self.check_images(images)
        self._check_fixed(args, kwargs)
        laid_out = images.contiguous(memory_format=self.layout)
        # A record needs the gates of the whole batch at once, and of this very pass.
        watched = self.chain.recorder is not None
        plain = not (args or kwargs or watched or under_autocast(images.device.type))
        with torch.no_grad(), with_threads(self.threads):
            if is_extraordinary(laid_out):
                with careful():
                    return self.run_together(laid_out, *args, **kwargs)
            as_measured = torch.get_num_threads() == self.workers.count
            way = self.ways.get(tuple(images.shape), self.default)
            if way == "apart" and plain and as_measured:
                return self.run_per_image(laid_out)
            if way == "graphed" and plain:
                return self.run_graphed(laid_out)
            if way == "branched" and plain:
                return self.run_branch_graph(laid_out)
            if way in ("graphed", "branched", "masked"):
                return self.run_masked(laid_out, *args, **kwargs)
            return self.run_together(laid_out, *args, **kwargs)

    def run_together(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run a batch (B, C, H, W), channels last, layer by layer."""
        forget_means(self.chain.current())
        return self.network(images, *args, **kwargs)

    def run_per_image(self, images: Tensor) -> Tensor:
        """Run a batch (B, C, H, W), channels last, image by image, several at a time."""
        forcing, sizes = self.chain.forcing, self.chain.sizes
        given = None if forcing is None else given_gates(forcing, len(images), sizes)

        def run(image: Tensor, i: int) -> Tensor:
            with torch.no_grad(), self.chain.forced(given and given.of_image(i)):
                logits: Tensor = self.run_together(image)
            return logits

        return self.workers.map(run, images)

    def run_masked(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run a batch (B, C, H, W), channels last, through all sub-blocks, times their gates."""
        current = self.chain.current()
        before, current.masked = current.masked, True
        try:
            return self.network(images, *args, **kwargs)
        finally:
            current.masked = before

    def run_branched(self, image: Tensor) -> Tensor:
        """Run one image (1, C, H, W), channels last; its blocks branch without reading gates."""
        current = self.chain.current()
        before, current.branched = current.branched, True
        try:
            logits: Tensor = self.network(image)
        finally:
            current.branched = before
        return logits

    def run_graphed(self, images: Tensor) -> Tensor:
        """Do what `run_masked` does, as a CUDA graph."""
        return self._as_graph(self.run_masked, images)

    def run_branch_graph(self, image: Tensor) -> Tensor:
        """Do what `run_branched` does, as a CUDA graph with a conditional node for each gate."""
        return self._as_graph(self.run_branched, image, branches=True)

    def _as_graph(
        self, run: Callable[[Tensor], Tensor], images: Tensor, *, branches: bool = False
    ) -> Tensor:
        forcing, sizes = self.chain.forcing, self.chain.sizes
        key = tuple(images.shape), branches
        if forcing is None:
            return self.graphs.run(key, run, images, branches=branches)

        def given_run(images: Tensor, gates: Tensor) -> Tensor:
            with self.chain.forced(GivenGates(gates.split(sizes, 1))):
                return run(images)

        given = torch.cat([*given_gates(forcing, len(images), sizes).parts], 1).to(images.device)
        return self.graphs.run((key, "forced"), given_run, images, given, branches=branches)

    def _check_fixed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = {**dict(zip(self.fixed, args, strict=False)), **kwargs}
        for name, default in self.fixed.items():
            value = given.get(name, default)
            if value is not default and (isinstance(value, Tensor) or value != default):
                raise ArgumentError(
                    f"the prepared model got {name}=, but runs with {name}={default!r} only, as "
                    f"it was prepared; call the model that it was made from with another {name}."
                )


def layout_of(images: Tensor) -> torch.memory_format:
    """Return how images (B, C, H, W) lie in memory."""
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def under_autocast(device_type: str) -> bool:
    """Return whether a pass now runs in mixed precision."""
    has_it = torch.amp.is_autocast_available(device_type)
    return has_it and torch.is_autocast_enabled(device_type)


@contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use that many threads inside the block; None for as many as it is set to."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
