"""The figures of an explanation: an evaluation, and the cost of its images."""

from __future__ import annotations

from typing import NamedTuple

from ..evaluation import DenseEvaluation, Evaluation
from .image_sums import ImageSums


class ExitFigures(NamedTuple):
    """The answers of one network of a cascade.

    Attributes:
        share: of the images.
        top1: of these, percent; None if there are none.
        flops_ratio: mean FLOPs of these, of all networks that they asked, over the source's.
    """

    share: float
    top1: float | None
    flops_ratio: float | None


class Explanation(NamedTuple):
    """An evaluation, with the cost of single images.

    Attributes:
        evaluation: of all processes' images.
        flops_ratio: mean FLOPs of an image over the source's.
        exits: of a cascade's networks, from the cheapest; empty for gates.
    """

    evaluation: Evaluation | DenseEvaluation
    flops_ratio: float
    exits: tuple[ExitFigures, ...]


def figures_of(
    found: Evaluation | DenseEvaluation, sums: ImageSums, *, cascade: bool
) -> Explanation:
    """Return the figures of the sums over all processes' images."""
    images, _, ratios = sums.by_class[:, :3].sum(0).tolist()
    exits: list[ExitFigures] = []
    if cascade:
        counts = sums.by_class[:, 3:].sum(0).tolist()
        for count, (right, ratio) in zip(counts, sums.by_column.tolist(), strict=True):
            own = (100 * right / count, ratio / count) if count else (None, None)
            exits.append(ExitFigures(count / images, *own))
    return Explanation(found, ratios / images, tuple(exits))
