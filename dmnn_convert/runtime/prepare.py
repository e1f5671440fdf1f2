"""`prepare`: a converted model in the form that runs fastest on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..graph import copied
from ..nn import GivenGates, controllers, given_gates, strip_category_heads
from .careful import careful, is_extraordinary
from .forms import fastest_form
from .graphs import Graphs, can_be_graphed
from .tuning import fastest, name_of, tune, warm_up
from .workers import Workers, is_divisible

_log = logging.getLogger(__name__)


class PreparedModel(nn.Module):
    """A converted model for inference; `record_paths` and `force_gates` work on it.

    Attributes:
        network: what runs; convolutions are packed, and blocks skip.
        threads: with how many threads it runs; None for as many as PyTorch is set to.
        ways: by input size (B, C, H, W), the way that it takes: "together", "apart" (image by
            image), "masked" or "graphed". Other sizes run together on a CPU, and masked elsewhere:
            to ask for gates there costs more than guesses may promise.
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
        self.layout = _layout_of(example)
        self.workers = Workers(threads or torch.get_num_threads())
        self.graphs = Graphs()
        self.chain = controllers(network)[0].chain
        self._like = torch.empty(0, dtype=example.dtype, device=example.device)
        self.eval()

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the model that this was made from returns for images (B, C, H, W).

        Raises:
            ArgumentError: if they are not such images, or of another device or dtype, or if an
                argument is not the default that the network was prepared with.
        """
        self._check(images)
        self._check_fixed(args, kwargs)
        laid_out = images.contiguous(memory_format=self.layout)
        # A record wants the gates of the whole batch at once, and of this very pass.
        watched = self.chain.recorder is not None
        plain = not (args or kwargs or watched or _under_autocast(images.device.type))
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
            if way in ("graphed", "masked"):
                return self.run_masked(laid_out, *args, **kwargs)
            return self.run_together(laid_out, *args, **kwargs)

    def run_together(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run a batch (B, C, H, W), channels last, layer by layer."""
        self.chain.current().pooled = None
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

    def run_graphed(self, images: Tensor) -> Tensor:
        """Do what `run_masked` does, as a CUDA graph."""
        forcing, sizes = self.chain.forcing, self.chain.sizes
        if forcing is None:
            return self.graphs.run(tuple(images.shape), self.run_masked, images)
        given = torch.cat([*given_gates(forcing, len(images), sizes).parts], 1).to(images.device)
        return self.graphs.run((tuple(images.shape), "forced"), self._run_given, images, given)

    def _run_given(self, images: Tensor, gates: Tensor) -> Tensor:
        with self.chain.forced(GivenGates(gates.split(self.chain.sizes, 1))):
            logits: Tensor = self.run_masked(images)
        return logits

    def _check(self, images: Any) -> None:
        if not isinstance(images, Tensor) or images.dim() != 4:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ArgumentError(f"the prepared model got {got}; give images (B, C, H, W).")
        like = self._like
        if (images.device, images.dtype) != (like.device, like.dtype):
            raise ArgumentError(
                f"the prepared model is for {like.dtype} on {like.device}, the images are "
                f"{images.dtype} on {images.device}; give "
                f"images.to({str(like.device)!r}, {like.dtype}), or prepare it for these."
            )

    def _check_fixed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = {**dict(zip(self.fixed, args, strict=False)), **kwargs}
        for name, default in self.fixed.items():
            value = given.get(name, default)
            if value is not default and (isinstance(value, Tensor) or value != default):
                raise ArgumentError(
                    f"the prepared model got {name}=, but runs with {name}={default!r} only, as "
                    f"it was prepared; call the model that it was made from with another {name}."
                )

    def train(self, mode: bool = True) -> PreparedModel:
        """Stay in evaluation.

        Raises:
            ArgumentError: if training is asked for.
        """
        if mode:
            raise ArgumentError(
                "a prepared model cannot be trained: its norms are folded away; train the model "
                "that it was made from, and prepare that again."
            )
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PreparedModel:
        moved = fn(self._like)
        if (moved.device, moved.dtype) != (self._like.device, self._like.dtype):
            raise ArgumentError(
                "a prepared model stays on its device and in its dtype, which its weights are "
                "laid out for; move the model that it was made from, and prepare that."
            )
        return self


