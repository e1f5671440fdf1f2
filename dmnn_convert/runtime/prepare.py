"""`prepare`: a converted model in the form that runs fastest on this machine."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..budget import Cascade
from ..errors import ArgumentError
from ..graph import copied, undone
from ..nn import GateController, attach, conversion_of, strip_category_heads
from ..text import first_line
from .alone import ENGINES
from .forms import branches_rightly, fastest_form
from .graphs import can_be_graphed
from .prepared_cascade import PreparedCascade, prepared_cascade, prepared_networks
from .prepared_model import PreparedModel, layout_of, with_threads
from .tuning import fastest, name_of, tune
from .workers import is_divisible

_log = logging.getLogger(__name__)


@overload
def prepare(
    model: Cascade,
    example_input: Tensor,
    *,
    engine: str = ...,
    batch_sizes: Sequence[int] = ...,
    threads: int | None = ...,
    autotune: bool = ...,
) -> PreparedCascade: ...


@overload
def prepare(
    model: nn.Module,
    example_input: Tensor,
    *,
    engine: str = ...,
    batch_sizes: Sequence[int] = ...,
    threads: int | None = ...,
    autotune: bool = ...,
) -> nn.Module: ...


def prepare(
    model: nn.Module,
    example_input: Tensor,
    *,
    engine: str = "auto",
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    autotune: bool = True,
) -> nn.Module:
    """Return a converted model, or a cascade, in the form that runs fastest on this machine.

    Batch norms are folded into convolutions, whose weights are laid out once; activations and
    residual sums are fused; sub-blocks that run together run as one. In a batch, each block takes
    the cheapest way for its gates: by subset, image by image, or all of it masked. If it measures
    faster, the whole network runs image by image instead, on a thread each. On a GPU it skips if
    that measures faster, a single image perhaps as a CUDA graph whose gates are conditional nodes;
    else it runs masked, as one CUDA graph if possible, and warns that this saves nothing. The
    outputs are the model's within float rounding, for every gate pattern and batch size.

    A network without gates (a frozen one, the source) gets the same form, or becomes a session of
    ONNX Runtime or OpenVINO if these are installed and measure faster. On a GPU it runs as a CUDA
    graph, up to the largest of `batch_sizes`. In a cascade, every level does; a GPU's larger ones
    get batches of few sizes, filled up with copies of an image. The cascade answers as before, and
    `record_exits` works on it.

    Args:
        model: converted, a cascade, or a network without gates, in evaluation mode; it stays as it
            is.
        example_input: images (B, C, H, W) of the size, dtype and device to run on. Other sizes
            work, with costs that are guessed; on a GPU masked, without a graph.
        engine: "auto", "torch", "onnxruntime" or "openvino". Gates run in PyTorch alone: freeze a
            level, or make a cascade, to run in another. Engines run float32 on the CPU, and
            OpenVINO bfloat16 where the processor has it.
        batch_sizes: sizes to measure; others work as images of other sizes do. Measurements
            are kept on disk ($DMNN_CONVERT_CACHE, or in the user's cache folder).
        threads: to measure and to run with; None for as many as PyTorch is set to.
        autotune: measure; False takes guessed costs for all, on a GPU never skips, and takes
            PyTorch for "auto".

    Raises:
        ArgumentError: if the model is in training mode, arguments do not fit, or the engine is not
            installed or does not run the network.

    Example:
        >>> fast = prepare(model, images[:1], autotune=False)
        >>> torch.allclose(fast(images), model(images), atol=1e-5)
        True
    """
    _check(model, example_input, batch_sizes, threads)
    gated = not isinstance(model, Cascade) and any(
        isinstance(module, GateController) for module in model.modules()
    )
    _check_engine(engine, model, gated=gated)
    if not gated:
        model = copied(model)
        _try(model, example_input[:1])
        image = example_input[:1].clone(memory_format=torch.contiguous_format)
        engine = "torch" if engine == "auto" and not autotune else engine
        if isinstance(model, Cascade):
            return prepared_cascade(model, image, threads, engine, batch_sizes)
        return prepared_networks([model], image, threads, engine, batch_sizes)[0]
    return prepared_model(model, example_input, batch_sizes, threads, autotune=autotune)


def prepared_model(
    model: nn.Module,
    images: Tensor,
    batch_sizes: Sequence[int],
    threads: int | None,
    *,
    autotune: bool = True,
) -> PreparedModel:
    """Return a converted model, in evaluation, as `prepare` does for images (B, C, H, W)."""
    own = copied(model)
    _try(own, images[:1])
    strip_category_heads(own)
    with with_threads(threads):
        network, image, fixed = fastest_form(
            own, images[:1].clone(memory_format=torch.contiguous_format)
        )
        conversion = conversion_of(model)
        if conversion is not None:
            attach(network, *conversion)
        prepared = PreparedModel(network, threads, image, fixed)
        choose = _choose_on_cpu if image.device.type == "cpu" else _choose_elsewhere
        with undone(network, whole=True):
            choose(prepared, image, sorted(set(batch_sizes)), autotune=autotune)
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
        ways = {**still, **_skipping_ways(prepared, images)} if autotune else still
        if autotune and size > 1:
            tune(prepared.network, images)
        way = fastest(prepared.network, images, ways)
        prepared.ways[tuple(images.shape)] = way
        if autotune and way in still:
            _log.warning(
                "prepare: with %s on %s skipping takes longer than computing everything; such "
                "batches run masked, and save no time.",
                "1 image" if size == 1 else f"{size} images",
                name_of(image.device),
            )


_Ways = dict[str, Callable[[Tensor], Any]]


def _skipping_ways(prepared: PreparedModel, images: Tensor) -> _Ways:
    """Return the ways on a GPU in which sub-blocks that are off do not run."""
    ways: _Ways = {"together": prepared.run_together}
    if len(images) == 1 and images.device.type == "cuda" and branches_rightly(prepared, images):
        ways["branched"] = prepared.run_branch_graph
    return ways


def _repeated(image: Tensor, count: int) -> Tensor:
    return image.repeat(count, 1, 1, 1).contiguous(memory_format=layout_of(image))


def _try(model: nn.Module, images: Tensor) -> None:
    try:
        with undone(model, whole=True), torch.no_grad():
            model(images.clone())
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"prepare: the model does not run on example_input, {tuple(images.shape)} of "
            f"{images.dtype} ({first_line(error)}); give images as it takes them, or prepare a "
            "module whose forward takes the images alone."
        ) from error


def _check_engine(engine: str, model: nn.Module, *, gated: bool) -> None:
    known = ("auto", "torch", *ENGINES)
    if engine not in known:
        raise ArgumentError(f"prepare(engine={engine!r}): choose one of {', '.join(known)}.")
    if gated and engine in ENGINES:
        raise ArgumentError(
            f"prepare(engine={engine!r}): {type(model).__name__} has gates, which run in PyTorch; "
            "prepare a level of it, freeze(model, 0.5), or a Cascade."
        )


def _check(model: nn.Module, images: Any, batch_sizes: Sequence[int], threads: int | None) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"prepare({type(model).__name__}): give a model, an nn.Module.")
    if any(module.training for module in model.modules()):
        raise ArgumentError(
            f"prepare({type(model).__name__}): the model is in training mode, in which norms and "
            "gates work otherwise; call model.eval() first."
        )
    if not isinstance(images, Tensor) or images.dim() != 4 or len(images) == 0:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ArgumentError(f"prepare(example_input={got}): give images (B, C, H, W).")
    held = next(itertools.chain(model.parameters(), model.buffers()), images)
    device = held.device
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
