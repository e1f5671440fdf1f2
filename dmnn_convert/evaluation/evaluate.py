"""The evaluation of a model on a set of images: accuracy, and the paths of a converted one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import GateMismatchError
from ..flops import FlopsTable
from ..foreign import TakeLogits, images_and_labels, logits_of
from ..nn import controllers, in_evaluation
from ..progress import tracked
from .figures import DenseEvaluation, Evaluation
from .paths import PathRecords
from .scores import Scores
from .seen import OnImages, SeenBatch

OnBatch = Callable[[int], None]


Forward = Callable[[Tensor], Any]


CPU = torch.device("cpu")


def evaluate(
    model: nn.Module,
    table: FlopsTable,
    loader: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    amp_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    progress: bool = False,
    on_batch: OnBatch | None = None,
    on_images: OnImages | None = None,
    logits: TakeLogits = None,
) -> Evaluation:
    """Evaluate a converted model: accuracy, FLOPs of each image, and the paths that images take.

    It runs in evaluation mode without gradients, with the model's own execution; every module's
    mode is put back as it was found. Inside ``with force_gates(model, ...)`` the gates are those.

    In a distributed run every process must call it with its own share of the images (`shard`),
    and every one returns the evaluation of all images.

    Args:
        model: a converted model, which may be wrapped in DistributedDataParallel.
        table: its FLOPs table, for images of the loader's size.
        loader: yields images (B, C, H, W) and integer labels (B,), as a tuple or a dict.
        classes: names of the classes, one for each logit; None numbers them from 0.
        device: where the images go; None for where the model is.
        amp_dtype: dtype of autocast, such as torch.bfloat16; None for no autocast.
        channels_last: whether images go in with channels last in memory.
        progress: whether to show a bar.
        on_batch: called after each batch with the number of images that this process has seen.
        on_images: called after each batch with its images and the model's results.
        logits: key or field of the logits in what the model returns, or a function that takes them
            out of it; None for logits as they are, or under "logits".

    Raises:
        ArgumentError: for a model that is not converted, no images, images of another size than the
            table's, or labels or class names that do not fit the logits.
        GateMismatchError: if the table is another model's.
        RecordingError: if a forward pass does not reach every block.

    Example:
        >>> evaluation = evaluate(model, table, loader)
        >>> evaluation.images, evaluation.blocks
        (32, ('block1', 'block2'))
        >>> small = freeze(model, evaluation)  # the most frequent path as a network of its own
    """
    sizes = controllers(model)[0].chain.sizes
    if sizes != table.sizes:
        raise GateMismatchError(
            f"evaluate: the model has blocks of {list(sizes)} sub-blocks, the table of "
            f"{list(table.sizes)}: give the table that dynamize or load returned with this model."
        )
    place = _place(model, device)
    runner = _Runner("evaluate", place, amp_dtype, channels_last, progress, on_batch, logits)
    scores, paths = Scores("evaluate", classes), PathRecords(table)
    model = _unwrapped(model)
    with in_evaluation(model):
        for images, answers, labels in runner.batches(paths.watching(model), loader):
            scores.add(answers, labels)
            gates, macs = paths.add_latest()
            if on_images is not None:
                on_images(SeenBatch(images, labels, answers, gates, macs + table.fixed))
    dense = scores.figures(runner.seconds, place)
    return paths.figures(dense, scores.everywhere, place)


def evaluate_dense(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    amp_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    progress: bool = False,
    on_batch: OnBatch | None = None,
    on_images: OnImages | None = None,
    logits: TakeLogits = None,
) -> DenseEvaluation:
    """Evaluate any classifier, such as the source of a conversion, as `evaluate` does.

    Args:
        model: returns logits (B, K) of images.
        loader: yields images (B, C, H, W) and integer labels (B,), as a tuple or a dict.
        classes: names of the classes, one for each logit; None numbers them from 0.
        device: where the images go; None for where the model is.
        amp_dtype: dtype of autocast, such as torch.bfloat16; None for no autocast.
        channels_last: whether images go in with channels last in memory.
        progress: whether to show a bar.
        on_batch: called after each batch with the number of images that this process has seen.
        on_images: called after each batch with its images and the model's results.
        logits: key or field of the logits in what the model returns, or a function that takes them
            out of it; None for logits as they are, or under "logits".

    Raises:
        ArgumentError: for no images, or labels or class names that do not fit the logits.

    Example:
        >>> evaluate_dense(source, loader).images
        32
    """
    place = _place(model, device)
    runner = _Runner("evaluate_dense", place, amp_dtype, channels_last, progress, on_batch, logits)
    scores = Scores("evaluate_dense", classes)
    model = _unwrapped(model)
    with in_evaluation(model):
        for images, answers, labels in runner.batches(model, loader):
            scores.add(answers, labels)
            if on_images is not None:
                on_images(SeenBatch(images, labels, answers))
    return scores.figures(runner.seconds, place)


# --- running ----------------------------------------------------------------------------------


def _place(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else CPU


def _unwrapped(model: nn.Module) -> nn.Module:
    # The wrapper's processes wait for each other in every forward pass, also in evaluation, and
    # would wait forever where one of them has a batch more.
    inner: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inner


@dataclass
class _Runner:
    """Runs batches through a forward pass and adds up the time."""

    call: str
    device: torch.device
    amp_dtype: torch.dtype | None
    channels_last: bool
    progress: bool
    on_batch: OnBatch | None
    logits: TakeLogits
    seconds: float = 0.0
    seen: int = 0

    def batches(
        self, forward: Forward, loader: Iterable[Any]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each batch's images, float32 logits (B, K) and labels (B,), these on the CPU."""
        for batch in tracked(loader, self.call, shown=self.progress):
            images, labels = images_and_labels(batch, self.call)
            logits = self._timed(forward, images)
            yield images, logits, labels.cpu()
            self.seen += len(labels)
            if self.on_batch is not None:
                self.on_batch(self.seen)

    def _timed(self, forward: Forward, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        # A copy, because a network may write into its images, and loaders may give theirs again.
        images = images.to(self.device, memory_format=layout, copy=True)
        amp = self.amp_dtype
        autocast = nullcontext() if amp is None else torch.autocast(self.device.type, amp)
        start = time.perf_counter()
        with autocast:
            output = forward(images)
        logits = logits_of(output, len(images), self.call, self.logits)
        # Copying to the CPU waits for the result, on any device.
        logits = logits.float().cpu()
        self.seconds += time.perf_counter() - start
        return logits