def _layout_of(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _under_autocast(device_type: str) -> bool:
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


def prepare(
    model: nn.Module,
    example_input: Tensor,
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    autotune: bool = True,
) -> PreparedModel:
    """Return a converted model in the form that runs fastest on this machine.

    Batch norms are folded into convolutions, whose weights are laid out once; activations and
    residual sums are fused; sub-blocks that run together run as one. In a batch, each block takes
    the cheapest way for the gates at hand: by subset, image by image, or all of it masked; or the
    whole network runs image by image, on a thread each, where that was measured to be faster. On a
    GPU it skips where that was measured to be faster; else it runs masked, as one CUDA graph where
    it can, and says that this saves nothing. The outputs are the model's within float rounding, for
    every gate pattern and batch size.

    Args:
        model: converted, in evaluation mode; it stays as it is.
        example_input: images (B, C, H, W) of the size, dtype and device to run on. Other sizes
            work, with costs that are guessed; on a GPU masked, without a graph.
        batch_sizes: to measure the ways for; others work as images of other sizes do. Measurements
            are kept on disk ($DMNN_CONVERT_CACHE, or in the user's cache folder).
        threads: to measure and to run with; None for as many as PyTorch is set to.
        autotune: measure; False takes guessed costs for all, and on a GPU never skips.

    Raises:
        ArgumentError: if the model is not converted or in training mode, or arguments do not fit.
    """
    _check(model, example_input, batch_sizes, threads)
    own = copied(model)
    _try(own, example_input[:1])
    strip_category_heads(own)
    with with_threads(threads):
        network, images, fixed = fastest_form(own, example_input[:1].contiguous())
        for name in ("dmnn_table", "dmnn_config"):
            if name in vars(model):
                setattr(network, name, vars(model)[name])
        warm_up(network, images)
        prepared = PreparedModel(network, threads, images, fixed)
        choose = _choose_on_cpu if images.device.type == "cpu" else _choose_elsewhere
        choose(prepared, images, sorted(set(batch_sizes)), autotune=autotune)
    return prepared


def _choose_on_cpu(
    prepared: PreparedModel, image: Tensor, sizes: Sequence[int], *, autotune: bool
) -> None:
    """Find the ways to run batches of images like one (1, C, H, W) on the CPU."""
    batches = [size for size in sizes if size > 1] if autotune else []
    ways: _Ways = {"together": prepared.run_together}
    if batches and is_divisible(prepared.run_together, image):
        ways["apart"] = prepared.run_per_image
    for size in batches:
        images = _repeated(image, size)
        tune(prepared.network, images)
        prepared.ways[tuple(images.shape)] = fastest(prepared.network, images, ways)


def _choose_elsewhere(
    prepared: PreparedModel, image: Tensor, sizes: Sequence[int], *, autotune: bool
) -> None:
    """Find the ways to run batches of images like one (1, C, H, W) on a GPU."""
    still: _Ways = {"masked": prepared.run_masked}
    if image.device.type == "cuda" and can_be_graphed(prepared.run_masked, image):
        still = {"graphed": prepared.run_graphed}
    for size in sizes:
        images = _repeated(image, size)
        ways = {**still, "together": prepared.run_together} if autotune else still
        if autotune and size > 1:
            tune(prepared.network, images)
        way = fastest(prepared.network, images, ways)
        prepared.ways[tuple(images.shape)] = way
        if autotune and way != "together":
            _log.warning(
                "prepare: with %s on %s skipping takes longer than computing everything; such "
                "batches run masked, and save no time.",
                "1 image" if size == 1 else f"{size} images",
                name_of(image.device),
            )


_Ways = dict[str, Callable[[Tensor], Any]]


def _repeated(image: Tensor, count: int) -> Tensor:
    return image.repeat(count, 1, 1, 1).contiguous(memory_format=_layout_of(image))


def _try(model: nn.Module, images: Tensor) -> None:
    try:
        with torch.no_grad():
            model(images)
    except RuntimeError as error:
        raise ArgumentError(
            f"prepare: the model does not run on example_input, {tuple(images.shape)} of "
            f"{images.dtype} ({str(error).splitlines()[0]}); give images as it takes them."
        ) from error


def _check(model: nn.Module, images: Any, batch_sizes: Sequence[int], threads: int | None) -> None:
    controllers(model)
    if any(module.training for module in model.modules()):
        raise ArgumentError(
            f"prepare({type(model).__name__}): the model is in training mode, in which norms and "
            "gates work otherwise; call model.eval() first."
        )
    if not isinstance(images, Tensor) or images.dim() != 4 or len(images) == 0:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ArgumentError(f"prepare(example_input={got}): give images (B, C, H, W).")
    device = next(model.parameters()).device
    if images.device != device:
        raise ArgumentError(
            f"prepare: the model is on {device}, example_input on {images.device}; give images on "
            "the model's device, or move the model first."
        )
    if isinstance(batch_sizes, int):
        raise ArgumentError(f"prepare(batch_sizes={batch_sizes}): give ints, ({batch_sizes},).")
    if not batch_sizes or not all(isinstance(b, int) and b >= 1 for b in batch_sizes):
        raise ArgumentError(f"prepare(batch_sizes={batch_sizes!r}): give ints >= 1.")
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise ArgumentError(f"prepare(threads={threads!r}): give an int >= 1, or None.")
