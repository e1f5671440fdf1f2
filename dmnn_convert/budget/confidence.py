"""Confidence in an answer, by which a cascade decides whether to ask a larger network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..foreign import logits_in

Confidence = Callable[[Any], Tensor]


def margin(logits: Tensor) -> Tensor:
    """Return the largest probability minus the second largest, (B,), of logits (B, K)."""
    first, second = logits.float().softmax(-1).topk(2, -1).values.unbind(-1)
    return first - second


def certainty(logits: Tensor) -> Tensor:
    """Return one minus the entropy over its maximum, (B,), of logits (B, K)."""
    p = logits.float().softmax(-1)
    sure: Tensor = 1 - torch.special.entr(p).sum(-1) / torch.tensor(float(p.shape[-1])).log()
    return sure


CONFIDENCES: dict[str, Confidence] = {"margin": margin, "entropy": certainty}
"""Measures of confidence by name: large where an answer can be trusted."""


def answer_of(output: Any, measure: str | Confidence) -> Any:
    """Return the answer in a network's output: its logits, or everything for a user's function."""
    return output if callable(measure) else logits_in(output)


def confidence_in(answer: Any, measure: str | Confidence, images: int) -> Tensor:
    """Return the confidence in a network's answer for each image, (images,) float32.

    Args:
        answer: the network's output.
        measure: "margin", "entropy", or a function of the answer.
        images: number of images.

    Raises:
        ArgumentError: for an answer that is not logits, where no function is given, or a function
            that does not return one number per image.
    """
    if not callable(measure):
        is_logits = isinstance(answer, Tensor) and answer.dim() == 2 and answer.shape[1] > 1
        if not is_logits:
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ArgumentError(
                f"Cascade(confidence={measure!r}): the network returned {got} for {images} images, "
                "not logits (B, classes); give confidence= a function of what it returns, with one "
                "number for each image."
            )
        measure = CONFIDENCES[measure]
    found = measure(answer)
    if not isinstance(found, Tensor) or found.shape != (images,):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ArgumentError(
            f"Cascade(confidence=...): the function returned {got} for {images} images; it must "
            f"return a tensor ({images},), one number for each image."
        )
    return found.detach().float()


def checked_confidence(measure: str | Confidence) -> str | Confidence:
    """Return a measure of confidence.

    Raises:
        ArgumentError: for a name that is not known.
    """
    if callable(measure) or measure in CONFIDENCES:
        return measure
    raise ArgumentError(
        f"Cascade(confidence={measure!r}): choose one of {', '.join(map(repr, CONFIDENCES))}, or "
        "give a function of a network's answer."
    )
