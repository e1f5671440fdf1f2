"""Calibration: images for int8, and the thresholds of a cascade fitted again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..budget import AllAnswers, Cascade, best_thresholds, confidence_in, figures_at
from ..dryrun import measure
from ..errors import ArgumentError
from ..foreign import images_and_labels

_CALL = "deploy(calibration=...)"


class Calibration(NamedTuple):
    """Images to calibrate with.

    Attributes:
        batches: images (B, C, H, W) each.
        labels: (M,) of all of them; empty where the loader has none.
    """

    batches: list[Tensor]
    labels: Tensor


def calibration_of(loader: Iterable[Any] | None, example: Tensor, *, labelled: bool) -> Calibration:
    """Return the images of a loader, checked.

    Args:
        loader: yields images (B, C, H, W), or these with labels (B,).
        example: images of the size and dtype that they must have.
        labelled: whether labels are needed.

    Raises:
        ArgumentError: if there are no images, or they are not like the example, or lack labels.
    """
    if loader is not None and not isinstance(loader, Iterable):
        raise ArgumentError(f"{_CALL}: got {type(loader).__name__}; give a loader of images.")
    batches: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in loader if loader is not None else ():
        if labelled or isinstance(batch, tuple | list):
            images, own = images_and_labels(batch, _CALL)
            labels.append(own.cpu())
        else:
            images = batch
        batches.append(_checked(images, example))
    if not sum(map(len, batches)):
        raise ArgumentError(
            f"{_CALL}: int8 needs images, a few hundred like those to come; give a loader of "
            "batches (B, C, H, W), with labels (B,) for a cascade."
        )
    return Calibration(batches, torch.cat(labels) if labels else torch.zeros(0))


def _checked(images: Any, example: Tensor) -> Tensor:
    like = isinstance(images, Tensor) and images.shape[1:] == example.shape[1:]
    if not like or images.dtype != example.dtype or not images.isfinite().all():
        got = type(images).__name__
        if isinstance(images, Tensor):
            finite = "" if images.isfinite().all() else ", not all finite"
            got = f"{tuple(images.shape)} of {images.dtype}{finite}"
        raise ArgumentError(
            f"{_CALL}: the loader yields {got}; give images like the example, (B, "
            f"{', '.join(map(str, example.shape[1:]))}) of {example.dtype}, preprocessed."
        )
    checked: Tensor = images.detach().cpu().contiguous()
    return checked


def refitted(
    cascade: Cascade, before: Sequence[Tensor], after: Sequence[Tensor], labels: Tensor, size: Any
) -> tuple[float, ...]:
    """Return the best thresholds for other answers, at the FLOPs that the cascade takes now.

    Args:
        cascade: whose thresholds are fitted again.
        before: the logits (M, K) of each of its networks on the calibration images.
        after: those of the networks that take their place.
        labels: (M,).
        size: (C, H, W) of an image.

    Raises:
        ArgumentError: for labels of other classes.
    """
    classes = before[0].shape[1]
    least, largest = (int(end) for end in labels.aminmax())
    if least < 0 or largest >= classes:
        raise ArgumentError(
            f"{_CALL}: labels go from {least} to {largest}, the networks return {classes} logits."
        )
    macs = [measure(network, size).macs[""] for network in cascade.networks]
    everyone = range(len(macs))

    def answers_of(logits: Sequence[Tensor]) -> Any:
        sure = [confidence_in(each, cascade.confidence, len(labels)) for each in logits]
        return AllAnswers(list(logits), sure, labels, macs).answers(everyone, mean=cascade.mean)

    budget = figures_at(answers_of(before), cascade.thresholds.tolist()).macs
    best = best_thresholds(answers_of(after), budget)
    return tuple(cascade.thresholds.tolist()) if best is None else best.thresholds
